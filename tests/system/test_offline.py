"""The relay is away, comes back, dies in the middle, or is not the one that was paired."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

from tests.system.world import Relay, World, running
from tests.trees import same_tree

MIB = 1 << 20


def paired(top: Path) -> tuple[Relay, World, Path]:
    """A relay that runs, a device with one snapshot, its source."""
    relay = Relay(top / "nas")
    relay.start()
    world, source = World(top / "one"), top / "one" / "source"
    source.mkdir()
    (source / "first").write_text("first")
    world.init("--relay", relay.invite("--new-vault", "mine"))
    world.run("add", str(source))
    world.run("backup")
    return relay, world, source


def restored(world: World, source: Path) -> None:
    world.run("restore", str(source), "--to", str(world.top / "out"))
    assert same_tree(source, world.top / "out" / "source") == []
    shutil.rmtree(world.top / "out")


def test_without_daemon(tmp_path: Path) -> None:
    relay, world, source = paired(tmp_path)
    relay.stop()
    (source / "second").write_text("second")
    world.run("backup", code=11)
    assert "out of reach" in world.err and "queued" in world.err
    status = world.json("status")
    assert not status["relays"][0]["reachable"] and status["relays"][0]["lag_bytes"] > 0
    assert status["sources"][0]["oldest_unprotected_s"]["relay"] > 0
    world.run("snapshots", code=11)
    world.run("restore", str(source), "--to", str(tmp_path / "out"), code=11)
    relay.start()
    summary = world.summary()
    assert summary["snapshot"] == world.snapshots()[-1]["id"]
    restored(world, source)
    assert world.json("status")["spool_bytes"] == 0
    relay.stop()


def test_wait_local_is_quick(tmp_path: Path) -> None:
    relay, world, source = paired(tmp_path)
    relay.stop()
    (source / "second").write_text("second")
    world.run("backup", "--wait", "local")
    relay.start()
    world.run("backup")
    restored(world, source)
    relay.stop()


def test_the_daemon_queues_and_drains(tmp_path: Path, seed: int) -> None:
    relay, world, source = paired(tmp_path)
    with running(world):
        world.until(world.safe)
        relay.kill()
        (source / "second").write_bytes(random.Random(seed).randbytes(MIB))
        world.until(lambda: world.json("status")["spool_bytes"] > MIB)
        world.until(lambda: not world.json("status")["relays"][0]["reachable"])
        (source / "third").write_text("third")
        world.until(lambda: world.json("status")["sources"][0]["pending_changes"] > 1)
        status = world.json("status")
        assert status["relays"][0]["lag_bytes"] > MIB and status["relays"][0]["error"]
        assert status["sources"][0]["oldest_unprotected_s"]["relay"] > 0
        assert "out of reach" in world.run("status")
        world.run("backup", code=11)
        age = world.json("status")["sources"][0]["oldest_unprotected_s"]["relay"]
        assert age > status["sources"][0]["oldest_unprotected_s"]["relay"]
        relay.start()
        world.until(world.safe)
        status = world.json("status")
        assert status["spool_bytes"] == 0 and status["relays"][0]["reachable"] and not status["relays"][0]["error"]
    restored(world, source)
    world.run("check", "--read-data")
    relay.stop()


def test_the_daemon_starts_without_its_relay(tmp_path: Path) -> None:
    relay, world, source = paired(tmp_path)
    relay.stop()
    (source / "second").write_text("second")
    with running(world):
        world.until(lambda: world.json("status")["sources"][0]["pending_changes"] > 0 or
                    world.json("status")["spool_bytes"] > 0)  # fmt: skip
        world.stop()  # and ends in order without it
        world.start()
        relay.start()
        world.until(world.safe)
    restored(world, source)
    relay.stop()


def test_a_killed_relay_costs_little(tmp_path: Path, seed: int) -> None:
    """kill -9 of the relay in the middle of a transfer, three times."""
    relay, world, source = paired(tmp_path)
    size = 200 * MIB
    chance = random.Random(seed)
    with open(source / "large", "wb") as file:
        for _ in range(size // MIB):
            file.write(chance.randbytes(MIB))
    with running(world):
        for share in (4, 2, 1.4):
            world.until(lambda share=share: stored(relay) > size / share or world.safe())  # type: ignore[misc]
            relay.kill()
            relay.start()
        world.until(world.safe)
        messages = world.lines("backup")
        sent = next(one["bytes_sent"] for one in reversed(messages) if one["message_type"] == "status")
    print(f"{sent / MIB:.1f} MiB sent of {size / MIB:.0f}")
    assert sent < size + 3 * 40 * MIB
    restored(world, source)
    relay.stop()


def stored(relay: Relay) -> int:
    """Bytes at the relay, half-received packs too."""
    total = 0
    for path in relay.store.rglob("*"):
        try:
            total += path.stat().st_blocks * 512 if path.is_file() else 0
        except FileNotFoundError:
            continue
    return total


def test_another_relay_at_the_same_place_is_refused(tmp_path: Path) -> None:
    relay, world, source = paired(tmp_path)
    relay.stop()
    other = Relay(tmp_path / "other", port=relay.port)
    other.start()
    (source / "second").write_text("second")
    world.run("backup", code=None)
    assert "certificate" in world.err or "not the relay" in world.err, world.err
    assert "queued" in world.err
    world.run("snapshots", code=12)
    assert not [path for path in other.store.rglob("*") if path.is_file() and path.name != "contbak-store"]
    with running(world):
        world.until(lambda: "certificate" in world.json("status")["relays"][0]["error"])
        assert not world.json("status")["relays"][0]["reachable"]
        other.stop()
        relay.start()
        world.until(world.safe)
    restored(world, source)
    relay.stop()
