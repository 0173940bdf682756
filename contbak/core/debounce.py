"""Wait until a path holds still, but not for ever.

Rules:
- A path comes out once it had no event for `settle_s`, or `max_wait_s` after its first event, whichever is
  earlier: a log that is written all the time is still saved.
- Every path that goes in is covered by something that comes out.  When more than `limit` paths wait, the
  entries of the fullest directories are replaced by their directory, to be looked at as a whole.
- Time is an argument, in seconds of any clock that does not run backwards.

It does not look at the paths on disk and does not remember what came out.
"""

from __future__ import annotations

import heapq
from collections import Counter
from dataclasses import dataclass

from contbak.core.errors import UsageError


@dataclass(frozen=True, slots=True)
class Settled:
    """A path that is due: `since` is the time of its first event; `subtree` asks for everything below it too."""

    path: bytes
    since: float
    subtree: bool


class _Waiting:
    """One waiting path: times of its first and last event, and whether it stands for all below it."""

    __slots__ = ("last", "since", "subtree")

    def __init__(self, since: float, last: float, subtree: bool) -> None:
        self.since = since
        self.last = last
        self.subtree = subtree


class Debouncer:
    """The paths of one source that have not settled yet.

    `settle_s` and `max_wait_s` are seconds, `limit` is the number of paths that may wait one by one.
    `top` is the source's directory if paths are absolute: nothing is ever collapsed beyond it.
    """

    def __init__(self, settle_s: float = 2.0, max_wait_s: float = 30.0, limit: int = 50_000, top: bytes = b"") -> None:
        if not (settle_s >= 0 and max_wait_s >= 0 and limit >= 1):
            raise UsageError("settling times must not be negative and the limit must be at least 1")
        self._settle_s = settle_s
        self._max_wait_s = max_wait_s
        self._limit = limit
        self._top = top
        self._waiting: dict[bytes, _Waiting] = {}
        # Every waiting path is in the heap once, with a time at or before the one it is really due.
        self._heap: list[tuple[float, bytes]] = []
        self._subtrees: set[bytes] = set()

    def receive(self, path: bytes, now: float) -> None:
        """Note an event of `path` at `now`."""
        found = self._waiting.get(path)
        if found is None and self._subtrees:
            found = self._subtree_over(path)
        if found is not None:
            if now > found.last:
                found.last = now
            return
        self._waiting[path] = waiting = _Waiting(now, now, False)
        heapq.heappush(self._heap, (self._due(waiting), path))
        if len(self._waiting) > self._limit:
            self._collapse()

    def settled(self, now: float) -> list[Settled]:
        """Take out every path that is due at `now`, the longest due first."""
        ripe: list[Settled] = []
        while self._heap and self._heap[0][0] <= now:
            path = self._heap[0][1]
            waiting = self._waiting[path]
            due = self._due(waiting)
            if due > now:
                heapq.heapreplace(self._heap, (due, path))
                continue
            heapq.heappop(self._heap)
            del self._waiting[path]
            self._subtrees.discard(path)
            ripe.append(Settled(path, waiting.since, waiting.subtree))
        return ripe

    def get_timer(self) -> float | None:
        """When the next path is due, or None if none waits."""
        while self._heap:
            noted, path = self._heap[0]
            due = self._due(self._waiting[path])
            if due <= noted:
                return noted
            heapq.heapreplace(self._heap, (due, path))
        return None

    def pending(self) -> int:
        """How many entries wait; a collapsed directory is one."""
        return len(self._waiting)

    def oldest(self) -> float | None:
        """Time of the first event of the entry that has waited longest, or None.  Looks at every entry."""
        return min((waiting.since for waiting in self._waiting.values()), default=None)

    def _due(self, waiting: _Waiting) -> float:
        return min(waiting.last + self._settle_s, waiting.since + self._max_wait_s)

    def _subtree_over(self, path: bytes) -> _Waiting | None:
        """The collapsed directory that already covers `path`."""
        while path != self._top:
            above = self._parent(path)
            if above == path:
                return None
            if above in self._subtrees:
                return self._waiting[above]
            path = above
        return None

    def _parent(self, path: bytes) -> bytes:
        head, slash, _ = path.rpartition(b"/")
        return slash if slash and not head else head

    def _collapse(self) -> None:
        """Bring the number of entries down to half the limit."""
        goal = max(1, self._limit // 2)
        while len(self._waiting) > goal:
            directories = self._fullest(len(self._waiting) - goal) or self._deepest()
            if not directories:
                break
            self._replace(directories)
        self._heap = [(self._due(waiting), path) for path, waiting in self._waiting.items()]
        heapq.heapify(self._heap)

    def _fullest(self, surplus: int) -> set[bytes]:
        """The fewest directories that, by the paths directly in them, rid us of `surplus` entries.

        Directories that already stand for a subtree are not counted, or the one above them all would win.
        """
        fill = Counter(self._parent(path) for path, waiting in self._waiting.items() if not waiting.subtree)
        chosen: set[bytes] = set()
        for directory, entries in fill.most_common():
            if surplus <= 0 or entries < 2:
                break
            chosen.add(directory)
            surplus -= entries - 1
        return chosen

    def _deepest(self) -> set[bytes]:
        """The directories of the deepest entries, for when no plain paths share one."""
        depths = {path: path.count(b"/") for path in self._waiting if self._may_rise(path)}
        deepest = max(depths.values(), default=0)
        return {self._parent(path) for path, depth in depths.items() if depth == deepest}

    def _may_rise(self, path: bytes) -> bool:
        return path != self._top and self._parent(path) != path

    def _replace(self, directories: set[bytes]) -> None:
        """Let each of `directories` stand for every entry at or below it."""
        before, self._waiting = self._waiting, {}
        self._subtrees |= directories
        for path, waiting in before.items():
            cover = self._cover(path)
            if cover is None:
                self._waiting[path] = waiting
                continue
            held = self._waiting.get(cover)
            if held is None:
                self._waiting[cover] = _Waiting(waiting.since, waiting.last, True)
            else:
                held.since = min(held.since, waiting.since)
                held.last = max(held.last, waiting.last)
                held.subtree = True
        self._subtrees &= self._waiting.keys()

    def _cover(self, path: bytes) -> bytes | None:
        """The highest of the collapsed directories that is `path` or above it."""
        cover = path if path in self._subtrees else None
        while self._may_rise(path):
            path = self._parent(path)
            if path in self._subtrees:
                cover = path
        return cover
