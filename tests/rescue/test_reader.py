"""The second reader agrees with the first: what contbak wrote is what docs/format.md says."""

import ast
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from contbak.core import recovery
from tests.recall.test_restore import flip
from tests.trees import list_tree, make_tree, same_tree
from tests.vaults import VaultMaker

READER = Path(__file__).with_name("reader.py")


@pytest.fixture
def saved(tmp_path, seed):
    """A vault of three commits, its code file, and the tree as it is now."""
    maker = VaultMaker(tmp_path / "store", seed, chunk=700)
    root = random.Random(seed).randbytes(32)  # the first that the maker drew
    assert maker.keys == type(maker.keys).from_root(root)
    (tmp_path / "code").write_text(recovery.encode(root).lower())
    home, device = tmp_path / "home", maker.device()
    make_tree(home, seed, files=20)
    for path in list_tree(home):
        if not (os.path.isdir(path) or os.path.isfile(path) or os.path.islink(path)):
            os.unlink(path)
    first = device.commit("home", home)
    (home / "late").write_bytes(random.Random(seed).randbytes(90_000))
    device.commit("home", home)
    (home / "plain").write_text("x")
    (home / "late").unlink()
    device.commit("home", home)
    return maker, tmp_path, first


def read(tmp_path, out, *more):
    done = subprocess.run(
        [sys.executable, str(READER), str(tmp_path / "store"), str(tmp_path / "code"), str(out), *more],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    return done.returncode, done.stdout + done.stderr


IGNORED = ("owner", "xattrs", "links", "holes")


def test_it_restores_what_contbak_wrote(saved):
    _, tmp_path, first = saved
    code, said = read(tmp_path, tmp_path / "out")
    assert code == 0, said
    assert same_tree(tmp_path / "home", tmp_path / "out" / "home", IGNORED) == []
    code, said = read(tmp_path, tmp_path / "old", first.id.hex()[:10])
    assert code == 0, said
    assert not (tmp_path / "old" / "home" / "plain").exists()


def test_it_needs_neither_tails_nor_records(saved):
    maker, tmp_path, _ = saved
    for path in maker.packs():
        flip(path, path.stat().st_size - 10)
    for path in (maker.top / "commits").glob("*/*1-*"):
        path.unlink()
    code, said = read(tmp_path, tmp_path / "out")
    assert code == 0, said
    assert same_tree(tmp_path / "home", tmp_path / "out" / "home", IGNORED) == []


def test_it_stops_at_damage(saved):
    maker, tmp_path, _ = saved
    for path in maker.packs():
        flip(path, path.stat().st_size // 3)
    code, said = read(tmp_path, tmp_path / "out")
    assert code != 0 and "Traceback" not in said, said


def test_it_imports_nothing_of_contbak():
    tree = ast.parse(READER.read_text())
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert not [name for name in names if name.startswith(("contbak", "relay", "tests"))]
