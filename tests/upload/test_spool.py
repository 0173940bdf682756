"""The spool: what is in it is whole, or it is dropped with a reason."""

import os
import random

import pytest

from contbak.core.crypto import XCHACHA, OwnerKeys, public_of
from contbak.core.errors import FormatError, NotFound, StoreError
from contbak.core.frame import Chunk
from contbak.upload.bundle import Bundler, Seal
from contbak.upload.spool import Spool
from tests.relay.peer import flip

KEYS = OwnerKeys.from_root(bytes(32)).writer
SEAL = Seal(KEYS, public_of(bytes(32)), XCHACHA)


@pytest.fixture
def spool(tmp_path):
    return Spool(tmp_path / "a" / "spool", 100_000)


def add(spool, seed=1, size=50_000):
    chance = random.Random(seed)
    bundler = Bundler(SEAL, spool, chance.randbytes, metadata=False)
    data = chance.randbytes(size)
    bundler.add(Chunk(KEYS.data_id(data), data))
    (packed,) = bundler.flush()
    return packed


def test_a_pack_is_there_as_it_was_written(spool):
    assert spool.packs() == [] and spool.size() == 0 and not spool.over_budget
    one, two = add(spool, 1), add(spool, 2)
    os.utime(spool.path_of(one.root), ns=(1, 1))
    assert spool.packs() == [one.root, two.root]
    plan = spool.plan(one.root)
    assert plan.root == one.root and plan.file_len == one.file_len == spool.path_of(one.root).stat().st_size
    assert spool.read(one.root, 10, 20) == spool.path_of(one.root).read_bytes()[10:30]
    assert spool.size() == one.file_len + two.file_len and spool.over_budget
    spool.check(one.root)
    spool.sync([one.root, two.root])
    assert os.stat(spool.dir).st_mode & 0o777 == 0o700
    assert os.stat(spool.path_of(one.root)).st_mode & 0o777 == 0o600


def test_removing_twice_is_fine_and_what_is_not_there_is_not_found(spool):
    packed = add(spool)
    spool.remove(packed.root)
    spool.remove(packed.root)
    assert spool.packs() == []
    for ask in (spool.plan, spool.check, lambda root: spool.read(root, 0, 1), lambda root: spool.sync([root])):
        with pytest.raises(NotFound):
            ask(packed.root)
    with pytest.raises(FormatError):
        spool.path_of(b"../../x")


def test_any_flipped_byte_is_found(spool, seed):
    packed = add(spool, size=3000)
    good = spool.path_of(packed.root).read_bytes()
    places = {0, len(good) - 1, *random.Random(seed).sample(range(len(good)), 200)}
    for at in places:
        flip(spool.path_of(packed.root), at)
        with pytest.raises(FormatError):
            spool.check(packed.root)
        flip(spool.path_of(packed.root), at)
    spool.check(packed.root)


def test_any_cut_is_found(spool, seed):
    packed = add(spool, size=3000)
    good = spool.path_of(packed.root).read_bytes()
    for length in {0, 1, len(good) - 1, *random.Random(seed).sample(range(len(good)), 50)}:
        spool.path_of(packed.root).write_bytes(good[:length])
        with pytest.raises(FormatError):
            spool.check(packed.root)
    with pytest.raises(FormatError):
        spool.read(packed.root, 0, len(good))


def test_at_start_bad_packs_and_unfinished_files_go(spool):
    good, bad, swapped = add(spool, 1), add(spool, 2), add(spool, 3)
    flip(spool.path_of(bad.root), 1000)
    os.replace(spool.path_of(good.root), spool.path_of(swapped.root))
    good = add(spool, 1)
    with spool.writer() as file:
        file.append([b"half"])
        (spool.dir / "notes.txt").write_text("not ours")
        again = Spool(spool.dir, 0)
        dropped = again.clear()
    assert {root for root, _ in dropped} == {bad.root, swapped.root} and all(reason for _, reason in dropped)
    assert again.packs() == [good.root] and sorted(os.listdir(spool.dir)) == [f"{good.root.hex()}.pack", "notes.txt"]


def test_only_the_dead_process_is_swept_after(spool):
    (spool.dir / ".tmp-77-0").write_bytes(b"x")
    (spool.dir / ".tmp-7-0").write_bytes(b"x")
    spool.sweep(7)
    assert os.listdir(spool.dir) == [".tmp-77-0"]


def test_an_unfinished_pack_leaves_nothing(spool):
    with pytest.raises(RuntimeError), spool.writer() as file:
        file.append([b"x"])
        raise RuntimeError
    assert os.listdir(spool.dir) == []


def test_no_place_to_write_is_a_store_error(spool, tmp_path):
    os.rmdir(spool.dir)
    for ask in (spool.writer, spool.packs, spool.size):
        with pytest.raises(StoreError):
            ask()
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StoreError):
        Spool(tmp_path / "file" / "spool", 0)


def test_a_synced_pack_is_there_too(spool):
    packed = add(spool)
    plan, raw = spool.plan(packed.root), spool.path_of(packed.root).read_bytes()
    spool.remove(packed.root)
    with spool.writer() as file:
        file.append([raw])
        assert file.finish(plan, sync=True) == packed.root
    spool.check(packed.root)


def test_unfinished_packs_do_not_count_against_the_budget(spool):
    """Else those who wait for room would wait for packs that only they can finish."""
    with spool.writer() as file:
        file.append([bytes(200_000)])
        assert spool.size() == 200_000 and not spool.over_budget
