"""Reads one regular file whole, in windows, and says whether the copy is of one moment.

Rules:
- `fstat` before and after decides: same size, times, inode and links, and every byte came.  A file written so
  lately that another write could bear the same time stamp is waited for first (20 ms; 2 s where stamps are
  whole seconds), for else that write could not be told from none.
- Never mapped: a file that shrinks under a mapping kills the process.  Never followed if it is a symlink.
- One window per Reader serves all files, so a Reader belongs to one thread.

- A database in use is SQLite's to copy.  Where it refuses, the file is read as it is and labelled torn, for what lies
  beside it belongs to it.

It does not hash, chunk or keep anything: the consumer does.  A program that writes through a shared mapping
moves the time stamps late, and no reader can see such a change before.
"""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Callable
from typing import NamedTuple

from contbak.capture import sqlite
from contbak.capture.attributes import fingerprint, stat_entry, with_fields
from contbak.capture.window import Consume, Extents, Window, cut, find_extents
from contbak.core.entry import TORN, Entry
from contbak.core.errors import SourceError, Unsettled, Vanished

WINDOW = 4 << 20

_STAMP_NS = 20_000_000
_COARSE_STAMP_NS = 2_000_000_000
_GONE = frozenset((errno.ENOENT, errno.ENOTDIR, errno.ESTALE, errno.ELOOP, errno.ENXIO))
_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_NOATIME = getattr(os, "O_NOATIME", 0)


class _Changed(Exception):
    """The file is not what it was when this attempt began."""


class _InUse(Exception):
    """The file is a database that a program has open."""


class ReadResult(NamedTuple):
    """What was read.

    entry        the file's attributes, read through the same descriptor; `content` is nil; `size` and `extents`
                 describe the data that was handed over, `flags` is TORN if it may mix several states
    fingerprint  of the stat before reading: while the file has it, it need not be read again.  That of a database in
                 use is longer, by `sqlite.use_mark`
    length       bytes handed over: the sum of the extents, or the size if there are none
    attempts     how often it was read, 1 or more
    database     the data is SQLite's own copy, the attributes are the file's
    """

    entry: Entry
    fingerprint: bytes
    length: int
    attempts: int
    database: bool = False

    @property
    def torn(self) -> bool:
        """Whether the data may mix several states of the file."""
        return bool(self.entry.flags & TORN)


class Reader:
    """Reads files, one after the other.

    window   bytes handed over at a time at most; the consumer must be able to make progress with that much
    tries    how often a file is read that changes meanwhile
    scratch  directory for copies of SQLite databases that are in use; None: they are read like any file
    """

    def __init__(self, window: int = WINDOW, tries: int = 3, scratch: str | None = None) -> None:
        self._window = Window(window)
        self._tries = tries
        self._scratch = scratch

    def read(
        self,
        path: bytes,
        consume: Consume,
        on_restart: Callable[[], None],
        *,
        allow_torn: bool = False,
        align: int = 1,
        dir_fd: int | None = None,
    ) -> ReadResult:
        """Hands the data of the regular file `path` to `consume` as one stream, holes left out.

        on_restart   called when what was handed over so far is void and all begins again
        allow_torn   the last try goes on to the end and the result is labelled, instead of Unsettled
        align        holes are left out in multiples of so many bytes of the file, so that blocks of this size in the
                     stream are blocks of the file
        dir_fd       what a relative `path` is relative to
        Raises Vanished (gone, or no regular file any more), Unsettled, SourceError; what was handed over is
        void then.  What `consume` raises passes through.
        """
        databases = self._scratch is not None
        mark = b""
        attempt = 1
        while True:
            patient = allow_torn and attempt == self._tries
            fd = _open(path, dir_fd)
            try:
                result = self._read_once(_Pass(path, dir_fd, fd, patient, databases), consume, attempt, align)
                return _as_refused(result, mark) if mark else result
            except _Changed:
                if attempt == self._tries:
                    raise Unsettled(path, "it changed each time it was read") from None
                attempt += 1
                on_restart()
            except _InUse:
                copied = self._read_database(path, dir_fd, consume)
                if copied is not None:
                    return copied
                databases = False  # SQLite refuses: read it like any file
                mark = sqlite.use_mark(_absolute(path, dir_fd))
            finally:
                os.close(fd)

    def _read_once(self, this: _Pass, consume: Consume, attempt: int, align: int) -> ReadResult:
        entry = stat_entry(this.fd, this.st)
        extents = find_extents(this.fd, this.st, align)
        whole = ((0, this.st.st_size),)
        came = self._window.stream(this.path, this.fd, whole if extents is None else extents, consume, this.guard)
        if this.short:
            entry = with_fields(entry, **_shortened(extents, came))
        elif extents is not None:
            entry = with_fields(entry, extents=extents)
        if this.torn:
            entry = with_fields(entry, flags=TORN)
        return ReadResult(entry, fingerprint(this.st), came, attempt)

    def _read_database(self, path: bytes, dir_fd: int | None, consume: Consume) -> ReadResult | None:
        """As `read`, from SQLite's own copy; None, with nothing handed over, if SQLite makes none."""
        assert self._scratch is not None
        fd = _open(path, dir_fd)
        try:
            st = _look(path, fd)
            entry = stat_entry(fd, st)
        finally:
            os.close(fd)
        mark = sqlite.use_mark(_absolute(path, dir_fd))
        copy = sqlite.snapshot(_absolute(path, dir_fd), self._scratch)
        if copy is None:
            return None
        try:
            size = os.fstat(copy).st_size
            came = self._window.stream(path, copy, ((0, size),), consume, lambda view, final, short: None)
        finally:
            os.close(copy)
        return ReadResult(with_fields(entry, size=came), fingerprint(st) + mark, came, 1, database=True)


class _Pass:
    """One reading of one open file; its guard sees every window before the consumer does."""

    def __init__(self, path: bytes, dir_fd: int | None, fd: int, patient: bool, databases: bool) -> None:
        self.path = path
        self.fd = fd
        self._dir_fd = dir_fd
        self.st = _settled(path, fd)
        self.short = False
        self.torn = False
        self._patient = patient
        self._look_for_database = databases

    def guard(self, view: memoryview, final: bool, short: bool) -> None:
        """Raises _Changed unless all that was read so far is of one moment, or a torn copy will do."""
        if self._look_for_database:
            self._look_for_database = False
            if view[: len(sqlite.MAGIC)] == sqlite.MAGIC and sqlite.in_use(_absolute(self.path, self._dir_fd)):
                raise _InUse
        self.short = short
        if short or _moment(_look(self.path, self.fd)) != _moment(self.st):
            self.torn = True
        if self.torn and not self._patient:
            raise _Changed


def _open(path: bytes, dir_fd: int | None) -> int:
    try:
        return os.open(path, _FLAGS | _NOATIME, dir_fd=dir_fd)
    except PermissionError:  # only the owner may leave the access time alone
        pass
    except OSError as error:
        raise _no_file(path, error) from None
    try:
        return os.open(path, _FLAGS, dir_fd=dir_fd)
    except OSError as error:
        raise _no_file(path, error) from None


def _no_file(path: bytes, error: OSError) -> SourceError:
    reason = (error.strerror or str(error)).lower()
    return (Vanished if error.errno in _GONE else SourceError)(path, f"it cannot be opened: {reason}")


def _look(path: bytes, fd: int) -> os.stat_result:
    try:
        return os.fstat(fd)
    except OSError as error:
        raise SourceError(path, f"it cannot be looked at: {error.strerror}") from None


def _settled(path: bytes, fd: int) -> os.stat_result:
    """The stat of the regular file `fd` at a time when a later write gets a later time stamp."""
    st = _look(path, fd)
    if not stat.S_ISREG(st.st_mode):
        raise Vanished(path, "it is no regular file any more")
    stamp = _COARSE_STAMP_NS if st.st_ctime_ns % 1_000_000_000 == 0 else _STAMP_NS
    age = time.time_ns() - st.st_ctime_ns
    if -stamp < age < stamp:
        time.sleep((stamp - max(age, 0)) / 1e9)
        st = _look(path, fd)
    return st


def _moment(st: os.stat_result) -> tuple[int, ...]:
    return st.st_size, st.st_mtime_ns, st.st_ctime_ns, st.st_nlink


def _as_refused(result: ReadResult, mark: bytes) -> ReadResult:
    """Of a database in use: the file alone is not the whole truth.

    If nothing changes it need not be read again, lest our trying of SQLite, which is an event, has no end.
    """
    if result.torn:
        mark = os.urandom(len(mark))  # it did change
    entry = with_fields(result.entry, flags=TORN)
    return ReadResult(entry, result.fingerprint + mark + sqlite.REFUSED, result.length, result.attempts)


def _shortened(extents: Extents | None, came: int) -> dict[str, object]:
    """Size and extents of a file that ended after `came` bytes of data."""
    if extents is None:
        return {"size": came}
    kept = cut(extents, came)
    return {"size": sum(kept[-1]) if kept else 0, "extents": kept}


def _absolute(path: bytes, dir_fd: int | None) -> bytes:
    if dir_fd is None or path.startswith(b"/"):
        return path
    return os.path.join(os.readlink(b"/proc/self/fd/%d" % dir_fd), path)
