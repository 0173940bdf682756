"""The directory that files are put back into, and safe ways to reach places in it.

Rules: a path is walked one name at a time from the target's own descriptor and no symlink is followed, so
nothing planted in the target leads outside.  A few directories stay open, because files come in families.
It does not know entries.
"""

from __future__ import annotations

import errno
import os
import re
from collections import OrderedDict

from contbak.core.errors import FormatError

_OPEN_MAX = 32
_IMPOSSIBLE = re.compile(rb"\0|(?:\A|/)\.{0,2}(?:/|\Z)")
"""A name that is empty, `.` or `..`, or has a null."""
_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class InTheWay(Exception):
    """Something that is no directory stands where a directory of the path should be."""


class Target:
    """A directory tree that is written to.  Paths are raw, relative, with `/` between names."""

    def __init__(self, top: bytes) -> None:
        os.makedirs(top, exist_ok=True)
        self._top = os.open(top, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)  # the user may name it by a symlink
        self._mark = os.urandom(6).hex().encode()
        self._number = 0
        self._sound = b""
        self.made: set[bytes] = set()
        """Directories that had to be made on the way to something."""
        self._open: OrderedDict[bytes, int] = OrderedDict()

    def place(self, path: bytes) -> tuple[int, bytes]:
        """(descriptor of its directory, name) of `path`; directories on the way are made.

        The descriptor stays valid until the next but one call.  Raises InTheWay, OSError, and FormatError for
        a path that no backup can hold (empty, absolute, with `.` or `..`).
        """
        folder, _, name = path.rpartition(b"/")
        if folder != self._sound or name in (b"", b".", b"..") or b"\0" in name:
            if _IMPOSSIBLE.search(path):
                raise FormatError(f"{path!r} cannot be the path of a restored file")
            self._sound = folder
        return self.directory(folder), name

    def directory(self, path: bytes) -> int:
        """A descriptor of the directory `path` (b"": the target itself), made if it is not there."""
        if not path:
            return self._top
        known = path
        while known and known not in self._open:
            known = known.rpartition(b"/")[0]
        fd = self._open[known] if known else self._top
        if known == path:
            self._open.move_to_end(path)
            return fd
        fd = self._walk(fd, known, path[len(known) :].lstrip(b"/").split(b"/"))
        self._open[path] = fd
        while len(self._open) > _OPEN_MAX:
            os.close(self._open.popitem(last=False)[1])
        return fd

    def fresh(self) -> bytes:
        """A name for a new file, in any directory, that nobody else uses."""
        self._number += 1
        return b".contbak-%s-%d.part" % (self._mark, self._number)

    def forget(self, path: bytes) -> None:
        """Close the directory `path` (b"": all but the target) and all below: it is about to be removed."""
        for known in [known for known in self._open if not path or known == path or known.startswith(path + b"/")]:
            os.close(self._open.pop(known))

    def close(self) -> None:
        """Close everything; the object is of no use any more.  May be called again."""
        self.forget(b"")
        if self._top >= 0:
            os.close(self._top)
            self._top = -1

    def _walk(self, start: int, path: bytes, names: list[bytes]) -> int:
        fd = start
        for name in names:
            path = path + b"/" + name if path else name
            try:
                deeper = self._enter(fd, name, path)
            finally:
                if fd != start:
                    os.close(fd)
            fd = deeper
        return fd

    def _enter(self, folder: int, name: bytes, path: bytes) -> int:
        try:
            try:
                return os.open(name, _FLAGS, dir_fd=folder)
            except FileNotFoundError:
                os.mkdir(name, dir_fd=folder)
                self.made.add(path)
                return os.open(name, _FLAGS, dir_fd=folder)
        except OSError as error:
            if error.errno in (errno.ENOTDIR, errno.ELOOP, errno.EEXIST):
                raise InTheWay from None
            raise
