"""The main job, from outside: what changes is in a snapshot soon after, and each moment comes back whole."""

from __future__ import annotations

import base64
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import sysconfig
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.system.world import World, running
from tests.trees import make_tree, same_tree

REAL = (("/usr/share/doc", 6 << 20), (sysconfig.get_path("stdlib"), 16 << 20))
"""Where real files come from, and how many bytes of each."""


def copy_real(into: Path) -> None:
    """Copies directories of real files until there is enough."""
    into.mkdir()
    for place, wanted in REAL:
        for folder in sorted(Path(place).iterdir()):
            skip = folder.name.startswith(("__", "config-", "site-packages"))
            if wanted > 0 and not skip and folder.is_dir() and not folder.is_symlink():
                there = into / folder.name
                with suppress(shutil.Error):  # what this user may not read
                    shutil.copytree(
                        folder, there, symlinks=True, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__")
                    )
                wanted -= sum(p.stat().st_size for p in there.rglob("*") if p.is_file() and not p.is_symlink())


def keep(source: Path, into: Path) -> Path:
    """`cp -a` of this moment."""
    subprocess.run(["cp", "-a", str(source), str(into)], check=True)
    return into


class Moments:
    """What the disk looked like when each snapshot was taken."""

    def __init__(self, world: World, source: Path, top: Path) -> None:
        self.world, self.source, self.top = world, source, top
        self.kept: list[tuple[str, Path, Any]] = []

    def note(self) -> Any:
        """Waits until the disk of now is in a new snapshot, by events alone; returns that snapshot."""
        known = {kept[0] for kept in self.kept}
        self.world.until(lambda: self.world.last_id() not in {None, *known} and self.world.safe())
        copy = keep(self.source, self.top / f"moment{len(self.kept)}")
        newest = self.world.snapshots()[-1]
        self.kept.append((newest["id"], copy, newest))
        return newest


def changes(source: Path, chance: random.Random) -> list[Any]:
    """What happens, in order; each is one function."""
    folders = [p for p in source.iterdir() if p.is_dir() and p.name != "hostile"]
    folders.sort(key=lambda p: (-len(list(p.glob("*.py"))), p.name))
    file = next(p for p in sorted(folders[0].rglob("*.py")) if p.stat().st_size > 2_000)

    def edit() -> None:
        text = file.read_bytes()
        file.write_bytes(text[:700] + b"# edited\n" + text[900:])

    def appear() -> None:
        (folders[1] / "a new file").write_bytes(chance.randbytes(300_000))

    def rename() -> None:
        folders[2].rename(source / "renamed directory")

    def delete() -> None:
        shutil.rmtree(folders[3])

    def permit() -> None:
        os.chmod(file, 0o4711)

    def unpack() -> None:
        make_tree(source / "unpacked", chance.randrange(1 << 30), files=30)

    return [edit, appear, rename, delete, permit, unpack]


def test_every_moment_comes_back(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    world, source = World(tmp_path), tmp_path / "source"
    copy_real(source)
    make_tree(source / "hostile", seed)
    world.init()
    world.run("add", str(source))
    moments = Moments(world, source, tmp_path)
    with running(world):
        moments.note()
        for change in changes(source, chance):
            print(change.__name__)
            change()
            assert moments.note()["files"] > 0
        look_at_all(world, moments)
    look_at_history(world, moments)
    world.run("check", "--read-data")


def look_at_all(world: World, moments: Moments) -> None:
    for number, (id_, copy, _) in enumerate(moments.kept):
        out = moments.top / f"out{number}"
        world.run("restore", str(moments.source), "--at", id_[:12], "--to", str(out))
        assert same_tree(copy, out / "source", ignore=("holes",)) == [], number  # cp makes holes of zeros
        if number == len(moments.kept) - 1:
            assert same_tree(moments.source, out / "source") == []
        shutil.rmtree(out)


def look_at_history(world: World, moments: Moments) -> None:
    """ls, dump, versions and diff tell the same story as the copies; the daemon is stopped."""
    source = moments.source
    (first, was, _), (_, edited, _) = moments.kept[:2]
    names = {os.path.join(os.fsencode(source), os.path.relpath(os.fsencode(p), os.fsencode(was))) for p in _walk(was)}
    assert {_path(line) for line in world.lines("ls", "-r", str(source), "--at", first)} == names
    changed = [line for line in world.lines("diff", first, moments.kept[1][0]) if line["type"] == "f"]
    assert [line["change"] for line in changed] == ["changed"]
    path = Path(changed[0]["path"])
    inside = path.relative_to(source)
    for id_, copy in ((first, was), (moments.kept[1][0], edited)):
        assert world.raw("dump", str(path), "--at", id_) == (copy / inside).read_bytes()
    found = world.lines("versions", str(path))
    assert {one["path"] for one in found} == {str(path)}
    assert len(found) == 3 and not any(one["deleted"] for one in found)  # as it was, edited, chmod
    assert found[0]["size"] == (edited / inside).stat().st_size
    gone = next(p for p in sorted(was.rglob("*.py")) if not (moments.kept[-1][1] / p.relative_to(was)).exists())
    lost = source / gone.relative_to(was)
    assert world.lines("versions", str(lost))[0]["deleted"]
    assert world.raw("dump", str(lost), "--at", first) == gone.read_bytes()


def _path(line: Any) -> bytes:
    return base64.b64decode(line["path_b64"]) if "path_b64" in line else line["path"].encode()


def _walk(top: Path) -> list[bytes]:
    found = []
    for folder, folders, files in os.walk(os.fsencode(top)):
        found += [os.path.join(folder, name) for name in (*folders, *files)]
    return found


def test_a_renamed_directory_costs_nothing(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    world, source = World(tmp_path), tmp_path / "source"
    for number in range(5_000):
        folder = source / "many" / f"d{number % 50}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"file {number}").write_bytes(chance.randbytes(1_000))
    world.init()
    world.run("add", str(source))
    first = world.summary()
    assert first["new"] >= 5_000 and first["bytes_read"] == 5_000_000
    (source / "many").rename(source / "many more")
    messages = world.lines("backup")
    assert messages[-1]["bytes_read"] == 0
    assert messages[-1]["bytes_sent"] < 20_000
    assert all(one["files_read"] == 0 for one in messages[:-1])
    world.run("restore", str(source), "--to", str(tmp_path / "out"))
    assert same_tree(source, tmp_path / "out" / "source") == []


def test_up_needs_no_questions(tmp_path: Path) -> None:
    world, source = World(tmp_path), tmp_path / "Documents"
    source.mkdir()
    (source / "letter").write_text("Dear Sir or Madam\n")
    with open(world.log, "wb") as log:
        world.daemon = subprocess.Popen(
            [sys.executable, "-m", "contbak.app.cli", "up", str(source)], env=world.env, cwd=tmp_path,
            stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip
    world.until(world.answers)
    world.until(world.safe)
    code = next(line.strip() for line in world.log.read_text().splitlines() if line.strip().startswith("CB1-"))
    assert world.run("recovery", "show").strip() == code
    assert world.run("dump", str(source / "letter")) == "Dear Sir or Madam\n"
    # once more with another directory: the running daemon takes it
    other = tmp_path / "Pictures"
    other.mkdir()
    world.run("up", str(other))
    assert {one["name"] for one in json.loads(world.run("status", "--json"))["sources"]} == {"Documents", "Pictures"}
    world.stop()


@pytest.mark.parametrize("ends", ["TERM", "INT"])
def test_the_daemon_ends_in_order(tmp_path: Path, ends: str) -> None:
    world, source = World(tmp_path), tmp_path / "source"
    source.mkdir()
    (source / "file").write_text("text")
    world.init()
    world.run("add", str(source))
    world.start()
    world.until(world.safe)
    relay = world.relay_pid()
    assert relay is not None and world.daemon is not None
    world.daemon.send_signal(getattr(signal, f"SIG{ends}"))
    assert world.daemon.wait(60) == 0
    world.daemon = None
    assert world.relay_pid() is None
    assert not (world.home / "run" / "agent.sock").exists()
    assert "Traceback" not in world.log.read_text()
