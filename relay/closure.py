"""Whether everything that a commit leads to is there: the check behind every receipt.

Rules: walks from the roots through the references in clear frame headers, depth first and without recursion; a
node from which all is there is remembered as closed and not walked again, so the walk costs what is new.  Memory
is bounded by the depth and by LIMIT.  What cannot be read counts as missing, so that it is supplied again.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from contbak.core.errors import FormatError, NotFound
from contbak.core.frame import Header
from contbak.core.messages import MISSING_MAX, Place
from relay.index import Index

DEPTH_MAX = 64
"""Levels of nodes; trees and lists of spans have less than a dozen.  Also what ends a circle."""
OPEN_MAX = 100_000
_BATCH = 4_096
_HEADERS = 32

ReadHeader = Callable[[Place], Header]
"""Reads the header of the frame at a place.  Raises FormatError, NotFound."""


@dataclass(slots=True)
class _Step:
    """A node on the way down: its references to nodes that are still to be walked; whole: nothing is missing yet."""

    id: bytes
    ahead: list[bytes]
    whole: bool


class Closure:
    """One check; made for one commit and dropped."""

    def __init__(self, index: Index, read_header: ReadHeader) -> None:
        self._index = index
        self._read_header = read_header
        self._headers: OrderedDict[tuple[bytes, int], Header] = OrderedDict()
        self._done: set[bytes] = set()  # closed, not yet written down
        self._open: set[bytes] = set()  # walked, and something below is missing
        self._missing: dict[bytes, None] = {}

    def missing(self, roots: Sequence[bytes]) -> list[bytes]:
        """At most MISSING_MAX ids that the roots lead to and that are not there; none: all is there.

        Raises FormatError for references deeper than any tree has.
        """
        top = _Step(b"", self._look(roots), True)
        stack = [top]
        while stack:
            if len(self._missing) >= MISSING_MAX or len(self._open) >= OPEN_MAX:
                break
            step = stack[-1]
            if step.ahead:
                self._descend(step.ahead.pop(), stack)
            else:
                self._leave(stack)
        self._flush(0)
        return list(self._missing)[:MISSING_MAX]

    def _descend(self, id_: bytes, stack: list[_Step]) -> None:
        if id_ in self._done:
            return
        if id_ in self._open:
            stack[-1].whole = False
            return
        if len(stack) > DEPTH_MAX:
            raise FormatError("the commit's references are nested too deeply")
        before = len(self._missing)
        refs = self._refs(id_)
        ahead = [] if refs is None else self._look(refs)
        stack.append(_Step(id_, ahead, refs is not None and len(self._missing) == before and self._all_there(refs)))

    def _leave(self, stack: list[_Step]) -> None:
        step = stack.pop()
        if not stack:
            return
        if step.whole:
            self._done.add(step.id)
            self._flush(_BATCH)
        else:
            self._open.add(step.id)
            stack[-1].whole = False

    def _all_there(self, refs: Sequence[bytes]) -> bool:
        return not self._missing or not any(ref in self._missing for ref in refs)

    def _look(self, refs: Sequence[bytes]) -> list[bytes]:
        """Notes which of the references are missing; returns those that must be walked."""
        absent, nodes = self._index.absent(refs)
        for id_ in absent:
            self._missing[id_] = None
        return nodes

    def _refs(self, id_: bytes) -> tuple[bytes, ...] | None:
        """What the node points to; None, and missing, if no copy of it can be read."""
        for place in self._index.places([id_])[0]:
            if not place.kind:
                continue
            try:
                header = self._header(place)
            except (FormatError, NotFound):
                continue
            if place.ordinal < len(header.ids) and header.ids[place.ordinal] == id_:
                return header.refs[place.ordinal] if header.refs else ()
        self._missing[id_] = None
        return None

    def _header(self, place: Place) -> Header:
        key = (place.pack, place.offset)
        header = self._headers.get(key)
        if header is None:
            header = self._headers[key] = self._read_header(place)
            if len(self._headers) > _HEADERS:
                self._headers.popitem(last=False)
        else:
            self._headers.move_to_end(key)
        return header

    def _flush(self, above: int) -> None:
        if len(self._done) > above:
            self._index.close_nodes(self._done)
            self._done.clear()
