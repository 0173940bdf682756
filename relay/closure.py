"""Whether everything that a commit leads to is there: the check behind every receipt.

Rules: walks from the roots through the references in clear frame headers, level by level, so that ids are looked up
many at once and each header is read once for a level; a node of which the index knows that all is there is not walked
again, so the walk costs what is new.  Memory is about 500 bytes for each new node, besides one batch.  What
cannot be read counts as missing, so that it is supplied again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import chain

from contbak.core.errors import FormatError, NotFound
from contbak.core.frame import Header
from contbak.core.messages import MISSING_MAX, Place
from relay.index import Index

DEPTH_MAX = 64
"""Levels of nodes; trees and lists of spans have less than a dozen."""
_NODES = 4_096
_REFS = 65_536

ReadHeader = Callable[[Place], Header]
"""Reads the header of the frame at a place.  Raises FormatError, NotFound."""


class Closure:
    """One check; made for one commit and dropped."""

    def __init__(self, index: Index, read_header: ReadHeader) -> None:
        self._index = index
        self._read_header = read_header
        self._seen: set[bytes] = set()
        self._children: dict[bytes, set[bytes]] = {}  # of the nodes seen, those that are nodes and not closed
        self._missing: dict[bytes, None] = {}
        self._at: tuple[bytes, int] | None = None
        self._last: Header | None = None

    def missing(self, roots: Sequence[bytes]) -> list[bytes]:
        """At most MISSING_MAX ids that the roots lead to and that are not there; none: all is there.

        Raises FormatError for references in a circle, or deeper than any tree has.
        """
        level = self._new(self._open(set(roots)))
        for _ in range(DEPTH_MAX):
            if not level or len(self._missing) >= MISSING_MAX:
                break
            level = self._below(level)
        else:
            if level:
                raise FormatError("the commit's references are nested too deeply")
        if not self._missing:
            self._check_order()
        return list(self._missing)[:MISSING_MAX]

    @property
    def closed(self) -> set[bytes]:
        """When nothing is missing: the nodes from which everything is there, for the index to remember."""
        return self._seen

    def _below(self, nodes: list[bytes]) -> list[bytes]:
        """The nodes below these that were not seen yet."""
        found: list[bytes] = []
        batch: list[tuple[bytes, tuple[bytes, ...]]] = []
        size = 0
        for start in range(0, len(nodes), _NODES):
            for id_, refs in self._refs(nodes[start : start + _NODES]):
                batch.append((id_, refs))
                size += len(refs)
                if size >= _REFS:
                    found += self._step(batch)
                    batch, size = [], 0
        return found + self._step(batch)

    def _step(self, batch: list[tuple[bytes, tuple[bytes, ...]]]) -> list[bytes]:
        """One step down from nodes with their references; the nodes that were not seen yet."""
        below = self._open(set().union(*(refs for _, refs in batch)))
        for id_, refs in batch:
            children = below.intersection(refs)
            if children:
                self._children[id_] = children
        return self._new(below)

    def _open(self, refs: set[bytes]) -> set[bytes]:
        """Notes which of the references are missing; returns those to nodes that are not closed."""
        absent, nodes = self._index.absent(sorted(refs))
        self._missing.update(dict.fromkeys(absent))
        return set(nodes)

    def _new(self, nodes: set[bytes]) -> list[bytes]:
        new = nodes - self._seen
        self._seen |= new
        return sorted(new)

    def _check_order(self) -> None:
        """Raises FormatError unless the nodes can be ordered so that each comes before those that it points to."""
        above = Counter(chain.from_iterable(self._children.values()))
        ready = [id_ for id_ in self._seen if not above[id_]]
        left = len(self._seen)
        while ready:
            left -= 1
            for child in self._children.get(ready.pop(), ()):
                above[child] -= 1
                if not above[child]:
                    ready.append(child)
        if left:
            raise FormatError("the commit's references go in a circle")

    def _refs(self, nodes: Sequence[bytes]) -> Iterator[tuple[bytes, tuple[bytes, ...]]]:
        """The nodes with what they point to; of those of which no copy can be read it notes that they are missing."""
        copies = zip(self._index.places(nodes), nodes, strict=True)
        for places, id_ in sorted(copies, key=lambda row: [(place.pack, place.offset) for place in row[0]]):
            refs = self._refs_of(id_, places)
            if refs is None:
                self._missing[id_] = None
            else:
                yield id_, refs

    def _refs_of(self, id_: bytes, places: Sequence[Place]) -> tuple[bytes, ...] | None:
        """What the node points to; None if no copy of it can be read."""
        for place in places:
            if not place.kind:
                continue
            try:
                header = self._header(place)
            except (FormatError, NotFound):
                continue
            if place.ordinal < len(header.ids) and header.ids[place.ordinal] == id_:
                return header.refs[place.ordinal] if header.refs else ()
        return None

    def _header(self, place: Place) -> Header:
        """The header of the frame there, which is often that of the place before."""
        if self._at != (place.pack, place.offset):
            self._last = self._read_header(place)
            self._at = place.pack, place.offset
        assert self._last is not None
        return self._last
