"""A consistent copy of an SQLite database that is in use, by SQLite's own online backup.

Rules: only for a database with a -wal or -journal beside it, because the file alone is then not the whole
truth; without one a plain copy is exact.  No file of the source is created, removed or changed but for the
locks in its -shm: a log that nobody has open (no -shm) is left to the plain reader, and so is whatever SQLite refuses.
It opens logs for writing, though, and as root sets their owner again: that makes events, and moves their ctime.
It does not decide which files are looked at; `database_of` tells the caller that a side file belongs to a database.
"""

from __future__ import annotations

import os
import sqlite3
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from hashlib import blake2b
from urllib.parse import quote_from_bytes

MAGIC = b"SQLite format 3\0"
SIDES = (b"-wal", b"-journal", b"-shm")
"""How the names of the files beside a database end."""
REFUSED = b"refused"
"""Ends the mark of a database that was read without SQLite."""

_YOUNG_NS = 20_000_000
"""A file that changed so lately may change again under the same time stamp."""

_BUSY_S = 5.0
"""How long a writer may keep us waiting for a page."""
_STEP_PAGES = 2048
"""Pages per step where readers block writers (rollback journal): 8 MiB, a few ms."""
_RESTARTS = 3
"""A database that changes between steps makes the backup begin again; so often, then it is given up."""


class _Busy(Exception):
    """The backup began again too often."""


def database_of(path: bytes) -> bytes | None:
    """The database that `path` is a side file of (-wal, -journal, -shm), or None.

    A change of a side file is a change of its database, whose own file may stay untouched for hours.  A side
    file must not be restored next to a copy that `snapshot` made: it would be replayed over it.
    """
    for ending in SIDES:
        if path.endswith(ending) and len(path) > len(ending):
            database = path.removesuffix(ending)
            return database if _is_database(database) else None
    return None


def side_mark(path: bytes) -> bytes:
    """Bytes that change when the -wal or -journal of the database `path` changes; b"" if it has none."""
    mark = b""
    for ending in (b"-wal", b"-journal"):
        try:
            st = os.lstat(path + ending)
        except OSError:
            continue
        mark += b"%s %d %d %d;" % (ending, st.st_ino, st.st_size, st.st_mtime_ns)
    return mark


def use_mark(path: bytes) -> bytes:
    """8 bytes that change with what lies beside the database `path` while it is in use; b"" for anything else.

    They belong to the fingerprint, for the database's own file may not change for hours.  Those of a log that was
    written a moment ago come once only, so that nothing written in the same moment is missed.
    """
    if not in_use(path) or not _is_database(path):
        return b""
    now, mark = time.time_ns(), side_mark(path)
    for ending in (b"-wal", b"-journal"):
        with suppress(OSError):
            if os.lstat(path + ending).st_mtime_ns > now - _YOUNG_NS:
                mark += b"%d" % now
    return blake2b(mark, digest_size=8).digest()


def in_use(path: bytes) -> bool:
    """Whether a program has the database `path` open in a way that makes its file alone incomplete."""
    if os.path.lexists(path + b"-wal"):
        return os.path.lexists(path + b"-shm")
    return os.path.lexists(path + b"-journal")


def snapshot(path: bytes, scratch: str) -> int | None:
    """A descriptor of a copy of the database `path` as of one moment, or None if SQLite refuses.

    The copy lives in the directory `scratch` and has no name there any more: closing it removes it.
    """
    handle, copy = tempfile.mkstemp(prefix="contbak-", suffix=".sqlite", dir=scratch)
    try:
        if _back_up(path, copy):
            return handle  # the same file: SQLite writes in place
    except (sqlite3.Error, _Busy, OSError):
        pass
    finally:
        for name in (copy, copy + "-journal", copy + "-wal", copy + "-shm"):
            if os.path.lexists(name):
                os.unlink(name)
    os.close(handle)
    return None


def _back_up(path: bytes, copy: str) -> bool:
    source = sqlite3.connect(_uri(path, "mode=ro"), uri=True, timeout=_BUSY_S)
    try:
        wal = source.execute("PRAGMA journal_mode").fetchone()[0] == "wal"
        into = sqlite3.connect(copy, isolation_level=None)
        try:
            into.execute("PRAGMA journal_mode=OFF")
            into.execute("PRAGMA synchronous=OFF")
            # A write-ahead log lets readers and writers be, so one step is best; else writers get their turn.
            source.backup(into, pages=-1 if wal else _STEP_PAGES, progress=_watch(), sleep=0.01)
        finally:
            into.close()
    finally:
        source.close()
    return os.path.getsize(copy) > 0


def _watch() -> Callable[[int, int, int], None]:
    """A progress callback that raises _Busy when the pages left grew more than `_RESTARTS` times."""
    state = {"left": 0, "restarts": 0}

    def progress(status: int, remaining: int, total: int) -> None:
        if state["left"] and remaining >= state["left"]:
            state["restarts"] += 1
        if state["restarts"] > _RESTARTS or status in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            raise _Busy  # without this the backup would ask again for ever
        state["left"] = remaining

    return progress


def _uri(path: bytes, query: str) -> str:
    return f"file:{quote_from_bytes(os.path.abspath(path))}?{query}"


def _is_database(path: bytes) -> bool:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        return os.pread(fd, len(MAGIC), 0) == MAGIC
    except OSError:
        return False
    finally:
        os.close(fd)
