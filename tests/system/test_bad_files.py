"""Files that cannot be saved, or should not be: the healthy ones are, the others are named."""

from __future__ import annotations

import os
import random
import shutil
import socket
import stat
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.system.world import World, running
from tests.trees import same_tree


class PlainWorld(World):
    """A world in which permissions count, even for root."""

    def __init__(self, top: Path) -> None:
        super().__init__(top)
        if os.geteuid() == 0:
            if shutil.which("setpriv") is None:
                pytest.skip("root reads everything, and there is no setpriv to change that")
            self.prefix = ("setpriv", "--bounding-set=-dac_override,-dac_read_search")


def started(top: Path, world: World | None = None) -> tuple[World, Path]:
    """A vault with an empty source."""
    world, source = world or World(top), top / "source"
    source.mkdir(exist_ok=True)
    world.init()
    world.run("add", str(source))
    return world, source


def names(world: World, *words: str) -> set[str]:
    return {line["path"] for line in world.lines("ls", "-r", *words)}


def errors(world: World) -> dict[str, str]:
    return {one["path"]: one["reason"] for one in world.json("status")["sources"][0]["errors"]}


def test_what_cannot_be_read(tmp_path: Path) -> None:
    world, source = started(tmp_path, PlainWorld(tmp_path))
    for folder in ("good", "closed", "closed/inner"):
        (source / folder).mkdir()
    for name in ("good/file", "closed/file", "closed/inner/file", "secret"):
        (source / name).write_text(f"content of {name}")
    world.run("backup")
    before = names(world, str(source))
    (source / "secret").chmod(0)
    (source / "closed").chmod(0)
    (source / "secret").touch()
    (source / "good" / "new").write_text("new")
    world.run("backup", code=3)
    assert "closed" in world.err and "secret" in world.err
    assert set(errors(world)) == {"closed", "secret"}
    assert names(world, str(source)) == before | {str(source / "good" / "new")}, "what is unreadable is not gone"
    assert world.run("dump", str(source / "closed" / "inner" / "file")) == "content of closed/inner/file"
    assert world.run("dump", str(source / "secret")) == "content of secret"
    (source / "closed").chmod(0o700)
    (source / "secret").chmod(0o600)
    world.run("backup")
    assert errors(world) == {}


def test_names_of_any_bytes(tmp_path: Path) -> None:
    world, source = started(tmp_path)
    top = os.fsencode(source)
    odd = [b"new\nline", b"\xff\xfe", b"\x1b[31m", b" ", b"-rf", b"tab\t", b"\\x41", b"caf\xc3\xa9", b"n" * 255]
    for number, name in enumerate(odd):
        os.mkdir(os.path.join(top, b"d%d " % number + name[:200]))
        for folder in (top, os.path.join(top, b"d%d " % number + name[:200])):
            with open(os.path.join(folder, name), "wb") as file:
                file.write(b"content of " + name)
    world.run("backup")
    for name in odd:
        assert world.raw("dump", os.fsdecode(os.path.join(top, name))) == b"content of " + name
    plain = world.raw("ls", "-r", str(source))
    assert b"\x1b" not in plain and plain.count(b"\n") == 3 * len(odd)
    world.run("restore", str(source), "--to", str(tmp_path / "out"))
    assert same_tree(source, tmp_path / "out" / "source") == []
    with running(world):  # events carry them, too
        world.until(world.safe)
        with open(os.path.join(top, b"later \xff\n"), "wb") as file:
            file.write(b"later")
        world.until(lambda: len(world.snapshots()) > 1)
        world.until(world.safe)
    assert world.raw("dump", os.fsdecode(os.path.join(top, b"later \xff\n"))) == b"later"


def test_special_files_and_loops(tmp_path: Path) -> None:
    world, source = started(tmp_path)
    os.mkfifo(source / "fifo")
    with socket.socket(socket.AF_UNIX) as sock:
        before = os.getcwd()
        os.chdir(source)  # the path may be too long for a socket's address
        try:
            sock.bind("socket")
        finally:
            os.chdir(before)
    (source / "loop").symlink_to("loop")
    (source / "up").symlink_to("..")
    (source / "a").mkdir()
    (source / "a" / "b").symlink_to(source / "a")
    (source / "file").write_text("text")
    assert world.summary()["failed"] == 0
    world.run("restore", str(source), "--to", str(tmp_path / "out"))
    assert same_tree(source, tmp_path / "out" / "source") == []
    assert stat.S_ISFIFO((tmp_path / "out" / "source" / "fifo").lstat().st_mode)


@contextmanager
def busy(step: Any) -> Iterator[None]:
    """Calls `step` without end in a thread."""
    over = threading.Event()

    def work() -> None:
        while not over.wait(0.001):
            step()

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def test_files_that_never_hold_still(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    world, source = started(tmp_path)
    (source / "still").write_text("still")
    (source / "log").write_bytes(chance.randbytes(1 << 20))

    def step() -> None:
        with open(source / "log", "ab") as log:
            log.write(b"one more line\n")
        victim = source / f"f{chance.randrange(50)}"
        if victim.exists():
            victim.unlink()
        else:
            victim.write_bytes(b"short-lived")

    with busy(step):
        summary = world.summary()
        assert summary["failed"] == 0, summary
        with running(world):
            world.until(lambda: len(world.snapshots()) > 3)
    world.run("backup")
    world.run("restore", str(source), "--to", str(tmp_path / "out"))
    assert same_tree(source, tmp_path / "out" / "source") == []
    head = (source / "log").read_bytes()
    for snapshot in world.snapshots():
        found = world.raw("dump", str(source / "log"), "--at", snapshot["id"], code=None)
        assert head.startswith(found[: 1 << 20])
    world.run("check", "--read-data")


def test_what_is_left_out(tmp_path: Path) -> None:
    world, source = World(tmp_path), tmp_path / "source"
    for name in ("keep/a.txt", "keep/b.tmp", "cache/x", "sub/cache/y", "tagged/blob", "untagged/blob", "no/file",
                 "n.log", "m.log"):  # fmt: skip
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_text(name)
    (source / "tagged" / "CACHEDIR.TAG").write_text("Signature: 8a477f597d28d172789f06886806bc55\n")
    (source / "untagged" / "CACHEDIR.TAG").write_text("no signature\n")
    (source / "no" / ".nobackup").touch()
    world.init()
    patterns = ("*.tmp", "/cache/", "*.log", "!n.log")
    world.run("add", str(source), *(word for pattern in patterns for word in ("--exclude", pattern)))
    world.run("backup")
    wanted = {"keep", "keep/a.txt", "sub", "sub/cache", "sub/cache/y", "tagged", "tagged/CACHEDIR.TAG", "untagged",
              "untagged/blob", "untagged/CACHEDIR.TAG", "no", "no/.nobackup", "n.log"}  # fmt: skip
    assert names(world, str(source)) == {str(source / name) for name in wanted}
    named = tmp_path / "source" / "cache"
    world.run("add", str(named))  # named explicitly: protected whatever it is called
    world.run("backup")
    assert str(named / "x") in names(world, str(named))


def test_a_source_that_is_not_there(tmp_path: Path) -> None:
    world, source = started(tmp_path)
    (source / "file").write_text("text")
    world.run("backup")
    before = world.snapshots()
    source.rename(tmp_path / "elsewhere")
    world.run("backup", code=None)
    assert str(source) in world.err and "no such file" in world.err

    assert world.snapshots() == before
    with running(world):
        world.run("backup", code=None)
        assert world.json("status")["sources"][0]["last_snapshot"]["id"] == before[-1]["id"]
        assert not world.safe()
        (tmp_path / "elsewhere").rename(source)
        (source / "second").write_text("second")
        world.run("backup")
        world.until(world.safe)
        (source / "third").write_text("and it is watched again")
        world.until(lambda: world.json("status")["sources"][0]["last_snapshot"]["id"] != world.snapshots()[0]["id"]
                    and str(source / "third") in names(world, str(source)))  # fmt: skip
    source.rename(tmp_path / "elsewhere")
    source.write_text("a file where the source was")
    world.run("backup", code=None)
    assert world.run("dump", str(source / "file")) == "text"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount")
def test_an_unmounted_source(tmp_path: Path) -> None:
    """The empty mount point does not count as the deletion of everything."""
    source = tmp_path / "source"
    source.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "contbak-test", str(source)]
    if subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("nothing can be mounted here")
    try:
        world, _ = started(tmp_path)
        (source / "file").write_text("text")
        world.run("backup")
    finally:
        subprocess.run(["umount", str(source)], check=True)
    world.run("backup", code=None)
    assert "source" in world.err and "mount" in world.err, world.err

    assert str(source / "file") in names(world, str(source)), "an unmounted disk became deletions"


def test_the_home_inside_the_source(tmp_path: Path) -> None:
    world = World(tmp_path / "everything")
    (world.top / "file").write_text("text")
    world.init()
    world.run("add", str(world.top))
    with running(world):
        world.until(world.safe)
        world.run("backup")
        world.run("backup")
        count = len(world.snapshots())
        assert world.summary()["changed"] <= 1  # the log of the daemon
        assert len(world.snapshots()) <= count + 1
    inside = names(world, str(world.top))
    assert str(world.top / "file") in inside
    assert not [name for name in inside if "/state/" in name or "/relay/" in name]
    shutil.rmtree(world.home / "state")
    world.run("backup")
