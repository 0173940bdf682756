"""SQLite databases and the files beside them (-wal, -journal, -shm), as a scan sees them.

Rules: beside a database in use nothing is saved, because the copy that SQLite makes of it (contbak.capture.reader)
holds all of it, and a log that is put back beside that copy would be replayed over it.  Only where SQLite made no copy
the log is saved along.  Names that end in none of these words cost no system call.
"""

from __future__ import annotations

from collections.abc import Collection

from contbak.capture import sqlite
from contbak.capture.proof import Proof

LOGS = (b"-wal", b"-journal")
"""What a plain copy of a database needs beside it.  The -shm is made anew."""


def is_side(name: bytes) -> bool:
    """Whether a file of this name could lie beside a database."""
    return name.endswith(sqlite.SIDES)


def database_beside(name: bytes) -> bytes:
    """The name of the database that a file of this name would lie beside, b"" if none."""
    return name.rpartition(b"-")[0] if is_side(name) else b""


def databases_among(names: Collection[bytes]) -> frozenset[bytes]:
    """The names beside which something lies that could belong to a database; mostly none."""
    text = b"\0".join(names)
    if not any(ending in text for ending in sqlite.SIDES):  # quicker than a look at each name
        return frozenset()
    return frozenset([name.rpartition(b"-")[0] for name in names if name.endswith(sqlite.SIDES)])


def is_left_out(path: bytes, copy: Proof | None) -> bool:
    """Whether the regular file `path` (absolute, `is_side`) is not to be saved; `copy`: of what it lies beside."""
    database = sqlite.database_of(path)
    if database is None or not sqlite.in_use(database):
        return False
    return copy is None or not copy.refused or not path.endswith(LOGS)
