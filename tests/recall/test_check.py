"""The end-to-end check: clean on a sound vault, and it finds whatever is damaged or gone."""

import os
import random

import pytest

from contbak.core import frame
from contbak.recall.check import check
from contbak.recall.directory import DirectoryPlace
from contbak.recall.opening import open_vault
from tests.recall.test_restore import fill, flip, frames_of
from tests.trees import make_tree
from tests.vaults import VaultMaker


@pytest.fixture
def maker(tmp_path, seed):
    maker = VaultMaker(tmp_path / "store", seed, chunk=1000, bundle=4, pack_frames=20)
    home = tmp_path / "home"
    fill(home, {f"d{n % 7}/f{n}": 100 + 70 * n for n in range(60)} | {"big": 90_000}, random.Random(seed))
    device = maker.device()
    device.commit("home", home)
    fill(home, {"d1/late": 4000}, random.Random(seed + 1))
    device.commit("home", home)
    return maker


def checked(maker, **options):
    with open_vault(DirectoryPlace(maker.store), maker.keys) as vault:
        return check(vault.history, **options)


def test_a_sound_vault_has_no_problems(maker):
    report = checked(maker, read_data=1.0)
    assert report.problems == [] and report.problem_count == 0
    assert report.snapshots == 2 and report.packs == report.read_packs == len(maker.packs())
    assert report.read_bytes == report.pack_bytes == sum(path.stat().st_size for path in maker.packs())
    assert report.chunks >= 90 and report.nodes >= 3


def test_a_hostile_tree_has_no_problems(tmp_path, seed):
    maker = VaultMaker(tmp_path / "store", seed)
    make_tree(tmp_path / "home", seed)
    maker.device().commit("home", tmp_path / "home")
    assert checked(maker, read_data=1.0).problems == []


def test_every_chunk_of_the_history_is_looked_up(maker):
    """Nodes and data chunks as a plain walk over every snapshot finds them."""
    with open_vault(DirectoryPlace(maker.store), maker.keys) as vault:
        report = check(vault.history)
        place = vault.place
        stored = {(row.kind, id_) for path in maker.packs() for row in frames_of(path) for id_ in row.ids}
        assert report.nodes == len([1 for kind, _ in stored if kind == frame.NODE])
        assert report.chunks == len([1 for kind, _ in stored if kind == frame.DATA])
        assert all(place.locate([id_ for kind, id_ in stored if kind != frame.COMMIT]))


def test_any_flipped_byte_is_found_when_all_is_read(maker, seed):
    chance = random.Random(seed)
    for _ in range(40):
        path = chance.choice(maker.packs())
        sound = path.read_bytes()
        flip(path, chance.randrange(len(sound)))
        assert checked(maker, read_data=1.0).problem_count, path
        path.write_bytes(sound)


def test_a_pack_that_is_gone_or_short_is_found_without_reading_data(maker, seed):
    for path in maker.packs():
        sound = path.read_bytes()
        path.unlink()
        assert checked(maker).problem_count, path
        path.write_bytes(sound[:-1])
        assert checked(maker).problem_count, path
        path.write_bytes(sound)


def test_the_same_seed_reads_the_same_share(maker):
    packs = len(maker.packs())
    assert packs >= 5
    report = checked(maker, read_data=0.4, seed=3)
    assert report.read_packs == -(-packs * 2 // 5)
    assert checked(maker, read_data=0.4, seed=3).read_bytes == report.read_bytes
    assert checked(maker, read_data=0.0).read_packs == 0
    assert checked(maker, read_data=1e-9).read_packs == 1


def test_damaged_records_are_problems(maker):
    (record,) = (maker.top / "commits").glob("*/*2-*")
    flip(record, 100)
    report = checked(maker)
    assert report.snapshots == 1 and any("left out" in problem for problem in report.problems)
    assert os.path.exists(record)
