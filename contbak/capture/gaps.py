"""Coverage gaps: times and places where events may have been lost, the reasons for them, and the notices of them.

A gap covers everything at and below its path.  This module finds gaps only by the clocks (suspend, clock set); the
watcher finds the others, and the journal keeps them until a scan that began later has looked at the place.
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
