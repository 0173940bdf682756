"""A thin layer over Linux inotify: add and remove watches, read, parse.  No policy.

Rules: a directory is watched by an open descriptor, so that what is watched and what is listed is the same
directory even while it is being renamed.  Errors are the system's OSError.  Importable on every system; making an
`Inotify` needs Linux and a mounted /proc.
"""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Iterator

MODIFY = 0x2
ATTRIB = 0x4
CLOSE_WRITE = 0x8
MOVED_FROM = 0x40
MOVED_TO = 0x80
CREATE = 0x100
DELETE = 0x200
DELETE_SELF = 0x400
MOVE_SELF = 0x800
UNMOUNT = 0x2000
Q_OVERFLOW = 0x4000
IGNORED = 0x8000
ONLYDIR = 0x1000000
EXCL_UNLINK = 0x4000000
ISDIR = 0x40000000

# Neither OPEN nor CLOSE_NOWRITE: with them, reading the tree would flood the queue, also when we are the reader.
MASK = (
    MODIFY | ATTRIB | CLOSE_WRITE | MOVED_FROM | MOVED_TO | CREATE | DELETE | DELETE_SELF | MOVE_SELF
    | ONLYDIR | EXCL_UNLINK
)  # fmt: skip

BUFFER = 1 << 18
"""Bytes asked of the kernel at a time: room for thousands of events."""

_HEADER = struct.Struct("iIII")
_NONBLOCK = 0o4000
_CLOEXEC = 0o2000000


class Inotify:
    """One inotify instance.  Not safe for use by several threads at a time."""

    def __init__(self) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._add = self._libc.inotify_add_watch
        self._add.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_uint32)
        self._fd = int(self._libc.inotify_init1(_NONBLOCK | _CLOEXEC))
        if self._fd < 0:
            raise _last_error()

    def fileno(self) -> int:
        """Descriptor to poll for reading."""
        return self._fd

    def watch(self, directory: int) -> int:
        """Watch the directory open as descriptor `directory`; returns its watch descriptor.

        A directory that is watched already keeps its watch descriptor, wherever it has been moved.
        """
        # The link is followed (no DONT_FOLLOW), for it leads to exactly what is open.
        wd = int(self._add(self._fd, b"/proc/self/fd/%d" % directory, MASK))
        if wd < 0:
            raise _last_error()
        return wd

    def unwatch(self, wd: int) -> None:
        """Remove a watch; one that is gone already is fine.  The kernel answers with an IGNORED event."""
        self._libc.inotify_rm_watch(self._fd, wd)

    def read(self) -> bytes:
        """What is in the queue, at most BUFFER bytes of whole events; empty if nothing is."""
        try:
            return os.read(self._fd, BUFFER)
        except BlockingIOError:
            return b""

    def close(self) -> None:
        """Give the instance back, with all its watches.  May be repeated."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def parse(buffer: bytes) -> Iterator[tuple[int, int, int, bytes]]:
    """The events in what `read` returned: watch descriptor, mask, cookie, name (empty for the directory itself)."""
    at, end, unpack = 0, len(buffer), _HEADER.unpack_from
    while at < end:
        wd, mask, cookie, length = unpack(buffer, at)
        at += 16
        yield wd, mask, cookie, buffer[at : at + length].rstrip(b"\0")
        at += length


def _last_error() -> OSError:
    code = ctypes.get_errno()
    return OSError(code, os.strerror(code))
