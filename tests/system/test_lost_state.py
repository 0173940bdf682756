"""The agent's state, the relay's index, key files, the spool: lost or damaged, and nobody has to do anything."""

from __future__ import annotations

import os
import random
import shutil
import signal
from pathlib import Path

import pytest

from tests.system.world import Relay, World, running
from tests.trees import make_tree, same_tree


def flip(path: Path, chance: random.Random, times: int = 1) -> None:
    """Flips bits of a file."""
    raw = bytearray(path.read_bytes())
    for _ in range(times):
        raw[chance.randrange(len(raw))] ^= 1 << chance.randrange(8)
    path.write_bytes(raw)


def flip_in_pages(path: Path, chance: random.Random) -> None:
    """Flips one byte in each of twenty places that hold something."""
    raw = bytearray(path.read_bytes())
    full = [at for at in range(0, len(raw), 4096) if raw[at : at + 4096].strip(b"\0")]
    for at in chance.sample(full, min(20, len(full))):
        raw[at + chance.randrange(16, 4096)] ^= 0xFF
    path.write_bytes(raw)


def truncate(path: Path, chance: random.Random) -> None:
    """Cuts a file short."""
    os.truncate(path, chance.randrange(path.stat().st_size))


def saved_world(top: Path, seed: int) -> tuple[World, Path]:
    """A vault with two snapshots of a tree with everything in it."""
    world, source = World(top), top / "source"
    make_tree(source, seed)
    (source / "large").write_bytes(random.Random(seed).randbytes(3 << 20))
    world.init()
    world.run("add", str(source))
    world.run("backup")
    (source / "second").write_text("a second snapshot\n")
    world.run("backup")
    return world, source


def assert_whole(world: World, source: Path, name: str = "out") -> None:
    """The newest snapshot is the disk, and everything that the relay has is sound."""
    world.run("restore", str(source), "--to", str(world.top / name))
    assert same_tree(source, world.top / name / "source") == []
    shutil.rmtree(world.top / name)
    world.run("check", "--read-data")


def chain_of(world: World) -> list[str]:
    return [one["id"] for one in world.snapshots()]


@pytest.mark.parametrize("harm", ["deleted", "journal deleted", "flipped", "truncated", "emptied"])
def test_the_state_is_lost(tmp_path: Path, seed: int, harm: str) -> None:
    world, source = saved_world(tmp_path, seed)
    before = world.snapshots()
    data = world.home / "state" / "journal" / "data.mdb"
    chance = random.Random(seed)
    if harm == "deleted":
        shutil.rmtree(world.home / "state")
    elif harm == "journal deleted":
        shutil.rmtree(world.home / "state" / "journal")
    elif harm == "flipped":
        flip_in_pages(data, chance)
    elif harm == "truncated":
        truncate(data, chance)
    else:
        data.write_bytes(b"")
    (source / "third").write_text("written while nobody looked\n")
    summary = world.summary()
    assert summary["failed"] == 0
    assert summary["bytes_stored"] < 100_000, "what the relay has was sent again"
    assert summary["bytes_sent"] < 200_000
    after = world.snapshots()
    assert after[: len(before)] == before
    assert after[len(before)]["parent"] == before[-1]["id"]
    assert_whole(world, source)
    (source / "fourth").write_text("and on\n")
    assert world.summary()["bytes_read"] == 7
    assert len(world.snapshots()) == len(after) + 1


def test_an_old_state_comes_back(tmp_path: Path, seed: int) -> None:
    """A virtual machine is set back: the relay knows more of this device than the device does."""
    world, source = saved_world(tmp_path, seed)
    shutil.copytree(world.home / "state", tmp_path / "old state")
    for number in range(2):
        (source / f"later {number}").write_text(f"{number}")
        world.run("backup")
    known = chain_of(world)
    shutil.rmtree(world.home / "state")
    shutil.copytree(tmp_path / "old state", world.home / "state")
    (source / "now").write_text("after the machine was set back")
    with running(world):
        world.until(world.safe)
        world.run("backup")
        world.until(world.safe)
    assert "new incarnation" in world.log.read_text()
    assert chain_of(world)[: len(known)] == known
    assert_whole(world, source)
    log = len(world.log.read_text())
    with running(world):
        (source / "later").write_text("and all is well")
        world.run("backup")
    assert "incarnation" not in world.log.read_text()[log:]


def test_no_false_alarms(tmp_path: Path, seed: int) -> None:
    """The relay dies and comes again, the agent dies: neither makes a healthy chain suspicious."""
    world, source = saved_world(tmp_path, seed)
    world.start()
    for number in range(4):
        (source / "restless").write_text(f"{number}")
        world.run("backup")
        pid = world.relay_pid()
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        if number % 2:
            world.kill_daemon()
            world.start()
    world.run("backup")
    world.stop()
    assert "incarnation" not in world.log.read_text()
    parents = [one["parent"] for one in world.snapshots()]
    assert parents[1:] == chain_of(world)[:-1]


@pytest.mark.parametrize("harm", ["deleted", "flipped", "truncated"])
def test_the_relays_index_is_lost(tmp_path: Path, seed: int, harm: str) -> None:
    world, source = saved_world(tmp_path, seed)
    before = world.snapshots()
    index = world.home / "data" / "relay" / "index"
    data = next(index.glob("*/data.mdb"))
    chance = random.Random(seed)
    if harm == "deleted":
        shutil.rmtree(index)
    elif harm == "flipped":
        flip_in_pages(data, chance)
    else:
        truncate(data, chance)
    assert world.snapshots() == before
    assert_whole(world, source)
    (source / "third").write_text("a third\n")
    assert world.summary()["bytes_sent"] < 100_000
    assert world.snapshots()[: len(before)] == before


def test_a_key_file_is_damaged(tmp_path: Path, seed: int) -> None:
    world, _ = saved_world(tmp_path, seed)
    keys = world.home / "data" / "keys"
    good = (keys / "vault").read_bytes()
    assert (keys / "vault.copy").read_bytes() == good
    chance = random.Random(seed)
    for name in ("vault", "vault.copy"):
        flip(keys / name, chance)
        assert world.snapshots()
        assert (keys / name).read_bytes() == good
        (keys / name).unlink()
        assert world.snapshots()
        assert (keys / name).read_bytes() == good
        assert (keys / name).stat().st_mode & 0o777 == 0o600
    for name in ("vault", "vault.copy"):
        flip(keys / name, chance)
    world.run("snapshots", code=1)
    assert "recover" in world.err


def test_a_spooled_pack_is_damaged(tmp_path: Path, seed: int) -> None:
    """The relay is away, and the disk of the agent rots meanwhile."""
    chance = random.Random(seed)
    relay = Relay(tmp_path / "nas")
    relay.start()
    world, source = World(tmp_path / "one"), tmp_path / "one" / "source"
    world.init("--relay", relay.invite("--new-vault", "mine"))
    make_tree(source, seed)
    world.run("add", str(source))
    world.run("backup")
    relay.stop()
    (source / "new").write_bytes(chance.randbytes(5 << 20))
    (source / "newer").write_bytes(chance.randbytes(1 << 20))
    world.run("backup", "--wait", "local")
    packs = sorted((world.home / "state" / "spool").glob("*.pack"))
    assert packs
    flip(max(packs, key=lambda path: path.stat().st_size), chance)
    relay.start()
    world.run("backup")
    assert "damaged pack" in world.err
    assert_whole(world, source)
    with running(world):  # the same under a running daemon
        world.until(world.safe)
        relay.stop()
        (source / "newest").write_bytes(chance.randbytes(5 << 20))
        spool = world.home / "state" / "spool"
        world.until(lambda: any(path.stat().st_size > 4 << 20 for path in spool.glob("*.pack")))
        flip(max(spool.glob("*.pack"), key=lambda path: path.stat().st_size), chance)
        relay.start()
        world.until(world.safe)
    assert_whole(world, source)
    relay.stop()
