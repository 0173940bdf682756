"""The proof that a copy of one name is the name as it is: the stat that the copy was made from.

Packed, as it is stored: 8 bytes directory id (zeros for anything else), 1 byte whether it is a directory, and the
fingerprint.  It knows no tables: contbak.capture.proofs keeps them.
"""

from __future__ import annotations

import stat
import struct
from typing import NamedTuple

from contbak.capture.sqlite import REFUSED
from contbak.capture.whereabouts import Mark
from contbak.core.names import TOP_DIR

RACY_NS = 20_000_000
"""No clock that stamps files ticks slower than this."""
_FILE = struct.Struct("<3I6Q")
_DIRECTORY = struct.Struct("<3I3Q")
_DIRECTORY_CTIME_END = 27

PACKED_FILE = struct.Struct("<9x3IQ2q3Q")
"""The packed proof of what is no directory, from its stat: mode, uid, gid, size, mtime, ctime (ns), inode number,
links, device.  The same bytes as `pack` makes of its fingerprint, in one step, because a scan makes one per name.  It
cannot take times beyond 64 bits, which the fingerprint cuts off."""
_HEAD = 9
_MODE_AND_SIZE = struct.Struct("<9xI8xQ")
_LINKS = slice(53, 61)
_ONE_LINK = (1).to_bytes(8, "little")


class Proof(NamedTuple):
    """The stat (a fingerprint of capture.attributes) that the copy of one name was made from.

    That of a database in use is followed by a mark of the files beside it (capture.sqlite).
    `directory`: the directory's own id, b"" for anything else.
    """

    fingerprint: bytes
    directory: bytes = b""

    @property
    def mode(self) -> int:
        """st_mode."""
        return int.from_bytes(self.fingerprint[:4], "little")

    @property
    def size(self) -> int:
        """Bytes of a regular file, 0 for anything else."""
        return _FILE.unpack_from(self.fingerprint)[3] if stat.S_ISREG(self.mode) else 0

    @property
    def in_use(self) -> bool:
        """Whether it is of a database that was in use when it was copied."""
        return len(self.fingerprint) > _FILE.size

    def shows(self, now: bytes) -> bool:
        """Whether nothing has changed if the fingerprint is `now`."""
        return self.fingerprint == now or (self.refused and self.fingerprint == now + REFUSED)

    @property
    def refused(self) -> bool:
        """Whether it is of one of which SQLite made no copy."""
        return self.fingerprint[_FILE.size :].endswith(REFUSED)

    @property
    def stamps(self) -> tuple[int, ...]:
        """(size, mtime, ctime) of a regular file; () for anything else."""
        return _FILE.unpack_from(self.fingerprint)[3:6] if stat.S_ISREG(self.mode) else ()

    @property
    def inode(self) -> int:
        """Of a directory; 0 if another file system is mounted there."""
        return int(_DIRECTORY.unpack_from(self.fingerprint)[5])

    @property
    def mark(self) -> Mark:
        """What the indexes are to know of it."""
        if self.directory:
            own = b"" if self.directory == TOP_DIR else self.directory
            return Mark(own, self.inode, 0)
        if not stat.S_ISREG(self.mode):
            return Mark(b"", 0, 0)
        fields = _FILE.unpack_from(self.fingerprint)
        return Mark(b"", fields[6], fields[7])


def pack(proof: Proof) -> bytes:
    """The packed form."""
    return proof.directory.ljust(8, b"\0") + bytes((bool(proof.directory),)) + proof.fingerprint


def unpack(packed: bytes) -> Proof:
    """The proof that `pack` packed."""
    return Proof(packed[_HEAD:], packed[:8] if packed[8] else b"")


def is_plain(packed: bytes) -> bool:
    """Whether it is of something that no index has to know of: no directory, and one link."""
    return not packed[8] and packed[_LINKS] == _ONE_LINK


def size_in(packed: bytes) -> int | None:
    """Bytes of a regular file; None for anything else."""
    mode, size = _MODE_AND_SIZE.unpack_from(packed)
    return int(size) if stat.S_ISREG(mode) else None


def void(fingerprint: bytes) -> bytes:
    """A fingerprint that no file has, with the same mode, size and inode number."""
    at = _DIRECTORY_CTIME_END if len(fingerprint) == _DIRECTORY.size else _FILE.size - 1
    return fingerprint[:at] + b"\xff" + fingerprint[at + 1 :]


def settled_fingerprint(fingerprint: bytes, read_at_ns: int) -> bytes:
    """The fingerprint to keep of a regular file that was read at `read_at_ns` (time.time_ns before the first byte).

    That is `fingerprint`, or, where the file changed so shortly before that it could change again within the same
    tick of its clock and look the same, a void one, so that the next look reads it again.  The ctime decides: every
    change moves it, and unlike the mtime it cannot be set.
    """
    ctime = _FILE.unpack_from(fingerprint)[5]
    return void(fingerprint) if ctime > read_at_ns - RACY_NS else fingerprint
