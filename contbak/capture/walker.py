"""Keeps the watches of one directory tree in line with the tree.

Rules:
- A directory is watched before it is listed, through one descriptor, so nothing made in between is missed.
- What is at a name is opened, and its watch descriptor tells whether it is a known directory (its row moves, nothing
  is walked), a new one (walked) or none.  The parent is opened and proved by its own watch descriptor first, so a path
  that is out of date because of a rename still in the queue is never taken for another directory.
- A known directory whose place is taken or empty is adrift; if it does not turn up elsewhere within GRACE_S, its
  watches and those below are removed.
- What cannot be watched is a gap: one for each topmost directory, or one for the directory above if they are many.
- One file system, and no directory twice: what leads elsewhere or in a circle is a gap.

It does not read events: `breathe` is called again and again during long work, for the owner to empty the queue.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable

from contbak.capture.gaps import (
    DENIED,
    LOST_TRACK,
    NO_DESCRIPTORS,
    OTHER_FILE_SYSTEM,
    TOO_LONG,
    WATCH_LIMIT,
)
from contbak.capture.inotify import Inotify
from contbak.capture.places import Places

Prune = Callable[[bytes, bool], bool]

GRACE_S = 0.05
"""How long a directory that left its place may take to turn up at another: the two events come together."""
DEPTH = 64
"""Levels of directories held open in a walk."""
MANY = 64
"""Refused directories in one directory that are reported as the one above them."""
BREATH = 64
"""Directories walked, or watches removed, between two calls of `breathe`."""

_OPEN_TOP = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_DIRECTORY if os.name == "posix" else os.O_RDONLY
_OPEN = _OPEN_TOP | os.O_NOFOLLOW if os.name == "posix" else _OPEN_TOP
_VANISHED = frozenset((errno.ENOENT, errno.ENOTDIR, errno.ELOOP))
_REASONS = {
    errno.ENOSPC: WATCH_LIMIT,
    errno.EACCES: DENIED,
    errno.EPERM: DENIED,
    errno.ENAMETOOLONG: TOO_LONG,
    errno.EMFILE: NO_DESCRIPTORS,
    errno.ENFILE: NO_DESCRIPTORS,
}


class Walker:
    """The watches of the tree at `top` (absolute, no slash at the end but for the root).

    `prune(relative path, is a directory)` names what is not entered.  Making one watches the top alone and raises
    OSError if that cannot be.
    """

    def __init__(self, notify: Inotify, top: bytes, prune: Prune, breathe: Callable[[], None]) -> None:
        self._notify = notify
        self._top = top
        self._prune = prune
        self._breathe = breathe
        self._steps = 0
        descriptor = os.open(top, _OPEN_TOP)
        try:
            status = os.fstat(descriptor)
            self.identity = (status.st_dev, status.st_ino)
            """Device and inode of the top."""
            self.places = Places(notify.watch(descriptor))
        finally:
            os.close(descriptor)
        self.appeared: set[int] = set()
        """Directories that came to their place since the owner last emptied this; not what came with them."""
        self.put_off: dict[int, dict[bytes, bool]] = {}
        """Looks that a walk could not take because a path was out of date; the owner takes them up."""
        self._adrift: dict[int, float] = {}
        self._pruned: dict[int, set[bytes]] = {}
        self._refused: dict[tuple[int, str], list[bytes]] = {}
        self._visited: set[int] | None = None

    def walk_all(self) -> None:
        """Walk the whole tree, watching what is new; watches of directories not met are removed."""
        descriptor = self._open_known(self.places.top)
        if descriptor is None:
            return  # the top itself is gone, which the owner will see
        self._visited = {self.places.top}
        self._walk(descriptor, self.places.top)
        unmet = [wd for wd in self.places.all() if wd not in self._visited]
        self._visited = None
        for wd in unmet:
            if wd in self.places:
                self._drop(wd)

    def look(self, wd: int, names: dict[bytes, bool]) -> bool:
        """See what is now at some names in the directory `wd`.  The values tell whether something was moved there.

        False if nothing was done because the path of `wd` is not up to date, as when a rename is still in the queue.
        """
        try:
            descriptor = self._open_known(wd)
        except OSError as error:
            self._refuse(wd, b"", error)
            return True
        if descriptor is None:
            return False
        try:
            for name, moved in names.items():
                if (found := self._visit(descriptor, wd, name, True, moved)) is not None:
                    self._walk(found[0], found[1])
        finally:
            os.close(descriptor)
        return True

    def forget(self, wd: int) -> None:
        """The kernel has removed the watch: the directory is no more."""
        self._adrift.pop(wd, None)
        self._pruned.pop(wd, None)
        self.appeared.discard(wd)
        if wd in self.places and wd != self.places.top:
            for child in self.places.forget(wd):
                self._set_adrift(child)

    def drop_adrift(self) -> None:
        """Remove the watches of directories that have left the tree."""
        now = time.monotonic()
        for wd, deadline in list(self._adrift.items()):
            if not self.places.detached(wd):
                del self._adrift[wd]
            elif deadline <= now:
                self._drop(wd)

    def due(self) -> float | None:
        """When `drop_adrift` is to be called next, by the monotonic clock."""
        return min(self._adrift.values(), default=None)

    def lose_track(self, wd: int) -> None:
        """Report that the directory could not be found again."""
        self._refused.setdefault((wd, LOST_TRACK), []).append(b"")

    def take_gaps(self) -> list[tuple[bytes, str]]:
        """Relative paths of what could not be watched since the last call, and why."""
        gaps: list[tuple[bytes, str]] = []
        refused, self._refused = self._refused, {}
        for (parent, reason), names in refused.items():
            above = self.places.relative(parent)
            if above is None:
                continue
            if len(names) > MANY:
                names = [b""]
            gaps += [(_join(above, name), reason) for name in names]
        return gaps

    # ---- walking -------------------------------------------------------------------------------------------

    def _walk(self, descriptor: int, wd: int) -> None:
        """Watch everything below the open directory `wd`; closes `descriptor`."""
        stack = [(descriptor, wd, self._listed(descriptor, wd))]
        later: list[tuple[int, list[bytes]]] = []  # what lies too deep to keep everything above it open
        try:
            while stack:
                descriptor, parent, names = stack[-1]
                if not names:
                    os.close(stack.pop()[0])
                    if not stack and later:
                        self._resume(stack, *later.pop())
                elif len(stack) > DEPTH:
                    later.append((parent, names.copy()))
                    names.clear()
                elif (found := self._visit(descriptor, parent, names.pop(), False, False)) is not None:
                    stack.append((*found, self._listed(*found)))
                self._pace()
        finally:
            for descriptor, _, _ in stack:
                os.close(descriptor)

    def _resume(self, stack: list[tuple[int, int, list[bytes]]], parent: int, names: list[bytes]) -> None:
        """Go on with a walk in a directory that was left for later."""
        try:
            descriptor = self._open_known(parent)
        except OSError as error:
            self._refuse(parent, b"", error)
            return
        if descriptor is None:
            self.put_off.setdefault(parent, {}).update(dict.fromkeys(names, False))
        else:
            stack.append((descriptor, parent, names))

    def _listed(self, descriptor: int, wd: int) -> list[bytes]:
        """Names of the directories in an open directory."""
        try:
            with os.scandir(descriptor) as entries:
                return [os.fsencode(entry.name) for entry in entries if entry.is_dir(follow_symlinks=False)]
        except OSError as error:
            self._refuse(wd, b"", error)
            return []

    def _open_known(self, wd: int) -> int | None:
        """A descriptor of the directory `wd`, or None if it is not at its path.  Raises OSError if it may not be."""
        relative = self.places.relative(wd)
        if relative is None:
            return None
        descriptor = -1
        try:
            descriptor = os.open(_join(self._top, relative), _OPEN if relative else _OPEN_TOP)
            found = self._notify.watch(descriptor)
        except OSError as error:
            if descriptor >= 0:
                os.close(descriptor)
            if error.errno in _VANISHED:
                return None
            raise
        if found == wd:
            return descriptor
        os.close(descriptor)
        if found not in self.places:
            self._notify.unwatch(found)
        return None

    def _visit(self, above: int, parent: int, name: bytes, outermost: bool, moved: bool) -> tuple[int, int] | None:
        """Watch what is at `name` in the directory `parent`, open as `above`.

        Returns descriptor and watch descriptor of a directory that must be walked, or None.
        """
        relative = self.places.relative(parent)
        if relative is None:
            return None
        if self._prune(_join(relative, name), True):
            self._pruned.setdefault(parent, set()).add(name)
            self._vacate(parent, name)
            return None
        descriptor = -1
        keep = False
        try:
            descriptor = os.open(name, _OPEN, dir_fd=above)
            if os.fstat(descriptor).st_dev != self.identity[0]:
                self._vacate(parent, name)
                self._refused.setdefault((parent, OTHER_FILE_SYSTEM), []).append(name)
                return None
            wd = self._notify.watch(descriptor)
            keep = self._place(wd, parent, name, outermost, moved)
            return (descriptor, wd) if keep else None
        except OSError as error:
            self._vacate(parent, name)
            if error.errno not in _VANISHED:
                self._refuse(parent, name, error)
            return None
        finally:
            if descriptor >= 0 and not keep:
                os.close(descriptor)

    def _place(self, wd: int, parent: int, name: bytes, outermost: bool, moved: bool) -> bool:
        """Bring the row of `wd` up to date; returns whether the directory must be walked."""
        known = wd in self.places
        if self.places.at(wd, parent, name):
            if moved:
                self.appeared.add(wd)
        elif known and not self._may_hold(parent, wd):
            self._refused.setdefault((parent, LOST_TRACK), []).append(name)
            return False
        else:
            self._vacate(parent, name)
            self.places.put(wd, parent, name)
            self._adrift.pop(wd, None)
            if outermost or known:
                self.appeared.add(wd)
            if known:
                self._reconsider_pruned(wd)
        if self._visited is None:
            return not known
        met = wd in self._visited
        self._visited.add(wd)
        return not met

    def _may_hold(self, parent: int, wd: int) -> bool:
        """Whether `wd` can be put into `parent` without a circle; an outdated row in the way is set adrift."""
        step = self.places.step_below(parent, wd)
        if step is None:
            return True
        if step == wd or wd == self.places.top:
            return False  # a directory in itself: a bind mount
        self.places.detach(step)
        self._set_adrift(step)
        return False

    def _reconsider_pruned(self, wd: int) -> None:
        """The path of `wd` is another now, so what was pruned below it need not be any more."""
        for parent, names in self._pruned.items():
            if self.places.step_below(parent, wd) is not None:
                self.put_off.setdefault(parent, {}).update(dict.fromkeys(names, False))

    def _vacate(self, parent: int, name: bytes) -> None:
        """Whatever was at this place has left it."""
        wd = self.places.child(parent, name)
        if wd is not None:
            self.places.detach(wd)
            self._set_adrift(wd)

    def _set_adrift(self, wd: int) -> None:
        self._adrift[wd] = time.monotonic() + GRACE_S

    def _drop(self, wd: int) -> None:
        """Remove the watches of `wd` and of all below it."""
        for row in reversed(self.places.subtree(wd)):
            self._notify.unwatch(row)
            for child in self.places.forget(row):
                self._set_adrift(child)
            self._adrift.pop(row, None)
            self._pruned.pop(row, None)
            self.appeared.discard(row)
            self._pace()  # each removal makes an event

    def _refuse(self, parent: int, name: bytes, error: OSError) -> None:
        reason = _REASONS.get(error.errno or 0) or f"cannot be watched: {error.strerror}"
        self._refused.setdefault((parent, reason), []).append(name)

    def _pace(self) -> None:
        self._steps += 1
        if self._steps % BREATH == 0:
            self._breathe()


def _join(above: bytes, name: bytes) -> bytes:
    if not above or not name:
        return above or name
    return above + name if above.endswith(b"/") else above + b"/" + name
