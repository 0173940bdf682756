"""A worker process: reads files, cuts them into chunks and puts those it was told to store into packs.

`main` is started by upload/workers and speaks upload/orders on its standard input and output.

Rules: one thread; ends when its input ends, so it never outlives its parent.  Nothing is stored before the main
process said that this worker must.  Small files are collected, so that one claim serves many; large ones are claimed
window by window straight from the reader's buffer.  There is a file in which the number of the job
being read stands, so that whoever finds this process dead knows where it was.

It does not know the vault's index and sends nothing to a relay.
"""

from __future__ import annotations

import ctypes
import os
import pkgutil
import secrets
import select
import signal
from collections import deque
from collections.abc import Callable
from functools import partial
from pathlib import Path

from contbak.core.chunker import Chunker, ChunkSizes
from contbak.core.crypto import Hasher
from contbak.core.entry import INLINE_MAX, Content, Entry
from contbak.core.errors import ContbakError, FormatError, SourceError
from contbak.core.frame import CHUNKS_MAX, DATA, NODE, Chunk
from contbak.core.messages import bits
from contbak.core.node import Node
from contbak.core.spanlist import SpanListWriter
from contbak.upload import orders
from contbak.upload.bundle import Bundler, Packed
from contbak.upload.orders import Claim, Claimed, Close, Job, Order, Reader, ReadResult, Report, Setup
from contbak.upload.spool import Spool

SMALL = 256 << 10
"""Bytes up to which a file's content is copied and kept until its claim is answered together with others."""
BATCH_BYTES = 1 << 20
BATCH_RESULTS = 256
_LIBC = ctypes.CDLL(None) if os.name == "posix" else None


class Pipe:
    """Messages over two file descriptors, blocking."""

    def __init__(self, source: int, sink: int) -> None:
        self._source = source
        self._sink = sink
        self._out: list[bytes] = []

    def waiting(self) -> bool:
        """Whether an order (or the end) can be read without waiting."""
        return bool(select.select([self._source], [], [], 0)[0])

    def receive(self) -> Order | None:
        """The next order; None at the end."""
        head = self._exactly(orders.LENGTH.size)
        if head is None:
            return None
        raw = self._exactly(orders.LENGTH.unpack(head)[0])
        return None if raw is None else orders.parse_order(raw)

    def say(self, report: Report) -> None:
        """Queues a report; `flush` sends it."""
        self._out.append(orders.pack_report(report))

    def flush(self) -> None:
        """Sends what is queued.  Raises BrokenPipeError when the parent is gone."""
        rest = memoryview(b"".join(self._out))
        self._out.clear()
        while rest:
            rest = rest[os.write(self._sink, rest) :]

    def _exactly(self, length: int) -> bytes | None:
        parts = []
        while length:
            part = os.read(self._source, length)
            if not part:
                return None
            parts.append(part)
            length -= len(part)
        return b"".join(parts)


class _File:
    """One file while it is read."""

    def __init__(self, job: Job, emit: Callable[[bytes, Node], None], node_id: _NodeId, split: _Split) -> None:
        self.job = job
        self._new_list = partial(SpanListWriter, node_id, split, emit)
        self.new_bytes = 0
        self.restart()

    def restart(self) -> None:
        self.hasher = Hasher()
        self.list = self._new_list()
        self.inline: bytes | None = b""
        self.windows = 0
        self.length = 0

    def content(self) -> Content:
        level, ids = self.list.finish()
        return Content(self.length, self.hasher.digest(), self.inline, level, ids)


_NodeId = Callable[..., bytes]
_Split = Callable[[bytes], int]


class Worker:
    """Carries out orders from `pipe` until it ends."""

    def __init__(self, setup: Setup, pipe: Pipe, mark: Callable[[int], None]) -> None:
        self._pipe = pipe
        self._mark = mark
        self._keys = setup.seal.keys
        spool = Spool(Path(setup.spool), 0)
        self._packs = {
            DATA: Bundler(setup.seal, spool, secrets.token_bytes, metadata=False),
            NODE: Bundler(setup.seal, spool, secrets.token_bytes, metadata=True),
        }
        self._reader = _make_reader(setup.reader, setup.scratch)
        self._chunker = Chunker(ChunkSizes().jittered(self._keys.chunker_key))
        self._orders: deque[Order] = deque()
        self._pieces: list[tuple[_File, int, Chunk]] = []
        self._held = 0
        self._results: list[tuple[_File, ReadResult, Content]] = []
        self._file: _File | None = None
        self._large: _File | None = None
        self._close: Close | None = None
        """An order to close that came while a large file was read."""
        self._ended = False

    def run(self) -> None:
        """Works until the pipe ends; then throws away what is open."""
        while not self._ended:
            order = self._next()
            if isinstance(order, Job):
                self._read(order)
            elif isinstance(order, Close):
                self._settle()
                self._close_packs(order)
        for bundler in self._packs.values():
            bundler.abort()

    def _next(self) -> Order | None:
        if self._orders:
            return self._orders.popleft()
        if not self._pipe.waiting():
            self._settle()  # may have to wait long: report what there is
        if self._orders:
            return self._orders.popleft()
        self._pipe.flush()
        order = self._pipe.receive()
        self._ended = self._ended or order is None
        return order

    def _read(self, job: Job) -> None:
        file = _File(job, self._emit_node, self._keys.node_id, self._keys.split)
        self._file = file
        self._mark(job.number)
        try:
            result = self._reader.read(
                job.path, partial(self._consume, file), partial(self._restart, file), allow_torn=job.allow_torn
            )
            self._results.append((file, result, file.content()))
        except SourceError as error:
            self._drop_pieces(file)
            self._pipe.say(orders.Unread(job.number, orders.kind_of(error), error.reason))
        self._mark(0)
        full = self._held >= BATCH_BYTES or len(self._pieces) >= CHUNKS_MAX or len(self._results) >= BATCH_RESULTS
        if full or self._large is not None:
            self._settle()
            self._large = None

    def _consume(self, file: _File, view: memoryview, final: bool) -> int:
        lengths = self._chunker.cuts(view, final)
        taken = sum(lengths)
        small = final and not file.windows and taken <= SMALL
        file.windows += 1
        file.length += taken
        file.hasher.update(view[:taken])
        if file.windows == 1 and final and taken <= INLINE_MAX:
            file.inline = bytes(view[:taken])
            return taken
        file.inline = None
        if not final:
            self._enter_large(file)
        source = memoryview(bytes(view[:taken])) if small else view
        at = 0
        for length in lengths:
            piece = source[at : at + length]
            at += length
            id = self._keys.data_id(piece)
            self._pieces.append((file, DATA, Chunk(id, piece)))
            file.list.add(id, length)
        self._held += taken
        if not small:
            self._settle()  # `view` is valid during this call only
        return taken

    def _restart(self, file: _File) -> None:
        self._drop_pieces(file)
        file.restart()

    def _emit_node(self, id: bytes, node: Node) -> None:
        if self._file is not None:
            self._pieces.append((self._file, NODE, Chunk(id, node.payload, node.refs)))
            self._held += len(node.payload)

    def _drop_pieces(self, file: _File) -> None:
        self._pieces = [piece for piece in self._pieces if piece[0] is not file]

    def _enter_large(self, file: _File) -> None:
        """The files behind a large one are for other workers."""
        if self._large is not file:
            self._large = file
            self._settle()
            back, self._orders = self._orders, deque()
            while self._pipe.waiting() and not self._ended:
                order = self._pipe.receive()
                self._ended = order is None
                if order is not None:
                    back.append(order)
            self._give_back(back)

    def _give_back(self, back: deque[Order]) -> None:
        self._close = next((order for order in reversed(back) if isinstance(order, Close)), self._close)
        self._pipe.say(orders.Returned(tuple(order.number for order in back if isinstance(order, Job))))
        self._pipe.flush()

    def _settle(self) -> None:
        """Claims the pieces at hand, stores those that it must, reports the files that are read."""
        pieces, self._pieces, self._held = self._pieces, [], 0
        if pieces:
            wanted = self._claim(pieces)
            for (file, kind, chunk), mine in zip(pieces, wanted, strict=True):
                if mine:
                    payload = chunk.payload if _kept(chunk, file) else bytes(chunk.payload)
                    file.new_bytes += len(payload) if kind == DATA else 0
                    self._report_packs(self._packs[kind].add(Chunk(chunk.id, payload, chunk.refs), kind))
        results, self._results = self._results, []
        for file, result, content in results:
            try:
                self._pipe.say(_read_report(file, result, content))
            except FormatError as error:  # one file of impossible facts is no reason to end
                self._pipe.say(orders.Unread(file.job.number, "source", f"it cannot be kept ({error})"))
        if self._close is not None:
            close, self._close = self._close, None
            self._close_packs(close)
        self._pipe.flush()

    def _claim(self, pieces: list[tuple[_File, int, Chunk]]) -> list[bool]:
        parts: list[tuple[int, list[bytes]]] = []
        for file, _, chunk in pieces:
            if not parts or parts[-1][0] != file.job.number:
                parts.append((file.job.number, []))
            parts[-1][1].append(chunk.id)
        self._pipe.say(Claim(tuple((job, b"".join(ids)) for job, ids in parts)))
        self._pipe.flush()
        while True:
            order = self._pipe.receive()
            if order is None:
                raise EOFError
            if isinstance(order, Claimed):
                return bits(order.bits, len(pieces))
            if self._large is None:
                self._orders.append(order)
            else:
                self._give_back(deque([order]))

    def _close_packs(self, order: Close) -> None:
        for bundler in self._packs.values():
            self._report_packs(bundler.flush())
        self._pipe.say(orders.Closed(order.number))
        self._pipe.flush()
        _give_memory_back()

    def _report_packs(self, packs: list[Packed]) -> None:
        for packed in packs:
            self._pipe.say(orders.Finished(packed))


def _kept(chunk: Chunk, file: _File) -> bool:
    """Whether the payload is our own and not a view into the reader's buffer."""
    return isinstance(chunk.payload, bytes) or (file.windows == 1 and file.length <= SMALL)


def _read_report(file: _File, result: ReadResult, content: Content) -> orders.Read:
    values = {name: getattr(result.entry, name) for name in Entry.__struct_fields__}
    entry = Entry(**(values | {"content": content}))
    return orders.Read(
        file.job.number, entry, result.fingerprint, result.length, file.new_bytes, result.attempts, result.database
    )


def _give_memory_back() -> None:
    """Freed memory goes back to the system, where the C library can: an idle worker keeps 15 MB less."""
    trim = getattr(_LIBC, "malloc_trim", None)
    if trim is not None:
        trim(0)


def _make_reader(name: str, scratch: str | None) -> Reader:
    try:
        reader: Reader = pkgutil.resolve_name(name)(scratch=scratch)
    except (ImportError, AttributeError, ValueError) as error:
        raise FormatError(f"there is no reader {name}: {error}") from None
    return reader


def main(mark_fd: int) -> int:
    """The process: exit status 0 when the input ended, 1 when it could not go on."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # from the terminal: the parent decides
    pipe = Pipe(os.dup(0), os.dup(1))
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)  # whatever prints must not speak into the pipe
    try:
        setup = pipe.receive()
        if not isinstance(setup, Setup):
            return 0
        os.nice(setup.nice)
        Worker(setup, pipe, lambda job: _write_mark(mark_fd, job)).run()
    except (BrokenPipeError, EOFError):
        return 0
    except ContbakError as error:
        pipe.say(orders.Broken(orders.kind_of(error), str(error)))
        pipe.flush()
        return 1
    return 0


def _write_mark(fd: int, job: int) -> None:
    os.pwrite(fd, job.to_bytes(8, "little"), 0)
