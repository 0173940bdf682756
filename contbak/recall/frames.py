"""Frames read from a place and opened: joined ranged reads, and a cache of what was opened last.

Rules: a frame in the cache has been verified chunk by chunk.  A frame that cannot be had is an error object in
the answer, so that one bad frame does not hide its neighbours; only `Unreachable` is raised.

It does not choose among copies (recall/chunks.py does).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from threading import Lock
from typing import TypeAlias

from contbak.core import frame
from contbak.core.crypto import Opener
from contbak.core.errors import ContbakError, FormatError, NotFound, StoreError
from contbak.core.frame import Chunk
from contbak.core.messages import Place as Spot
from contbak.recall.place import Source

CACHE = 64 << 20
"""Bytes of opened frames that are kept."""
JOIN_GAP = 64 << 10
"""Two frames of a pack that lie no further apart are read at once..."""
JOIN_MAX = 2 << 20
"""...with at most so many bytes, unless one frame alone is larger."""

FrameKey: TypeAlias = tuple[bytes, int]
"""(pack, offset)."""
Opened: TypeAlias = dict[bytes, Chunk]
"""The chunks of one frame by id."""


def key_of(spot: Spot) -> FrameKey:
    """What tells the frame at `spot` from others."""
    return spot.pack, spot.offset


def joined(spots: Iterable[Spot]) -> list[list[Spot]]:
    """`spots` (of different frames) in groups that are worth one read each, in order of pack and offset."""
    groups: list[list[Spot]] = []
    start = end = 0
    for spot in sorted(spots, key=key_of):
        last = groups[-1][-1] if groups else None
        near = last is not None and last.pack == spot.pack and spot.offset - end <= JOIN_GAP
        if near and spot.offset + spot.length - start <= JOIN_MAX:
            groups[-1].append(spot)
        else:
            groups.append([spot])
            start = spot.offset
        end = spot.offset + spot.length
    return groups


def opened(raw: memoryview | bytes, opener: Opener) -> Opened:
    """The chunks of one frame, each verified.  Raises FormatError."""
    return {chunk.id: chunk for chunk in frame.decode(raw, opener)}


class Frames:
    """The frames of one vault at one place.  May be used from several threads."""

    def __init__(self, place: Source, opener: Opener, room: int = CACHE) -> None:
        self._place = place
        self._opener = opener
        self._room = room
        self._cache: OrderedDict[FrameKey, Opened] = OrderedDict()
        self._by_id: dict[bytes, FrameKey] = {}
        self._used = 0
        self._lock = Lock()
        self.read_bytes = 0
        """Bytes read from the place so far."""

    def cached(self, id_: bytes) -> Chunk | None:
        """The chunk, if its frame is in the cache."""
        with self._lock:
            key = self._by_id.get(id_)
            if key is None:
                return None
            self._cache.move_to_end(key)
            return self._cache[key].get(id_)

    def load(self, spots: Sequence[Spot]) -> dict[FrameKey, Opened | ContbakError]:
        """The frames at `spots`, which lie near each other in one pack (see `joined`), or what is wrong with each.

        Raises Unreachable.
        """
        start, end = spots[0].offset, max(spot.offset + spot.length for spot in spots)
        try:
            raw = memoryview(self._read(spots[0].pack, start, end - start))
        except (NotFound, FormatError, StoreError) as error:
            if len(spots) == 1:
                return {key_of(spots[0]): error}
            out: dict[FrameKey, Opened | ContbakError] = {}
            for spot in spots:
                out.update(self.load([spot]))
            return out
        return {
            key_of(spot): self._open(key_of(spot), raw[spot.offset - start : spot.offset - start + spot.length])
            for spot in spots
        }

    def _read(self, pack: bytes, offset: int, length: int) -> bytes:
        raw = self._place.read(pack, offset, length)
        if len(raw) != length:
            raise FormatError(f"pack {pack.hex()} gave {len(raw)} bytes for {length}")
        with self._lock:
            self.read_bytes += length
        return raw

    def _open(self, key: FrameKey, raw: memoryview) -> Opened | ContbakError:
        try:
            found = opened(raw, self._opener)
        except FormatError as error:
            return error
        self._keep(key, found)
        return found

    def _keep(self, key: FrameKey, found: Opened) -> None:
        with self._lock:
            if key in self._cache:
                return
            self._cache[key] = found
            self._used += _weight(found)
            for id_ in found:
                self._by_id.setdefault(id_, key)
            while self._used > self._room and len(self._cache) > 1:
                old, gone = self._cache.popitem(last=False)
                self._used -= _weight(gone)
                for id_ in gone:
                    if self._by_id.get(id_) == old:
                        del self._by_id[id_]


def _weight(opened: Opened) -> int:
    """About how many bytes of memory a frame takes."""
    return sum(len(chunk.payload) + 200 + 65 * len(chunk.refs) for chunk in opened.values())
