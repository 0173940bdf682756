"""Stretches of a pack on their way out: which are asked for, and their bytes in parts.

Rules: a file is opened once; what the system has in memory is read at once, and for the rest a thread waits.  A thread
waits for the disk, never for whoever takes the bytes.  Knows no HTTP but the word for a range.
"""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import AsyncIterator
from concurrent.futures import Executor
from pathlib import Path

from contbak.core.errors import NotFound, StoreError

PART = 256 << 10
"""Bytes that are in memory for one reader."""
TAKEN_S = 120.0
"""A part that is not taken for so long is given up, and the connection with it."""
_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})", re.ASCII)
_AT_ONCE = getattr(os, "RWF_NOWAIT", 0)


def wanted(text: str, size: int) -> tuple[int, int]:
    """From where up to where the range `text` goes in a file of `size` bytes.  Raises ValueError if that is nothing.

    Only one range, in bytes: `a-b` (both included), `a-`, or `-n` for the last n.
    """
    found = _RANGE.fullmatch(text.strip())
    if found is None or found.groups() == ("", ""):
        raise ValueError(text)
    first, last = found.groups()
    if not first:
        start, end = max(0, size - int(last)), size
    else:
        start, end = int(first), min(size, int(last) + 1 if last else size)
    if start >= end:
        raise ValueError(text)
    return start, end


class Sealed:
    """A file that never changes, open for reading.  Close it.

    size   bytes of it
    Raises NotFound if there is no such file, StoreError if it cannot be read.
    """

    def __init__(self, path: Path) -> None:
        try:
            self._fd = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0))
        except (FileNotFoundError, NotADirectoryError):
            raise NotFound(f"{path.name} is not there") from None
        except OSError as error:
            raise StoreError(f"{path.name} cannot be opened: {error.strerror}") from None
        self.size = os.fstat(self._fd).st_size

    def close(self) -> None:
        """Lets go of the file."""
        os.close(self._fd)

    async def parts(self, start: int, end: int, pool: Executor) -> AsyncIterator[memoryview]:
        """The bytes from `start` up to `end`, no part empty and none used again.  Raises StoreError."""
        while start < end:
            length = min(PART, end - start)
            part = self._at_once(start, length)
            if not part:
                part = await asyncio.get_running_loop().run_in_executor(pool, self._read, start, length)
            yield part
            start += len(part)

    def _at_once(self, offset: int, length: int) -> memoryview:
        """What can be had without the disk, from `offset` on; empty if that is nothing or the system cannot say."""
        buffer = memoryview(bytearray(length if _AT_ONCE else 0))
        try:
            return buffer[: os.preadv(self._fd, [buffer], offset, _AT_ONCE)] if _AT_ONCE else buffer
        except OSError:  # it would wait, or this file system has no such reads; whatever else it is, _read meets it too
            return buffer[:0]

    def _read(self, offset: int, length: int) -> memoryview:
        try:
            part = memoryview(os.pread(self._fd, length, offset))
        except OSError as error:
            raise StoreError(f"a pack cannot be read: {error.strerror}") from None
        if not part:
            raise StoreError("a pack has become shorter")
        return part
