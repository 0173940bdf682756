"""kill -9 of agent, of relay, of both, at random moments while files change all the time.

Nothing acknowledged is lost, nobody has to do anything, and in the end the newest snapshot equals the disk.
TEST_KILLS=200 makes it the long run.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest

from tests.system.world import World
from tests.trees import same_tree

KILLS = int(os.environ.get("TEST_KILLS", "8"))


class Restless(threading.Thread):
    """Changes a tree without end."""

    def __init__(self, top: Path, seed: int) -> None:
        super().__init__(daemon=True)
        self.top = top
        self.random = random.Random(seed)
        self.over = threading.Event()

    def run(self) -> None:
        while not self.over.wait(0.02):
            with suppress(OSError):
                self.step()

    def step(self) -> None:
        r = self.random
        folders = [self.top, *(p for p in self.top.rglob("*") if p.is_dir())]
        folder = r.choice(folders)
        act = r.random()
        if act < 0.45:
            size = r.choice((0, 10, 300, 5_000, 80_000, 700_000))
            (folder / f"f{r.randrange(40)}").write_bytes(r.randbytes(size))
        elif act < 0.6:
            with open(folder / f"f{r.randrange(40)}", "ab") as file:
                file.write(r.randbytes(r.randrange(2_000)))
        elif act < 0.7 and len(folders) < 30:
            (folder / f"d{r.randrange(20)}").mkdir()
        elif act < 0.8 and folder != self.top:
            folder.rename(r.choice(folders) / f"d{r.randrange(20)}")
        elif act < 0.9:
            (folder / f"f{r.randrange(40)}").unlink()
        elif act < 0.93 and folder != self.top:
            shutil.rmtree(folder)


def acknowledged(world: World) -> set[str]:
    """Ids of all commits that the relay keeps."""
    store = world.home / "data" / "relay" / "store"
    records = (path.name for path in store.glob("*/commits/*/*") if not path.name.startswith("."))
    return {name.partition("-")[2] for name in records}


@pytest.mark.timeout(3600)
def test_nothing_acknowledged_is_lost(tmp_path: Path, seed: int) -> None:
    world = World(tmp_path)
    source = tmp_path / "source"
    source.mkdir()
    world.init()
    world.run("add", str(source))
    restless = Restless(source, seed)
    restless.start()
    chance = random.Random(seed + 1)
    seen: set[str] = set()
    world.start()
    for number in range(KILLS):
        time.sleep(chance.uniform(0.0, 1.5))  # the moment of the blow, from the seed
        seen |= acknowledged(world)
        blow = chance.choice(("agent", "relay", "both"))
        if blow in ("relay", "both") and (pid := world.relay_pid()) is not None:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if blow in ("agent", "both"):
            world.kill_daemon()
            world.start()
        print(f"blow {number}: {blow}, {len(seen)} commits seen")
    restless.over.set()
    restless.join()
    world.settle()
    world.stop()
    assert len(seen) >= KILLS // 4
    ids = {one["id"] for one in world.snapshots()}
    assert seen <= ids, "a commit that the relay had accepted is gone"
    world.run("restore", str(source), "--to", str(tmp_path / "out"))
    assert same_tree(source, tmp_path / "out" / "source") == []
    world.run("check", "--read-data")
    for number, one in enumerate(chance.sample(sorted(seen), min(5, len(seen)))):
        world.run("restore", str(source), "--at", one, "--to", str(tmp_path / f"old{number}"))
