"""What the relay cannot see, and what a stolen write-only device cannot open."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from nacl.bindings import crypto_scalarmult_base

from contbak.core import recovery
from contbak.core.crypto import OwnerKeys, derive
from tests.system.world import Relay, World, running

WINDOW = 32


def all_bytes(*tops: Path) -> dict[Path, bytes]:
    """Every file beneath, whole."""
    return {path: path.read_bytes() for top in tops for path in top.rglob("*") if path.is_file()}


def test_the_relay_sees_no_name_and_no_content(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    with Relay(tmp_path / "nas") as relay:
        world, source = World(tmp_path / "one"), tmp_path / "one" / f"source {chance.randbytes(8).hex()}"
        names, contents = [source.name], []
        source.mkdir()
        for size in (*range(20, 300, 40), 1_000, 5_000, 70_000, 1 << 20):
            name, content = f"secret {chance.randbytes(8).hex()}", chance.randbytes(size)
            folder = source / f"folder {chance.randbytes(8).hex()}"
            folder.mkdir()
            (folder / name).write_bytes(content)
            target = f"target {chance.randbytes(8).hex()}"
            (folder / "link").symlink_to(target)
            names += [name, folder.name, target]
            contents.append(content)
        world.init("--relay", relay.invite("--new-vault", "mine"))
        with running(world):
            world.run("add", str(source), "--name", "source-name-of-mine")
            world.until(world.safe)
            (source / "later-and-longer").write_bytes(contents[0])
            world.run("backup")
            world.run("restore", str(source), "--to", str(tmp_path / "out"))
    found = all_bytes(tmp_path / "nas")
    assert any(relay.store in path.parents for path in found)
    assert relay.world.top / "relay.log" in found
    needles = [name.encode() for name in names] + [b"later-and-longer", b"source-name-of-mine"]
    needles += [content[at : at + 16] for content in contents for at in range(0, len(content) - 16, 4099)]
    needles += [needle.hex().encode() for needle in needles]
    for path, raw in found.items():
        for needle in needles:
            assert needle not in raw, (path, needle)


@pytest.fixture
def stolen(tmp_path: Path, seed: int) -> tuple[World, Relay, str, bytes]:
    """A write-only device with a history, its relay (stopped), the recovery code, a file's content."""
    relay = Relay(tmp_path / "nas")
    relay.start()
    world, source = World(tmp_path / "one"), tmp_path / "one" / "source"
    source.mkdir()
    content = random.Random(seed).randbytes(200_000)
    (source / "file").write_bytes(content)
    code = world.init("--write-only", "--relay", relay.invite("--new-vault", "mine"))
    world.run("add", str(source))
    world.run("backup")
    relay.stop()
    (source / "more").write_bytes(content[::-1])
    world.run("backup", "--wait", "local")  # something is in the spool, too
    assert list((world.home / "state" / "spool").glob("*.pack"))
    return world, relay, code, content


def windows(raw: bytes) -> Iterator[bytes]:
    """Every 32 bytes that could be a key; no zeros."""
    for at in range(len(raw) - WINDOW + 1):
        window = raw[at : at + WINDOW]
        if window.count(0) < WINDOW // 2:
            yield window


def test_a_stolen_device_opens_nothing(stolen: tuple[World, Relay, str, bytes], tmp_path: Path) -> None:
    world, relay, code, content = stolen
    root = recovery.decode(code)
    owner = OwnerKeys.from_root(root)
    needles = [root, owner.read_secret, owner.admin_seed, code.encode(), code.replace("-", "").encode()]
    needles += [needle.hex().encode() for needle in needles[:3]] + [content[1000:1032], content[::-1][1000:1032]]
    tried: set[bytes] = set()
    for path, raw in all_bytes(world.home).items():
        for needle in needles:
            assert needle not in raw, path
        tried |= set(windows(raw[:100_000]))
    print(f"{len(tried)} keys tried")
    assert owner.writer.read_public in tried and owner.writer.psk in tried, "the search looks at the key file"
    for window in tried:  # as the read secret itself, and as the root secret
        assert crypto_scalarmult_base(window) != owner.writer.read_public
        assert crypto_scalarmult_base(derive("read secret x25519", window)) != owner.writer.read_public
    relay.start()
    for words in (("restore", "/", "--to", str(tmp_path / "out")), ("ls",), ("snapshots",), ("dump", "/x"), ("check",)):
        world.run(*words, code=13)
        assert "recovery code" in world.err
    world.run("recovery", "show", code=13)
    world.run("recovery", "sheet", str(tmp_path / "sheet"), code=13)
    assert world.summary()["failed"] == 0, "it can still write"
    relay.stop()


def test_the_code_opens_it_from_elsewhere(stolen: tuple[World, Relay, str, bytes], tmp_path: Path) -> None:
    world, relay, code, content = stolen
    relay.start()
    world.run("backup")
    other = World(tmp_path / "other")
    (other.top / "code").write_text(code + "\n")
    words = ("recover", "--code-file", str(other.top / "code"), "--from")
    other.run(*words, relay.invite("--vault", "mine"), "--to", str(other.top / "out"))
    relay.stop()
    assert (other.top / "out" / "source" / "file").read_bytes() == content
    assert (other.top / "out" / "source" / "more").read_bytes() == content[::-1]
    bare = World(tmp_path / "bare")  # from the store alone, and not by another vault's code
    bare.run(*words, str(relay.store))
    assert bare.raw("dump", str(world.top / "source" / "file")) == content
    wrong = World(tmp_path / "wrong")
    (wrong.top / "code").write_text(World(tmp_path / "third").init())
    wrong.run("recover", "--code-file", str(wrong.top / "code"), "--from", str(relay.store), code=12)
