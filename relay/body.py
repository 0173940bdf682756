"""Bodies of requests as they come in: with a limit, not too slowly, and large ones in few buffers.

Rules: what a body may take in memory is its limit or one buffer, and there are BUFFERS of those for all connections
together: whoever comes later waits, and its sender with it.  A buffer that a thread may still read is not used again.
Knows no HTTP.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Protocol

from contbak.core.pack import SEGMENT_MAX_LOG2
from relay.problem import Problem

SILENCE_S = 30.0
"""A body of which nothing comes for so long is given up."""
SLOWEST = 4 << 10
"""Bytes per second that a body must come at, on the whole."""
BUFFERS = 64
BUFFER_LEN = 1 << SEGMENT_MAX_LOG2
"""Bytes of a buffer: segments of every size fit in whole."""


class Source(Protocol):
    """Where the bytes come from."""

    async def readany(self) -> bytes:
        """What is there, at least one byte; b"" at the end."""


class Body:
    """The body that `source` gives, at most `limit` bytes."""

    def __init__(self, source: Source, limit: int) -> None:
        self._source = source
        self._limit = limit
        self._size = 0
        self._ends = asyncio.get_running_loop().time() + SILENCE_S + limit / SLOWEST
        self._rest = memoryview(b"")

    async def part(self) -> bytes:
        """The next bytes, b"" at the end.  Raises Problem if there are too many or they come too slowly."""
        patience = min(SILENCE_S, self._ends - asyncio.get_running_loop().time())
        try:
            async with asyncio.timeout(patience):
                part = await self._source.readany()
        except TimeoutError:
            raise Problem(503, "slow", "the body came too slowly") from None
        self._size += len(part)
        if self._size > self._limit:
            raise too_large(self._limit)
        return part

    async def whole(self) -> bytes:
        """All of it."""
        parts = []
        while part := await self.part():
            parts.append(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    async def fill(self, buffer: memoryview) -> int:
        """Fills the buffer; returns how many bytes, fewer than it has room for only at the end."""
        at = 0
        while at < len(buffer):
            if not self._rest:
                self._rest = memoryview(await self.part())
                if not self._rest:
                    break
            taken = self._rest[: len(buffer) - at]
            buffer[at : at + len(taken)] = taken
            at, self._rest = at + len(taken), self._rest[len(taken) :]
        return at


class Buffers:
    """The buffers of one relay, made as they are needed."""

    def __init__(self) -> None:
        self._places = asyncio.Semaphore(BUFFERS)
        self._free: list[memoryview] = []

    @asynccontextmanager
    async def one(self) -> AsyncIterator[memoryview]:
        """A buffer of BUFFER_LEN bytes; waits for one."""
        async with self._places:
            buffer = self._free.pop() if self._free else memoryview(bytearray(BUFFER_LEN))
            try:
                yield buffer
            except asyncio.CancelledError:  # a thread may be at work on it
                raise
            except Exception:
                self._free.append(buffer)
                raise
            self._free.append(buffer)


def too_large(limit: int) -> Problem:
    return Problem(413, "too-large", f"the body is larger than {limit} bytes")
