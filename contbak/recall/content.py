"""The data of a file from its chunks: in order and verified, or, where chunks are lost, what is left and where.

Lost data: a list node tells how long each thing beneath it is, so a loss there has an exact place.  A chunk that
stands in the entry itself has no length on record; one loss follows from the total, and with several what lies
between the first and the last has no sure place and counts as lost, too.  Nothing is ever put where it might not
belong.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple, TypeAlias

from contbak.core import spanlist
from contbak.core.crypto import Hasher
from contbak.core.entry import Content, Entry
from contbak.core.errors import FormatError, NotFound
from contbak.core.names import ID_LEN
from contbak.recall.chunks import Chunks, Piece

Range: TypeAlias = tuple[int, int]
"""(offset, length) in bytes."""


class ChunkLost(FormatError):
    """A chunk of a file cannot be had."""


class Remains(NamedTuple):
    """What is left of a damaged file: an entry that describes it, its data, and the ranges of the file lost."""

    entry: Entry
    data: Iterator[bytes]
    lost: list[Range]


class _Part(NamedTuple):
    """A stretch of data: an id and its bytes, or None if it is lost; `length` None if nobody knows."""

    id: bytes | None
    length: int | None


def ids(chunks: Chunks, content: Content) -> Iterator[bytes]:
    """The ids of the data chunks in order.  Raises ChunkLost where a list node cannot be had."""
    try:
        for id_, _ in spanlist.spans(content.level, content.chunks, chunks.node):
            yield id_
    except (NotFound, FormatError) as error:
        raise ChunkLost(str(error)) from None


def whole(chunks: Chunks, content: Content) -> Iterator[bytes]:
    """All data of a file in order, read from the first `next` on.  Raises ChunkLost, FormatError."""
    yield from data(content, chunks.fetch(ids(chunks, content)))


def data(content: Content, pieces: Iterator[Piece]) -> Iterator[bytes]:
    """The data of `content`, whose chunks `pieces` has, and no others.  Raises ChunkLost."""
    if content.inline is not None:
        yield content.inline
        return
    for piece in pieces:
        if piece.data is None:
            raise ChunkLost(str(piece.error))
        yield piece.data


def remains(chunks: Chunks, entry: Entry, mtime: int) -> Remains:
    """What can be had of a file that has lost chunks.  Reads all of it.  Raises FormatError without content.

    It gets the time `mtime` (ns), so that nobody takes it for the file that it was by size and time.
    Takes 32 bytes of memory for each of its chunks.
    """
    content = entry.content
    if content is None:
        raise FormatError("a file without content")
    survey = _Survey()
    for part in _parts(chunks, content.level, content.chunks):
        survey.add(part)
    lost = survey.lost(content.length)
    hasher, length = Hasher(), 0
    for piece in chunks.data(survey.sound()):
        hasher.update(piece)
        length += len(piece)
    room = ((0, entry.size),) if entry.extents is None else entry.extents
    kept = tuple(_file_ranges(room, _inverse(lost, content.length)))
    left = Content(length, hasher.digest(), None, content.level, content.chunks)
    return Remains(_replaced(entry, left, kept, mtime), chunks.data(survey.sound()), list(_file_ranges(room, lost)))


def _replaced(entry: Entry, content: Content, extents: tuple[Range, ...], mtime: int) -> Entry:
    fields = {name: getattr(entry, name) for name in entry.__struct_fields__}
    return Entry(**{**fields, "content": content, "extents": extents, "mtime": mtime})


def _parts(chunks: Chunks, level: int, ids: Sequence[bytes]) -> Iterator[_Part]:
    """The stretches of a content of that level in order."""
    if level == 0:
        yield from (_part(piece) for piece in chunks.fetch(ids))
        return
    for id_ in ids:
        yield from _beneath(chunks, id_, level - 1, None)


def _part(piece: Piece) -> _Part:
    return _Part(None, None) if piece.data is None else _Part(piece.id, len(piece.data))


def _beneath(chunks: Chunks, id_: bytes, level: int, length: int | None) -> Iterator[_Part]:
    """The stretches of the list node `id_`, which its parent says are `length` bytes."""
    try:
        items = spanlist.decode_list(chunks.node(id_), level)
    except (NotFound, FormatError):
        yield _Part(None, length)
        return
    if level:
        for item in items:
            yield from _beneath(chunks, item.id, level - 1, item.length)
        return
    for item, piece in zip(items, chunks.fetch([item.id for item in items]), strict=True):
        right = piece.data is not None and len(piece.data) == item.length
        yield _Part(item.id if right else None, item.length)


class _Survey:
    """Takes the stretches of a content in order and says what is lost and what has a sure place."""

    def __init__(self) -> None:
        self._start = bytearray()  # ids of sound chunks before the first loss of unknown length
        self._end = bytearray()  # ids of those after the last one
        self._start_lost: list[Range] = []
        self._end_lost: list[Range] = []
        self._unknown: int | None = None
        self._at = 0

    def add(self, part: _Part) -> None:
        """The next stretch."""
        if part.length is None:
            self._unknown = self._at if self._unknown is None else self._unknown
            self._end.clear()
            self._end_lost.clear()
            self._at = 0
            return
        if part.id is None:
            _grow(self._start_lost if self._unknown is None else self._end_lost, self._at, part.length)
        elif self._unknown is None:
            self._start += part.id
        else:
            self._end += part.id
        self._at += part.length

    def lost(self, total: int) -> list[Range]:
        """Where data of `total` bytes is lost.  Raises FormatError if the stretches cannot add up to it."""
        if self._unknown is None:
            if self._at != total:
                raise FormatError("a file's chunks are not as long as its entry says")
            return self._start_lost
        end = total - self._at
        if end < self._unknown:
            raise FormatError("a file's chunks are longer than its entry says")
        out = list(self._start_lost)
        _grow(out, self._unknown, end - self._unknown)
        for offset, length in self._end_lost:
            _grow(out, end + offset, length)
        return out

    def sound(self) -> Iterator[bytes]:
        """The ids of the chunks outside of what is lost, in order."""
        for ids in (self._start, self._end):
            for at in range(0, len(ids), ID_LEN):
                yield bytes(ids[at : at + ID_LEN])


def _grow(ranges: list[Range], offset: int, length: int) -> None:
    """Appends a range, joined to the last one if they touch."""
    if ranges and sum(ranges[-1]) == offset:
        ranges[-1] = (ranges[-1][0], ranges[-1][1] + length)
    elif length:
        ranges.append((offset, length))


def _inverse(ranges: Sequence[Range], total: int) -> Iterator[Range]:
    at = 0
    for offset, length in (*ranges, (total, 0)):
        if offset > at:
            yield at, offset - at
        at = offset + length


def _file_ranges(extents: Sequence[Range], ranges: Iterable[Range]) -> Iterator[Range]:
    """`ranges` of the data as ranges of the file, whose data lies in `extents`; both sorted."""
    out: list[Range] = []
    spots = iter(extents)
    begin, size = next(spots, (0, 0))
    done = 0  # bytes of data before the current extent
    for offset, length in ranges:
        while length:
            while size and offset >= done + size:
                done += size
                begin, size = next(spots, (0, 0))
            if not size:
                return iter(out)
            take = min(length, done + size - offset)
            _grow(out, begin + offset - done, take)
            offset, length = offset + take, length - take
    return iter(out)
