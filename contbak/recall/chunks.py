"""From chunk ids to verified bytes: locating, choosing among copies, reading ahead.

Rules: what is returned has been recomputed against its id.  A copy that is damaged or gone is passed over for
the next one; only when all copies fail is the chunk lost (FormatError or NotFound, naming it).  `Unreachable` is
never taken for a loss: it ends the call.

Memory: the cache of frames, and two windows of frames (one that is used, one that is read ahead).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import NamedTuple

from contbak.core.crypto import Opener
from contbak.core.errors import ContbakError, FormatError, NotFound, StoreError
from contbak.core.frame import Chunk
from contbak.core.messages import Place as Spot
from contbak.core.node import Node
from contbak.recall.frames import CACHE, FrameKey, Frames, Opened, joined, key_of
from contbak.recall.place import Source

WINDOW = 8 << 20
"""Bytes of frames that are read ahead, where nothing else is said."""
BATCH = 512
"""Ids located with one request."""

_Loaded = Future[dict[FrameKey, Opened | ContbakError]]


class Piece(NamedTuple):
    """One chunk as it came: its plaintext, or why it is lost (then `data` is None)."""

    id: bytes
    data: bytes | None
    refs: tuple[bytes, ...] = ()
    error: ContbakError | None = None


class _Window(NamedTuple):
    """Ids in order, the places of those that were not in the cache, and the frames on their way."""

    ids: Sequence[bytes]
    spots: dict[bytes, tuple[Spot, ...]]
    frames: dict[FrameKey, _Loaded]


class Chunks:
    """The chunks of one vault at one place.  May be used from several threads.

    cache    bytes of opened frames that are kept
    window   bytes of frames, as they lie in packs, that are read ahead
    """

    def __init__(
        self, place: Source, opener: Opener, cache: int = CACHE, threads: int = 4, window: int | None = None
    ) -> None:
        self.place = place
        self.opener = opener
        self._frames = Frames(place, opener, cache)
        self._ahead = WINDOW if window is None else window
        self._pool = ThreadPoolExecutor(threads, "chunks")

    @property
    def read_bytes(self) -> int:
        """Bytes read from the place so far."""
        return self._frames.read_bytes

    def node(self, id_: bytes) -> Node:
        """The node `id_`, verified.  Raises NotFound or FormatError if all its copies are lost, Unreachable."""
        chunk = self._frames.cached(id_)
        if chunk is None:
            chunk = self._from_copies(id_, self.place.locate([id_])[0])
        return Node(chunk.refs, bytes(chunk.payload))

    def data(self, ids: Iterable[bytes]) -> Iterator[bytes]:
        """The plaintexts of data chunks, in order.  Raises NotFound or FormatError at the first that is lost."""
        for piece in self.fetch(ids):
            if piece.data is None:
                raise piece.error or NotFound(f"chunk {piece.id.hex()} is lost")
            yield piece.data

    def gather(self, ids: Iterable[bytes], spots: Mapping[bytes, tuple[Spot, ...]]) -> dict[bytes, bytes]:
        """The plaintexts of those of `ids` whose first copy, by `spots`, is sound: for what is small in all.

        Whoever misses one asks `fetch`, which tries the others.  Nothing runs beside it.  Raises Unreachable.
        """
        out: dict[bytes, bytes] = {}
        wanted: dict[FrameKey, Spot] = {}
        open_: set[bytes] = set()
        for id_ in ids:
            chunk = self._frames.cached(id_)
            if chunk is not None:
                out[id_] = bytes(chunk.payload)
            elif places := spots.get(id_):
                wanted[key_of(places[0])] = places[0]
                open_.add(id_)
        for group in joined(wanted.values()):
            for found in self._frames.load(group).values():
                if isinstance(found, dict):
                    out.update((id_, bytes(found[id_].payload)) for id_ in open_.intersection(found))
        return out

    def fetch(self, ids: Iterable[bytes]) -> Iterator[Piece]:
        """Each chunk in order, lost ones with the reason; reads ahead.  Raises Unreachable.

        Reading begins with the call, so a caller may ask for the next while it works on the last.  `ids` is
        consumed as it goes on: at most a batch and two windows before what was returned.
        """
        windows = self._windows(ids)
        return self._fetched(next(windows, None), windows)

    def close(self) -> None:
        """Ends the threads; what is being read is thrown away.  Does not close the place."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _fetched(self, ahead: _Window | None, windows: Iterator[_Window]) -> Iterator[Piece]:
        while ahead is not None:
            now, ahead = ahead, next(windows, None)
            for id_ in now.ids:
                yield self._piece(id_, now)

    def _windows(self, ids: Iterable[bytes]) -> Iterator[_Window]:
        """`ids` located and cut so that the first copies' frames of a window are `window` bytes or one frame."""
        stream = iter(ids)
        while batch := list(islice(stream, BATCH)):
            asked = [id_ for id_ in dict.fromkeys(batch) if self._frames.cached(id_) is None]
            spots = dict(zip(asked, self.place.locate(asked), strict=True)) if asked else {}
            for part in _cut(batch, spots, self._ahead):
                yield self._start(part, spots)

    def _start(self, ids: Sequence[bytes], spots: dict[bytes, tuple[Spot, ...]]) -> _Window:
        """Asks for the frames of a window."""
        own = {id_: spots[id_] for id_ in ids if id_ in spots}
        wanted = {key_of(places[0]): places[0] for places in own.values() if places}
        frames: dict[FrameKey, _Loaded] = {}
        for group in joined(wanted.values()):
            job = self._pool.submit(self._frames.load, group)
            frames.update((key_of(spot), job) for spot in group)
        return _Window(ids, own, frames)

    def _piece(self, id_: bytes, window: _Window) -> Piece:
        try:
            chunk = self._arrived(id_, window) or self._frames.cached(id_)
            if chunk is None:  # damaged, or it was in the cache when the window was made and has left it since
                places = window.spots.get(id_)
                chunk = self._from_copies(id_, self.place.locate([id_])[0] if places is None else places)
        except (NotFound, FormatError, StoreError) as error:
            return Piece(id_, None, error=error)
        return Piece(id_, bytes(chunk.payload), chunk.refs)

    def _arrived(self, id_: bytes, window: _Window) -> Chunk | None:
        """The chunk from the first of its copies, once that has been read; None if that is no good."""
        places = window.spots.get(id_)
        if not places:
            return None
        key = key_of(places[0])
        found = window.frames[key].result()[key]
        return found.get(id_) if isinstance(found, dict) else None

    def _from_copies(self, id_: bytes, spots: Sequence[Spot]) -> Chunk:
        """The chunk from the first sound copy."""
        reason: ContbakError | None = None
        for spot in spots:
            found = self._frames.load([spot])[key_of(spot)]
            if isinstance(found, dict):
                if id_ in found:
                    return found[id_]
                found = FormatError("the index points to a frame that does not hold it")
            reason = found
        if reason is None:
            raise NotFound(f"chunk {id_.hex()} is not there")
        kind = NotFound if isinstance(reason, NotFound) else FormatError
        raise kind(f"chunk {id_.hex()} is lost: {reason}")


def _cut(batch: Sequence[bytes], spots: dict[bytes, tuple[Spot, ...]], room: int) -> Iterator[Sequence[bytes]]:
    start = size = 0
    keys: set[FrameKey] = set()
    for number, id_ in enumerate(batch):
        places = spots.get(id_)
        if not places or key_of(places[0]) in keys:
            continue
        if size and size + places[0].length > room:
            yield batch[start:number]
            start, size = number, 0
            keys.clear()
        size += places[0].length
        keys.add(key_of(places[0]))
    yield batch[start:]
