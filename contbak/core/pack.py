"""Packs: immutable files of frames with a directory (docs/format.md, "Pack").

    header | frames | directory | hash list | trailer
    '------ body, cut into segments ------'  '--- plan ---'

A pack's id is the BLAKE3 root over the hashes of its segments.  One read of the tail (directory, hash list,
trailer) says all that an index needs; if the tail is damaged, a scan for frames says the same.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from contbak.core import frame
from contbak.core.crypto import Hasher, derive, digest
from contbak.core.errors import FormatError
from contbak.core.names import ID_LEN, PackId, VaultId, checked

MAGIC = b"\xf0CBKPAK1"
DIRECTORY_MAGIC = b"\xf1CBKDIR1"
END_MAGIC = b"\xf2CBKEND1"
VERSION = 1

TARGET = 32 << 20
"""Bytes of body at which a pack is closed."""
BODY_MAX = 128 << 20
SEGMENTS_SMALL = 32
"""Segments are the smallest power of two that cuts a body into at most this many..."""
SEGMENT_MIN_LOG2 = 12
SEGMENT_MAX_LOG2 = 20
"""...but at least 4 KiB and at most 1 MiB, so only bodies above 32 MiB have more."""
_HOLD = 16 << 20  # up to here a body may still get segments below 1 MiB

_HEADER = struct.Struct("<8sBBH16s16s8s8sI")
HEADER_LEN = _HEADER.size
_ROW = struct.Struct("<IIIBBH")
_COUNT = struct.Struct("<I")
_TRAILER = struct.Struct("<8sBBHQQII32sI")
TRAILER_LEN = _TRAILER.size
PLAN_MAX = TRAILER_LEN + (BODY_MAX >> SEGMENT_MAX_LOG2) * ID_LEN + SEGMENTS_SMALL * ID_LEN


@dataclass(frozen=True, slots=True)
class Row:
    """Where one frame lies in its pack: offset, bytes of header and body (body with its checksum), kind, ids."""

    offset: int
    header_len: int
    body_len: int
    kind: int
    ids: tuple[bytes, ...]

    @property
    def length(self) -> int:
        return self.header_len + self.body_len


@dataclass(frozen=True, slots=True)
class Plan:
    """What is told of a pack before it is sent: its segments' hashes and where its directory lies."""

    root: PackId
    body_len: int
    directory_offset: int
    directory_len: int
    segment_log2: int
    hashes: tuple[bytes, ...]
    raw: bytes

    @property
    def segment_size(self) -> int:
        return 1 << self.segment_log2

    @property
    def file_len(self) -> int:
        return self.body_len + len(self.raw)

    def span(self, index: int) -> tuple[int, int]:
        """(offset, length) of segment `index`."""
        offset = index << self.segment_log2
        return offset, min(self.segment_size, self.body_len - offset)

    def verify(self, index: int, data: bytes | memoryview) -> bool:
        """Whether `data` is segment `index`."""
        return len(data) == self.span(index)[1] and digest(data) == self.hashes[index]


class PackBuilder:
    """Puts frames together; the caller writes what `add` and `finish` return, in order, to one file.

    Holds at most 16 MiB, since until then the size of the segments is open.  `serial`: 16 fresh random bytes
    that make every pack unique; `writer`: 8 bytes that name the device.
    """

    def __init__(self, vault: VaultId, serial: bytes, writer: bytes) -> None:
        head = _HEADER.pack(MAGIC, VERSION, 0, 0, vault, checked(serial, 16, "a pack's serial"), writer, bytes(8), 0)
        head = head[:-4] + _COUNT.pack(zlib.crc32(head[:-4]))
        self._held: list[bytes] | None = [head]
        self._segments = _Segments(SEGMENT_MAX_LOG2)
        self._rows: list[bytes] = []
        self._directory_len = len(DIRECTORY_MAGIC) + _COUNT.size + ID_LEN
        self.body_len = HEADER_LEN

    @property
    def frames(self) -> int:
        return len(self._rows)

    def add(self, header: frame.Header, raw: bytes) -> list[bytes]:
        """Takes one frame; returns the bytes to append to the file now (often none).

        Raises FormatError, and has not taken it, if the body would exceed BODY_MAX.
        """
        row = _ROW.pack(self.body_len, len(header.raw), len(raw) - len(header.raw), header.kind, 0, len(header.ids))
        row += b"".join(header.ids)
        if self.body_len + len(raw) + self._directory_len + len(row) > BODY_MAX:
            raise FormatError("a pack would be too large")
        self._rows.append(row)
        self._directory_len += len(row)
        return self._append(raw)

    def finish(self) -> tuple[list[bytes], Plan]:
        """The last bytes to append, and the plan.  The builder is spent."""
        offset = self.body_len
        directory = DIRECTORY_MAGIC + _COUNT.pack(len(self._rows)) + b"".join(self._rows)
        directory += digest(directory)
        out = self._append(directory)
        if self._held is not None:
            out, self._held = self._held, None
            self._segments = _Segments(segment_log2(self.body_len))
            for piece in out:
                self._segments.update(piece)
        hashes = self._segments.finish()
        plan = _plan(self.body_len, offset, len(directory), self._segments.log2, hashes)
        return [*out, plan.raw], plan

    def _append(self, raw: bytes) -> list[bytes]:
        self.body_len += len(raw)
        if self._held is None:
            self._segments.update(raw)
            return [raw]
        self._held.append(raw)
        if self.body_len <= _HOLD:
            return []
        out, self._held = self._held, None
        for piece in out:
            self._segments.update(piece)
        return out


class _Segments:
    """Hashes a stream segment by segment."""

    def __init__(self, log2: int) -> None:
        self.log2 = log2
        self._hashes: list[bytes] = []
        self._hasher = Hasher()
        self._filled = 0

    def update(self, data: bytes) -> None:
        size, view = 1 << self.log2, memoryview(data)
        while view:
            part = view[: size - self._filled]
            self._hasher.update(part)
            self._filled += len(part)
            if self._filled == size:
                self._end()
            view = view[len(part) :]

    def finish(self) -> list[bytes]:
        if self._filled:
            self._end()
        return self._hashes

    def _end(self) -> None:
        self._hashes.append(self._hasher.digest())
        self._hasher, self._filled = Hasher(), 0


def segment_log2(body_len: int) -> int:
    """log2 of the size of the segments of a body of `body_len` bytes."""
    log2 = SEGMENT_MIN_LOG2
    while log2 < SEGMENT_MAX_LOG2 and body_len > SEGMENTS_SMALL << log2:
        log2 += 1
    return log2


def _plan(body_len: int, offset: int, length: int, log2: int, hashes: Sequence[bytes]) -> Plan:
    hash_list = b"".join(hashes)
    facts = struct.pack("<QQIB", body_len, offset, length, log2)
    root = PackId(derive("pack root", hash_list + facts))
    trailer = _TRAILER.pack(END_MAGIC, VERSION, log2, 0, body_len, offset, length, len(hashes), root, 0)
    trailer = trailer[:-4] + _COUNT.pack(zlib.crc32(trailer[:-4]))
    return Plan(root, body_len, offset, length, log2, tuple(hashes), hash_list + trailer)


def parse_plan(raw: bytes) -> Plan:
    """The plan that `raw` (hash list and trailer) is, its root recomputed.  Raises FormatError."""
    if not TRAILER_LEN <= len(raw) <= PLAN_MAX:
        raise FormatError("a pack's plan has an impossible length")
    magic, version, log2, _, body_len, offset, length, count, root, crc = _TRAILER.unpack_from(
        raw, len(raw) - TRAILER_LEN
    )
    if magic != END_MAGIC or crc != zlib.crc32(raw[len(raw) - TRAILER_LEN : -4]):
        raise FormatError("a pack's trailer is damaged or missing")
    if version != VERSION:
        raise FormatError(f"pack version {version} is newer than this program; update it")
    shape_is_right = (
        HEADER_LEN < body_len <= BODY_MAX
        and offset + length == body_len
        and offset >= HEADER_LEN
        and log2 == segment_log2(body_len)
        and count == -(-body_len >> log2)
        and len(raw) == TRAILER_LEN + count * ID_LEN
    )
    if not shape_is_right:
        raise FormatError("a pack's trailer claims an impossible shape")
    plan = _plan(body_len, offset, length, log2, [raw[i * ID_LEN : (i + 1) * ID_LEN] for i in range(count)])
    if plan.root != root:
        raise FormatError("a pack's hash list is damaged")
    return plan


def plan_length(trailer: bytes) -> int:
    """How many bytes at the end of the file the plan takes (PLAN_MAX at most), from the file's last TRAILER_LEN bytes.

    Raises FormatError.
    """
    magic, _, _, _, _, _, _, count, _, crc = _TRAILER.unpack(checked(trailer, TRAILER_LEN, "a pack's trailer"))
    length: int = TRAILER_LEN + count * ID_LEN
    if magic != END_MAGIC or crc != zlib.crc32(trailer[:-4]):
        raise FormatError("a pack's trailer is damaged or missing")
    if length > PLAN_MAX:
        raise FormatError("a pack's plan has an impossible length")
    return length


def parse_header(raw: bytes | memoryview) -> tuple[VaultId, bytes]:
    """(vault, writer) of the pack that starts with `raw`.  Raises FormatError."""
    if len(raw) < HEADER_LEN:
        raise FormatError("a pack is cut short")
    magic, version, _, _, vault, _, writer, _, crc = _HEADER.unpack_from(raw)
    if magic != MAGIC or crc != zlib.crc32(raw[: HEADER_LEN - 4]):
        raise FormatError("a pack's header is damaged or missing")
    if version != VERSION:
        raise FormatError(f"pack version {version} is newer than this program; update it")
    return VaultId(vault), writer


def parse_directory(raw: bytes) -> list[Row]:
    """The rows of a directory, its hash verified.  Raises FormatError."""
    start = len(DIRECTORY_MAGIC) + _COUNT.size
    if len(raw) < start + ID_LEN or not raw.startswith(DIRECTORY_MAGIC) or digest(raw[:-ID_LEN]) != raw[-ID_LEN:]:
        raise FormatError("a pack's directory is damaged")
    rows, at, end = [], start, len(raw) - ID_LEN
    for _ in range(_COUNT.unpack_from(raw, len(DIRECTORY_MAGIC))[0]):
        if at + _ROW.size > end:
            raise FormatError("a pack's directory is cut short")
        offset, header_len, body_len, kind, _, n = _ROW.unpack_from(raw, at)
        at += _ROW.size
        row_is_right = (
            offset >= HEADER_LEN
            and frame.FIXED_LEN + ID_LEN < header_len <= frame.HEADER_MAX
            and _COUNT.size < body_len <= frame.BODY_MAX + _COUNT.size
            and kind in frame.KINDS
            and 1 <= n <= frame.CHUNKS_MAX
            and at + n * ID_LEN <= end
        )
        if not row_is_right:
            raise FormatError("a pack's directory has an impossible row")
        rows.append(Row(offset, header_len, body_len, kind, tuple(_cut(raw, at, n))))
        at += n * ID_LEN
    if at != end:
        raise FormatError("a pack's directory has bytes left over")
    return rows


def scan(body: bytes | memoryview) -> list[Row]:
    """The rows of all sound frames in `body`, for a pack whose directory is damaged."""
    return [
        Row(at, len(header.raw), header.length - len(header.raw), header.kind, header.ids)
        for at, header in frame.find(body)
        if at + header.length <= len(body)
    ]


def _cut(raw: bytes, at: int, n: int) -> Iterator[bytes]:
    return (raw[i : i + ID_LEN] for i in range(at, at + n * ID_LEN, ID_LEN))
