"""SQLite databases in a scan: what lies beside them is left out while they are in use, and a change of it is theirs."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from contbak.capture import sqlite
from contbak.capture.attributes import fingerprint, stat_entry
from contbak.capture.findings import TOUCHED
from contbak.capture.proof import Proof, settled_fingerprint, void
from contbak.capture.proofs import TABLES, Proofs
from contbak.capture.reader import Reader
from contbak.capture.scan import Scan
from contbak.core.excludes import Excludes
from contbak.core.names import SourceId
from contbak.store.kv import Kv

SOURCE = SourceId(b"source-1")
OLD = 1_000_000_000


class Place:
    """A source whose files are read by a real Reader."""

    def __init__(self, kv: Kv, top: Path, scratch: Path) -> None:
        self.kv, self.top = kv, top
        self.reader = Reader(scratch=str(scratch))
        self.torn: set[bytes] = set()

    def rest(self) -> None:
        """Nothing is fresh any more."""
        for path in self.top.iterdir():
            os.utime(path, ns=(OLD, path.stat().st_mtime_ns - 10**9))

    def look(self, *paths: bytes, doubt: int = 0) -> list[bytes]:
        """One batch, committed; returns what was read."""
        proofs = Proofs(self.kv, SOURCE)
        scan = Scan(os.fsencode(self.top), proofs, Excludes([]))
        reads = []
        found = [item for path in paths for item in scan.look(path, not path, doubt)]
        while found:
            item = found.pop(0)
            reads.append(item.path)
            result = self.reader.read(
                os.fsencode(self.top / os.fsdecode(item.path)), lambda view, final: len(view), lambda: None
            )
            proofs.stage(item.dir_id, item.name, Proof(result.fingerprint), result.entry)
            self.torn.discard(item.path)
            if result.torn:
                self.torn.add(item.path)
            if Proof(result.fingerprint).in_use:
                found += scan.look_at_logs(item.path, not result.database)
        scan.finish()
        proofs.confirm()
        return reads

    def saved(self) -> set[bytes]:
        return set(Proofs(self.kv, SOURCE).children(bytes(8)))


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    for name in ("top", "scratch", "kv"):
        (tmp_path / name).mkdir()
    with Kv.open(tmp_path / "kv", TABLES) as kv:
        yield Place(kv, tmp_path / "top", tmp_path / "scratch")


@pytest.fixture
def live(place: Place) -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(place.top / "db", isolation_level=None)) as connection:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA wal_autocheckpoint=0")
        connection.execute("CREATE TABLE t(n)")
        place.rest()
        yield connection


def test_a_database_in_use_is_saved_alone(place: Place, live: sqlite3.Connection) -> None:
    assert set(os.listdir(place.top)) == {"db", "db-wal", "db-shm"}
    assert place.look(b"") == [b"db"] and place.saved() == {b"db"} and not place.torn
    assert place.look(b"") == []


@pytest.mark.parametrize("event", [b"db-wal", b"db-shm", b""])
def test_a_change_of_the_log_is_a_change_of_the_database(place: Place, live: sqlite3.Connection, event: bytes) -> None:
    place.look(b"")
    before = fingerprint(os.lstat(place.top / "db"))
    assert place.look(event, doubt=TOUCHED) == []
    live.execute("INSERT INTO t VALUES (1)")
    assert fingerprint(os.lstat(place.top / "db")) == before
    assert place.look(event, doubt=TOUCHED) == [b"db"]
    assert place.look(event, doubt=TOUCHED) == [b"db"], "a fresh log may have changed in the same tick of the clock"
    place.rest()
    place.look(event)
    assert place.look(event, doubt=TOUCHED) == [] and place.saved() == {b"db"}


@pytest.mark.parametrize("event", [b"db-wal", b""])
def test_a_database_that_was_saved_at_rest_is_written_in_its_log(place: Place, event: bytes) -> None:
    with closing(sqlite3.connect(place.top / "db", isolation_level=None)) as db:
        db.execute("PRAGMA journal_mode=WAL")
        db.execute("CREATE TABLE t(n)")
    place.rest()
    assert place.look(b"") == [b"db"] and set(os.listdir(place.top)) == {"db"}
    before = fingerprint(os.lstat(place.top / "db"))
    with closing(sqlite3.connect(place.top / "db", isolation_level=None)) as db:
        db.execute("INSERT INTO t VALUES (1)")
        assert fingerprint(os.lstat(place.top / "db")) == before
        assert place.look(event, doubt=TOUCHED) == [b"db"]


def test_logs_that_were_saved_are_gone_when_the_database_is_used(place: Place, tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "live", isolation_level=None)) as db:
        db.execute("PRAGMA journal_mode=WAL")
        db.execute("CREATE TABLE t(n)")
        for ending in ("", "-wal"):  # as after a crash: nobody has it open
            (place.top / f"db{ending}").write_bytes((tmp_path / f"live{ending}").read_bytes())
    place.rest()
    assert sorted(place.look(b"")) == [b"db", b"db-wal"] and place.saved() == {b"db", b"db-wal"}
    with closing(sqlite3.connect(place.top / "db")) as db:
        db.execute("SELECT * FROM t")
        place.look(b"db-wal", doubt=TOUCHED)
        assert place.saved() == {b"db"}
    assert set(os.listdir(place.top)) == {"db"}, "the last to close it empties the log"
    assert place.look(b"") == [b"db"]


def test_names_that_only_look_so(place: Place) -> None:
    for name in ("notes", "notes-wal", "notes-shm", "travel-journal"):
        (place.top / name).write_text("text")
    (place.top / "link-wal").symlink_to("notes")
    (place.top / "folder-journal").mkdir()
    place.rest()
    assert len(place.look(b"")) == 4 and len(place.saved()) == 6
    assert place.look(b"notes-wal", b"travel-journal", b"folder-journal", b"link-wal") == []
    assert place.look(b"") == []


def test_what_sqlite_refuses_is_kept_with_its_log(place: Place) -> None:
    for ending in ("", "-wal", "-shm"):
        (place.top / f"db{ending}").write_bytes(sqlite.MAGIC + b"nonsense" * 500)
    place.rest()
    assert place.look(b"") == [b"db", b"db-wal"] and place.torn == {b"db"}
    for _ in range(2):
        assert place.look(b"", b"db-shm", doubt=TOUCHED) == [] and place.saved() == {b"db", b"db-wal"}
    (place.top / "db-wal").write_bytes(b"more")
    place.rest()
    assert set(place.look(b"")) == {b"db", b"db-wal"} and place.saved() == {b"db", b"db-wal"}


def test_logs_go_when_sqlite_refuses_no_more(place: Place, live: sqlite3.Connection) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sqlite, "snapshot", lambda *_: None)
        place.look(b"")
        assert place.torn == {b"db"} and place.saved() == {b"db", b"db-wal"}
    live.execute("INSERT INTO t VALUES (1)")
    place.look(b"")
    assert not place.torn and place.saved() == {b"db"}


def test_a_void_fingerprint_of_a_database_is_one(place: Place, live: sqlite3.Connection) -> None:
    path = os.fsencode(place.top / "db")
    whole = fingerprint(os.lstat(path)) + b"\xff" * 8
    assert void(whole) != whole and len(void(whole)) == len(whole)
    ctime = os.lstat(path).st_ctime_ns
    assert settled_fingerprint(whole, ctime) == void(whole) and settled_fingerprint(whole, ctime + 10**9) == whole
    assert Proof(whole).in_use and not Proof(whole[:-8]).in_use and stat_entry(path, os.lstat(path))


def test_ordinary_names_cost_no_system_call(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a", "b", "c"):
        (place.top / name).write_text("text")
    place.rest()

    def never(*_: object) -> bool:
        raise AssertionError

    for name in ("in_use", "side_mark", "_is_database"):
        monkeypatch.setattr(sqlite, name, never)
    assert len(place.look(b"")) == 3 and place.look(b"", b"a", b"b") == []
