"""Restoring from a store directory: everything comes back, damage is listed, nothing is silently wrong."""

import os
import random

import pytest

from contbak.core.timespec import Latest
from contbak.recall.directory import DirectoryPlace
from contbak.recall.opening import open_vault
from contbak.recall.restore import Wanted, restore
from tests.trees import make_tree, same_tree
from tests.vaults import VaultMaker


@pytest.fixture
def maker(tmp_path, seed):
    return VaultMaker(tmp_path / "store", seed)


def opened(maker):
    return open_vault(DirectoryPlace(maker.store), maker.keys)


def restored(maker, target, **options):
    with opened(maker) as vault:
        snapshot = vault.history.choose(Latest(0))[0]
        return restore(vault.chunks, [Wanted(snapshot.roots, b"", b"")], os.fsencode(target), **options)


def test_a_hostile_tree_comes_back_whole(maker, tmp_path, seed):
    make_tree(tmp_path / "home", seed)
    maker.device().commit("home", tmp_path / "home")
    report = restored(maker, tmp_path / "out")
    assert report.complete, report
    assert same_tree(tmp_path / "home", tmp_path / "out") == []
