"""Frames: sealed bundles of chunks with a clear header (docs/format.md, "Frame").

The header tells a relay without keys everything it needs: ids, references, lengths, checksums.  The body is
compressed, padded to hide its size (Padmé, Nikitin et al., PETS 2019) and sealed once, bound to the header.
A reader recomputes every chunk id, so what it gets is what was meant or an error.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple

from contbak.core import compress
from contbak.core.crypto import TAG_LEN, Opener, Sealer, digest
from contbak.core.errors import FormatError
from contbak.core.names import ID_LEN, ChunkId

MAGIC = b"\xf0CBKFRM1"
VERSION = 1

DATA = 0
NODE = 1
RUN = 2
COMMIT = 3
KINDS = (DATA, NODE, RUN, COMMIT)
"""What a frame holds: file content, tree nodes, nodes of runs, a copy of a commit record (in clear)."""
CLEAR = 0
"""The suite of COMMIT frames: a relay without keys must be able to read them."""

CHUNKS_MAX = 256
BODY_TARGET = 1 << 20
"""Bytes of chunks at which a bundle is closed; one larger chunk may stand alone."""
PLAIN_MAX = 64 << 20
HEADER_MAX = 4 << 20
BODY_MAX = PLAIN_MAX + (PLAIN_MAX >> 3)

_FIXED = struct.Struct("<8sBBBBHHII8s32s32s")
FIXED_LEN = _FIXED.size
_CRC = struct.Struct("<I")
_BODY = struct.Struct("<BI")


class Chunk(NamedTuple):
    """What goes into a frame: its id, the ids it points to (nodes only, sorted and unique), its plaintext."""

    id: bytes
    payload: bytes | memoryview
    refs: tuple[bytes, ...] = ()


@dataclass(frozen=True, slots=True)
class Header:
    """The clear part of a frame.

    `refs` has one tuple per chunk for NODE and RUN, and is empty for DATA and COMMIT.
    """

    suite: int
    kind: int
    ids: tuple[bytes, ...]
    refs: tuple[tuple[bytes, ...], ...]
    body_len: int
    writer: bytes
    ephemeral: bytes
    nonce: bytes
    raw: bytes = field(repr=False)

    @property
    def length(self) -> int:
        """Bytes of the whole frame: header, body and its checksum."""
        return len(self.raw) + self.body_len + _CRC.size


def padme(length: int) -> int:
    """`length` rounded up so that only O(log log) bits of it show; at most 12 % more."""
    if length < 2:
        return length
    exponent = length.bit_length() - 1
    mask = (1 << (exponent - exponent.bit_length())) - 1
    return (length + mask) & ~mask


def encode(kind: int, chunks: Sequence[Chunk], sealer: Sealer, writer: bytes, random: bytes) -> bytes:
    """One frame of 1..256 chunks.  `writer`: 8 bytes that name the device; `random`: 32 fresh random bytes."""
    if kind not in (DATA, NODE, RUN) or not 1 <= len(chunks) <= CHUNKS_MAX:
        raise FormatError(f"a frame of kind {kind} cannot hold {len(chunks)} chunks")
    table = _table(kind, chunks)
    header_len = FIXED_LEN + len(table) + _CRC.size
    lengths = [len(c.payload) for c in chunks]
    if header_len > HEADER_MAX or 4 * len(chunks) + sum(lengths) > PLAIN_MAX:  # however small it would become
        raise FormatError("a frame would be too large")
    table_of_lengths = struct.pack(f"<{len(chunks)}I", *lengths)
    codec, payload = compress.squeeze(b"".join([table_of_lengths, *[c.payload for c in chunks]]))
    plain_len = padme(_BODY.size + len(payload))
    fixed = _FIXED.pack(
        MAGIC, VERSION, sealer.suite, kind, 0, 0, len(chunks), header_len, plain_len + TAG_LEN[sealer.suite],
        writer, sealer.ephemeral_public, nonce := sealer.nonce(random, table),
    )  # fmt: skip
    header = _with_crc(fixed + table)
    padding = bytes(plain_len - _BODY.size - len(payload))
    body = sealer.seal(header, nonce, b"".join((_BODY.pack(codec, len(payload)), payload, padding)))
    return b"".join((header, body, _CRC.pack(zlib.crc32(body))))


def encode_commit(record: bytes, writer: bytes) -> bytes:
    """A frame that holds a copy of one commit record, in clear; its id is the commit's."""
    table = digest(record)
    header_len = FIXED_LEN + len(table) + _CRC.size
    fixed = _FIXED.pack(
        MAGIC, VERSION, CLEAR, COMMIT, 0, 0, 1, header_len, len(record), writer, bytes(32), bytes(32)
    )  # fmt: skip
    return _with_crc(fixed + table) + _with_crc(record)


def decode_commit(header: Header, body: bytes | memoryview) -> bytes:
    """The record in a COMMIT frame.  Raises FormatError."""
    check_body(header, body)
    record = bytes(body[: header.body_len])
    if header.kind != COMMIT or digest(record) != header.ids[0]:
        raise FormatError("this frame holds no commit record")
    return record


def parse_header(raw: bytes | memoryview) -> Header:
    """The header at the start of `raw`, its checksum verified.  Raises FormatError for anything else."""
    if len(raw) < FIXED_LEN:
        raise FormatError("a frame header is cut short")
    magic, version, suite, kind, flags, epoch, n, header_len, body_len, writer, ephemeral, nonce = (
        _FIXED.unpack_from(raw)
    )
    if magic != MAGIC:
        raise FormatError("no frame starts here")
    if version != VERSION:
        raise FormatError(f"frame version {version} is newer than this program; update it")
    if not FIXED_LEN + _CRC.size <= header_len <= min(HEADER_MAX, len(raw)):
        raise FormatError("a frame header is cut short or damaged")
    header = bytes(raw[:header_len])
    if _CRC.unpack_from(header, header_len - _CRC.size)[0] != zlib.crc32(header[: -_CRC.size]):
        raise FormatError("a frame header is damaged")
    known = (kind == COMMIT and suite == CLEAR and n == 1) or (kind in (DATA, NODE, RUN) and suite in TAG_LEN)
    if not known or flags or epoch or not 1 <= n <= CHUNKS_MAX:
        raise FormatError("a frame header has unknown fields; update this program")
    if not TAG_LEN.get(suite, 0) < body_len <= BODY_MAX:
        raise FormatError("a frame header claims an impossible length")
    ids, refs = _parse_table(kind, n, header[FIXED_LEN : -_CRC.size])
    return Header(suite, kind, ids, refs, body_len, writer, ephemeral, nonce, header)


def header_length(raw: bytes | memoryview) -> int:
    """How many bytes the header takes that starts `raw` (at least FIXED_LEN bytes of it); checks the magic."""
    if len(raw) < FIXED_LEN or bytes(raw[:8]) != MAGIC:
        raise FormatError("no frame starts here")
    length: int = _FIXED.unpack_from(raw)[7]
    if not FIXED_LEN < length <= HEADER_MAX:
        raise FormatError("a frame header is damaged")
    return length


def check_body(header: Header, body: bytes | memoryview) -> None:
    """Raises FormatError unless `body` (with its checksum) is whole.  Needs no key."""
    if len(body) != header.body_len + _CRC.size:
        raise FormatError("a frame body is cut short")
    view = memoryview(body)
    if _CRC.unpack_from(view, header.body_len)[0] != zlib.crc32(view[: header.body_len]):
        raise FormatError("a frame body is damaged")


def decode(raw: bytes | memoryview, opener: Opener) -> list[Chunk]:
    """The chunks of the frame that `raw` is, every id recomputed.  Raises FormatError for any difference."""
    header = parse_header(raw)
    return decode_body(header, raw[len(header.raw) :], opener)


def decode_body(header: Header, body: bytes | memoryview, opener: Opener) -> list[Chunk]:
    """As `decode`, with the header parsed already; `body` includes its checksum."""
    check_body(header, body)
    sealed = bytes(body[: header.body_len])
    plain = opener.open(header.suite, header.ephemeral, header.raw, header.nonce, sealed)
    if len(plain) < _BODY.size:
        raise FormatError("a frame body is too short")
    codec, packed_len = _BODY.unpack_from(plain)
    if _BODY.size + packed_len > len(plain):
        raise FormatError("a frame body claims an impossible length")
    payload = compress.unsqueeze(codec, memoryview(plain)[_BODY.size : _BODY.size + packed_len], PLAIN_MAX)
    return list(_split(header, payload, opener))


def find(raw: bytes | memoryview, start: int = 0) -> Iterator[tuple[int, Header]]:
    """Every sound frame header in `raw` as (offset, header), for packs whose directory is damaged."""
    data = bytes(raw)
    at = data.find(MAGIC, start)
    while at >= 0:
        try:
            header = parse_header(memoryview(data)[at:])
        except FormatError:
            at = data.find(MAGIC, at + 1)
            continue
        yield at, header
        # not behind the body: bytes may be missing from it, and then the next frame begins earlier
        at = data.find(MAGIC, at + len(header.raw))


def _table(kind: int, chunks: Sequence[Chunk]) -> bytes:
    if kind in (DATA, COMMIT):
        return b"".join(c.id for c in chunks)
    return b"".join(b"".join((c.id, _CRC.pack(len(c.refs)), *c.refs)) for c in chunks)


def _parse_table(kind: int, n: int, table: bytes) -> tuple[tuple[bytes, ...], tuple[tuple[bytes, ...], ...]]:
    if kind in (DATA, COMMIT):
        if len(table) != n * ID_LEN:
            raise FormatError("a frame's table has the wrong length")
        return tuple(table[i : i + ID_LEN] for i in range(0, len(table), ID_LEN)), ()
    ids, refs, at = [], [], 0
    for _ in range(n):
        if len(table) < at + ID_LEN + _CRC.size:
            raise FormatError("a frame's table has the wrong length")
        ids.append(table[at : at + ID_LEN])
        end = at + ID_LEN + _CRC.size
        end += _CRC.unpack_from(table, at + ID_LEN)[0] * ID_LEN
        own = tuple(table[i : i + ID_LEN] for i in range(at + ID_LEN + _CRC.size, min(end, len(table)), ID_LEN))
        if end > len(table) or any(a >= b for a, b in pairwise(own)):
            raise FormatError("a frame's references are out of order")
        refs.append(own)
        at = end
    if at != len(table):
        raise FormatError("a frame's table has the wrong length")
    return tuple(ids), tuple(refs)


def _split(header: Header, payload: bytes, opener: Opener) -> Iterator[Chunk]:
    n = len(header.ids)
    if len(payload) < 4 * n:
        raise FormatError("a frame body is too short")
    lengths = struct.unpack_from(f"<{n}I", payload)
    if 4 * n + sum(lengths) != len(payload):
        raise FormatError("a frame body has the wrong length")
    at, keys = 4 * n, opener.writer
    for number, (wanted, length) in enumerate(zip(header.ids, lengths, strict=True)):
        piece = payload[at : at + length]
        at += length
        refs = header.refs[number] if header.refs else ()
        if header.kind in (NODE, RUN):
            actual: ChunkId = keys.node_id(refs, piece)
        else:
            actual = keys.data_id(piece)
        if actual != wanted:
            raise FormatError("a chunk is not what its id says")
        yield Chunk(wanted, piece, refs)


def _with_crc(data: bytes) -> bytes:
    return data + _CRC.pack(zlib.crc32(data))
