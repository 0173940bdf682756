"""What the file system says about one name: an Entry without content, and the fingerprint of "unchanged".

Rules: nothing is followed, nothing is opened (an open file may be given instead of a path), and what may not
be read of the extended attributes is left out without a word, because the system hides it on purpose.
It does not read content, and it does not choose directory ids: the journal does.
"""

from __future__ import annotations

import errno
import grp
import hashlib
import os
import pwd
import stat
import struct
from functools import lru_cache
from typing import Any

from contbak.core.codec import replaced
from contbak.core.entry import BLOCK, CHARACTER, DIRECTORY, FIFO, FILE, SOCKET, SYMLINK, Content, Entry
from contbak.core.errors import SourceError, Vanished

_KINDS = {
    stat.S_IFREG: FILE,
    stat.S_IFDIR: DIRECTORY,
    stat.S_IFLNK: SYMLINK,
    stat.S_IFIFO: FIFO,
    stat.S_IFSOCK: SOCKET,
    stat.S_IFCHR: CHARACTER,
    stat.S_IFBLK: BLOCK,
}
_GONE = frozenset((errno.ENOENT, errno.ENOTDIR, errno.ESTALE, errno.ELOOP, errno.EINVAL))
"""EINVAL: readlink of what is no symlink any more."""

_SKIPPED = (b"trusted.SGI_ACL_", b"user.contbak.")
"""XFS shows root every ACL a second time under the first; the second is our own mark-up."""

XATTRS_MAX = 1 << 20
"""Bytes of all names and values of one entry: they travel in the tree, which is no place for more."""

_HAS_XATTRS = hasattr(os, "listxattr")
_TIME_MAX = (1 << 63) - 1
_WORD = (1 << 64) - 1
_FILE_FINGERPRINT = struct.Struct("<3I6Q")
_DIRECTORY_FINGERPRINT = struct.Struct("<3I3Q")


def stat_entry(path: bytes | int, st: os.stat_result, dir_fd: int | None = None) -> Entry:
    """The entry of `path`, whose lstat (or fstat) was `st`; `content` is nil and `dir` is empty.

    path     raw bytes, relative to `dir_fd` if one is given; or the descriptor of an open file or directory
    Raises Vanished if the path is not what `st` says any more, SourceError if it is of no known kind.
    """
    kind = _KINDS.get(stat.S_IFMT(st.st_mode))
    if kind is None:
        raise SourceError(_shown(path), "it is of a kind that cannot be kept")
    try:
        target = os.readlink(path, dir_fd=dir_fd) if kind == SYMLINK and isinstance(path, bytes) else b""
        xattrs = read_xattrs(path, dir_fd)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise (Vanished if error.errno in _GONE else SourceError)(_shown(path), reason) from None
    is_file = kind == FILE
    return Entry(  # by position: this is done for every file
        kind,
        stat.S_IMODE(st.st_mode),
        st.st_uid,
        st.st_gid,
        _user(st.st_uid),
        _group(st.st_gid),
        st.st_size if is_file else 0,
        _time(st.st_mtime_ns),
        _time(st.st_ctime_ns),
        b"",
        target,
        (os.major(st.st_rdev), os.minor(st.st_rdev)) if kind in (CHARACTER, BLOCK) else None,
        xattrs,
        None,
        link_id(st) if is_file and st.st_nlink > 1 else b"",
    )


def with_content(entry: Entry, content: Content) -> Entry:
    """`entry` with the data of the file."""
    return with_fields(entry, content=content)


def with_fields(entry: Entry, **fields: Any) -> Entry:
    """A copy of `entry` in which the named fields have the given values."""
    return replaced(entry, **fields)


def fingerprint(st: os.stat_result) -> bytes:
    """60 bytes that differ when a file may have changed: its stat without access time and device.

    Device numbers are dealt out anew at every boot and say nothing of the file.
    """
    return _FILE_FINGERPRINT.pack(
        st.st_mode,
        st.st_uid,
        st.st_gid,
        st.st_size,
        st.st_mtime_ns & _WORD,
        st.st_ctime_ns & _WORD,
        st.st_ino & _WORD,
        st.st_nlink & _WORD,
        st.st_rdev & _WORD,
    )


def fingerprint_of_directory(st: os.stat_result) -> bytes:
    """36 bytes that differ when the entry of a directory may have changed.

    Size and link count are left out: they follow from the children and are not restored.  The ctime stays,
    because nothing else tells of a changed ACL; whatever happens to the children moves the mtime as well.
    """
    return _DIRECTORY_FINGERPRINT.pack(
        st.st_mode,
        st.st_uid,
        st.st_gid,
        st.st_mtime_ns & _WORD,
        st.st_ctime_ns & _WORD,
        st.st_ino & _WORD,
    )


def link_id(st: os.stat_result) -> bytes:
    """8 bytes that all names of one file share, within one file system (a source never leaves its own)."""
    return hashlib.blake2b(struct.pack("<Q", st.st_ino & _WORD), digest_size=8).digest()


def read_xattrs(path: bytes | int, dir_fd: int | None = None) -> tuple[tuple[bytes, bytes], ...]:
    """The sorted (name, value) pairs of all extended attributes that may be read; () where there are none.

    Raises OSError, E2BIG if they take more than XATTRS_MAX bytes.
    """
    if not _HAS_XATTRS:
        return ()
    if dir_fd is not None and isinstance(path, bytes) and not path.startswith(b"/"):
        path = b"/proc/self/fd/%d/%s" % (dir_fd, path)
    follow = isinstance(path, int)  # a descriptor has nothing to follow, and Python refuses the flag with one
    try:
        names = os.listxattr(path, follow_symlinks=follow)
    except OSError as error:
        if error.errno in (errno.ENOTSUP, errno.ENOSYS, errno.EPERM, errno.EACCES):
            return ()
        raise
    if not names:
        return ()
    pairs = []
    size = 0
    for name in map(os.fsencode, names):
        if name.startswith(_SKIPPED):
            continue
        value = _xattr(path, name, follow)
        if value is not None:
            pairs.append((name, value))
            size += len(name) + len(value)
        if size > XATTRS_MAX:
            raise OSError(errno.E2BIG, f"its extended attributes take more than {XATTRS_MAX >> 10} KiB")
    return tuple(sorted(pairs))


def forget_names() -> None:
    """Look users and groups up afresh: they are remembered for speed, and a daemon lives long."""
    _user.cache_clear()
    _group.cache_clear()


def _xattr(path: bytes | int, name: bytes, follow: bool) -> bytes | None:
    try:
        return os.getxattr(path, name, follow_symlinks=follow)
    except OSError as error:
        if error.errno in (errno.ENODATA, errno.EPERM, errno.EACCES, errno.ENOTSUP):
            return None  # removed since it was listed, or not for us
        raise


@lru_cache(maxsize=4096)
def _user(uid: int) -> str:
    try:
        return _text(pwd.getpwuid(uid).pw_name)
    except KeyError:
        return ""


@lru_cache(maxsize=4096)
def _group(gid: int) -> str:
    try:
        return _text(grp.getgrgid(gid).gr_name)
    except KeyError:
        return ""


def _text(name: str) -> str:
    return name if name.isprintable() else ""  # a name that is not UTF-8 has surrogates, which cannot be encoded


def _time(ns: int) -> int:
    # file systems with 64-bit seconds reach further than 64-bit ns
    return ns if -_TIME_MAX <= ns <= _TIME_MAX else max(-_TIME_MAX, min(_TIME_MAX, ns))


def _shown(path: bytes | int) -> bytes:
    return path if isinstance(path, bytes) else b"open file %d" % path
