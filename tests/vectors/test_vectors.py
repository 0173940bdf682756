"""The golden vectors: today's code writes them byte for byte, and reads what was frozen."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import zstandard

from contbak.app import keyfile
from contbak.core import commit, frame, invite, messages, pack, recovery, spanlist
from contbak.core.chunker import Chunker, ChunkSizes
from contbak.core.crypto import Opener, OwnerKeys, public_of
from contbak.core.errors import Refused, WrongKey
from contbak.core.frame import Chunk
from contbak.core.node import Node, decode_node, encode_inner, encode_leaf
from contbak.core.view import View
from tests import make_vectors

HERE = Path(__file__).parent
VECTORS = json.loads((HERE / "vectors.json").read_text())
STORE = json.loads((HERE / "store.json").read_text())
KEYS = VECTORS["keys"]
OWNER = OwnerKeys.from_root(bytes.fromhex(KEYS["root"]))


def files(top):
    """Name to content of all vectors below `top`."""
    return {
        path.relative_to(top).as_posix(): path.read_bytes()
        for path in sorted(top.rglob("*"))
        if path.is_file() and path.suffix not in (".py", ".pyc") and path.name != ".gitattributes"
    }


def test_todays_code_writes_them(tmp_path):
    make_vectors.make(tmp_path)
    made, frozen = files(tmp_path), files(HERE)
    if VECTORS["zstd"] != list(zstandard.ZSTD_VERSION):  # another zstd may pack the same data into other bytes
        new = json.loads(made["vectors.json"])
        for name in ("keys", "nodes", "invite", "socket invite"):
            assert new[name] == VECTORS[name]
        pytest.skip(f"the packs were frozen with zstd {VECTORS['zstd']}")
    assert made.keys() == frozen.keys()
    assert [name for name in made if made[name] != frozen[name]] == []


def test_they_are_small():
    assert sum(map(len, files(HERE).values())) < 1_000_000


def test_keys():
    assert recovery.decode(KEYS["recovery code"]) == bytes.fromhex(KEYS["root"])
    for name in ("vault", "read_public", "admin_public", "psk", "chunk_id_key", "chunker_key"):
        assert getattr(OWNER.writer, name).hex() == KEYS[name]
    assert (OWNER.read_secret.hex(), OWNER.admin_seed.hex()) == (KEYS["read_secret"], KEYS["admin_seed"])
    assert public_of(bytes.fromhex(KEYS["device_seed"])).hex() == KEYS["device"]
    for data, id_ in KEYS["data ids"].items():
        assert OWNER.writer.data_id(data.encode()).hex() == id_
    for data, number in KEYS["split"].items():
        assert OWNER.writer.split(data.encode()) == number


def test_cuts():
    sizes = ChunkSizes().jittered(OWNER.writer.chunker_key)
    assert [sizes.min, sizes.avg, sizes.max] == KEYS["chunk sizes"]
    data = make_vectors.lines(500, "chunks")
    assert Chunker(make_vectors.SIZES).cuts(memoryview(data), True) == KEYS["cuts"]


def unhexed(record):
    return [bytes.fromhex(each) for each in record["refs"]], bytes.fromhex(record["payload"])


@pytest.mark.parametrize("name", VECTORS["nodes"])
def test_nodes(name):
    refs, payload = unhexed(VECTORS["nodes"][name])
    node = Node(tuple(refs), payload)
    assert OWNER.writer.node_id(refs, payload).hex() == VECTORS["nodes"][name]["id"]
    if name.startswith("list"):
        level = int(name[-1])
        assert spanlist.encode_list(level, spanlist.decode_list(node, level)) == node
        return
    decoded = decode_node(node)
    again = encode_inner(decoded.level, decoded.items) if decoded.level else encode_leaf(decoded.items)
    assert again == node


@pytest.mark.parametrize("name", [name for name in VECTORS if name.startswith("frame-")])
def test_frames(name):
    wanted = []
    for each in VECTORS[name]:
        refs, payload = unhexed(each)
        wanted.append(Chunk(bytes.fromhex(each["id"]), payload, tuple(refs)))
    assert frame.decode((HERE / name).read_bytes(), Opener(OWNER)) == wanted


def test_the_copy_of_a_commit():
    raw = (HERE / "frame-commit.bin").read_bytes()
    header = frame.parse_header(raw)
    assert frame.decode_commit(header, raw[len(header.raw) :]) == (HERE / "commit.bin").read_bytes()


def rows(raw):
    """The rows of a pack, checked against those that a search finds."""
    plan = pack.parse_plan(raw[-pack.plan_length(raw[-pack.TRAILER_LEN :]) :])
    found = pack.parse_directory(raw[plan.directory_offset : plan.body_len])
    assert found == pack.scan(raw)
    assert all(plan.verify(n, raw[at : at + size]) for n in range(len(plan.hashes)) for at, size in [plan.span(n)])
    return plan, found


@pytest.mark.parametrize("name", ["pack-data.bin", "pack-metadata.bin"])
def test_packs(name):
    raw = (HERE / name).read_bytes()
    plan, found = rows(raw)
    assert plan.root.hex() == VECTORS[name]["root"]
    assert [each.hex() for each in plan.hashes] == VECTORS[name]["segments"]
    assert pack.parse_header(raw) == (OWNER.writer.vault, b"device 1")
    assert [row.kind for row in found] == ([frame.DATA] if name[5:] == "data.bin" else [3, 1, 2])


def test_the_commit():
    one = commit.decode((HERE / "commit.bin").read_bytes())
    assert (one.id.hex(), one.device.hex()) == (VECTORS["commit"]["id"], VECTORS["commit"]["device"])
    assert one.commit.sequence == 7
    details = commit.open_details(one.commit.sealed, Opener(OWNER))
    assert (details.host, details.path, details.complete) == ("host", b"/home/\xff", True)


def test_the_receipt():
    relay, id_ = (bytes.fromhex(VECTORS["receipt"][name]) for name in ("relay", "commit"))
    receipt = messages.open_receipt((HERE / "receipt.bin").read_bytes(), relay, id_)
    assert (receipt.vault, receipt.level, receipt.position) == (OWNER.writer.vault, messages.RELAY, 42)


def test_invites():
    for name, place in (
        ("invite", "contbak://[2001:db8::7]:7443"),
        ("socket invite", "contbak+unix:///run/a%20b.sock"),
    ):
        parsed = invite.parse(VECTORS[name])
        assert parsed.line() == VECTORS[name]
        assert str(parsed.address) == place


@pytest.mark.parametrize("name", ["none", "clear", "passphrase"])
def test_key_files(name, tmp_path):
    raw = (HERE / f"keyfile-{name}.bin").read_bytes()
    (tmp_path / keyfile.FILES[1]).write_bytes(raw)
    keys = keyfile.load(tmp_path)
    assert (keys.writer, keys.device.hex(), keys.device_name) == (OWNER.writer, KEYS["device"], "laptop")
    if name == "none":
        with pytest.raises(Refused):
            keys.owner()
        return
    assert keys.owner(b"correct horse") == OWNER
    if name == "passphrase":
        with pytest.raises(WrongKey):
            keys.owner(b"wrong horse")


# -- the vault --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def chunks():
    """Every chunk of the vault by its id."""
    found = {}
    for path in (HERE / "store").glob("*/packs/*/*"):
        raw = path.read_bytes()
        plan, found_rows = rows(raw)
        assert path.name == plan.root.hex()
        for row in found_rows:
            if row.kind != frame.COMMIT:
                each = frame.decode(raw[row.offset : row.offset + row.length], Opener(OWNER))
                found |= {chunk.id: chunk for chunk in each}
    return found


def node_of(chunks):
    return lambda id_: Node(chunks[id_].refs, chunks[id_].payload)


def content(chunks, entry):
    """All bytes of a file, holes as zeros."""
    kept = entry.content.inline
    if kept is None:
        spans = spanlist.spans(entry.content.level, entry.content.chunks, node_of(chunks))
        kept = b"".join(bytes(chunks[id_].payload) for id_, _ in spans)
    if entry.extents is None:
        return kept
    whole, at = bytearray(entry.size), 0
    for offset, length in entry.extents:
        whole[offset : offset + length] = kept[at : at + length]
        at += length
    return bytes(whole)


@pytest.mark.parametrize("wanted", STORE, ids=lambda wanted: wanted["id"][:8])
def test_the_vault(wanted, chunks):
    (path,) = (HERE / "store").glob(f"*/commits/{wanted['device']}/*-{wanted['id']}")
    one = commit.decode(path.read_bytes())
    assert one.id.hex() == wanted["id"]
    assert commit.open_details(one.commit.sealed, Opener(OWNER)).host == wanted["host"]
    view = View([one.commit.base, *one.commit.runs], node_of(chunks))
    found = dict(view.walk())
    if top := view.lookup(bytes(8), b""):
        found[b""] = top
    described = {
        make_vectors.text(name): make_vectors.described(each, content(chunks, each) if each.kind == "f" else b"")
        for name, each in found.items()
    }
    assert json.loads(json.dumps(described)) == wanted["paths"]


def test_the_vault_has_something_of_everything(chunks):
    one = commit.decode(next((HERE / "store").glob(f"*/commits/*/*-{STORE[0]['id']}")).read_bytes())
    root = decode_node(node_of(chunks)(one.commit.base))
    assert root.level >= 1
    entries = dict(View([one.commit.base], node_of(chunks)).walk())
    assert {each.kind for each in entries.values()} == set("fdlpscb")
    levels = [entries[name].content.level for name in (b"some.txt", b"long.log", b"huge.txt")]
    assert levels == [0, 1, 2]
    assert len(entries[b"some.txt"].content.chunks) > 1
    runs = [len(commit.decode(path.read_bytes()).commit.runs) for path in (HERE / "store").glob("*/commits/*/*")]
    assert sorted(runs) == [0, 0, 0, 1, 1, 2]
    assert hashlib.sha256(content(chunks, entries[b"only holes"])).digest() == hashlib.sha256(bytes(70_000)).digest()
