"""Follows one directory tree with inotify and says where something may have changed.

Rules:
- One thread.  It empties the kernel's queue before anything else, and again and again while it walks.
- An event about a file says "look at this name".  One about a directory makes the walker look first.
- A look at a directory whose path is not up to date is put off until the rename that explains it was read.
- After an overflow the whole tree is walked again, and then the overflow is reported for the top.
- A top that is gone ends it: the owner starts anew when the top is back.

Changes through memory maps, by other machines, and through hard links outside the tree make no events; mounts over a
directory neither.  Scans are for those.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import time
from collections.abc import Callable, Iterable, Iterator

from contbak.capture import inotify
from contbak.capture.gaps import DENIED, GONE, INSTANCE_LIMIT, OVERFLOW, UNMOUNTED, Changed, Gap, Notice
from contbak.capture.walker import Prune, Walker

RETRY_S = 0.02
GIVE_UP_S = 2.0
"""How long a look is put off before its place is reported as a gap."""
DRAIN_S = 0.05
DIRTY_LIMIT = 20_000
"""Names merged before they are handed on."""
SLICE = 500
"""Notices delivered between two looks at the queue."""
DIRTY_BOUND = 400_000
"""Names merged while a long walk is under way; beyond, it counts as an overflow."""

_LOOK = inotify.CREATE | inotify.MOVED_TO | inotify.MOVED_FROM | inotify.ATTRIB
_SPECIAL = inotify.Q_OVERFLOW | inotify.IGNORED | inotify.UNMOUNT | inotify.DELETE_SELF | inotify.MOVE_SELF


class Follower:
    """The tree at `top` (absolute), called `source` in what is handed to `deliver`.

    `prune(path relative to the top, is a directory)` names what is left out.  `arm` once, then `turn` for ever, then
    `close`, all in one thread; `wake` may be called from any before `close`.
    """

    def __init__(self, source: str, top: bytes, prune: Prune, deliver: Callable[[list[Notice]], None]) -> None:
        self._source = source
        self._top = top.rstrip(b"/") or b"/"
        self._prune = prune
        self._deliver = deliver
        self._wake_out, self._wake_in = os.pipe()
        os.set_blocking(self._wake_in, False)
        os.set_blocking(self._wake_out, False)
        self._notify: inotify.Inotify | None = None
        self._walker: Walker | None = None
        self._dirty: set[tuple[int, bytes, int]] = set()
        self._looks: dict[int, dict[bytes, bool]] = {}
        self._stale: dict[int, float] = {}
        self._ignored: list[int] = []
        self._overflowed = False
        self._unmounted = False
        self._walk_again_at = 0.0

    def watches(self) -> int:
        """How many directories are watched."""
        walker = self._walker
        return 0 if walker is None else len(walker.places)

    def settled(self) -> bool:
        """Whether no look is put off, no directory adrift and no walk due, after the last `turn`."""
        walker = self._walker
        return walker is None or not (self._looks or self._overflowed or walker.due() is not None)

    def wake(self) -> None:
        """End the wait of the `turn` under way, or of the next one."""
        with contextlib.suppress(BlockingIOError):  # full: it is awake already
            os.write(self._wake_in, b"!")

    def close(self) -> None:
        """Give back all watches and descriptors."""
        self._end()
        os.close(self._wake_in)
        os.close(self._wake_out)

    def arm(self) -> None:
        """Watch the whole tree; what cannot be watched is delivered as gaps."""
        try:
            self._notify = inotify.Inotify()
            self._walker = Walker(self._notify, self._top, self._prune, self._breathe)
        except OSError as error:
            self._end()
            self._deliver([Gap(self._source, self._top, _why_not(error))])
            return
        self._walker.walk_all()
        self._hand_over(self._walker, [])

    def turn(self) -> None:
        """Wait until something happens, then deliver it."""
        self._wait()
        walker = self._walker
        if walker is None:
            return
        self._drain(DIRTY_LIMIT)
        if self._gone(walker):
            self._end()
            self._deliver([Gap(self._source, self._top, UNMOUNTED if self._unmounted else GONE)])
        else:
            self._hand_over(walker, self._settle(walker))

    # ---- reading -------------------------------------------------------------------------------------------

    def _wait(self) -> None:
        poll = select.poll()
        poll.register(self._wake_out, select.POLLIN)
        timeout: float | None = None
        if self._notify is not None and self._walker is not None:
            poll.register(self._notify.fileno(), select.POLLIN)
            now = time.monotonic()
            drop_at = self._walker.due()
            due = [] if drop_at is None else [drop_at]
            if self._looks:
                due.append(now + RETRY_S)
            if self._overflowed:
                due.append(self._walk_again_at)
            if due:
                timeout = max(0.0, min(due) - now) * 1000 + 1
        if any(descriptor == self._wake_out for descriptor, _ in poll.poll(timeout)):
            os.read(self._wake_out, 1 << 12)

    def _drain(self, limit: int) -> None:
        """Merge what is in the queue, for a while."""
        if self._notify is None:
            return
        end = time.monotonic() + DRAIN_S
        while buffer := self._notify.read():
            self._merge(buffer)
            if len(self._dirty) >= limit or time.monotonic() > end:
                break

    def _breathe(self) -> None:
        self._drain(DIRTY_BOUND)
        if len(self._dirty) >= DIRTY_BOUND:
            self._dirty.clear()
            self._overflowed = True

    def _merge(self, buffer: bytes) -> None:
        dirty = self._dirty
        for wd, mask, _, name in inotify.parse(buffer):
            if mask & _SPECIAL:
                self._note_special(wd, mask)
                continue
            is_dir = mask & inotify.ISDIR
            dirty.add((wd, name, is_dir))
            if is_dir and name and mask & _LOOK:
                looks = self._looks.setdefault(wd, {})
                looks[name] = looks.get(name, False) or bool(mask & inotify.MOVED_TO)

    def _note_special(self, wd: int, mask: int) -> None:
        if mask & inotify.Q_OVERFLOW:
            self._overflowed = True
        elif mask & inotify.IGNORED:
            self._ignored.append(wd)
        elif mask & inotify.UNMOUNT:
            self._unmounted = True
        # DELETE_SELF and MOVE_SELF only wake: the parent tells of others, and the top is checked in every turn.

    def _gone(self, walker: Walker) -> bool:
        """Whether the top is no longer at its path.  A rename of a directory above it makes no event."""
        try:
            status = os.stat(self._top)
        except OSError:
            return True
        return self._unmounted or (status.st_dev, status.st_ino) != walker.identity

    def _end(self) -> None:
        self._walker = None
        if self._notify is not None:
            self._notify.close()
        self._notify = None
        self._dirty.clear()
        self._looks.clear()
        self._stale.clear()
        self._ignored.clear()

    # ---- following -----------------------------------------------------------------------------------------

    def _settle(self, walker: Walker) -> list[Notice]:
        """Let the walker bring the watches in line with the tree; returns the gaps that only we know of."""
        ignored, self._ignored = self._ignored, []
        for wd in ignored:
            walker.forget(wd)
        gaps: list[Notice] = []
        if self._overflowed and time.monotonic() >= self._walk_again_at:
            begun = time.monotonic()
            self._overflowed = False
            walker.walk_all()
            ended = time.monotonic()
            self._walk_again_at = ended + 3 * (ended - begun)  # a tree in turmoil must not make us walk all the time
            gaps.append(Gap(self._source, self._top, OVERFLOW))
        looks, self._looks = self._looks, {}
        for wd, names in looks.items():
            if wd not in walker.places or walker.look(wd, names):
                self._stale.pop(wd, None)
            else:
                self._put_off(walker, wd, names)
        for wd, names in walker.put_off.items():
            self._looks.setdefault(wd, {}).update(names)
        walker.put_off.clear()
        walker.drop_adrift()
        return gaps

    def _put_off(self, walker: Walker, wd: int, names: dict[bytes, bool]) -> None:
        now = time.monotonic()
        if now - self._stale.setdefault(wd, now) < GIVE_UP_S:
            waiting = self._looks.setdefault(wd, {})
            for name, moved in names.items():
                waiting[name] = waiting.get(name, False) or moved
        else:
            del self._stale[wd]
            walker.lose_track(wd)

    # ---- telling -------------------------------------------------------------------------------------------

    def _hand_over(self, walker: Walker, gaps: list[Notice]) -> None:
        """Deliver what was merged, under the paths that are true now, and go on reading between slices."""
        dirty, self._dirty = self._dirty, set()
        appeared = _outermost(walker.places.relative(wd) for wd in walker.appeared)
        walker.appeared.clear()
        notices: list[Notice] = [Changed(self._source, self._absolute(path), True) for path in appeared]
        notices += [Gap(self._source, self._absolute(path), reason) for path, reason in walker.take_gaps()]
        notices += gaps
        for path in self._paths(walker, dirty):
            if path not in appeared:
                notices.append(Changed(self._source, self._absolute(path), False))
                if len(notices) >= SLICE:
                    self._deliver(notices)
                    notices = []
                    self._breathe()
        if notices:
            self._deliver(notices)

    def _paths(self, walker: Walker, dirty: set[tuple[int, bytes, int]]) -> Iterator[bytes]:
        """The relative paths of what was merged, without what is pruned or has left the tree."""
        above: dict[int, bytes | None] = {}
        for wd, name, is_dir in dirty:
            if wd not in above:
                above[wd] = walker.places.relative(wd)
            directory = above[wd]
            if directory is None or (not name and directory):
                continue  # left the tree; or a directory's own event, of which the one above tells too
            relative = directory + b"/" + name if directory else name
            if not self._prune(relative, bool(is_dir)):
                yield relative

    def _absolute(self, relative: bytes) -> bytes:
        if not relative:
            return self._top
        return self._top + relative if self._top == b"/" else self._top + b"/" + relative


def _outermost(paths: Iterable[bytes | None]) -> set[bytes]:
    """The paths that lie below no other."""
    outer: list[bytes] = []
    for path in sorted(path + b"/" for path in paths if path):  # with the slash, what is below follows directly
        if not (outer and path.startswith(outer[-1])):
            outer.append(path)
    return {path[:-1] for path in outer}


def _why_not(error: OSError) -> str:
    """Why a source cannot be watched at all."""
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return INSTANCE_LIMIT
    if error.errno in (errno.ENOENT, errno.ENOTDIR):
        return GONE
    if error.errno in (errno.EACCES, errno.EPERM):
        return DENIED
    return f"cannot be watched: {error.strerror}"
