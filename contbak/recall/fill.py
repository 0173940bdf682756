"""Fills a new file with data that comes in order, leaving its holes out, and proves that it is the right data.

Rules: what is too much, too little or different is an error before anybody can see the file.
It does not name, place or describe the file.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Protocol

from contbak.core.entry import Entry
from contbak.core.errors import FormatError

Extents = tuple[tuple[int, int], ...]


class Hasher(Protocol):
    """An incremental hash, of the kind that Content.hash is."""

    def update(self, data: bytes | memoryview, /) -> object: ...
    def digest(self) -> bytes: ...


def fill(path: bytes, fd: int, entry: Entry, pieces: Iterable[bytes | memoryview], hasher: Hasher) -> int:
    """Writes `pieces` where `entry` has data into the empty file `fd`; the size of the file in the end.

    Raises FormatError, naming `path`, if the entry contradicts itself or the data is not what it says.
    """
    content = entry.content
    if content is None:
        raise FormatError(f"{path!r} is a file without content")
    size = content.length if entry.extents is None else entry.size
    spans = iter(((0, size),) if entry.extents is None else _checked(path, entry.extents, size, content.length))
    offset = end = length = 0
    for piece in pieces:
        hasher.update(piece)
        length += len(piece)
        if length > content.length:
            raise FormatError(f"{path!r} has more data than its entry says")
        left: bytes | memoryview = piece
        while left:
            if offset == end:
                offset, span = next(spans)
                end = offset + span
            fits = len(left) <= end - offset
            written = os.pwrite(fd, left if fits else memoryview(left)[: end - offset], offset)
            offset += written
            left = memoryview(left)[written:] if written < len(left) else b""
    if length != content.length or hasher.digest() != content.hash:
        raise FormatError(f"the data of {path!r} is not what its entry says")
    if entry.extents is not None or offset != size:  # what ends with data is as long as it should be
        os.ftruncate(fd, size)
    return size


def _checked(path: bytes, extents: Extents, size: int, length: int) -> Extents:
    """`extents` if they are in order, within `size` and `length` bytes in all."""
    end = total = 0
    for offset, span in extents:
        if offset < end or span <= 0:
            raise FormatError(f"the extents of {path!r} are out of order")
        end = offset + span
        total += span
    if end > size or total != length:
        raise FormatError(f"the extents of {path!r} do not fit its size")
    return extents
