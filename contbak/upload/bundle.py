"""Chunks into frames into packs: what stands between a reader and the spool.

    add(chunk) -> bundle of about 1 MiB or 256 chunks -> sealed frame -> pack file in the spool -> Packed

Rules: every pack has a fresh ephemeral key and a fresh serial, dropped with it, so this device cannot open what it
spooled.  A frame holds chunks of one kind.  Data packs hold DATA alone, metadata packs NODE, RUN and COMMIT: a
Bundler makes one sort or the other.  Payloads are kept until their bundle closes, so they must not be views into a
buffer that is used again.

It does not know which chunks a vault has already; whoever adds one has asked.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from contbak.core import frame, pack
from contbak.core.crypto import AEGIS, XCHACHA, Sealer, WriterKeys
from contbak.core.errors import FormatError
from contbak.core.frame import COMMIT, DATA, Chunk
from contbak.core.names import ChunkId, DeviceId, PackId
from contbak.upload.spool import PackFile, Spool

Random = Callable[[int], bytes]
"""Random(n) -> n fresh unpredictable bytes."""

WRITER_LEN = 8
CHUNKS_MAX = 16_384
"""Chunks in one pack: bounds what is kept in memory until it is finished."""
_SECRET_LEN = 32
_SERIAL_LEN = 16
_SALT_LEN = 32


def writer_name(device: DeviceId) -> bytes:
    """The 8 bytes that name `device` in the headers of packs and frames."""
    return device[:WRITER_LEN]


def choose_suite(has_aes: bool) -> int:
    """The cipher suite for a processor with or without AES instructions."""
    return AEGIS if has_aes else XCHACHA


@dataclass(frozen=True, slots=True)
class Seal:
    """Who writes, for whom and how: the vault's writer keys, this device, the cipher suite (crypto.SUITES)."""

    keys: WriterKeys
    device: DeviceId
    suite: int


@dataclass(frozen=True, slots=True)
class Packed:
    """A finished pack in the spool: its id, the ids of its chunks, bytes of its file."""

    root: PackId
    ids: tuple[ChunkId, ...]
    file_len: int
    metadata: bool


class _OpenPack:
    """The pack that is being filled."""

    def __init__(self, seal: Seal, file: PackFile, random: Random) -> None:
        self.sealer = Sealer(seal.keys, random(_SECRET_LEN), seal.suite)
        self.builder = pack.PackBuilder(seal.keys.vault, random(_SERIAL_LEN), writer_name(seal.device))
        self.file = file
        self.ids: list[ChunkId] = []

    @property
    def full(self) -> bool:
        return self.builder.body_len >= pack.TARGET or len(self.ids) >= CHUNKS_MAX

    def add(self, raw: bytes) -> None:
        header = frame.parse_header(raw)
        self.file.append(self.builder.add(header, raw))
        if header.kind != COMMIT:
            self.ids += [ChunkId(id) for id in header.ids]


class Bundler:
    """Fills packs in `spool`.  `metadata`: which of the two sorts of packs it makes.

    Holds at most 16 MiB of a pack and one bundle.  Not for several threads.
    """

    def __init__(self, seal: Seal, spool: Spool, random: Random, *, metadata: bool) -> None:
        self._seal = seal
        self._spool = spool
        self._random = random
        self._metadata = metadata
        self._bundle: list[Chunk] = []
        self._kind = DATA
        self._size = 0
        self._open: _OpenPack | None = None
        self.taken = 0
        """Chunks that were added so far."""
        self.stored = 0
        """How many of them, the oldest ones, are in finished packs."""

    @property
    def empty(self) -> bool:
        """Whether `flush` would make no pack."""
        return self._open is None and not self._bundle

    def add(self, chunk: Chunk, kind: int = DATA) -> list[Packed]:
        """Takes one chunk; its payload must stay as it is.  Returns packs that this finished (mostly none).

        Raises FormatError if the kind does not belong into this sort of pack, StoreFull, StoreError.
        """
        if (kind != DATA) != self._metadata:
            raise FormatError(f"a frame of kind {kind} does not belong into this pack")
        size = len(chunk.payload)
        if self._bundle and (kind != self._kind or self._size + size > frame.BODY_TARGET):
            self._close_bundle()
        self._kind = kind
        self.taken += 1
        self._bundle.append(chunk)
        self._size += size
        if len(self._bundle) == frame.CHUNKS_MAX or self._size >= frame.BODY_TARGET:
            self._close_bundle()
        return self._close_pack() if self._open and self._open.full else []

    def add_commit(self, record: bytes) -> list[Packed]:
        """Puts a copy of the commit `record` into the pack, so that packs alone bring back the history."""
        if not self._metadata:
            raise FormatError("a commit does not belong into a pack of data")
        self._close_bundle()
        self._pack().add(frame.encode_commit(record, writer_name(self._seal.device)))
        return []

    def flush(self) -> list[Packed]:
        """Closes the open pack; what it was, or nothing.  Raises StoreFull, StoreError."""
        self._close_bundle()
        return self._close_pack()

    def abort(self) -> None:
        """Throws away what is open."""
        self._bundle, self._size = [], 0
        opened, self._open = self._open, None
        if opened is not None:
            opened.file.close()

    def _pack(self) -> _OpenPack:
        if self._open is None:
            self._open = _OpenPack(self._seal, self._spool.writer(), self._random)
        return self._open

    def _close_bundle(self) -> None:
        if not self._bundle:
            return
        bundle, self._bundle, self._size = self._bundle, [], 0
        opened, writer = self._pack(), writer_name(self._seal.device)
        opened.add(frame.encode(self._kind, bundle, opened.sealer, writer, self._random(_SALT_LEN)))

    def _close_pack(self) -> list[Packed]:
        opened, self._open = self._open, None
        if opened is None:
            return []
        with opened.file as file:
            pieces, plan = opened.builder.finish()
            file.append(pieces)
            file.finish(plan)
        self.stored = self.taken - len(self._bundle)
        return [Packed(plan.root, tuple(opened.ids), plan.file_len, self._metadata)]
