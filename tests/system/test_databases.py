"""SQLite databases in use: every copy is of a moment between two commits, and none is forgotten."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import threading
from contextlib import closing
from functools import partial
from pathlib import Path

import pytest

from tests.system.world import World, running

WRITER = """
import sqlite3, sys, time
path, autocheckpoint = sys.argv[1:]
db = sqlite3.connect(path, isolation_level=None)
db.execute("PRAGMA journal_mode=WAL")
db.execute(f"PRAGMA wal_autocheckpoint={autocheckpoint}")
db.execute("CREATE TABLE t(n INTEGER PRIMARY KEY, data BLOB)")
db.execute("CREATE TABLE total(n INTEGER)")
db.execute("INSERT INTO total VALUES (0)")
n = 0
print("ready", flush=True)
import select
while not select.select([sys.stdin], [], [], 0)[0]:
    db.execute("BEGIN")
    for _ in range(5):
        n += 1
        db.execute("INSERT INTO t VALUES (?, randomblob(500))", (n,))
    db.execute("UPDATE total SET n = ?", (n,))
    db.execute("COMMIT")
    time.sleep(0.002)
print(n, flush=True)
sys.stdin.readline()
sys.stdin.readline()
"""


class Writer:
    """A process that commits rows in fives until it is told to stop, and then keeps the database open."""

    def __init__(self, path: Path, autocheckpoint: int) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(path), str(autocheckpoint)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        self._hear("ready")

    def _hear(self, wanted: str = "") -> str:
        assert self._process.stdout is not None
        said = self._process.stdout.readline().strip()
        assert said and wanted in said
        return said

    def _say(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()

    def rest(self) -> int:
        """The number of rows, all committed."""
        self._say()
        return int(self._hear())

    def end(self) -> None:
        self._process.kill()
        self._process.communicate()


def rows(data: bytes, top: Path) -> int:
    """How many rows are in a copy that is sound."""
    copy = top / "copy"
    copy.write_bytes(data)
    with closing(sqlite3.connect(copy)) as db:
        assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        count, total = db.execute("SELECT (SELECT count(*) FROM t), (SELECT n FROM total)").fetchone()
    assert count == total, "a copy from the middle of a commit"
    return int(count)


def started(top: Path) -> tuple[World, Path]:
    world, source = World(top), top / "source"
    source.mkdir()
    world.init()
    world.run("add", str(source))
    return world, source / "some.db"


def in_the_newest(world: World, source: Path) -> set[str]:
    return {line["path"].rpartition("/")[2] for line in world.lines("ls", "-r", str(source))}


@pytest.mark.parametrize("autocheckpoint", [0, 50])
def test_a_database_that_is_written_all_the_time(tmp_path: Path, autocheckpoint: int) -> None:
    """0: all that is written stays in the log, and the database's own file does not change."""
    world, path = started(tmp_path)
    with running(world):
        writer = Writer(path, autocheckpoint)
        try:
            world.until(lambda: len(world.snapshots()) >= 6)
            total = writer.rest()
            world.until(lambda: rows(world.raw("dump", str(path)), tmp_path) == total)
            world.settle()
            assert "some.db-wal" in {file.name for file in path.parent.iterdir()}, "the test is of no use"
            found = [rows(world.raw("dump", "--at", one["id"], str(path)), tmp_path) for one in world.snapshots()
                     if has(world, path, one["id"])]  # fmt: skip
            print(found)
            assert len(set(found)) > 3 and found[-1] == total
            assert in_the_newest(world, path.parent) == {"some.db"}
        finally:
            writer.end()


def has(world: World, path: Path, at: str) -> bool:
    return any(line["path"] == str(path) for line in world.lines("ls", "-r", "--at", at, str(path.parent)))


def test_a_scan_finds_what_is_only_in_the_log(tmp_path: Path) -> None:
    """Nobody watches; the database's own file stays as it is."""
    world, path = started(tmp_path)
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("PRAGMA journal_mode=WAL")
        db.execute("PRAGMA wal_autocheckpoint=0")
        db.execute("CREATE TABLE t(n INTEGER PRIMARY KEY)")
        db.execute("CREATE TABLE total AS SELECT 0 AS n")
        for n in range(3):
            before = path.stat()
            db.execute("BEGIN")
            db.execute("INSERT INTO t VALUES (NULL)")
            db.execute("UPDATE total SET n = n + 1")
            db.execute("COMMIT")
            assert path.stat().st_mtime_ns == before.st_mtime_ns
            threading.Event().wait(0.05)  # the log is no longer fresh
            assert world.summary()["changed"] == (1 if n else 0)
            assert rows(world.raw("dump", str(path)), tmp_path) == n + 1
            again = world.lines("backup")[-1]
            assert (again["new"], again["changed"], again["gone"], again["bytes_read"]) == (0, 0, 0, 0)
    world.run("backup")
    assert rows(world.raw("dump", str(path)), tmp_path) == 3, "closed and at rest"


@pytest.mark.parametrize("endings", [("-journal",), ("-wal", "-shm")])
def test_what_sqlite_refuses_is_saved_with_its_log_and_labelled(tmp_path: Path, endings: tuple[str, ...]) -> None:
    world, path = started(tmp_path)
    path.write_bytes(b"SQLite format 3\0" + b"nonsense" * 5000)
    for ending in endings:
        path.with_name(path.name + ending).write_bytes(b"a log " * 100)
    threading.Event().wait(0.05)
    for turn in range(2):
        summary = world.summary()
        assert summary["torn"] == (0 if turn else 1) and summary["failed"] == 0
        assert in_the_newest(world, path.parent) == {"some.db", "some.db" + endings[0]}
        assert world.raw("dump", str(path)) == path.read_bytes()
        assert world.raw("dump", str(path) + endings[0]) == b"a log " * 100
    assert len(world.snapshots()) == 1


def dumps(world: World, path: Path, text: bytes) -> bool:
    return world.raw("dump", str(path)) == text


@pytest.mark.parametrize("refused", [False, True])
def test_our_own_reading_is_no_reason_to_read_again(tmp_path: Path, refused: bool) -> None:
    """SQLite opens logs for writing, which makes events as if somebody had written."""
    world, path = started(tmp_path)
    with closing(sqlite3.connect(tmp_path / "real" if refused else path, isolation_level=None)) as db:
        db.execute("PRAGMA journal_mode=WAL")
        db.execute("CREATE TABLE t(n)")
        if refused:
            for ending in ("", "-wal", "-shm"):
                path.with_name(path.name + ending).write_bytes(b"SQLite format 3\0" + bytes(5000))
        with running(world):
            world.settle()
            (path.parent / "other").write_text("later")
            world.until(lambda: "other" in in_the_newest(world, path.parent))
            known = len(world.snapshots())
            for turn in range(4):  # longer than an event of our own needs to come round
                text = b"later %d" % turn
                (path.parent / "other").write_bytes(text)
                world.until(partial(dumps, world, path.parent / "other", text))
            world.settle()
            assert len(world.snapshots()) <= known + 4
            assert world.summary()["bytes_read"] == 0
