"""Watcher as its owner sees it: threads, several sources, bursts, and the stock observer of other systems."""

from __future__ import annotations

import os
import shutil
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from contbak.capture import mounts
from contbak.capture.gaps import GONE, OVERFLOW, STOPPED, UNRELIABLE
from contbak.capture.watcher import Changed, Gap, Notice, Watcher
from contbak.core.errors import UsageError

linux = pytest.mark.skipif(sys.platform != "linux", reason="the reader is Linux only")
PATIENCE_S = 60.0


def nothing(path: bytes, is_dir: bool) -> bool:
    return False


class Sink:
    """Collects notices and lets a test wait for them."""

    def __init__(self) -> None:
        self.notices: list[Notice] = []
        self.changed: set[bytes] = set()
        self.appeared: set[bytes] = set()
        self.gate = threading.Event()
        self.gate.set()
        self.stalled = threading.Event()
        self._news = threading.Condition()

    def __call__(self, notice: Notice) -> None:
        if not self.gate.is_set():
            self.stalled.set()
            self.gate.wait(PATIENCE_S)
        with self._news:
            self.notices.append(notice)
            if isinstance(notice, Changed):
                self.changed.add(notice.path)
                if notice.appeared_directory:
                    self.appeared.add(notice.path)
            self._news.notify_all()

    def wait_for(self, test: Callable[[], bool]) -> None:
        with self._news:
            assert self._news.wait_for(test, PATIENCE_S), f"{len(self.notices)} notices, the last {self.notices[-3:]}"

    def wait_for_path(self, path: Path) -> None:
        self.wait_for(lambda: os.fsencode(path) in self.changed)

    def gaps(self) -> list[Gap]:
        return [notice for notice in self.notices if isinstance(notice, Gap)]

    def told(self, path: bytes) -> bool:
        """Whether the path, or a directory to be scanned that holds it, was told."""
        if path in self.changed:
            return True
        while (path := path.rpartition(b"/")[0]) != b"":
            if path in self.appeared:
                return True
        return False


@pytest.fixture
def sink() -> Sink:
    return Sink()


@pytest.fixture
def watcher(sink: Sink) -> Iterator[Watcher]:
    made = Watcher(sink)
    yield made
    sink.gate.set()
    made.stop()


def armed(watcher: Watcher, name: str, top: Path, prune: Callable[[bytes, bool], bool] = nothing) -> None:
    ready = watcher.watch(name, os.fsencode(top), prune)
    watcher.start()
    assert ready.wait(PATIENCE_S)
    assert watcher.ready(name) is ready


@linux
def test_sources_come_and_go(tmp_path: Path, watcher: Watcher, sink: Sink) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    (one / "deep").mkdir(parents=True)
    two.mkdir()
    armed(watcher, "one", one)
    armed(watcher, "two", two)
    assert watcher.watches() == 3
    (one / "deep/x").touch()
    sink.wait_for_path(one / "deep/x")
    (two / "x").touch()
    sink.wait_for_path(two / "x")
    assert Changed("one", os.fsencode(one / "deep/x"), False) in sink.notices
    assert Changed("two", os.fsencode(two / "x"), False) in sink.notices
    watcher.unwatch("one")
    watcher.unwatch("one")
    (one / "deep/unseen").touch()
    (two / "seen").touch()
    sink.wait_for_path(two / "seen")
    assert not any(path.endswith(b"unseen") for path in sink.changed)
    assert watcher.watches() == 1


@linux
def test_one_tree_may_be_two_sources(tmp_path: Path, watcher: Watcher, sink: Sink) -> None:
    armed(watcher, "all", tmp_path)
    armed(watcher, "some", tmp_path, lambda path, is_dir: path == b"x")
    (tmp_path / "x").touch()
    (tmp_path / "y").touch()
    wanted = [("all", b"x"), ("all", b"y"), ("some", b"y")]
    notices = [Changed(name, os.fsencode(tmp_path) + b"/" + path, False) for name, path in wanted]
    sink.wait_for(lambda: all(notice in sink.notices for notice in notices))
    assert Changed("some", os.fsencode(tmp_path) + b"/x", False) not in sink.notices


def test_wrong_use_is_refused(tmp_path: Path, watcher: Watcher) -> None:
    watcher.watch("one", os.fsencode(tmp_path), nothing)
    with pytest.raises(UsageError):
        watcher.watch("one", os.fsencode(tmp_path), nothing)
    with pytest.raises(UsageError):
        watcher.watch("two", b"relative", nothing)
    with pytest.raises(UsageError):
        watcher.ready("two")


@linux
def test_the_generation_rises_with_every_batch(tmp_path: Path, watcher: Watcher, sink: Sink) -> None:
    armed(watcher, "one", tmp_path)
    seen = watcher.generation()
    for number in range(3):
        (tmp_path / str(number)).touch()
        sink.wait_for_path(tmp_path / str(number))
        assert watcher.generation() > seen
        seen = watcher.generation()


@linux
def test_a_top_that_comes_back_is_watched_anew(tmp_path: Path, watcher: Watcher, sink: Sink) -> None:
    top = tmp_path / "top"
    top.mkdir()
    armed(watcher, "one", top)
    shutil.rmtree(top)
    sink.wait_for(lambda: sink.gaps() == [Gap("one", os.fsencode(top), GONE)])
    top.mkdir()
    watcher.unwatch("one")
    armed(watcher, "one", top)
    (top / "x").touch()
    sink.wait_for_path(top / "x")


@linux
def test_a_sink_that_stalls_overflows_and_is_told(tmp_path: Path, watcher: Watcher, sink: Sink) -> None:
    room = int(Path("/proc/sys/fs/inotify/max_queued_events").read_text())
    if room > 100_000:
        pytest.skip("the event queue of this machine is too large to fill in a test")
    (tmp_path / "a").touch()
    armed(watcher, "one", tmp_path)
    sink.gate.clear()
    (tmp_path / "a").touch()
    assert sink.stalled.wait(PATIENCE_S)
    for number in range(room + 100):  # in turns, for equal neighbours are merged
        os.utime(tmp_path / "a" if number % 2 else tmp_path)
    sink.gate.set()
    sink.wait_for(lambda: Gap("one", os.fsencode(tmp_path), OVERFLOW) in sink.notices)
    (tmp_path / "b").touch()
    sink.wait_for_path(tmp_path / "b")


@linux
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_what_breaks_the_reader_is_told(tmp_path: Path, watcher: Watcher, sink: Sink) -> None:
    def broken(path: bytes, is_dir: bool) -> bool:
        raise RuntimeError("no such rule")

    armed(watcher, "one", tmp_path, broken)
    (tmp_path / "x").touch()
    sink.wait_for(lambda: [gap.reason for gap in sink.gaps()] == [STOPPED.format(error="no such rule")])


def test_a_shared_file_system_is_a_gap(
    tmp_path: Path, watcher: Watcher, sink: Sink, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mounts, "fstype", lambda path: "nfs4")
    armed(watcher, "one", tmp_path)
    assert sink.notices == [Gap("one", os.fsencode(tmp_path), UNRELIABLE.format(fstype="nfs4"))]
    assert watcher.watches() == 0


def burst(top: Path, files: int, directories: int) -> list[bytes]:
    """Write files into directories that are there, through a temporary name, and into new nested ones."""
    written: list[bytes] = []
    base, made = os.fsencode(top), b""
    for number in range(files):
        if number % 2:
            above = base + b"/d%d/e%d" % (number % directories // 100, number % 100)
        else:
            above = base + b"/new/n%d/m%d" % (number // 1000, number // 20)
            if above != made:
                os.makedirs(above)
                made = above
        path = above + b"/f%d" % number
        with open(path + b".tmp", "wb") as stream:
            stream.write(b"hi")
        os.rename(path + b".tmp", path)
        written.append(path)
    return written


def check_burst(top: Path, files: int, directories: int, watcher: Watcher, sink: Sink) -> None:
    for number in range(directories):
        (top / f"d{number // 100}/e{number % 100}").mkdir(parents=True)
    armed(watcher, "one", top)
    written = burst(top, files, directories)
    (top / "last").touch()
    sink.wait_for_path(top / "last")
    overflowed = any(gap.reason == OVERFLOW for gap in sink.gaps())
    sink.wait_for(lambda: overflowed or all(map(sink.told, written)))
    assert {gap.reason for gap in sink.gaps()} <= {OVERFLOW}
    if not overflowed:
        assert watcher.watches() == sum(1 for _ in os.walk(top))


@linux
def test_a_burst_loses_nothing(tmp_path: Path, watcher: Watcher, sink: Sink) -> None:
    check_burst(tmp_path, 10_000, 1_000, watcher, sink)


@linux
@pytest.mark.slow
def test_a_large_burst_loses_nothing(tmp_path: Path, watcher: Watcher, sink: Sink) -> None:
    check_burst(tmp_path, 100_000, 20_000, watcher, sink)


def test_the_stock_observer_tells_the_same(tmp_path: Path, sink: Sink) -> None:
    (tmp_path / "a/cache").mkdir(parents=True)
    (tmp_path / "a/old").touch()
    watcher = Watcher(sink, stock=True)
    try:
        armed(watcher, "one", tmp_path, lambda path, is_dir: path == b"a/cache")
        (tmp_path / "a/cache/x").touch()
        (tmp_path / "a/x").write_text("x")
        sink.wait_for_path(tmp_path / "a/x")
        (tmp_path / "a/old").rename(tmp_path / "new")
        sink.wait_for_path(tmp_path / "new")
        sink.wait_for_path(tmp_path / "a/old")
        (tmp_path / "dir").mkdir()
        sink.wait_for(lambda: os.fsencode(tmp_path / "dir") in sink.appeared)
        (tmp_path / "dir").rename(tmp_path / "a/dir")
        sink.wait_for(lambda: os.fsencode(tmp_path / "a/dir") in sink.appeared)
        assert watcher.generation() > 0
        assert not any(b"cache" in path for path in sink.changed)
        assert sink.gaps() == []
    finally:
        watcher.stop()


def test_the_stock_observer_without_a_top(tmp_path: Path, sink: Sink) -> None:
    watcher = Watcher(sink, stock=True)
    try:
        armed(watcher, "one", tmp_path / "nowhere")
        assert sink.notices == [Gap("one", os.fsencode(tmp_path / "nowhere"), GONE)]
    finally:
        watcher.stop()
