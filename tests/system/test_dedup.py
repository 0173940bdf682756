"""What is there already is not sent again: within a file, between files, between devices."""

from __future__ import annotations

import os
import random
from pathlib import Path

from tests.system.world import Relay, World

MIB = 1 << 20
SIZE = (256 if os.environ.get("TEST_FULL") == "1" else 64) * MIB


def write_random(path: Path, size: int, chance: random.Random, before: bytes = b"") -> None:
    """A file of `size` random bytes after `before`."""
    with open(path, "wb") as file:
        file.write(before)
        for _ in range(size // MIB):
            file.write(chance.randbytes(MIB))


def stored(store: Path) -> int:
    """Bytes of all files of a store."""
    return sum(path.stat().st_size for path in store.rglob("*") if path.is_file())


def test_a_byte_in_front_sends_little(tmp_path: Path, seed: int) -> None:
    world, source = World(tmp_path), tmp_path / "source"
    source.mkdir()
    write_random(source / "large", SIZE, random.Random(seed))
    world.init()
    world.run("add", str(source))
    first = world.summary()
    assert first["bytes_read"] == SIZE <= first["bytes_sent"] < SIZE * 1.05
    write_random(source / "large", SIZE, random.Random(seed), b"x")
    second = world.summary()
    assert second["bytes_read"] == SIZE + 1
    assert second["bytes_sent"] <= MIB
    world.run("restore", str(source), "--to", str(tmp_path / "out"))
    write_random(source / "large", SIZE, random.Random(seed), b"x")
    assert (tmp_path / "out" / "source" / "large").read_bytes() == (source / "large").read_bytes()


def test_ten_names_on_two_devices_are_stored_once(tmp_path: Path, seed: int) -> None:
    size = 12 * MIB
    with Relay(tmp_path / "nas") as relay:
        one, two = World(tmp_path / "one"), World(tmp_path / "two")
        code = one.init("--relay", relay.invite("--new-vault", "family"))
        for world in (one, two):
            (world.top / "source").mkdir()
            for number in range(5):
                write_random(world.top / "source" / f"copy {number}", size, random.Random(seed))
        one.run("add", str(one.top / "source"))
        one.run("backup")
        (two.top / "code").write_text(code)
        two.run("recover", "--from", relay.invite("--vault", "family"), "--code-file", str(two.top / "code"), "--adopt")
        assert two.snapshots() == one.snapshots()
        two.run("add", str(two.top / "source"))
        second = two.summary()
        assert second["new"] == 6 and second["bytes_stored"] == 0
        assert second["bytes_sent"] < MIB
        assert size <= stored(relay.store) < size * 1.15  # and parity, and records
        assert {len(world.snapshots()) for world in (one, two)} == {2}
        assert len({device["id"] for device in one.json("devices")}) == 2
        one.run("restore", str(two.top / "source"), "--to", str(tmp_path / "out"))
        assert (tmp_path / "out" / "source" / "copy 4").read_bytes() == (two.top / "source" / "copy 0").read_bytes()
