"""Real files, real races: a thread that writes while the reader reads, at moments the test chooses."""

import itertools
import os
import random
import sqlite3
import stat
import threading
from contextlib import suppress
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contbak.capture import attributes, sqlite, window
from contbak.capture import reader as module
from contbak.capture.attributes import (
    fingerprint,
    fingerprint_of_directory,
    link_id,
    read_xattrs,
    stat_entry,
    with_fields,
)
from contbak.capture.reader import Reader
from contbak.core.entry import CHARACTER, FIFO, FILE, SOCKET, SYMLINK
from contbak.core.errors import SourceError, Unsettled, Vanished
from tests.trees import ACL, extents_of, make_sparse

WINDOW = 64 << 10


class Sink:
    """A consumer that keeps all it is given, and takes `step` bytes at a time at most."""

    def __init__(self, step=1 << 30, then=None):
        self.data = bytearray()
        self.finals = self.restarts = self.calls = 0
        self.step = step
        self.then = then or (lambda sink: None)

    def consume(self, view, final):
        taken = len(view) if final else min(self.step, len(view))
        self.data += view[:taken]
        self.finals += final
        self.calls += 1
        self.then(self)
        return taken

    def restart(self):
        self.data.clear()
        self.restarts += 1


def read(path, sink=None, window=WINDOW, **options):
    sink = sink or Sink()
    reader = Reader(window=window, **{k: options.pop(k) for k in ("tries", "scratch") if k in options})
    return reader.read(os.fsencode(path), sink.consume, sink.restart, **options), sink


def write(path, data):
    path.write_bytes(data)
    return path


@pytest.fixture
def old(monkeypatch):
    """As if every file had been written long ago: the wait for a later time stamp is tested on its own."""
    monkeypatch.setattr(module.time, "sleep", lambda seconds: None)


@pytest.mark.parametrize("size", [0, 1, 16, WINDOW - 1, WINDOW, WINDOW + 1, 3 * WINDOW, 5 * WINDOW + 7])
@pytest.mark.parametrize("step", [1 << 30, WINDOW - 1, WINDOW // 3, 1000])
def test_every_byte_comes_once_and_in_order(tmp_path, old, size, step):
    data = random.Random(size).randbytes(size)
    result, sink = read(write(tmp_path / "file", data), Sink(step))
    assert bytes(sink.data) == data
    assert (sink.finals, sink.restarts, result.length, result.attempts, result.torn) == (1, 0, size, 1, False)
    assert result.entry.size == size and result.entry.extents is None
    assert result.fingerprint == fingerprint(os.lstat(tmp_path / "file"))


def test_windowed_chunks_are_the_chunks_of_the_whole(tmp_path, old):
    """A consumer that cuts only with enough in sight cuts as if it saw the whole file."""
    data = random.Random(1).randbytes(10 * WINDOW + 11)
    pieces = []

    def cut(view, final):
        taken = 0
        while len(view) - taken >= 40_000 or (final and taken < len(view)):
            pieces.append(bytes(view[taken : taken + 10_000 + view[taken] * 100]))
            taken += len(pieces[-1])
        return taken

    Reader(window=WINDOW).read(os.fsencode(write(tmp_path / "file", data)), cut, pieces.clear)
    whole, at = [], 0
    while at < len(data):
        whole.append(data[at : at + 10_000 + data[at] * 100])
        at += len(whole[-1])
    assert pieces == whole


def test_one_buffer_serves_many_files(tmp_path, old):
    sink, reader = Sink(), Reader(window=WINDOW)
    views = set()

    def consume(view, final):
        views.add(id(view.obj))
        return sink.consume(view, final)

    for number in range(20):
        reader.read(os.fsencode(write(tmp_path / str(number), bytes([number]) * 1000)), consume, sink.restart)
    assert len(views) == 1
    assert bytes(sink.data) == b"".join(bytes([number]) * 1000 for number in range(20))


def test_a_consumer_that_breaks_its_contract_is_found_out(tmp_path, old):
    path = os.fsencode(write(tmp_path / "file", bytes(2 * WINDOW)))
    with pytest.raises(ValueError, match="took 0"):
        Reader(window=WINDOW).read(path, lambda view, final: 0, lambda: None)
    with pytest.raises(ValueError, match="all of the final"):
        Reader(window=WINDOW).read(path, lambda view, final: len(view) - final, lambda: None, allow_torn=True)


def test_what_the_consumer_raises_passes_through_and_no_descriptor_leaks(tmp_path, old):
    path = write(tmp_path / "file", b"x")
    before = len(os.listdir("/proc/self/fd"))

    def full(view, final):
        raise OSError(28, "spool is full")

    with pytest.raises(OSError, match="spool is full"):
        Reader().read(os.fsencode(path), full, lambda: None)
    assert len(os.listdir("/proc/self/fd")) == before


# --- what is no readable file


def test_gone(tmp_path):
    for path in (tmp_path / "none", tmp_path / "no" / "parent"):
        with pytest.raises(Vanished):
            read(path)
    with pytest.raises(Vanished):
        read(write(tmp_path / "file", b"") / "below a file")


def test_what_is_no_file_is_looked_at_afresh(tmp_path):
    write(tmp_path / "secret", b"secret")
    (tmp_path / "link").symlink_to("secret")
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "folder").mkdir()
    os.mknod(tmp_path / "socket", stat.S_IFSOCK | 0o600)
    for name in ("link", "fifo", "folder", "socket"):
        sink = Sink()
        with pytest.raises(Vanished):
            read(tmp_path / name, sink)
        assert sink.calls == 0


def test_no_permission(tmp_path):
    write(tmp_path / "file", b"x").chmod(0)
    with suppress(PermissionError):
        (tmp_path / "file").read_bytes()
        pytest.skip("this user may read everything")
    with pytest.raises(SourceError, match="permission denied") as caught:
        read(tmp_path / "file")
    assert not isinstance(caught.value, Vanished)


def test_read_error_in_the_middle(tmp_path, old, monkeypatch):
    path = write(tmp_path / "file", bytes(3 * WINDOW))
    real = os.preadv

    def failing(fd, buffers, offset):
        if offset >= WINDOW:
            raise OSError(5, "Input/output error")
        return real(fd, buffers, offset)

    monkeypatch.setattr(os, "preadv", failing)
    with pytest.raises(SourceError, match=f"at byte {WINDOW}: Input/output error"):
        read(path)


def test_short_reads_are_read_on(tmp_path, old, monkeypatch):
    data = random.Random(2).randbytes(2 * WINDOW + 5)
    path = write(tmp_path / "file", data)
    real = os.preadv
    monkeypatch.setattr(os, "preadv", lambda fd, buffers, offset: real(fd, [buffers[0][:999]], offset))
    _, sink = read(path)
    assert bytes(sink.data) == data


def test_access_time_stays(tmp_path, old):
    path = write(tmp_path / "file", b"data")
    os.utime(path, ns=(1, 2))
    read(path)
    assert os.stat(path).st_atime_ns == 1


def test_relative_to_a_directory_beyond_the_longest_path(tmp_path, old):
    fd = os.open(tmp_path, os.O_RDONLY)
    for _ in range(30):  # 30 x 200 bytes: no path reaches there
        os.mkdir("d" * 200, dir_fd=fd)
        deeper = os.open("d" * 200, os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = deeper
    with open(os.open("file", os.O_CREAT | os.O_WRONLY, dir_fd=fd), "wb") as file:
        file.write(b"deep down")
    sink = Sink()
    Reader().read(b"file", sink.consume, sink.restart, dir_fd=fd)
    assert bytes(sink.data) == b"deep down"
    os.close(fd)


# --- files that change


class Writer:
    """Does `act` to the file in another thread, while the reader waits in the middle of its n-th window."""

    def __init__(self, act, windows=(1,)):
        self.act = act
        self.windows = windows

    def __call__(self, sink):
        if sink.calls in self.windows or self.windows is None:
            thread = threading.Thread(target=self.act)
            thread.start()
            thread.join()


def overwrite(path, letter, at=0, length=None):
    with open(path, "r+b", buffering=0) as file:
        file.seek(at)
        file.write(letter * (length or 4 * WINDOW))


def append(path):
    with open(path, "ab") as file:
        file.write(b"tail")


CHANGES = {
    "rewrite": lambda path: overwrite(path, b"B"),
    "rewrite what was read": lambda path: overwrite(path, b"B", 0, 1),
    "rewrite what comes": lambda path: overwrite(path, b"B", 4 * WINDOW - 1, 1),
    "append": append,
    "shrink": lambda path: os.truncate(path, WINDOW + 5),
    "empty": lambda path: os.truncate(path, 0),
    "grow": lambda path: os.truncate(path, 8 << 20),
    "chmod": lambda path: os.chmod(path, 0o600 ^ (os.stat(path).st_mode & 0o100)),
}


@pytest.mark.parametrize("change", CHANGES)
def test_changed_once_is_read_again(tmp_path, change):
    path = write(tmp_path / "file", b"A" * 4 * WINDOW)
    sink = Sink(then=Writer(lambda: CHANGES[change](path)))
    result, _ = read(path, sink)
    assert (result.attempts, sink.restarts, result.torn) == (2, 1, False)
    whole = bytearray(result.entry.size)
    at = 0
    for offset, length in result.entry.extents or ((0, result.entry.size),):
        whole[offset : offset + length] = sink.data[at : at + length]
        at += length
    assert at == len(sink.data) == result.length
    assert whole == path.read_bytes()


@pytest.mark.parametrize("change", sorted(CHANGES.keys() - {"empty"}))  # an empty file does hold still
def test_never_still_is_unsettled_or_labelled(tmp_path, change):
    path = write(tmp_path / "file", b"A" * 4 * WINDOW)

    def again():
        if os.stat(path).st_size < 4 * WINDOW:
            os.truncate(path, 4 * WINDOW)
        CHANGES[change](path)

    with pytest.raises(Unsettled):
        read(path, Sink(then=Writer(again, range(100))))
    os.truncate(path, 4 * WINDOW)
    sink = Sink(then=Writer(again, range(100)))
    result, _ = read(path, sink, allow_torn=True)
    assert result.torn and result.attempts == 3 and sink.finals == 1
    assert len(sink.data) == result.length
    expected = result.entry.size if result.entry.extents is None else sum(n for _, n in result.entry.extents)
    assert result.length == expected
    assert result.fingerprint != fingerprint(os.stat(path))


def test_torn_copy_of_a_shrinking_file_with_holes_fits_itself(tmp_path):
    path = tmp_path / "file"
    make_sparse(path, 1 << 20, ((0, 4096), (1 << 17, 3 * WINDOW), (1 << 19, WINDOW)), random.Random(1))
    sink = Sink(then=Writer(lambda: os.truncate(path, (1 << 17) + WINDOW + 77)))
    result, _ = read(path, sink, tries=1, allow_torn=True)
    assert result.torn
    assert result.entry.extents == ((0, 4096), (1 << 17, WINDOW + 77))
    assert result.entry.size == (1 << 17) + WINDOW + 77
    assert result.length == len(sink.data) == 4096 + WINDOW + 77


def test_replaced_by_rename_gives_one_or_the_other(tmp_path):
    path = write(tmp_path / "file", b"A" * 4 * WINDOW)

    def replace():
        os.rename(write(tmp_path / "new", b"B" * 4 * WINDOW), path)

    _, sink = read(path, Sink(then=Writer(replace)))
    assert bytes(sink.data) == b"B" * 4 * WINDOW


def test_removed_while_it_is_read(tmp_path):
    path = write(tmp_path / "file", b"A" * 4 * WINDOW)
    with pytest.raises(Vanished):
        read(path, Sink(then=Writer(path.unlink)))


def test_a_small_file_that_changes_never_reaches_the_consumer_half(tmp_path, monkeypatch):
    path = write(tmp_path / "file", b"A" * 100)
    real, calls = os.preadv, []

    def racing(fd, buffers, offset):
        got = real(fd, buffers, offset)
        if not calls:
            calls.append(overwrite(path, b"B", 0, 100))
        return got

    monkeypatch.setattr(os, "preadv", racing)
    result, sink = read(path)
    assert bytes(sink.data) == b"B" * 100 and sink.calls == 1 and result.attempts == 2


def test_a_write_within_the_same_time_stamp_is_not_missed(tmp_path):
    """Some kernels move time stamps every few ms only: two writes can bear one stamp, and size may stay, too."""
    path = write(tmp_path / "file", b"A" * 4 * WINDOW)
    real = os.fstat
    waited = []

    def coarse(fd):  # a kernel whose stamps move every 7 ms more
        found = real(fd)
        return Stat(found, found.st_ctime_ns // 7_000_000 * 7_000_000)

    class Stat:
        def __init__(self, found, stamp):
            self._found = found
            self.st_ctime_ns = self.st_mtime_ns = stamp

        def __getattr__(self, name):
            return getattr(self._found, name)

    def sleep(seconds):
        waited.append(seconds)
        real_sleep(seconds)

    real_sleep = module.time.sleep
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fstat", coarse)
        patch.setattr(module.time, "sleep", sleep)
        for _ in range(20):
            overwrite(path, b"A")
            _, sink = read(path, Sink(then=Writer(lambda: overwrite(path, b"B"))))
            assert len(set(sink.data)) == 1
    assert waited


def test_storm(tmp_path, seed):
    """A thread that replaces, truncates and rewrites all the time: no unlabelled copy mixes two states.

    It writes letter n + 1 over letter n from front to back, so that a state is some of n + 1, then some of n.
    """
    block = 4096
    path = write(tmp_path / "file", b"\0" * 48 * block)
    chance = random.Random(seed)
    stop, mixed = threading.Event(), 0

    def storm():
        letter = 0
        while not stop.wait(chance.choice((0, 0.001, 0.03))):
            letter = (letter + 1) % 256
            blocks = chance.randrange(1, 48)
            if chance.random() < 0.2:
                write(tmp_path / "next", bytes([letter]) * block * blocks)
                os.rename(tmp_path / "next", path)
                continue
            with open(path, "r+b", buffering=0) as file:
                file.truncate(min(os.fstat(file.fileno()).st_size, block * chance.randrange(1, 48)))
                for _ in range(max(blocks, os.fstat(file.fileno()).st_size // block)):
                    file.write(bytes([letter]) * block)

    thread = threading.Thread(target=storm)
    reader = Reader(window=16 << 10, tries=2)
    thread.start()
    try:
        for _ in range(60):
            sink = Sink(then=lambda sink: stop.wait(0.001))  # let the other thread have its turn
            result = reader.read(os.fsencode(path), sink.consume, sink.restart, allow_torn=True)
            assert result.length == result.entry.size == len(sink.data)
            letters = [letter for letter, _ in itertools.groupby(sink.data[::block])]
            if len(letters) > 2 or (len(letters) == 2 and (letters[0] - letters[1]) % 256 != 1):
                assert result.torn
                mixed += 1
    finally:
        stop.set()
        thread.join()
    print(mixed, "mixed copies, all labelled")


# --- holes


PAIRS = st.lists(st.tuples(st.integers(1, 40), st.integers(1, 40)), max_size=12)


@given(PAIRS, st.integers(0, 5), st.integers(0, 9000))
def test_holes_are_left_out(tmp_path_factory, pairs, lead, tail):
    path = tmp_path_factory.mktemp("holes") / "file"
    data, at = [], lead * 4096
    for hole, length in pairs:
        data.append((at, length * 4096))
        at += (hole + length) * 4096
    make_sparse(path, at + tail, data, random.Random(at))
    os.utime(path, ns=(1, 1))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module.time, "sleep", lambda seconds: None)
        result, sink = read(path)
    found = extents_of(path)
    expected = None if at + tail < 4096 or found == ((0, at + tail),) else found
    assert result.entry.extents == expected
    content = path.read_bytes()
    assert bytes(sink.data) == b"".join(
        content[a : a + n] for a, n in (((0, at + tail),) if expected is None else expected)
    )


def test_a_file_of_holes_only(tmp_path, old):
    result, sink = read(make_sparse(tmp_path / "file", 8 << 30, (), None))
    assert result.entry.extents == () and result.length == 0 and sink.finals == 1


def test_the_smallest_holes_go_when_there_are_too_many(tmp_path, old, monkeypatch):
    monkeypatch.setattr(window, "EXTENTS_MAX", 4)
    data, at = [], 0
    for hole in (1, 9, 2, 8, 3, 7, 4, 6, 5, 5, 5, 5):
        data.append((at, 4096))
        at += 4096 + hole * 4096
    path = make_sparse(tmp_path / "file", at, data, random.Random(3))
    result, sink = read(path)
    extents = result.entry.extents
    assert len(extents) == 4 and extents[0][0] == 0 and sum(extents[-1]) == sum(data[-1])
    gaps = [b[0] - sum(a) for a, b in itertools.pairwise(extents)]
    assert gaps == [9 * 4096, 8 * 4096, 7 * 4096]
    content = path.read_bytes()
    assert bytes(sink.data) == b"".join(content[a : a + n] for a, n in extents)


def test_reserved_space_is_a_hole(tmp_path, old):
    path = tmp_path / "file"
    with open(path, "wb") as file:
        try:
            os.posix_fallocate(file.fileno(), 0, 2 << 20)
        except OSError:
            pytest.skip("no fallocate here")
        file.write(b"x" * 5000)
    if extents_of(path) == ((0, 2 << 20),):
        pytest.skip("this file system does not tell reserved space from data")
    result, _ = read(path)
    assert result.length == 8192


# --- attributes


def test_entries_of_every_kind(tmp_path):
    os.mkfifo(tmp_path / "fifo", 0o640)
    os.symlink(b"\xff\n", os.fsencode(tmp_path / "link"))
    os.mknod(tmp_path / "socket", stat.S_IFSOCK | 0o600)
    write(tmp_path / "file", b"1234").chmod(0o4711)
    entries = {path.name: stat_entry(os.fsencode(path), path.lstat()) for path in tmp_path.iterdir()}
    assert {name: entry.kind for name, entry in entries.items()} == {
        "fifo": FIFO, "link": SYMLINK, "socket": SOCKET, "file": FILE,
    }  # fmt: skip
    assert entries["link"].target == b"\xff\n" and entries["link"].size == 0
    assert entries["file"].mode == 0o4711 and entries["file"].size == 4
    null = stat_entry(b"/dev/null", os.lstat("/dev/null"))
    assert null.kind == CHARACTER and null.rdev == (1, 3) and null.user == "root"
    folder = os.open(tmp_path, os.O_RDONLY)
    for name, entry in entries.items():
        assert stat_entry(os.fsencode(name), os.lstat(tmp_path / name), folder) == entry
    os.close(folder)


def test_what_changed_its_kind_has_vanished(tmp_path):
    (tmp_path / "name").symlink_to("x")
    was = os.lstat(tmp_path / "name")
    (tmp_path / "name").unlink()
    with pytest.raises(Vanished):
        stat_entry(os.fsencode(tmp_path / "name"), was)
    write(tmp_path / "name", b"")
    with pytest.raises(Vanished):
        stat_entry(os.fsencode(tmp_path / "name"), was)


def test_xattrs_are_raw_and_sorted(tmp_path):
    path = os.fsencode(write(tmp_path / "file", b"x"))
    try:
        os.setxattr(path, b"user.\xff", b"\0\xff" * 300)
    except OSError:
        pytest.skip("no extended attributes here")
    os.setxattr(path, b"user.a", b"")
    os.setxattr(path, b"user.contbak.mark", b"ours")
    os.setxattr(path, b"system.posix_acl_access", ACL)
    pairs = dict(read_xattrs(path))
    assert list(pairs) == sorted(pairs)
    assert pairs[b"user.\xff"] == b"\0\xff" * 300 and pairs[b"user.a"] == b""
    assert pairs[b"system.posix_acl_access"] == ACL
    assert b"user.contbak.mark" not in pairs
    result, _ = read(os.fsdecode(path))
    assert dict(result.entry.xattrs) == pairs
    folder = os.open(tmp_path, os.O_RDONLY)
    assert read_xattrs(b"file", folder) == result.entry.xattrs
    os.close(folder)


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_more_xattrs_than_the_tree_takes_are_an_error_with_a_reason(tmp_path, monkeypatch, kind):
    path = tmp_path / kind
    path.mkdir() if kind == "folder" else path.write_bytes(b"x")
    try:
        for name in (b"user.a", b"user.b"):
            os.setxattr(path, name, b"x" * 506)
    except OSError:
        pytest.skip("no extended attributes here")
    monkeypatch.setattr(attributes, "XATTRS_MAX", 1024)
    assert len(read_xattrs(os.fsencode(path))) == 2
    monkeypatch.setattr(attributes, "XATTRS_MAX", 1023)
    with pytest.raises(SourceError, match="extended attributes take more than"):
        stat_entry(os.fsencode(path), os.lstat(path))


def test_names_of_one_file_share_a_link_id(tmp_path):
    write(tmp_path / "a", b"x")
    assert stat_entry(os.fsencode(tmp_path / "a"), os.lstat(tmp_path / "a")).link == b""
    os.link(tmp_path / "a", tmp_path / "b")
    write(tmp_path / "c", b"x")
    os.link(tmp_path / "c", tmp_path / "d")
    a, b, c = (stat_entry(os.fsencode(tmp_path / name), os.lstat(tmp_path / name)).link for name in "abc")
    assert len(a) == 8 and a == b != c


def test_fingerprints(tmp_path):
    path = write(tmp_path / "file", b"x")
    seen = {fingerprint(os.lstat(path))}
    for act in (
        lambda: path.write_bytes(b"y"),
        lambda: path.chmod(0o600),
        lambda: os.utime(path, ns=(5, 5)),
        lambda: os.link(path, tmp_path / "other"),
        lambda: os.utime(path, ns=(-5, -5)),
    ):
        act()
        seen.add(fingerprint(os.lstat(path)))
    assert len(seen) == 6 and {len(mark) for mark in seen} == {60}
    was = os.lstat(tmp_path)
    os.utime(path)  # nothing of the directory
    assert fingerprint_of_directory(os.lstat(tmp_path)) == fingerprint_of_directory(was)
    tmp_path.chmod(0o711)
    assert fingerprint_of_directory(os.lstat(tmp_path)) != fingerprint_of_directory(was)
    assert len(fingerprint_of_directory(was)) == 36


def test_a_device_number_is_no_part_of_a_fingerprint(tmp_path):
    path = write(tmp_path / "file", b"x")
    for mark, place in ((fingerprint, path), (fingerprint_of_directory, tmp_path)):
        was = os.lstat(place)
        fields = {name: getattr(was, name) for name in dir(was) if name.startswith("st_")}
        rebooted = SimpleNamespace(**(fields | {"st_dev": was.st_dev + 7}))
        assert mark(rebooted) == mark(was) and link_id(rebooted) == link_id(was)
    assert int.from_bytes(fingerprint(os.lstat(path))[12:20], "little") == 1
    assert int.from_bytes(fingerprint_of_directory(was)[12:20], "little") == was.st_mtime_ns


def test_with_fields_changes_those_only(tmp_path):
    entry = stat_entry(b"/dev/null", os.lstat("/dev/null"))
    assert with_fields(with_fields(entry, size=7), size=entry.size) == entry
    assert with_fields(entry, size=7).size == 7


# --- SQLite


def database(path, journal="WAL"):
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute(f"PRAGMA journal_mode={journal}")
    connection.execute("CREATE TABLE t(n INTEGER PRIMARY KEY, data BLOB)")
    return connection


def count(data, tmp_path):
    copy = write(tmp_path / "restored", bytes(data))
    connection = sqlite3.connect(copy)
    try:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        return connection.execute("SELECT count(*) FROM t").fetchone()[0]
    finally:
        connection.close()


def test_a_database_in_use_is_copied_with_what_is_in_its_log(tmp_path):
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    connection = database(tmp_path / "odd %?#name")
    connection.executemany("INSERT INTO t(data) VALUES (?)", [(bytes(1000),)] * 500)
    before = sorted(os.listdir(tmp_path))
    result, sink = read(tmp_path / "odd %?#name", scratch=str(scratch))
    descriptors = len(os.listdir("/proc/self/fd"))  # SQLite keeps one as long as this process has a connection
    read(tmp_path / "odd %?#name", scratch=str(scratch))
    assert len(os.listdir("/proc/self/fd")) == descriptors
    assert result.database and not result.torn
    assert result.entry.size == result.length == len(sink.data)
    assert sorted(os.listdir(tmp_path)) == before and not os.listdir(scratch)
    connection.close()
    assert count(sink.data, tmp_path) == 500


def test_a_database_at_rest_is_copied_byte_for_byte(tmp_path):
    connection = database(tmp_path / "db", "DELETE")
    connection.execute("INSERT INTO t(data) VALUES ('x')")
    result, sink = read(tmp_path / "db", scratch=str(tmp_path))
    assert not result.database and bytes(sink.data) == (tmp_path / "db").read_bytes()
    connection.close()


def test_a_log_left_by_a_crash_is_not_touched(tmp_path):
    live = tmp_path / "live"
    connection = database(live)
    connection.execute("INSERT INTO t(data) VALUES ('x')")
    for ending in ("", "-wal"):
        write(tmp_path / f"dead{ending}", (tmp_path / f"live{ending}").read_bytes())
    before = sorted(os.listdir(tmp_path))
    result, sink = read(tmp_path / "dead", scratch=str(tmp_path))
    assert not result.database and bytes(sink.data) == (tmp_path / "dead").read_bytes()
    assert sorted(os.listdir(tmp_path)) == before
    connection.close()


def test_what_sqlite_refuses_is_read_like_any_file(tmp_path):
    path = write(tmp_path / "db", sqlite.MAGIC + b"nonsense" * 5000)
    write(tmp_path / "db-journal", b"")
    result, sink = read(path, scratch=str(tmp_path))
    assert not result.database and bytes(sink.data) == path.read_bytes()
    assert sorted(os.listdir(tmp_path)) == ["db", "db-journal"]


def test_a_locked_database_does_not_hold_us_up(tmp_path, monkeypatch):
    monkeypatch.setattr(sqlite, "_BUSY_S", 0.01)
    connection = database(tmp_path / "db", "DELETE")
    connection.execute("BEGIN EXCLUSIVE")
    connection.execute("INSERT INTO t(data) VALUES ('x')")
    assert sqlite.snapshot(os.fsencode(tmp_path / "db"), str(tmp_path)) is None
    connection.close()


def test_a_backup_that_cannot_end_is_given_up():
    for status in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        with pytest.raises(sqlite._Busy):
            sqlite._watch()(status, 10, 10)
    progress = sqlite._watch()
    for remaining in (10, 5, 10, 5, 10, 5, 10, 5):
        progress(sqlite3.SQLITE_OK, remaining, 10)
    with pytest.raises(sqlite._Busy):
        progress(sqlite3.SQLITE_OK, 10, 10)


def test_a_database_written_all_the_time_is_whole_in_every_copy(tmp_path):
    """Each transaction keeps two rows equal; a copy that mixes moments would not."""
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    connection = database(tmp_path / "db")
    connection.executemany("INSERT INTO t VALUES (?, ?)", [(n, bytes(3000)) for n in range(300)])
    stop = threading.Event()

    def work():
        mine = sqlite3.connect(tmp_path / "db", isolation_level=None)
        turn = 0
        while not stop.is_set():
            turn += 1
            mine.execute("BEGIN")
            mine.execute("UPDATE t SET data=? WHERE n IN (0, 299)", (b"%d" % turn * 200,))
            mine.execute("COMMIT")
        mine.close()

    thread = threading.Thread(target=work)
    thread.start()
    try:
        for _ in range(10):
            result, sink = read(tmp_path / "db", scratch=str(scratch))
            assert result.database
            assert count(sink.data, tmp_path) == 300
            copy = sqlite3.connect(tmp_path / "restored")
            assert copy.execute("SELECT count(DISTINCT data) FROM t WHERE n IN (0, 299)").fetchone() == (1,)
            copy.close()
    finally:
        stop.set()
        thread.join()
        connection.close()


def test_side_files_belong_to_their_database(tmp_path):
    connection = database(tmp_path / "db")
    connection.execute("INSERT INTO t(data) VALUES ('x')")
    path = os.fsencode(tmp_path / "db")
    assert sqlite.database_of(path + b"-wal") == sqlite.database_of(path + b"-shm") == path
    assert sqlite.database_of(path) is None
    write(tmp_path / "notes-wal", b"")
    write(tmp_path / "notes", b"text")
    assert sqlite.database_of(os.fsencode(tmp_path / "notes-wal")) is None
    mark = sqlite.side_mark(path)
    connection.execute("INSERT INTO t(data) VALUES ('y')")
    assert sqlite.side_mark(path) != mark != b""
    connection.close()
    assert sqlite.side_mark(path) == b""
