"""Gives a restored file the attributes of its entry: owner, extended attributes and ACLs, mode, times.

The order matters: a change of owner takes away setuid bits and capabilities; user attributes need write
permission, which the mode may take away.  What this system or this user may not do is a note, never an error.
It does not touch content, and for directories the caller chooses the moment.
"""

from __future__ import annotations

import errno
import grp
import os
import pwd
import stat
from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache

from contbak.core.entry import DIRECTORY, SYMLINK, Entry

Note = Callable[[str], None]

_MAY_NOT = frozenset((errno.EPERM, errno.EACCES, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL, errno.ENOSPC, errno.E2BIG))
_PRIVILEGE = stat.S_ISUID | stat.S_ISGID
_HAS_XATTRS = hasattr(os, "setxattr")


def put_attributes(fd: int, entry: Entry, numeric: bool, note: Note) -> None:
    """Makes the open file or directory `fd` bear the attributes of `entry`.

    fd       opened for reading or writing, not with O_PATH
    numeric  owner and group by number, even where the names are known here
    """
    st = os.fstat(fd)
    owned = _put_owner(fd, st, entry, numeric, note)
    _put_xattrs(fd, entry, note)
    mode = entry.mode & 0o7777
    if not owned and mode & _PRIVILEGE and entry.kind != DIRECTORY:
        note("setuid and setgid are left off, because the owner could not be given back")
        mode &= ~_PRIVILEGE
    _attempt(note, f"the mode {mode:o} could not be set", os.fchmod, fd, mode)
    _attempt(note, "the time could not be set", os.utime, fd, ns=(st.st_atime_ns, entry.mtime))


def put_attributes_unopened(folder: int, name: bytes, entry: Entry, numeric: bool, note: Note) -> None:
    """As `put_attributes` for what cannot be opened: the symlink, FIFO, socket or device `name` in `folder`."""
    st = os.lstat(name, dir_fd=folder)
    path = b"/proc/self/fd/%d/%s" % (folder, name)
    owned = _put_owner(path, st, entry, numeric, note)
    _put_xattrs(path, entry, note)
    if entry.kind != SYMLINK:  # a symlink has no mode of its own
        mode = entry.mode & (0o7777 if owned else 0o7777 & ~_PRIVILEGE)
        _attempt(note, f"the mode {mode:o} could not be set", _chmod, folder, name, mode)
    times = (st.st_atime_ns, entry.mtime)
    _attempt(note, "the time could not be set", os.utime, name, ns=times, dir_fd=folder, follow_symlinks=False)


def _put_owner(where: int | bytes, st: os.stat_result, entry: Entry, numeric: bool, note: Note) -> bool:
    uid = entry.uid if numeric else _uid(entry.user, entry.uid)
    gid = entry.gid if numeric else _gid(entry.group, entry.gid)
    if (uid, gid) == (st.st_uid, st.st_gid):
        return True
    try:
        _chown(where, uid, gid)
        return True
    except OSError as error:
        if error.errno not in _MAY_NOT:
            raise
    note(f"the owner could not be set to {entry.user or uid}:{entry.group or gid}")
    if gid != st.st_gid:
        with suppress(OSError):
            _chown(where, -1, gid)
    return False


def _chown(where: int | bytes, uid: int, gid: int) -> None:
    if isinstance(where, int):
        os.fchown(where, uid, gid)
    else:
        os.chown(where, uid, gid, follow_symlinks=False)


def _chmod(folder: int, name: bytes, mode: int) -> None:
    """chmod that never follows `name`: the descriptor pins it, its /proc link reaches it."""
    fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
    try:
        os.chmod(f"/proc/self/fd/{fd}", mode)
    finally:
        os.close(fd)


def _put_xattrs(where: int | bytes, entry: Entry, note: Note) -> None:
    """Sets all attributes, and removes an ACL that came from the directory's default and not from the entry."""
    if not _HAS_XATTRS:
        if entry.xattrs:
            note("extended attributes are not supported here")
        return
    follow = isinstance(where, int)
    try:
        present = [os.fsencode(name) for name in os.listxattr(where, follow_symlinks=follow)]
    except OSError:
        present = []
    wanted = {name for name, _ in entry.xattrs}
    for name in present:
        if name.startswith(b"system.posix_acl_") and name not in wanted:
            _attempt(note, "an inherited ACL stays", os.removexattr, where, name, follow_symlinks=follow)
    acl_last = sorted(entry.xattrs, key=lambda pair: pair[0].startswith(b"system."))  # it may take write permission
    for name, value in acl_last:
        shown = name.decode("utf-8", "backslashreplace")
        _attempt(note, f"{shown} could not be set", os.setxattr, where, name, value, follow_symlinks=follow)


def _attempt(note: Note, text: str, act: Callable[..., object], *args: object, **options: object) -> None:
    try:
        act(*args, **options)
    except OSError as error:
        if error.errno not in _MAY_NOT:
            raise
        note(f"{text} ({error.strerror})")


@lru_cache(maxsize=4096)
def _uid(user: str, fallback: int) -> int:
    try:
        return pwd.getpwnam(user).pw_uid if user else fallback
    except (KeyError, ValueError):
        return fallback


@lru_cache(maxsize=4096)
def _gid(group: str, fallback: int) -> int:
    try:
        return grp.getgrnam(group).gr_gid if group else fallback
    except (KeyError, ValueError):
        return fallback
