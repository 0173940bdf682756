"""The rows come back, or their loss is told: model, transactions, locks, crashes and full disks."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import lmdb
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from contbak.core.errors import NotFound, StoreError, StoreFull, UsageError
from contbak.store import kvcheck, kvhome, kvrows
from contbak.store.kv import MAX_KEY, Kv, KvDamaged
from contbak.store.kvform import (
    DAMAGED,
    DATA_FILE,
    END_FILE,
    NEVER_BORN,
    SOUND,
    SUMS,
    TIP_FILE,
    End,
    parse_tip,
    row_seed,
    sealed,
)

TABLES = ["ids", "places", "heads"]
ENVIRON = os.environ | {"PYTHONPATH": str(Path(kvcheck.__file__).parents[2])}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "index"


@pytest.fixture
def kv(path: Path) -> Iterator[Kv]:
    with Kv.open(path, TABLES) as opened:
        yield opened


def all_rows(kv: Kv) -> dict[str, dict[bytes, bytes]]:
    return {table: dict(kv.scan(table)) for table in TABLES}


def test_put_get_delete_clear(kv: Kv) -> None:
    with kv.write() as rows:
        rows.put("ids", b"a", b"1")
        rows.put("ids", b"b", b"")
        rows.put("places", b"a", b"other")
        assert rows.get("ids", b"a") == b"1" and rows.count("ids") == 2
    with kv.read() as view:
        assert view.get_many("ids", [b"b", b"x", b"a", b"a"]) == [b"", None, b"1", b"1"]
        assert view.has("ids", b"b") and not view.has("heads", b"b")
        assert [view.count(table) for table in TABLES] == [2, 1, 0]
    with kv.write() as rows:
        assert rows.delete("ids", b"a") and not rows.delete("ids", b"a")
        rows.clear("places")
        rows.clear("heads")
        rows.put("places", b"z", b"9")
    assert all_rows(kv) == {"ids": {b"b": b""}, "places": {b"z": b"9"}, "heads": {}}


def test_iteration(kv: Kv, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kvrows, "_STEP", 3)
    keys = [bytes([first, second]) for first in (1, 2, 255) for second in range(7)]
    with kv.write() as rows:
        for key in keys:
            rows.put("ids", key, key[::-1])
    with kv.read() as view:
        assert list(view.items("ids")) == [(key, key[::-1]) for key in keys]
        assert [key for key, _ in view.items("ids", prefix=b"\2")] == keys[7:14]
        assert [key for key, _ in view.items("ids", prefix=b"\xff")] == keys[14:]
        assert [key for key, _ in view.items("ids", start=keys[4])] == keys[4:]
        assert [key for key, _ in view.items("ids", start=keys[4], after=True)] == keys[5:]
        assert [key for key, _ in view.items("ids", start=b"\1\2\0", after=True)] == keys[3:]
        assert [key for key, _ in view.items("ids", start=keys[9], prefix=b"\2", after=True)] == keys[10:14]
        assert list(view.items("ids", start=b"\xff\xff")) == list(view.items("heads")) == []
    for batch in (1, 2, 7, 21, 100):
        assert [key for key, _ in kv.scan("ids", batch=batch)] == keys
        assert [key for key, _ in kv.scan("ids", prefix=b"\2", batch=batch)] == keys[7:14]


def test_a_scan_goes_on_while_rows_are_written(kv: Kv) -> None:
    keys = [number.to_bytes(4, "big") for number in range(1000)]
    with kv.write() as rows:
        for key in keys:
            rows.put("ids", key, b"")
    seen = []
    for key, _ in kv.scan("ids", batch=10):
        seen.append(key)
        with kv.write() as rows:
            rows.delete("ids", key)
    assert seen == keys and all_rows(kv)["ids"] == {}


def test_rows_may_change_under_their_iterator(kv: Kv) -> None:
    with kv.write() as rows:
        for number in range(5000):
            rows.put("ids", number.to_bytes(4, "big"), b"")
        for key, _ in rows.items("ids"):
            rows.delete("ids", key)
        assert rows.count("ids") == 0


def test_an_exception_undoes_all(kv: Kv) -> None:
    with kv.write() as rows:
        rows.put("ids", b"a", b"1")
    with pytest.raises(RuntimeError), kv.write() as rows:
        rows.put("ids", b"a", b"2")
        rows.clear("ids")
        rows.put("ids", b"b", b"2")
        raise RuntimeError
    assert all_rows(kv)["ids"] == {b"a": b"1"}


def test_a_view_does_not_change(kv: Kv) -> None:
    with kv.read() as view:
        with kv.write() as rows:
            rows.put("ids", b"a", b"1")
        assert view.get("ids", b"a") is None and view.count("ids") == 0
    with pytest.raises(StoreError):
        view.get("ids", b"a")


def test_rows_that_were_put_before_one_that_cannot_be_are_counted(kv: Kv, path: Path) -> None:
    with kv.write() as rows:
        with pytest.raises(UsageError):
            rows.put_many("ids", [(b"a", b"1"), (b"", b"2"), (b"c", b"3")])
        assert dict(rows.items("ids")) == {b"a": b"1"}
    assert kvcheck.examine(path) == 1


@pytest.mark.parametrize("key", [b"", bytes(MAX_KEY + 1)])
def test_keys_that_cannot_be(kv: Kv, key: bytes) -> None:
    with pytest.raises(UsageError), kv.write() as rows:
        rows.put("ids", key, b"")
    with kv.write() as rows:
        rows.put("ids", bytes(MAX_KEY), b"x")


@pytest.mark.parametrize("name", ["", "Ids", "_sums", "a b", "a\n"])
def test_tables_that_cannot_be(path: Path, name: str) -> None:
    with pytest.raises(UsageError):
        Kv.open(path, [name])


def test_a_table_that_was_not_named(kv: Kv) -> None:
    with pytest.raises(KeyError), kv.read() as view:
        view.get("other", b"a")


def test_writers_wait_for_each_other(kv: Kv) -> None:
    def count_up() -> None:
        for _ in range(25):
            with kv.write() as rows:
                number = int.from_bytes(rows.get("heads", b"n") or b"", "big")
                rows.put("heads", b"n", (number + 1).to_bytes(4, "big"))

    threads = [threading.Thread(target=count_up) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with kv.read() as view:
        assert view.get("heads", b"n") == (100).to_bytes(4, "big")


def test_no_writer_within_a_writer(kv: Kv) -> None:
    with kv.write() as rows:
        rows.put("ids", b"a", b"1")
        with pytest.raises(StoreError), kv.write():
            pass
    assert all_rows(kv)["ids"] == {b"a": b"1"}


def test_writing_nothing_makes_no_transaction(kv: Kv, path: Path) -> None:
    with kv.write() as rows:
        rows.put("ids", b"a", b"1")
    before = (path / DATA_FILE).read_bytes()
    with kv.write() as rows:
        rows.put("ids", b"a", b"1")
        rows.delete("ids", b"b")
        rows.clear("heads")
    assert (path / DATA_FILE).read_bytes() == before


def test_the_map_can_be_full(path: Path) -> None:
    with Kv.open(path, TABLES, map_size=1 << 20) as kv:
        with kv.write() as rows:
            rows.put("ids", b"a", b"1")
        with pytest.raises(StoreFull), kv.write() as rows:
            for number in range(10_000):
                rows.put("ids", number.to_bytes(4, "big"), bytes(1000))
        with pytest.raises(StoreError), kv.write() as rows:
            try:
                rows.put("ids", b"big", bytes(2 << 20))
            except StoreFull:
                rows.put("ids", b"b", b"after a failure nothing may be kept")
        assert all_rows(kv)["ids"] == {b"a": b"1"}
    with Kv.open(path, TABLES) as kv:
        assert not kv.was_reset and all_rows(kv)["ids"] == {b"a": b"1"}


@pytest.mark.skipif(sys.platform == "win32", reason="needs a limit for the size of files")
def test_the_disk_can_be_full(path: Path) -> None:
    code = """if 1:
        import errno, lmdb, sys; from pathlib import Path; from contbak.store.kv import Kv, translate
        from contbak.core.errors import StoreFull
        assert isinstance(translate(lmdb.DiskError("x", errno.ENOSPC)), StoreFull)
        import resource, signal
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        kv = Kv.open(Path(sys.argv[1]), ["ids"])
        with kv.write() as rows: rows.put("ids", b"a", b"1")
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
        try:
            with kv.write() as rows:
                for n in range(1000): rows.put("ids", b"%d" % n, bytes(1000))
        except Exception as error: print(type(error).__name__)
        with kv.read() as rows: print(list(rows.items("ids")))
    """
    done = subprocess.run([sys.executable, "-c", code, str(path)], env=ENVIRON, capture_output=True, text=True)
    assert done.stdout.splitlines() in ([f"{error}", "[(b'a', b'1')]"] for error in ("StoreFull", "StoreError")), (
        done.stderr
    )  # too large is no lack of space
    with Kv.open(path, ["ids"]) as kv:
        assert not kv.was_reset and dict(kv.scan("ids")) == {b"a": b"1"}


def test_tables_may_be_added(path: Path) -> None:
    with Kv.open(path, ["ids"]) as kv, kv.write() as rows:
        rows.put("ids", b"a", b"1")
    with Kv.open(path, [*TABLES]) as kv:
        assert not kv.was_reset
        with kv.write() as rows:
            rows.put("heads", b"b", b"2")
    with Kv.open(path, ["heads"]) as kv:
        assert not kv.was_reset and dict(kv.scan("heads")) == {b"b": b"2"}
    with Kv.open(path, TABLES) as kv:
        assert all_rows(kv) == {"ids": {b"a": b"1"}, "places": {}, "heads": {b"b": b"2"}}


class Model(RuleBasedStateMachine):
    """Kv against dicts; the examination must find every state sound."""

    keys = st.binary(min_size=1, max_size=3) | st.binary(min_size=1, max_size=MAX_KEY)
    values = st.binary(max_size=20) | st.sampled_from([20, 2000, 5000, 30_000]).map(bytes)
    tables = st.sampled_from(TABLES)

    @initialize()
    def start(self) -> None:
        self.folder = Path(tempfile.mkdtemp())
        self.kv = Kv.open(self.folder / "index", TABLES)
        self.model: dict[str, dict[bytes, bytes]] = {table: {} for table in TABLES}

    @rule(
        table=tables,
        rows=st.dictionaries(keys, values, max_size=30),
        gone=st.lists(keys, max_size=5),
        clear=st.booleans(),
        fail=st.booleans(),
        at_once=st.booleans(),
    )
    def write(
        self, table: str, rows: dict[bytes, bytes], gone: list[bytes], clear: bool, fail: bool, at_once: bool
    ) -> None:
        model = {name: dict(content) for name, content in self.model.items()}
        try:
            with self.kv.write() as writer:
                if clear:
                    writer.clear(table)
                    model[table].clear()
                model[table].update(rows)
                if at_once:
                    writer.put_many(table, rows.items())
                for key, value in rows.items() if not at_once else ():
                    writer.put(table, key, value)
                for key in [*gone, *list(model[table])[::3]]:
                    assert writer.delete(table, key) == (model[table].pop(key, None) is not None)
                assert dict(writer.items(table)) == model[table]
                if fail:
                    raise RuntimeError
            self.model = model
        except RuntimeError:
            pass

    @rule()
    def reopen(self) -> None:
        self.kv.close()
        with pytest.MonkeyPatch.context() as patch:  # a child for each would take too long
            patch.setattr(kvhome, "examine_in_child", examine_here)
            self.kv = Kv.open(self.folder / "index", TABLES)
        assert not self.kv.was_reset

    @rule(table=tables, start=keys, prefix=st.binary(max_size=2), after=st.booleans())
    def look(self, table: str, start: bytes, prefix: bytes, after: bool) -> None:
        model = sorted(self.model[table].items())
        with self.kv.read() as view:
            assert list(view.items(table, start, prefix, after)) == [
                row
                for row in model
                if row[0].startswith(prefix) and row[0] >= start and not (after and row[0] == start)
            ]
            assert view.get(table, start) == self.model[table].get(start)
            beneath = {row[0][len(prefix) :]: row[1] for row in model if row[0].startswith(prefix)}
            assert view.next_key(table, start) == min((key for key, _ in model if key > start), default=None)
            assert view.within(table, prefix) == beneath and view.any(table, prefix) == bool(beneath)
        assert list(self.kv.scan(table, prefix, batch=3)) == [row for row in model if row[0].startswith(prefix)]

    @invariant()
    def sound(self) -> None:
        if hasattr(self, "kv"):
            assert all_rows(self.kv) == self.model
            assert kvcheck.examine(self.folder / "index") == sum(map(len, self.model.values()))

    def teardown(self) -> None:
        if hasattr(self, "kv"):
            self.kv.close()
            shutil.rmtree(self.folder)


def examine_here(path: Path, limit: int | None = None) -> tuple[int, str]:
    try:
        return SOUND, str(kvcheck.examine(path) if limit is None else kvcheck.examine(path, limit))
    except kvcheck.NeverBorn as error:
        return NEVER_BORN, str(error)
    except Exception as error:
        return DAMAGED, str(error)


TestModel = Model.TestCase
TestModel.settings = settings(
    max_examples=25,
    stateful_step_count=15,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


# One process writes


def start_python(code: str, *args: object) -> subprocess.Popen[bytes]:
    head = "import sys, os; from pathlib import Path; from contbak.store.kv import Kv; path = Path(sys.argv[1])\n"
    command = [sys.executable, "-c", head + code, *map(str, args)]
    return subprocess.Popen(command, env=ENVIRON, stdin=subprocess.PIPE, stdout=subprocess.PIPE)


def test_a_second_opener_is_refused(path: Path) -> None:
    holder = start_python("kv = Kv.open(path, ['ids']); print('open', flush=True); sys.stdin.read()", path)
    try:
        assert holder.stdout is not None and holder.stdout.readline() == b"open\n"
        with pytest.raises(StoreError, match="in use by another process"):
            Kv.open(path, ["ids"])
        with Kv.open(path, ["ids"], readonly=True) as kv:
            assert dict(kv.scan("ids")) == {}
    finally:
        holder.kill()
        holder.communicate()
    Kv.open(path, ["ids"]).close()


def test_a_reader_sees_what_another_process_commits(kv: Kv, path: Path) -> None:
    code = """kv = Kv.open(path, ['ids'], readonly=True)
for line in sys.stdin:
    with kv.read() as rows: print(rows.get('ids', b'a'), flush=True)
"""
    reader = start_python(code, path)
    assert reader.stdin is not None and reader.stdout is not None
    for value in (b"1", b"2"):
        with kv.write() as rows:
            rows.put("ids", b"a", value)
        reader.stdin.write(b"look\n")
        reader.stdin.flush()
        assert reader.stdout.readline() == f"{value!r}\n".encode()
    reader.communicate()


def test_readonly(path: Path) -> None:
    with pytest.raises(NotFound):
        Kv.open(path, TABLES, readonly=True)
    Kv.open(path, ["ids"]).close()
    with pytest.raises(NotFound):
        Kv.open(path, TABLES, readonly=True)
    with Kv.open(path, ["ids"], readonly=True) as kv, pytest.raises(StoreError), kv.write():
        pass


def test_closed_is_closed(path: Path) -> None:
    kv = Kv.open(path, TABLES)
    kv.close()
    kv.close()
    with pytest.raises(StoreError), kv.read():
        pass
    with pytest.raises(StoreError), kv.write():
        pass


# Crashes


@pytest.mark.skipif(sys.platform == "win32", reason="needs signals")
@pytest.mark.parametrize("rounds", [1, 40, 90])
def test_killed_while_writing_keeps_what_was_committed(path: Path, rounds: int) -> None:
    code = """kv = Kv.open(path, ['ids', 'heads'])
n = 0
while True:
    n += 1
    with kv.write() as rows:
        for k in range(20): rows.put('ids', os.urandom(16), b'x' * 300)
        rows.put('heads', b'n', n.to_bytes(4, 'big'))
    print(n, flush=True)
"""
    writer = start_python(code, path)
    assert writer.stdout is not None
    for _ in range(rounds):
        told = int(writer.stdout.readline())
    writer.send_signal(signal.SIGKILL)
    rest = writer.communicate()[0].splitlines()
    told = int(rest[-1]) if rest else told
    with Kv.open(path, ["ids", "heads"]) as kv:
        assert not kv.was_reset
        number = int.from_bytes(dict(kv.scan("heads"))[b"n"], "big")
        assert number in (told, told + 1)
        assert len(dict(kv.scan("ids"))) == 20 * number


@pytest.mark.parametrize(
    "make",
    [
        lambda path: None,
        lambda path: path.mkdir(),
        lambda path: (path.mkdir(), (path / DATA_FILE).write_bytes(b"")),
        lambda path: (path.mkdir(), (path / DATA_FILE).write_bytes(bytes(8192))),
        lambda path: (path.mkdir(), (path / DATA_FILE).write_bytes(fresh_pages()[:4096])),
        lambda path: (path.mkdir(), (path / DATA_FILE).write_bytes(fresh_pages())),
    ],
)
def test_a_half_made_environment_is_made_again(path: Path, make: Callable[[Path], object]) -> None:
    make(path)
    with Kv.open(path, TABLES, on_damage=pytest.fail) as kv:
        assert not kv.was_reset
        with kv.write() as rows:
            rows.put("ids", b"a", b"1")
    with Kv.open(path, TABLES, on_damage=pytest.fail) as kv:
        assert all_rows(kv)["ids"] == {b"a": b"1"}
    assert [other.name for other in path.parent.iterdir() if other.name != path.name] == [path.name + ".lock"]


def fresh_pages() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        lmdb.Environment(folder).close()
        return Path(folder, DATA_FILE).read_bytes()[:8192]


# Damage


def filled(path: Path) -> dict[str, dict[bytes, bytes]]:
    with Kv.open(path, TABLES) as kv:
        for start in range(0, 400, 100):
            with kv.write() as rows:
                for number in range(start, start + 100):
                    rows.put("ids", number.to_bytes(4, "big"), b"value %d" % number)
                rows.put("heads", b"head", bytes([start // 100]) * 6000)
        return all_rows(kv)


def test_damage_is_set_aside_and_told(path: Path) -> None:
    filled(path)
    data = (path / DATA_FILE).read_bytes().replace(b"value 77", b"value 78")
    (path / DATA_FILE).write_bytes(data)
    told: list[str] = []
    with Kv.open(path, TABLES, on_damage=told.append) as kv:
        assert kv.was_reset and len(told) == 1
        assert all_rows(kv) == {table: {} for table in TABLES}
    aside = path.with_name(path.name + ".damaged-1")
    assert (aside / DATA_FILE).read_bytes() == data
    assert (aside / "reason").read_text().strip() == told[0]
    with Kv.open(path, TABLES, on_damage=pytest.fail) as kv:
        assert not kv.was_reset


def test_quarantine(path: Path) -> None:
    for _ in range(6):
        kv = Kv.open(path, TABLES)
        with kv.write() as rows:
            assert rows.count("ids") == 0
            rows.put("ids", b"a", b"1")
        kv.quarantine("rows that contradict each other")
        with pytest.raises(StoreError), kv.read():
            pass
    told: list[str] = []
    Kv.open(path, TABLES, on_damage=told.append).close()
    assert told == ["rows that contradict each other"]
    assert sorted(other.name for other in path.parent.glob("*.damaged-*")) == [f"index.damaged-{n}" for n in (4, 5, 6)]


def test_a_panic_is_damage(kv: Kv, monkeypatch: pytest.MonkeyPatch) -> None:
    """lmdb refuses everything after it; only who hears of damage opens the environment anew."""

    class Panicking:
        def begin(self, **_: object) -> None:
            raise lmdb.PanicError("planted")

        def close(self) -> None:
            real.close()

    real = kv._env
    monkeypatch.setattr(kv, "_env", Panicking())
    with pytest.raises(KvDamaged), kv.read():
        pass
    with pytest.raises(KvDamaged), kv.write():
        pass


def test_a_row_that_is_not_what_was_written(path: Path) -> None:
    filled(path)
    with RawWriter(path) as raw:
        raw.put(b"ids", b"\0\0\0\7", b"never sealed")
        raw.put(b"heads", b"head", sealed(b"x", b"head", 0))
    with Kv.open(path, TABLES, readonly=True) as kv:
        with kv.read() as view:
            assert view.get("ids", b"\0\0\0\6") == b"value 6"
            for look in (
                lambda: view.get("ids", b"\0\0\0\7"),
                lambda: view.has("heads", b"head"),
                lambda: list(view.items("ids")),
                lambda: view.get_many("ids", [b"\0\0\0\7"]),
                lambda: view.within("ids", b"\0\0"),
                lambda: view.any("ids", b"\0\0\0\7"),
                lambda: view.next_key("ids", b"\0\0\0\6"),
            ):
                with pytest.raises(KvDamaged):
                    look()
        with pytest.raises(KvDamaged):
            list(kv.scan("ids"))


class RawWriter:
    """A write transaction past Kv, which keeps the number of the transaction right."""

    def __init__(self, path: Path) -> None:
        self.env = lmdb.Environment(str(path), max_dbs=8, map_size=1 << 30)

    def __enter__(self) -> RawWriter:
        self.txn = self.env.begin(write=True)
        number = self.txn.id().to_bytes(8, "little")
        self.txn.put(b"=txn", sealed(number, b"=txn", row_seed(SUMS)), db=self.table(SUMS))
        return self

    def __exit__(self, *_: object) -> None:
        self.txn.commit()
        self.env.close()

    def table(self, name: bytes) -> lmdb._Database:
        return self.env.open_db(name, txn=self.txn)

    def put(self, table: bytes, key: bytes, stored: bytes) -> None:
        self.txn.put(key, stored, db=self.table(table))


def vanish(raw: RawWriter) -> None:
    raw.txn.delete(b"\0\0\0\7", db=raw.table(b"ids"))


def appear(raw: RawWriter) -> None:
    key = b"\0\1\0\7"
    raw.put(b"ids", key, sealed(b"x", key, row_seed(b"ids")))


def go_back(raw: RawWriter) -> None:
    """Two rows return to earlier values that differ from the present ones by the same step."""
    for key, value in ((b"\0\0\0\7", b"value 6"), (b"\0\0\0\5", b"value 4")):
        raw.put(b"ids", key, sealed(value, key, row_seed(b"ids")))


def move(raw: RawWriter) -> None:
    """The same rows in another table."""
    for key, value in list(raw.txn.cursor(raw.table(b"ids"))):
        raw.put(b"places", key, value)


def drop(raw: RawWriter) -> None:
    raw.txn.drop(raw.table(b"heads"))


def nothing(raw: RawWriter) -> None:
    """The control: the way round Kv alone is no damage."""


@pytest.mark.parametrize("change", [nothing, vanish, appear, go_back, move, drop])
def test_rows_that_are_sound_one_by_one(path: Path, change: Callable[[RawWriter], None]) -> None:
    filled(path)
    with RawWriter(path) as raw:
        change(raw)
    with Kv.open(path, TABLES) as kv:
        assert kv.was_reset == (change is not nothing)


def test_an_older_state_is_damage(path: Path) -> None:
    filled(path)
    older = (path / DATA_FILE).read_bytes()
    with Kv.open(path, TABLES) as kv, kv.write() as rows:
        rows.put("ids", b"new", b"row")
    newer = (path / DATA_FILE).read_bytes()
    tip = parse_tip((path / TIP_FILE).read_bytes())
    assert tip is not None
    (path / DATA_FILE).write_bytes(older)
    assert examine_here(path)[0] == DAMAGED
    (path / DATA_FILE).write_bytes(newer)
    assert examine_here(path)[0] == SOUND
    (path / TIP_FILE).write_bytes(b"torn")
    with Kv.open(path, TABLES) as kv:
        assert not kv.was_reset
    assert parse_tip((path / TIP_FILE).read_bytes()) == tip


def test_a_missing_file_is_damage(path: Path) -> None:
    filled(path)
    (path / DATA_FILE).unlink()
    with Kv.open(path, TABLES) as kv:
        assert kv.was_reset


@pytest.mark.parametrize("content", [b"", bytes(8192)])
def test_a_file_that_has_lost_its_beginning_is_damage(path: Path, content: bytes) -> None:
    filled(path)
    (path / DATA_FILE).write_bytes(content)
    with Kv.open(path, TABLES) as kv:
        assert kv.was_reset


@pytest.mark.parametrize(
    ("code", "reset"),
    [
        ("import os; os.abort()", True),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", True),
        ("import os, signal; os.kill(os.getpid(), signal.SIGTERM)", False),
        ("import sys; sys.exit(1)", False),
    ],
)
def test_how_the_child_ends(path: Path, monkeypatch: pytest.MonkeyPatch, code: str, reset: bool) -> None:
    expected = filled(path)
    real = subprocess.run
    monkeypatch.setattr(subprocess, "run", lambda command, **options: real([command[0], "-c", code], **options))
    if reset:
        with Kv.open(path, TABLES) as kv:
            assert kv.was_reset
        return
    with pytest.raises(StoreError):
        Kv.open(path, TABLES)
    monkeypatch.undo()
    with Kv.open(path, TABLES) as kv:
        assert not kv.was_reset and all_rows(kv) == expected


def test_a_child_without_end_means_damage(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    filled(path)
    real = subprocess.run
    sleep = "import sys; sys.stdin = open(0); import threading; threading.Event().wait()"
    monkeypatch.setattr(kvhome, "_MIN_SECONDS", 0.1)
    monkeypatch.setattr(subprocess, "run", lambda command, **options: real([command[0], "-c", sleep], **options))
    with Kv.open(path, TABLES) as kv:
        assert kv.was_reset


# -- an orderly end ---------------------------------------------------------------------------------------------------

WEEK = 7 * 86400.0


class Examined:
    """Opens and closes an environment in this process, and notes how it was examined: whole or in part."""

    def __init__(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.path = path
        self.limits: list[int | None] = []
        self.now = 1e9
        monkeypatch.setattr(kvhome, "examine_in_child", self._examine)
        monkeypatch.setattr(kvhome.time, "time", lambda: self.now)

    def _examine(self, path: Path, limit: int | None = None) -> tuple[int, str]:
        self.limits.append(limit)
        return examine_here(path, limit)

    def open(self, trust_s: float = WEEK) -> Kv:
        kv = Kv.open(self.path, TABLES, trust_s=trust_s)
        assert not (self.path / END_FILE).exists()
        return kv

    def whole(self) -> bool:
        """Opens and closes; whether all was examined."""
        self.open().close()
        return self.limits[-1] is None


@pytest.fixture
def examined(path: Path, monkeypatch: pytest.MonkeyPatch) -> Examined:
    monkeypatch.setattr(kvhome, "LARGE", 100)
    examined = Examined(path, monkeypatch)
    with examined.open() as kv, kv.write() as rows:
        rows.put_many("ids", [(b"%04d" % number, b"x" * 50) for number in range(1000)])
        rows.put("heads", b"head", b"1")
    return examined


def test_what_was_closed_in_order_is_trusted_for_a_time(examined: Examined) -> None:
    assert not examined.whole()
    with examined.open() as kv, kv.write() as rows:
        rows.put("heads", b"head", b"2")
    examined.now += WEEK / 2
    assert not examined.whole()
    examined.open(trust_s=0).close()
    assert examined.limits[-1] is None
    examined.now += WEEK * 0.6
    assert not examined.whole(), "it was examined half a week ago"
    examined.now += WEEK * 0.6
    assert examined.whole() and not examined.whole()
    examined.now -= 5
    assert examined.whole(), "the clock was set back"


def touch(path: Path) -> None:
    os.utime(path / DATA_FILE, ns=(1, 1))


def copy(path: Path) -> None:
    shutil.copy2(path / DATA_FILE, path / "copy")
    os.replace(path / "copy", path / DATA_FILE)


def tear(path: Path) -> None:
    (path / END_FILE).write_bytes((path / END_FILE).read_bytes()[:-1])


def forge(path: Path) -> None:
    raw = bytearray((path / END_FILE).read_bytes())
    raw[-5] ^= 1
    (path / END_FILE).write_bytes(raw)


def lose(path: Path) -> None:
    (path / END_FILE).unlink()


@pytest.mark.parametrize("change", [touch, copy, tear, forge, lose])
def test_what_was_touched_is_not_trusted(examined: Examined, change: Callable[[Path], None]) -> None:
    change(examined.path)
    assert examined.whole() and not examined.whole()


def test_what_was_not_closed_is_not_trusted(examined: Examined) -> None:
    child = start_python(
        "kv = Kv.open(path, ['ids', 'places', 'heads'], trust_s=1e12); print('open', flush=True); sys.stdin.read()",
        examined.path,
    )
    assert child.stdout is not None and child.stdout.readline() == b"open\n"
    child.kill()
    child.communicate()
    assert examined.whole() and not examined.whole()


def flip(path: Path, what: bytes) -> None:
    """One bit of the disk, with no trace in the file's stat."""
    file = path / DATA_FILE
    raw = bytearray(file.read_bytes())
    at = raw.rfind(what)
    raw[at] ^= 1
    before, end = file.stat(), End.parse((path / END_FILE).read_bytes())
    with open(file, "r+b") as out:
        out.seek(at)
        out.write(raw[at : at + 1])
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert end is not None  # only the ctime cannot be set back
    forged = End(end.size, end.mtime_ns, file.stat().st_ctime_ns, end.inode, end.examined_s)
    (path / END_FILE).write_bytes(forged.build())


def test_damage_in_a_large_table_shows_when_it_is_read(examined: Examined) -> None:
    flip(examined.path, b"0500" + b"x" * 50)
    kv = examined.open()
    assert examined.limits[-1] == 100 and not kv.was_reset
    with pytest.raises(KvDamaged):
        list(kv.scan("ids"))
    kv.close()
    kv = examined.open()
    assert examined.limits[-1] is None and kv.was_reset
    kv.close()


def test_damage_in_a_small_table_shows_at_once(examined: Examined) -> None:
    flip(examined.path, b"head1")
    kv = examined.open()
    assert examined.limits[-1] == 100 and kv.was_reset
    kv.close()
    assert not examined.whole()


def test_what_is_quarantined_is_not_trusted(examined: Examined) -> None:
    examined.open().quarantine("a test")
    kv = examined.open()
    assert kv.was_reset
    kv.close()
