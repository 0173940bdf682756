"""Reading a store directory: damage to what only finds things must not lose what is there."""

import os
import random

import pytest

from contbak.core import frame, pack
from contbak.core.errors import FormatError, NotFound, UsageError, WrongKey
from contbak.core.timespec import Latest
from contbak.recall import directory
from contbak.recall.directory import DirectoryPlace
from contbak.recall.opening import open_vault
from contbak.recall.restore import Wanted, restore
from tests.recall.test_restore import fill, frames_of
from tests.trees import list_tree, same_tree
from tests.vaults import VaultMaker


@pytest.fixture
def maker(tmp_path, seed):
    maker = VaultMaker(tmp_path / "store", seed, chunk=1000, bundle=4, pack_frames=20)
    fill(tmp_path / "home", {f"d{n % 7}/f{n}": 100 + 70 * n for n in range(60)}, random.Random(seed))
    maker.device().commit("home", tmp_path / "home")
    return maker


def is_whole(maker, tmp_path, name):
    with open_vault(DirectoryPlace(maker.store), maker.keys) as vault:
        snapshot = vault.history.choose(Latest(0))[0]
        assert restore(vault.chunks, [Wanted(snapshot.roots, b"", b"")], os.fsencode(tmp_path / name)).complete
    assert same_tree(tmp_path / "home", tmp_path / name) == []
    return vault.place.problems


def tail_of(path):
    """Where the directory and the plan of a pack begin."""
    raw = path.read_bytes()
    plan = pack.parse_plan(raw[-pack.plan_length(raw[-pack.TRAILER_LEN :]) :])
    return plan.directory_offset, plan.body_len, len(raw)


def test_packs_without_their_tails_are_searched(maker, tmp_path, seed):
    chance = random.Random(seed)
    assert is_whole(maker, tmp_path, "sound") == []
    for number, path in enumerate(maker.packs()):
        begin, body_len, end = tail_of(path)
        if number % 3 == 0:
            os.truncate(path, chance.randrange(begin, end))
        else:
            raw = bytearray(path.read_bytes())
            raw[chance.randrange(begin, body_len) if number % 3 == 1 else end - 20] ^= 1
            path.write_bytes(raw)
    problems = is_whole(maker, tmp_path, "out")
    assert len([problem for problem in problems if "searching" in problem]) == len(maker.packs())


def test_listing_reads_no_data_packs(maker, monkeypatch):
    read = []
    real = DirectoryPlace._rows
    monkeypatch.setattr(DirectoryPlace, "_rows", lambda self, n: read.append(self._roots[n].hex()) or real(self, n))
    with open_vault(DirectoryPlace(maker.store), maker.keys) as vault:
        view = vault.history.view(vault.history.snapshots[-1])
        assert len(list(view.walk())) > 60
        metadata = {path.name for path in maker.packs() if frames_of(path)[0].kind != frame.DATA}
        assert set(read) == metadata and len(metadata) < len(maker.packs())


def test_a_directory_longer_than_the_first_look(maker, tmp_path, monkeypatch):
    monkeypatch.setattr(directory, "_TAIL", pack.TRAILER_LEN + 900)
    assert is_whole(maker, tmp_path, "out") == []


def test_strange_files_are_passed_over(maker, tmp_path):
    (maker.top / "packs" / "zz").mkdir()
    (maker.top / "packs" / "zz" / "readme.txt").write_text("what is this")
    (maker.top / "packs" / "00").mkdir(exist_ok=True)
    (maker.top / "packs" / "00" / ("0" * 64)).write_bytes(b"")
    (maker.top / "commits" / "readme").write_text("what is this")
    (maker.top / "order" / "nonsense").write_text("what is this")
    (maker.top / "vault").write_bytes(b"damaged")
    problems = is_whole(maker, tmp_path, "out")
    assert len(problems) >= 3


def test_the_order_of_acceptance_can_be_lost(maker, tmp_path):
    for path in (maker.top / "order").iterdir():
        path.unlink()
    assert is_whole(maker, tmp_path, "out") == []


def test_nothing_is_written_to_the_store(maker, tmp_path):
    before = {path: os.stat(path).st_mtime_ns for path in list_tree(maker.store)}
    is_whole(maker, tmp_path, "out")
    assert {path: os.stat(path).st_mtime_ns for path in list_tree(maker.store)} == before


def test_the_temporary_index_is_removed(maker, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temp"))
    (tmp_path / "temp").mkdir()
    is_whole(maker, tmp_path, "out")
    assert list((tmp_path / "temp").iterdir()) == []


def test_which_vault(maker, tmp_path, seed):
    with pytest.raises(NotFound):
        DirectoryPlace(tmp_path / "nothing")
    with pytest.raises(NotFound):
        DirectoryPlace(tmp_path / "home")
    with pytest.raises(WrongKey):
        DirectoryPlace(maker.store, bytes(16))
    VaultMaker(maker.store, seed + 1)
    with pytest.raises(UsageError):
        DirectoryPlace(maker.store)
    place = DirectoryPlace(maker.store, maker.vault)
    assert place.vault().name == "test vault"
    info = next(place.packs())
    with pytest.raises(FormatError):
        place.read(info.pack, info.length, 1)
    with pytest.raises(NotFound):
        place.read(bytes(32), 0, 1)
    place.close()
