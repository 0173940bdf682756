"""Spooled packs and segments of them as bodies of requests: read and compared with the plan while they are sent.

Rules: what leaves here is what the plan says, so a damaged spool is found on this side.  Memory is one segment's,
however many are sent.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

from contbak.core.errors import FormatError, NotFound
from contbak.core.pack import SEGMENT_MAX_LOG2, Plan
from contbak.store.posix import translated
from contbak.upload.spool import Spool

_BUFFER = 1 << SEGMENT_MAX_LOG2


class Segments:
    """`count` segments from number `first` on."""

    def __init__(self, spool: Spool, plan: Plan, first: int, count: int) -> None:
        self._spool = spool
        self._plan = plan
        self._first = first
        self._end = first + count

    def __len__(self) -> int:
        return sum(self._plan.span(self._end - 1)) - self._plan.span(self._first)[0]

    def pieces(self) -> Iterator[memoryview]:
        """Whole segments.  Raises NotFound, StoreError, or FormatError if the spool has other bytes."""
        plan = self._plan
        try:
            fd = os.open(self._spool.path_of(plan.root), os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            raise NotFound(f"the spool has no pack {plan.root.hex()}") from None
        except OSError as error:
            raise translated(error, "a spooled pack") from error
        try:
            buffer = memoryview(bytearray(min(_BUFFER, len(self))))
            at_once = _BUFFER >> plan.segment_log2
            for index in range(self._first, self._end, at_once):
                yield self._read(fd, buffer, index, min(index + at_once, self._end))
        finally:
            os.close(fd)

    def _read(self, fd: int, buffer: memoryview, first: int, end: int) -> memoryview:
        plan = self._plan
        start = plan.span(first)[0]
        piece = buffer[: sum(plan.span(end - 1)) - start]
        got = 0
        while got < len(piece):
            try:
                part = os.preadv(fd, [piece[got:]], start + got)
            except OSError as error:
                raise translated(error, "a spooled pack") from error
            if not part:
                raise FormatError("a spooled pack is cut short")
            got += part
        for index in range(first, end):
            at, length = plan.span(index)
            if not plan.verify(index, piece[at - start : at - start + length]):
                raise FormatError(f"segment {index} of the spooled pack {plan.root.hex()} is damaged")
        return piece


class WholePack(Segments):
    """A pack as it lies in the spool."""

    def __init__(self, spool: Spool, plan: Plan) -> None:
        super().__init__(spool, plan, 0, len(plan.hashes))

    def __len__(self) -> int:
        return self._plan.file_len

    def pieces(self) -> Iterator[memoryview]:
        """The segments, then the plan.  Raises as those of Segments."""
        yield from super().pieces()
        yield memoryview(self._plan.raw)
