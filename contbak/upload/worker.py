"""A worker process: reads files, cuts them into chunks and puts those it was told to store into packs.

`main` is started by upload/workers and speaks upload/orders on its standard input and output.

Rules: one thread; ends when its input ends, so it never outlives its parent.  Nothing is stored before the main
process said that this worker must.  Small files are collected, so that one claim serves many, and while it is
answered the next ones are read; large ones are claimed window by window straight from the reader's buffer.  A lot is
reported when the packs with its chunks are finished.  There is a file in which stands what is being read, so that
whoever finds this process dead knows where it was.

It does not know the vault's index and sends nothing to a relay.
"""

from __future__ import annotations

import ctypes
import gc
import mmap
import os
import pkgutil
import secrets
import signal
from collections import deque
from collections.abc import Callable
from functools import partial
from pathlib import Path

from contbak.core.chunker import Blocks, Chunker, ChunkSizes
from contbak.core.entry import INLINE_MAX
from contbak.core.errors import ContbakError, FormatError, SourceError
from contbak.core.frame import CHUNKS_MAX, DATA, NODE, Chunk
from contbak.core.messages import bits
from contbak.core.node import CHUNKS_MAX as ENTRY_CHUNKS_MAX
from contbak.core.node import Node
from contbak.upload import orders
from contbak.upload.bundle import Bundler, Packed
from contbak.upload.lot import File, Finished, Lot, Piece
from contbak.upload.orders import Claim, Claimed, Close, Job, Order, Reader, Setup, Unread
from contbak.upload.pipe import Pipe
from contbak.upload.spool import Spool

SMALL = 512 << 10
"""Bytes up to which a file's content is copied and kept until its claim is answered together with others."""
BATCH_BYTES = 1 << 20
BATCH_RESULTS = 256
_LIBC = ctypes.CDLL(None) if os.name == "posix" else None


class Worker:
    """Carries out orders from `pipe` until it ends."""

    def __init__(self, setup: Setup, pipe: Pipe, mark: Callable[[int], None]) -> None:
        self._pipe = pipe
        self._mark = mark
        self._keys = setup.seal.keys
        spool = Spool(Path(setup.spool), 0)
        self._data = Bundler(setup.seal, spool, secrets.token_bytes, metadata=False)
        self._nodes = Bundler(setup.seal, spool, secrets.token_bytes, metadata=True)
        self._reader = _make_reader(setup.reader, setup.scratch)
        self._chunker = Chunker(ChunkSizes().jittered(self._keys.chunker_key))
        self._orders: deque[Order] = deque()
        self._batch = _Batch()
        self._asked: _Batch | None = None
        """What was claimed and is not answered yet."""
        self._complete: list[Lot] = []
        """Lots that wait for their packs to be finished."""
        self._file: File | None = None
        self._large: File | None = None
        self._ended = False

    def run(self) -> None:
        """Works until the pipe ends; then throws away what is open."""
        while not self._ended:
            order = self._next()
            if isinstance(order, Job):
                self._read_all(order)
            elif isinstance(order, Close):
                self._settle()
                self._close_packs(order)
        for bundler in (self._data, self._nodes):
            bundler.abort()

    def _next(self) -> Order | None:
        if not self._orders and not self._pipe.waiting():
            self._settle()  # may have to wait long: report what there is
            self._pipe.flush()
        if self._orders:
            return self._orders.popleft()
        order = self._pipe.receive()
        self._ended = self._ended or order is None
        if isinstance(order, Claimed):
            self._store(order)
        return order

    # -- reading ----------------------------------------------------------------------------------------------

    def _read_all(self, job: Job) -> None:
        """Reads a lot, as far as this process lives."""
        self._pipe.say(orders.Begun(job.number))
        self._pipe.flush()
        lot = Lot(job)
        for index in range(len(job.files)):
            self._mark(job.number * orders.LOT_MAX + index)
            self._read(File(lot, index, self._keys, self._emit_node))
        self._mark(0)

    def _read(self, file: File) -> None:
        job = file.lot.job
        self._file = file
        try:
            result = self._reader.read(
                job.files[file.index].path,
                self._consume,
                self._restart,
                allow_torn=job.allow_torn,
                align=file.block or 1,
            )
            self._batch.results.append(Finished(file, result, file.content()))
        except SourceError as error:
            self._batch.drop(file)
            file.lot.close(file.index, Unread(orders.kind_of(error), error.reason))
            self._report(file.lot)
        if self._large is not None:
            self._settle()
            self._large = None
            self._pipe.say(orders.Free())
            self._pipe.flush()
        elif self._batch.full:
            self._hear()
            self._ask()

    def _consume(self, view: memoryview, final: bool) -> int:
        file = self._file
        assert file is not None
        if final and not file.windows and len(view) <= SMALL:
            return self._consume_whole(file, view)
        if not final:
            self._enter_large(file)
        lengths = (Blocks(file.block) if file.block else self._chunker).cuts(view, final)
        taken, ids = sum(lengths), []
        for piece in _parts(view, lengths):
            id = self._keys.data_id(piece)
            ids.append(id)
            self._batch.add(Piece(file, DATA, Chunk(id, piece)))
        file.part(view[:taken], list(zip(ids, lengths, strict=True)))
        self._settle()  # `view` is valid during this call only
        return taken

    def _consume_whole(self, file: File, view: memoryview) -> int:
        data = bytes(view)
        if len(data) <= INLINE_MAX:
            file.whole(data, ())
            return len(data)
        if len(data) <= self._chunker.one_chunk:
            id = self._keys.data_id(data)
            self._batch.add(Piece(file, DATA, Chunk(id, data)))
            file.whole(data, (id,))
            return len(data)
        source = memoryview(data)
        lengths = self._chunker.cuts(source, True)
        parts = _parts(source, lengths)
        ids = [self._keys.data_id(part) for part in parts]
        for id, part in zip(ids, parts, strict=True):
            self._batch.add(Piece(file, DATA, Chunk(id, part)))
        if len(ids) <= ENTRY_CHUNKS_MAX:
            file.whole(data, ids)
        else:
            file.part(source, list(zip(ids, lengths, strict=True)))
        return len(data)

    def _restart(self) -> None:
        assert self._file is not None
        self._batch.drop(self._file)
        self._file.restart()

    def _emit_node(self, id: bytes, node: Node) -> None:
        assert self._file is not None
        self._batch.add(Piece(self._file, NODE, Chunk(id, node.payload, node.refs)))

    def _enter_large(self, file: File) -> None:
        """The lots behind a large file are for other workers."""
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
        """Lots go to other workers; an order to close has its turn after the file, which is not cut in two for it."""
        self._orders.extend(order for order in back if isinstance(order, Close))
        self._pipe.say(orders.Returned(tuple(order.number for order in back if isinstance(order, Job))))
        self._pipe.flush()

    # -- claiming and storing ---------------------------------------------------------------------------------

    def _settle(self) -> None:
        """Claims the pieces at hand, stores those that it must, reports the lots that are done."""
        self._hear()
        self._ask()
        self._hear()

    def _ask(self) -> None:
        """Claims the pieces at hand.  No claim may be out."""
        if not self._batch.pieces:
            self._report_results(self._batch)
        else:
            self._asked = self._batch
            self._pipe.say(self._batch.claim())
            self._pipe.flush()
        self._batch = _Batch()

    def _hear(self) -> None:
        """Waits for the answer to the claim that is out, if one is."""
        while self._asked is not None:
            order = self._pipe.receive()
            if order is None:
                raise EOFError
            if isinstance(order, Claimed):
                self._store(order)
            elif self._large is None:
                self._orders.append(order)
            else:
                self._give_back(deque([order]))

    def _store(self, claimed: Claimed) -> None:
        """Stores what was claimed, as far as it is ours."""
        batch, self._asked = self._asked, None
        assert batch is not None
        for (file, kind, chunk), mine in zip(batch.pieces, bits(claimed.bits, len(batch.pieces)), strict=True):
            lot, bundler = file.lot, self._data if kind == DATA else self._nodes
            if mine:
                if file.windows:  # else the view is of our own copy
                    chunk = chunk._replace(payload=bytes(chunk.payload))
                file.new_bytes += len(chunk.payload) if kind == DATA else 0
                packs = bundler.add(chunk, kind)
                if packs:
                    self._report_packs(packs)
            if kind == DATA:  # where it is not ours, it may be in a pack that is open here
                lot.data = bundler.taken
            else:
                lot.nodes = bundler.taken
        self._report_results(batch)

    def _report_results(self, batch: _Batch) -> None:
        for finished in batch.results:
            lot = finished.file.lot
            lot.close(finished.file.index, finished.outcome())
            self._report(lot)

    def _report(self, lot: Lot) -> None:
        """Reports a lot of which everything was read, or has it wait for its packs."""
        if lot.open:
            return
        if lot.data <= self._data.stored and lot.nodes <= self._nodes.stored:
            self._pipe.say(lot.report())
        else:
            self._complete.append(lot)

    def _report_packs(self, packs: list[Packed]) -> None:
        for packed in packs:
            self._pipe.say(orders.Finished(packed))
        if packs:
            lots, self._complete = self._complete, []
            for lot in lots:
                self._report(lot)

    def _close_packs(self, order: Close) -> None:
        for bundler in (self._data, self._nodes):
            self._report_packs(bundler.flush())
        self._pipe.say(orders.Closed(order.number))
        self._pipe.flush()
        _give_memory_back()


class _Batch:
    """Pieces to be claimed together, and the files that are read when these are stored."""

    def __init__(self) -> None:
        self.pieces: list[Piece] = []
        self.results: list[Finished] = []
        self._held = 0

    @property
    def full(self) -> bool:
        return self._held >= BATCH_BYTES or len(self.pieces) >= CHUNKS_MAX or len(self.results) >= BATCH_RESULTS

    def add(self, piece: Piece) -> None:
        self.pieces.append(piece)
        self._held += len(piece.chunk.payload)

    def drop(self, file: File) -> None:
        """Takes out what is of this file."""
        self.pieces = [piece for piece in self.pieces if piece.file is not file]

    def claim(self) -> Claim:
        parts: list[tuple[int, list[bytes]]] = []
        for file, _, chunk in self.pieces:
            number = file.lot.job.number
            if not parts or parts[-1][0] != number:
                parts.append((number, []))
            parts[-1][1].append(chunk.id)
        return Claim(tuple((job, b"".join(ids)) for job, ids in parts))


def _parts(data: memoryview, lengths: list[int]) -> list[memoryview]:
    parts, at = [], 0
    for length in lengths:
        parts.append(data[at : at + length])
        at += length
    return parts


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
    gc.freeze()
    gc.set_threshold(100_000, 20, 50)  # much is held for a moment and next to nothing is in cycles
    pipe = Pipe(os.dup(0), os.dup(1))
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)  # whatever prints must not speak into the pipe
    try:
        setup = pipe.receive()
        if not isinstance(setup, Setup):
            return 0
        os.nice(setup.nice)
        with mmap.mmap(mark_fd, 0) as mark:  # a write to it costs nothing and outlives the process
            Worker(setup, pipe, partial(_write_mark, mark)).run()
    except (BrokenPipeError, EOFError):
        return 0
    except ContbakError as error:
        pipe.say(orders.Broken(orders.kind_of(error), str(error)))
        pipe.flush()
        return 1
    return 0


def _write_mark(mark: mmap.mmap, at: int) -> None:
    mark[:] = at.to_bytes(len(mark), "little")
