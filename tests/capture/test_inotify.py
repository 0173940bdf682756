"""The thin layer: real events, byte layout, errors."""

from __future__ import annotations

import os
import struct
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contbak.capture import inotify
from contbak.capture.inotify import Inotify, parse

linux = pytest.mark.skipif(sys.platform != "linux", reason="inotify is Linux only")

events = st.tuples(
    st.integers(-1, 2**31 - 1),
    st.integers(0, 2**32 - 1),
    st.integers(0, 2**32 - 1),
    st.binary(max_size=40).filter(lambda name: b"\0" not in name),
    st.integers(1, 16),
)


@given(st.lists(events))
def test_parse_reads_what_the_kernel_writes(written: list[tuple[int, int, int, bytes, int]]) -> None:
    buffer = b""
    for wd, mask, cookie, name, padding in written:
        padded = name + bytes(padding) if name else b""
        buffer += struct.pack("iIII", wd, mask, cookie, len(padded)) + padded
    assert list(parse(buffer)) == [event[:4] for event in written]


@pytest.fixture
def notify() -> Iterator[Inotify]:
    made = Inotify()
    yield made
    made.close()


def watched(notify: Inotify, path: Path) -> int:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        return notify.watch(descriptor)
    finally:
        os.close(descriptor)


@linux
def test_events_of_an_open_directory(tmp_path: Path, notify: Inotify) -> None:
    wd = watched(notify, tmp_path)
    assert notify.read() == b""
    (tmp_path / "dir").mkdir()
    (tmp_path / "dir").rename(tmp_path / "moved")
    (tmp_path / "moved").rmdir()
    found = list(parse(notify.read()))
    kinds = [(event[0], event[1] & ~inotify.ISDIR, event[3]) for event in found]
    assert kinds == [
        (wd, inotify.CREATE, b"dir"),
        (wd, inotify.MOVED_FROM, b"dir"),
        (wd, inotify.MOVED_TO, b"moved"),
        (wd, inotify.DELETE, b"moved"),
    ]
    assert all(event[1] & inotify.ISDIR for event in found)
    assert found[1][2] == found[2][2] != 0


@linux
def test_a_moved_directory_keeps_its_watch_descriptor(tmp_path: Path, notify: Inotify) -> None:
    (tmp_path / "a").mkdir()
    wd = watched(notify, tmp_path / "a")
    (tmp_path / "a").rename(tmp_path / "b")
    assert watched(notify, tmp_path / "b") == wd


@linux
def test_opening_and_reading_are_no_events(tmp_path: Path, notify: Inotify) -> None:
    (tmp_path / "x").write_text("x")
    watched(notify, tmp_path)
    (tmp_path / "x").read_text()
    list(tmp_path.iterdir())
    assert notify.read() == b""


@linux
def test_a_removed_watch_says_so_once(tmp_path: Path, notify: Inotify) -> None:
    wd = watched(notify, tmp_path)
    notify.unwatch(wd)
    notify.unwatch(wd)
    assert [(event[0], event[1]) for event in parse(notify.read())] == [(wd, inotify.IGNORED)]


@linux
def test_errors_are_the_systems(tmp_path: Path, notify: Inotify) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError):
        watched(notify, tmp_path / "file")
    with pytest.raises(FileNotFoundError):
        notify.watch(10**6)
    notify.close()
    notify.close()
    with pytest.raises(OSError, match="descriptor"):
        watched(notify, tmp_path)
