"""An event means that a file is read, whatever its stat says; what turns out to be the same makes no snapshot."""

from __future__ import annotations

import mmap
import os
from pathlib import Path
from typing import Any

import pytest

from tests.system.world import World, running

SIZE = 300_000


def started(top: Path) -> tuple[World, Path]:
    world, source = World(top), top / "source"
    source.mkdir()
    for name in ("file", "other", "third"):
        (source / name).write_bytes(name.encode() * (SIZE // len(name)))
    world.init()
    world.run("add", str(source))
    return world, source


def stamps(path: Path) -> tuple[int, ...]:
    st = path.stat()
    return st.st_size, st.st_mtime_ns, st.st_ctime_ns


def saved(world: World, path: Path) -> bytes:
    return world.raw("dump", str(path))


def test_what_a_mapping_writes_after_its_stamp_is_saved(tmp_path: Path) -> None:
    """The page is stamped when it is first written; the next write to it leaves no trace but the event at the end."""
    world, source = started(tmp_path)
    path = source / "file"
    with running(world):
        world.settle()
        with open(path, "r+b") as file, mmap.mmap(file.fileno(), 0) as mapped:
            mapped[:5] = b"first"
            os.pwrite(file.fileno(), b"event", SIZE - 5)
            world.until(lambda: saved(world, path)[:5] == b"first")
            world.settle()
            before = stamps(path)
            mapped[:5] = b"later"
            if stamps(path) != before:
                pytest.skip("the system wrote the page back meanwhile and stamped it again")
        assert stamps(path) == before
        world.until(lambda: saved(world, path)[:5] == b"later")
        assert saved(world, path) == path.read_bytes()


def changed(world: World, known: set[str]) -> list[tuple[int, int, int]]:
    return [(one["new"], one["changed"], one["gone"]) for one in world.snapshots() if one["id"] not in known]


def test_a_file_that_was_opened_and_not_changed_makes_no_snapshot(tmp_path: Path) -> None:
    world, source = started(tmp_path)
    with running(world):
        world.settle()
        known: set[Any] = {one["id"] for one in world.snapshots()}
        before = stamps(source / "file")
        for _ in range(2):
            os.close(os.open(source / "file", os.O_RDWR))
        assert stamps(source / "file") == before
        (source / "other").write_bytes(b"changed" * 1000)  # its event comes last
        world.until(lambda: saved(world, source / "other") == b"changed" * 1000)
        world.settle()
        assert changed(world, known) == [(0, 1, 0)]
