"""How contbak writes rows into lmdb so that damage shows: the form that `kv` writes and `kvcheck` verifies.

    row    key -> value, CRC-32 (4 bytes, little-endian) over key and value, started at the table's seed
    sums   in the table `_sums`: name of a table -> rows and sum of its rows; `=txn` -> number of the transaction
    tip    a file beside the data: the number of the last transaction that was told to anyone
    end    a file beside the data, from an orderly close to the next open: what the data file's stat was then, and
           when all of it was examined last

A CRC tells that a row is not what was written, a sum that rows have vanished or are stale, the tip that a whole
transaction is missing.  All of it is against accidents: whoever can write the file can also forge these.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass

SOUND = 0
DAMAGED = 20
NEVER_BORN = 21
"""Exit codes of kvcheck.  NEVER_BORN: the file ends before its first transaction, as when its making was cut short."""

DATA_FILE = "data.mdb"
TIP_FILE = "tip"
END_FILE = "end"

SUMS = b"_sums"
TXN_KEY = b"=txn"
TXN = struct.Struct("<Q")
ROW_SUM = struct.Struct("<QQ")
"""Rows of the table, XOR of the `fingerprint`s of their CRCs."""

CRC_LEN = 4
SEALED = 0x2144DF1C
"""The CRC-32 of any bytes that end in their own CRC-32."""

_TIP = struct.Struct("<QI")
_END = struct.Struct("<QqqQd")


def row_seed(table: bytes) -> int:
    """Where the CRC of the rows of a table starts, so that no row fits another table."""
    return zlib.crc32(table)


def sealed(value: bytes, key: bytes, seed: int) -> bytes:
    """`value` as it is stored under `key`."""
    return value + zlib.crc32(value, zlib.crc32(key, seed)).to_bytes(CRC_LEN, "little")


def is_sealed(stored: bytes, key: bytes, seed: int) -> bool:
    """Whether `stored` is what was once stored under `key`."""
    return zlib.crc32(stored, zlib.crc32(key, seed)) == SEALED


def fingerprint(stored: bytes) -> int:
    """The part of a stored row in the sum of its table, 64 bits.

    The CRC squared, because XOR cancels what is linear: two counters set back by the same step would go unseen.
    """
    crc = int.from_bytes(stored[-CRC_LEN:], "little")
    return crc * crc


def build_tip(txn: int) -> bytes:
    """The content of the tip."""
    number = TXN.pack(txn)
    return _TIP.pack(txn, zlib.crc32(number))


def parse_tip(raw: bytes) -> int | None:
    """The number of the transaction; None if the tip is torn, which an unsynced one may be after a power cut."""
    if len(raw) != _TIP.size:
        return None
    txn, crc = _TIP.unpack(raw)
    return int(txn) if zlib.crc32(raw[: TXN.size]) == crc else None


@dataclass(frozen=True, slots=True)
class End:
    """How a data file was left: size, mtime and ctime (ns), inode number; seconds since 1970 of its examination."""

    size: int
    mtime_ns: int
    ctime_ns: int
    inode: int
    examined_s: float

    def build(self) -> bytes:
        """The content of the file."""
        raw = _END.pack(self.size, self.mtime_ns, self.ctime_ns, self.inode, self.examined_s)
        return raw + zlib.crc32(raw).to_bytes(CRC_LEN, "little")

    @classmethod
    def parse(cls, raw: bytes) -> End | None:
        """None if the file is torn."""
        if len(raw) != _END.size + CRC_LEN or zlib.crc32(raw[:-CRC_LEN]).to_bytes(CRC_LEN, "little") != raw[-CRC_LEN:]:
            return None
        return cls(*_END.unpack(raw[:-CRC_LEN]))
