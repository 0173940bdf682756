"""The data of an open file as a stream of windows: one buffer, reused for every file.

Rules: only data is read, holes are found and left out; nothing is mapped; a consumer gets each byte in order,
once.  It does not judge whether the copy is whole: the guard it is given does.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable

from contbak.core.errors import SourceError

Consume = Callable[[memoryview, bool], int]
"""consume(view, final) -> bytes taken from the start of `view`; the rest comes again, in front of what follows.

`view` is valid during the call only.  At least one byte must be taken, and all of it when `final`.  A copy that
is accepted ends with one final call, which may have nothing in it; a copy that is not has no final call.
"""
Guard = Callable[[memoryview, bool, bool], None]
"""guard(view, final, short): called before each hand-over, raises to stop; `short` if the file ended too early."""
Extents = tuple[tuple[int, int], ...]

EXTENTS_MAX = 4096
HOLE_MIN = 4096
"""Smaller holes are read as zeros, bytes."""
LARGE = 1 << 20
"""From this size on, bytes, a file is announced to the kernel as a stream and dropped from the page cache."""


class Window:
    """A buffer of `size` bytes and the way of files through it.  One thread at a time."""

    def __init__(self, size: int) -> None:
        self._view = memoryview(bytearray(size))

    def stream(self, path: bytes, fd: int, spans: Extents, consume: Consume, guard: Guard) -> int:
        """Hands the bytes of `spans` of `fd` to `consume`; the number of bytes there were.

        Raises SourceError, naming `path`, if the file cannot be read on.
        """
        if len(spans) == 1 and spans[0][1] <= min(len(self._view), LARGE - 1):  # as most files are
            return self._whole(path, fd, spans[0], consume, guard)
        view, have, came = self._view, 0, 0
        large = bool(spans) and spans[-1][0] + spans[-1][1] >= LARGE
        if large:
            _advise(fd, "POSIX_FADV_SEQUENTIAL")
        for offset, length in spans:
            while length:
                got = _fill(path, fd, view[have : have + min(length, len(view) - have)], offset)
                if not got:
                    _finish(view[:have], True, consume, guard)
                    return came
                have, came, offset, length = have + got, came + got, offset + got, length - got
                if have == len(view):
                    guard(view, False, False)
                    taken = _taken(consume(view, False), have)
                    have -= taken
                    view[:have] = view[taken:]
                    if large:
                        _advise(fd, "POSIX_FADV_DONTNEED", offset)
        _finish(view[:have], False, consume, guard)
        if large:
            _advise(fd, "POSIX_FADV_DONTNEED")
        return came


    def _whole(self, path: bytes, fd: int, span: tuple[int, int], consume: Consume, guard: Guard) -> int:
        """As `stream`, of a single span that fits."""
        offset, length = span
        have = _fill(path, fd, self._view[:length], offset)
        while have < length and (got := _fill(path, fd, self._view[have:length], offset + have)):
            have += got
        _finish(self._view[:have], have < length, consume, guard)
        return have


def find_extents(fd: int, st: os.stat_result, align: int = 1) -> Extents | None:
    """Where the file of `fd` has data: sorted (offset, length); None if it has no holes worth leaving out.

    align: each extent begins at a multiple of so many bytes and ends at one, or with the file.

    The blocks that a file occupies do not tell: attributes have blocks, too, and space that is reserved and was
    never written is a hole.  Asking costs a microsecond.
    """
    size = st.st_size
    if size < HOLE_MIN:
        return None
    try:
        if os.lseek(fd, 0, os.SEEK_HOLE) >= size:
            return None
        extents = tuple(_aligned(_scan_extents(fd, size), align, size))
    except OSError:
        return None  # a file system that cannot tell, or a file that shrinks: reading it will show
    return None if extents == ((0, size),) else extents


def cut(extents: Extents, length: int) -> Extents:
    """The first `length` bytes of what `extents` cover."""
    kept = []
    for offset, span in extents:
        span = min(span, length)
        if span:
            kept.append((offset, span))
        length -= span
    return tuple(kept)


def _scan_extents(fd: int, size: int) -> list[tuple[int, int]]:
    found: list[tuple[int, int]] = []
    offset = 0
    while (start := _seek_data(fd, offset, size)) < size:
        offset = min(size, os.lseek(fd, start, os.SEEK_HOLE))
        if found and start - sum(found[-1]) < HOLE_MIN:
            start = found.pop()[0]
        found.append((start, offset - start))
        if len(found) > 2 * EXTENTS_MAX:
            found = _fewer(found)
    return _fewer(found)


def _aligned(found: list[tuple[int, int]], align: int, size: int) -> list[tuple[int, int]]:
    if align <= 1:
        return found
    wide: list[tuple[int, int]] = []
    for offset, length in found:
        start, end = offset - offset % align, min(size, -(-(offset + length) // align) * align)
        if wide and start <= sum(wide[-1]):
            start = wide.pop()[0]
        wide.append((start, end - start))
    return wide


def _fewer(found: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """At most EXTENTS_MAX extents: the smallest holes become data.

    Closing all holes below one size instead could close every hole of a file with many equal ones.
    """
    if len(found) <= EXTENTS_MAX:
        return found
    largest_first = sorted(range(1, len(found)), key=lambda at: sum(found[at - 1]) - found[at][0])
    starts = [0, *sorted(largest_first[: EXTENTS_MAX - 1])]  # extents that keep the hole before them
    ends = [*(at - 1 for at in starts[1:]), len(found) - 1]
    return [(found[a][0], sum(found[z]) - found[a][0]) for a, z in zip(starts, ends, strict=True)]


def _seek_data(fd: int, offset: int, size: int) -> int:
    try:
        return os.lseek(fd, offset, os.SEEK_DATA)
    except OSError as error:
        if error.errno == errno.ENXIO:
            return size  # a hole up to the end
        raise


def _fill(path: bytes, fd: int, room: memoryview, offset: int) -> int:
    try:
        return os.preadv(fd, [room], offset)
    except OSError as error:
        raise SourceError(path, f"it cannot be read at byte {offset}: {os.strerror(error.errno or 0)}") from None


def _finish(view: memoryview, short: bool, consume: Consume, guard: Guard) -> None:
    guard(view, True, short)
    if consume(view, True) != len(view):
        raise ValueError("a consumer must take all of the final window")


def _taken(taken: int, offered: int) -> int:
    if not 0 < taken <= offered:
        raise ValueError(f"a consumer took {taken} of {offered} bytes")
    return taken


def _advise(fd: int, advice: str, length: int = 0) -> None:
    """Tells the kernel about the first `length` bytes of `fd` (0: all) where it wants to know."""
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(fd, 0, length, getattr(os, advice))
