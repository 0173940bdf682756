"""The independent reader opens the golden vault, whole and damaged, and agrees with contbak on every record."""

from __future__ import annotations

import ast
import hashlib
import json
import os
import random
import shutil
import stat
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contbak.core import codec, pack, recovery
from contbak.core.crypto import OwnerKeys
from tests.rescue import reader
from tests.rescue.reader import Damaged, Unpacker, Vault, root_of
from tests.trees import list_tree, make_tree, same_tree
from tests.vaults import VaultMaker

VECTORS = Path(__file__).parents[1] / "vectors"
STORE = VECTORS / "store"
WANTED = json.loads((VECTORS / "store.json").read_text())
CODE = json.loads((VECTORS / "vectors.json").read_text())["keys"]["recovery code"]
NOT_MADE = [f"b'{name}': sockets and devices are not made" for name in ("disk", "null", "socket")]


@pytest.fixture
def store(tmp_path):
    """A copy to damage."""
    return shutil.copytree(STORE, tmp_path / "store")


def packs(store):
    """The packs, largest first."""
    return sorted(store.glob("*/packs/*/*"), key=lambda path: -path.stat().st_size)


def flip(path, place):
    raw = bytearray(path.read_bytes())
    raw[place] ^= 4
    path.write_bytes(raw)


def text(raw):
    return raw.decode("utf-8", "surrogateescape")


def described(vault, entry):
    """An entry as store.json has it."""
    digest = None
    if entry.kind == "f":
        whole, kept, at = bytearray(entry.size), b"".join(vault.data(entry)), 0
        for offset, length in entry.extents if entry.extents is not None else [[0, entry.size]]:
            whole[offset : offset + length] = kept[at : at + length]
            at += length
        digest = hashlib.sha256(whole).hexdigest()
    fields = entry._asdict()
    del fields["dir"], fields["content"]
    fields |= {"target": text(entry.target), "link": entry.link.hex(), "sha256": digest}
    return fields | {"xattrs": [[text(name), value.hex()] for name, value in entry.xattrs]}


def check(vault, history, wanted=WANTED):
    """Every path of every commit is as it was."""
    assert [one.id.hex() for one in history] == [each["id"] for each in wanted]
    for one, each in zip(history, wanted, strict=True):
        assert {text(path): described(vault, entry) for path, entry in vault.paths(one)} == each["paths"]


def test_it_is_independent():
    tree = ast.parse(Path(reader.__file__).read_bytes())
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    foreign = {name.split(".")[0] for name in names} - set(sys.stdlib_module_names)
    assert foreign == {"nacl", "blake3", "zstandard"}
    assert not any(isinstance(node, ast.ImportFrom) and node.level for node in ast.walk(tree))


def test_the_whole_vault():
    vault = Vault(STORE, CODE)
    history = vault.history()
    check(vault, history)
    assert vault.problems == []
    for one, each in zip(history, WANTED, strict=True):
        assert (one.device.hex(), one.sequence, one.previous.hex()) == (
            each["device"], each["sequence"], each["previous"],
        )  # fmt: skip
        assert (one.time_ms, one.source.hex()) == (each["time_ms"], each["source"])
        assert one.details[:2] == [each["host"], each["source_name"]]
        assert (text(one.details[2]), one.details[4]) == (each["source_path"], len(each["paths"]))
        assert one.details[9:] == [each["complete"], each["program"]]


@pytest.mark.parametrize("number", range(len(WANTED)))
def test_restoring(number, tmp_path):
    vault = Vault(STORE, CODE)
    target = tmp_path / "restored"
    wanted = WANTED[number]["paths"]
    vault.restore(vault.history()[number], target)
    assert vault.problems == [each for each in NOT_MADE if each.split("'")[1] in wanted]
    inodes = {}
    for name, each in wanted.items():
        place = os.path.join(os.fsencode(target), name.encode("utf-8", "surrogateescape"))
        if each["kind"] in "scb":
            assert not os.path.lexists(place)
            continue
        status = os.lstat(place)
        kind = {"f": stat.S_ISREG, "d": stat.S_ISDIR, "l": stat.S_ISLNK, "p": stat.S_ISFIFO}[each["kind"]]
        assert kind(status.st_mode)
        assert status.st_mtime_ns == each["mtime"]
        if each["kind"] == "l":
            assert text(os.readlink(place)) == each["target"]
            continue
        assert stat.S_IMODE(status.st_mode) == each["mode"]
        if each["kind"] == "f":
            with open(place, "rb") as file:
                assert hashlib.sha256(file.read()).hexdigest() == each["sha256"]
            inodes.setdefault(each["link"] or name, set()).add(status.st_ino)
        with suppress(OSError, AttributeError):  # a file system without attributes
            os.setxattr(target, b"user.try", b"")
            assert {key: os.getxattr(place, key).hex() for key, _ in each["xattrs"]} == dict(each["xattrs"])
    assert all(len(each) == 1 for each in inodes.values())
    count = sum(len(names) + len(others) for _, names, others in os.walk(os.fsencode(target)))
    assert count == sum(bool(name) and each["kind"] not in "scb" for name, each in wanted.items())


# -- damage -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("part", ["trailer", "hash list", "directory", "cut"])
def test_every_pack_without_its_tail(store, part):
    for path in packs(store):
        raw = path.read_bytes()
        plan = pack.parse_plan(raw[-pack.plan_length(raw[-pack.TRAILER_LEN :]) :])
        if part == "cut":
            path.write_bytes(raw[: plan.directory_offset + 20])
        else:
            flip(path, {"trailer": -20, "hash list": plan.body_len + 3, "directory": plan.directory_offset + 30}[part])
    vault = Vault(store, CODE)
    check(vault, vault.history())
    assert len(vault.problems) == len(packs(store))


def test_records_come_back_from_packs(store):
    """Without any record, all that a later one followed are there: only the newest of each device is lost."""
    (commits,) = store.glob("*/commits")
    shutil.rmtree(commits)
    vault = Vault(store, CODE)
    newest = {each["device"]: each for each in WANTED}
    check(vault, vault.history(), [each for each in WANTED if each not in newest.values()])


def test_a_damaged_record(store):
    for path in store.glob("*/commits/*/*"):
        flip(path, 100)
    vault = Vault(store, CODE)
    assert len(vault.history()) == 4
    assert len(vault.problems) == 6


def test_without_the_order(store):
    (order,) = store.glob("*/order")
    shutil.rmtree(order)
    vault = Vault(store, CODE)
    found = [(one.device.hex(), one.sequence) for one in vault.history()]
    assert found == sorted((each["device"], each["sequence"]) for each in WANTED)


@pytest.mark.parametrize("place", ["header", "body"])
def test_a_damaged_frame_costs_what_is_in_it(store, place, tmp_path):
    path = packs(store)[0]
    rows = pack.scan(path.read_bytes())
    row = rows[len(rows) // 2]
    flip(path, row.offset + (60 if place == "header" else row.length - 60))
    vault = Vault(store, CODE)
    one = vault.history()[0]
    vault.restore(one, tmp_path / "restored")
    lost = [problem for problem in vault.problems if "is lost" in problem]
    assert len(lost) == 1
    assert lost[0].startswith("b'huge.txt': chunk")
    for name, each in WANTED[0]["paths"].items():
        if each["kind"] == "f" and name != "huge.txt":
            whole = os.fsencode(tmp_path / "restored") + b"/" + name.encode("utf-8", "surrogateescape")
            with open(whole, "rb") as file:
                assert hashlib.sha256(file.read()).hexdigest() == each["sha256"]


def test_a_lost_pack(store, tmp_path):
    packs(store)[1].unlink()  # most of the metadata
    vault = Vault(store, CODE)
    history = vault.history()
    assert len(history) == 6
    assert {text(path) for path, _ in vault.paths(history[4])} == set(WANTED[4]["paths"])
    assert len(dict(vault.paths(history[0]))) < len(WANTED[0]["paths"])
    assert any("part of a tree" in problem for problem in vault.problems)


# -- a vault of today -------------------------------------------------------------------------------------------


@pytest.fixture
def saved(tmp_path, seed):
    """A random tree in a vault of three commits: the vault's maker, the recovery code, the commits."""
    maker = VaultMaker(tmp_path / "store", seed, chunk=700)
    root = random.Random(seed).randbytes(32)  # the first that the maker drew
    assert maker.keys == OwnerKeys.from_root(root)
    home, device = tmp_path / "home", maker.device()
    make_tree(home, seed, files=20)
    for path in list_tree(home):
        if not (os.path.isdir(path) or os.path.isfile(path) or os.path.islink(path)):
            os.unlink(path)
    commits = [device.commit("home", home)]
    (home / "late").write_bytes(random.Random(seed).randbytes(90_000))
    commits.append(device.commit("home", home))
    (home / "plain").write_text("x")
    (home / "late").unlink()
    commits.append(device.commit("home", home))
    return maker, recovery.encode(root).lower(), [each.id.hex() for each in commits]


IGNORED = ("owner",)


def test_it_restores_what_contbak_wrote(saved, tmp_path):
    _, code, commits = saved
    assert run(tmp_path / "store", code, commits[-1], tmp_path / "out") == (0, "", "")
    assert same_tree(tmp_path / "home", tmp_path / "out", IGNORED) == []
    assert run(tmp_path / "store", code, commits[0][:10], tmp_path / "old") == (0, "", "")
    assert not (tmp_path / "old" / "plain").exists()


def test_it_needs_neither_tails_nor_the_first_records(saved, tmp_path):
    maker, code, commits = saved
    for path in maker.packs():
        flip(path, path.stat().st_size - 10)
    for path in (maker.top / "commits").glob("*/*1-*"):
        path.unlink()
    status, _, err = run(tmp_path / "store", code, commits[-1], tmp_path / "out")
    assert (status, "Traceback" in err) == (1, False)
    assert same_tree(tmp_path / "home", tmp_path / "out", IGNORED) == []
    assert len(Vault(tmp_path / "store", code).history()) == 3


def test_damage_everywhere_is_named(saved, tmp_path):
    maker, code, commits = saved
    for path in maker.packs():
        flip(path, path.stat().st_size // 3)
    status, _, err = run(tmp_path / "store", code, commits[-1], tmp_path / "out")
    assert (status, "Traceback" in err) == (1, False)
    assert "lost" in err


# -- codes and records ------------------------------------------------------------------------------------------


@given(st.binary(min_size=32, max_size=32))
def test_codes(root):
    code = recovery.encode(root)
    assert root_of(code) == root
    assert root_of(code.lower().replace("-", " ").replace("0", "o").replace("1", "l")) == root
    assert root_of(code.removeprefix("CB1")) == root


def test_other_codes():
    for code in ("", "hello", CODE[:-1], CODE[:-1] + ("0" if CODE[-1] != "0" else "1"), CODE.replace("G", "U")):
        with pytest.raises(Damaged, match="recovery code"):
            Vault(STORE, code)
    with pytest.raises(Damaged, match="does not hold"):
        Vault(STORE, recovery.encode(bytes(32)))


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.binary(max_size=300)
    | st.text(st.characters(codec="utf-8"), max_size=40),
    lambda inner: st.lists(inner, max_size=20), max_leaves=30,
)  # fmt: skip


@given(VALUES)
def test_records(value):
    unpacker = Unpacker(codec.encode(value))
    assert unpacker.value() == value
    assert unpacker.at == len(unpacker.raw)


@pytest.mark.parametrize("length", [31, 32, 255, 256, 65535, 65536])
def test_long_records(length):
    for value in (bytes(length), "x" * length, [None] * length):
        assert Unpacker(codec.encode(value)).value() == value


@given(st.binary(max_size=60))
def test_other_records(raw):
    """What it takes has one encoding."""
    unpacker = Unpacker(raw)
    try:
        value = unpacker.value()
    except Damaged:
        return
    assert codec.encode(value) == raw[: unpacker.at]


def test_hostile_records():
    for raw in (b"\x91" * 1000, b"\xdd\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff", b"\xdb\xff\xff\xff\xff\x00"):
        with pytest.raises(Damaged):
            Unpacker(raw).value()


# -- the program ------------------------------------------------------------------------------------------------


def run(*words):
    done = subprocess.run([sys.executable, reader.__file__, *words], capture_output=True, text=True, check=False)
    return done.returncode, done.stdout, done.stderr


def test_the_program(tmp_path):
    (tmp_path / "code").write_text(CODE + "\n")
    code, out, err = run(STORE, tmp_path / "code")
    assert (code, err, len(out.splitlines())) == (0, "", 6)
    code, out, err = run(STORE, CODE, WANTED[4]["id"][:9])
    assert (code, err, len(out.splitlines())) == (0, "", 2)
    code, out, err = run(STORE, CODE, WANTED[4]["id"], tmp_path / "restored")
    assert (code, out, err) == (0, "", "")
    data = (tmp_path / "restored" / "note.txt").read_bytes()
    assert hashlib.sha256(data).hexdigest() == WANTED[4]["paths"]["note.txt"]["sha256"]
    code, _, err = run(STORE, CODE, WANTED[0]["id"], tmp_path / "other")
    assert (code, err.splitlines()) == (1, NOT_MADE)
    assert run()[0] == 2
