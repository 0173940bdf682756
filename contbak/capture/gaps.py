"""Coverage gaps: times and places where events may have been lost, and what closes them.

Rules:
- Only a scan of the place closes a gap, and only if the scan began after the gap was found: whoever scans notes
  the watcher's generation first and closes with that number.
- A gap covers everything below its path, so gaps below it are merged into it.

It finds gaps only by the clocks (suspend, clock set); the watcher finds the others.  It does not store them.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

OVERFLOW = "the kernel's event queue overflowed"
WATCH_LIMIT = "watch limit reached (raise the sysctl fs.inotify.max_user_watches)"
INSTANCE_LIMIT = "no inotify instance left (raise the sysctl fs.inotify.max_user_instances)"
DENIED = "permission denied"
UNMOUNTED = "the file system was unmounted"
GONE = "source is gone"
OTHER_FILE_SYSTEM = "another file system is mounted here; it is not watched"
TOO_LONG = "the path is too long to be watched"
NO_DESCRIPTORS = "too many open files"
LOST_TRACK = "a directory moved in a way that could not be followed"
UNRELIABLE = "events are not reliable on {fstype}"
SUSPENDED = "the machine was suspended"
CLOCK_SET = "the clock was set"
DOWNTIME = "the daemon was not running"
STOPPED = "watching stopped: {error}"


@dataclass(frozen=True, slots=True)
class Changed:
    """Something at `path` (absolute bytes) may have changed; only a look at it tells what.

    `appeared_directory`: a directory came to this place, new or moved; everything below is to be looked at.
    """

    source: str
    path: bytes
    appeared_directory: bool


@dataclass(frozen=True, slots=True)
class Gap:
    """Events at or below `path` (absolute bytes) may have been lost, or will be, because of `reason`."""

    source: str
    path: bytes
    reason: str


Notice = Changed | Gap


@dataclass(frozen=True, slots=True)
class CoverageGap:
    """An open gap.  `since` is in seconds of the owner's clock; `generation` is the watcher's when last found."""

    source: str
    path: bytes
    reason: str
    since: float
    generation: int


_Gaps = list[CoverageGap]  # the method of that name hides the type inside the class


class Gaps:
    """The open gaps, oldest first."""

    def __init__(self) -> None:
        self._open: dict[tuple[str, bytes], CoverageGap] = {}

    def add(self, source: str, path: bytes, reason: str, since: float, generation: int = 0) -> CoverageGap:
        """Record a gap; returns the one that now covers `path`, which may be an older, wider one.

        A gap found again keeps its first time and takes the newer generation, so that a scan that was already
        under way does not close it.
        """
        over = self._over(source, path)
        if over is not None:
            path, reason, since = over.path, over.reason, min(over.since, since)
            generation = max(over.generation, generation)
        for key in [key for key in self._open if key[0] == source and is_below(key[1], path)]:
            merged = self._open.pop(key)
            since, generation = min(since, merged.since), max(generation, merged.generation)
        gap = self._open[source, path] = CoverageGap(source, path, reason, since, generation)
        return gap

    def close(self, source: str, path: bytes, generation: int) -> _Gaps:
        """Close and return the gaps at or below `path` that a scan begun at `generation` has made good."""
        done = [
            gap
            for gap in self._open.values()
            if gap.source == source and is_below(gap.path, path) and gap.generation <= generation
        ]
        for gap in done:
            del self._open[gap.source, gap.path]
        return done

    def covering(self, path: bytes) -> _Gaps:
        """The gaps of any source that `path` lies in."""
        return [gap for gap in self.list() if is_below(path, gap.path)]

    def list(self) -> _Gaps:
        """All open gaps, oldest first."""
        return sorted(self._open.values(), key=lambda gap: gap.since)

    def _over(self, source: str, path: bytes) -> CoverageGap | None:
        for gap in self._open.values():
            if gap.source == source and is_below(path, gap.path):
                return gap
        return None


def is_below(path: bytes, top: bytes) -> bool:
    """Whether `path` is `top` or lies below it; both absolute, without a slash at the end."""
    return path == top or path.startswith(top if top.endswith(b"/") else top + b"/")


@dataclass(frozen=True, slots=True)
class Clocks:
    """One reading, in seconds: `awake` stands still in suspend, `passed` does not, `wall` is what the user set."""

    awake: float
    passed: float
    wall: float


def read_clocks() -> Clocks:
    """The clocks now.  Where no clock runs on in suspend, `passed` is the wall clock."""
    wall = time.time()
    boot = getattr(time, "CLOCK_BOOTTIME", None)
    return Clocks(time.monotonic(), wall if boot is None else time.clock_gettime(boot), wall)


def break_between(before: Clocks, after: Clocks, tolerance_s: float = 2.0) -> str | None:
    """The reason for a gap between two readings, or None if time went on as it should."""
    passed = after.passed - before.passed
    if passed - (after.awake - before.awake) > tolerance_s:
        return SUSPENDED
    if abs(after.wall - before.wall - passed) > tolerance_s:
        return CLOCK_SET
    return None


class SuspendDetector:
    """Notices suspends and clock jumps between two calls of `check`."""

    def __init__(self, clocks: Clocks, tolerance_s: float = 2.0) -> None:
        self._last = clocks
        self._tolerance_s = tolerance_s

    def check(self, clocks: Clocks) -> str | None:
        """The reason for a gap since the last reading, or None."""
        before, self._last = self._last, clocks
        return break_between(before, clocks, self._tolerance_s)
