#!/usr/bin/env python3
"""Golden vectors of the formats, version 1: python -m tests.make_vectors DIRECTORY

Nothing here is random: every byte follows from this file and from contbak/core.  tests/vectors holds what it wrote
when version 1 was frozen, and a test compares; a difference means that old vaults may not be read any more.

    vectors.json    keys, ids, nodes, an invite; what the other files hold
    *.bin           frames, packs, a commit record, a receipt, key files
    store/          the store directory of a small vault with two devices
    store.json      what is in that vault, commit by commit and path by path
"""

from __future__ import annotations

import hashlib
import json
import struct
import sys
import tempfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from unittest.mock import patch

import zstandard

from contbak.app import keyfile
from contbak.core import codec, commit, compress, frame, messages, recovery
from contbak.core.chunker import Chunker, ChunkSizes
from contbak.core.commit import NO_PREVIOUS, Commit, Details, Signed, Witness
from contbak.core.crypto import (
    AEGIS,
    SUITES,
    XCHACHA,
    OwnerKeys,
    Sealer,
    Stretch,
    digest,
    public_of,
    vouch,
    wrap_secret,
)
from contbak.core.entry import INLINE_MAX, TORN, Content, Entry
from contbak.core.frame import DATA, NODE, RUN, Chunk
from contbak.core.invite import Address, Invite
from contbak.core.names import TOP_DIR
from contbak.core.node import Child, Node, encode_inner, encode_leaf
from contbak.core.pack import PackBuilder
from contbak.core.spanlist import Item, SpanListWriter, encode_list
from contbak.core.tree import TreeWriter

ROOT = bytes(range(32))
OWNER = OwnerKeys.from_root(ROOT)
KEYS = OWNER.writer
START_MS = 1_790_000_000_000
SIZES = ChunkSizes(64, 256, 1024)
"""Smaller than any vault has them, so that small files have many chunks."""

Random = Callable[[int], bytes]
Model = dict[bytes, tuple[Entry, bytes]]
"""Path to entry and the whole content, holes as zeros: what a restore must give."""


def stream(label: str) -> Random:
    """What stands for randomness: bytes that follow from the label and from what was drawn before."""
    count = 0

    def draw(length: int) -> bytes:
        nonlocal count
        count += 1
        return hashlib.shake_256(f"{label} {count}".encode()).digest(length)

    return draw


def lines(count: int, word: str) -> bytes:
    return b"".join(b"%06d %s\n" % (n * n % 999_983, word.encode()) for n in range(count))


# -- packs ------------------------------------------------------------------------------------------------------


def bundles(chunks: Iterable[Chunk]) -> Iterator[list[Chunk]]:
    """Parts of at most 256 chunks or 64 KiB."""
    part: list[Chunk] = []
    for chunk in chunks:
        if part and (len(part) == frame.CHUNKS_MAX or sum(len(each.payload) for each in part) > 1 << 16):
            yield part
            part = []
        part.append(chunk)
    if part:
        yield part


def pack_of(parts: list[tuple[int, list[Chunk]]], record: bytes | None, device: bytes, suite: int, draw: Random):
    """(file, plan) of a pack of these frames, behind a copy of `record` if there is one."""
    sealer = Sealer(KEYS, draw(32), suite)
    builder = PackBuilder(KEYS.vault, draw(16), device[:8])
    frames = [] if record is None else [frame.encode_commit(record, device[:8])]
    frames += [frame.encode(kind, part, sealer, device[:8], draw(32)) for kind, part in parts]
    out = [piece for raw in frames for piece in builder.add(frame.parse_header(raw), raw)]
    rest, plan = builder.finish()
    return b"".join(out + rest), plan


# -- a source and its states ------------------------------------------------------------------------------------


@dataclass
class Source:
    """One source of a device: what it has been through, and the chunks that it made on the way."""

    name: str
    path: bytes
    id: bytes
    data: dict[bytes, Chunk] = field(default_factory=dict)
    nodes: dict[bytes, Chunk] = field(default_factory=dict)

    def emit(self, id_: bytes, node: Node) -> None:
        self.nodes.setdefault(id_, Chunk(id_, node.payload, node.refs))

    def content(self, data: bytes) -> Content:
        """The content of a file, its chunks kept; lists end as early as they may, so that a file has many."""
        if len(data) <= INLINE_MAX:
            return Content(len(data), digest(data), data, 0, ())
        lists, at = SpanListWriter(KEYS.node_id, lambda _: 0, self.emit), 0
        for length in Chunker(SIZES).cuts(memoryview(data), True):
            piece = data[at : at + length]
            id_ = KEYS.data_id(piece)
            self.data.setdefault(id_, Chunk(id_, piece))
            lists.add(id_, length)
            at += length
        level, ids = lists.finish()
        return Content(len(data), digest(data), None, level, ids)

    def trees(self) -> TreeWriter:
        """Leaves end sixteen times as often as in a real vault, so that few rows make several."""
        return TreeWriter(KEYS.node_id, lambda key: KEYS.split(key) // 16, self.emit)

    def file(self, data: bytes, extents: tuple[tuple[int, int], ...] | None = None, **fields: object):
        """`data` with zeros where holes are."""
        kept = data if extents is None else b"".join(data[at : at + n] for at, n in extents)
        return entry("f", size=len(data), extents=extents, content=self.content(kept), **fields), data


def entry(kind: str, **fields: object) -> Entry:
    mode = {"d": 0o750, "l": 0o777}.get(kind, 0o640)
    standard = {"mode": mode, "uid": 1000, "gid": 100, "user": "anna", "group": "users", "size": 0}
    times = {"mtime": 1_789_000_000_123_456_789, "ctime": 1_789_000_001_000_000_000}
    return Entry(kind=kind, **(standard | times | fields))  # type: ignore[arg-type]


def directory(number: int, **fields: object) -> tuple[Entry, bytes]:
    return entry("d", dir=number.to_bytes(8, "big"), size=4096, **fields), b""


def rows(model: Model) -> dict[tuple[bytes, bytes], Entry]:
    """Entries under their keys."""
    found = {}
    for path, (each, _) in model.items():
        above, _, name = path.rpartition(b"/")
        found[model[above][0].dir if path else TOP_DIR, name] = each
    return dict(sorted(found.items()))


def changes(old: Model, new: Model):
    """What a run says."""
    before, after = rows(old), rows(new)
    keys = sorted(key for key in before.keys() | after.keys() if before.get(key) != after.get(key))
    return [(key, after.get(key)) for key in keys]


def first_state(source: Source) -> Model:
    """Something of everything."""
    hole = bytearray(300_000)
    hole[4096:9096], hole[200_000:200_100] = lines(417, "data")[:5000], bytes(range(100))
    both = source.file(b"two names\n" * 40, link=b"linkid 1")
    attrs = ((b"user.bytes", bytes(range(20))), (b"user.note", "Grüße".encode()))
    return {
        b"": directory(0),
        b"empty": source.file(b""),
        b"note.txt": source.file(b"a short note\n", mode=0o4755),
        b"limit": source.file(lines(20, "inline")[:256]),
        b"above": source.file(lines(20, "inline")[:257]),
        b"some.txt": source.file(lines(700, "some chunks")),
        b"long.log": source.file(lines(3200, "a list of chunks")),
        b"huge.txt": source.file(lines(24_000, "lists of lists")),
        b"sparse.img": source.file(bytes(hole), extents=((4096, 5000), (200_000, 100))),
        b"only holes": source.file(bytes(70_000), extents=()),
        b"torn": source.file(b"half old, half new", flags=TORN),
        b"link": (entry("l", target=b"sub/nowhere \xff"), b""),
        b"name 1": both,
        b"sub/name 2": both,
        b"attributes": source.file(b"with attributes", xattrs=attrs, uid=0, user="root", gid=2**32 - 2, group=""),
        b"old": source.file(b"older than 1970", mtime=-1, ctime=-(10**18)),
        b"pipe": (entry("p"), b""),
        b"socket": (entry("s"), b""),
        b"null": (entry("c", rdev=(1, 3), mode=0o666), b""),
        b"disk": (entry("b", rdev=(259, 2**20)), b""),
        b"sub": directory(1, xattrs=((b"user.on", b"a directory"),)),
        b"sub/deep": directory(2),
        b"sub/deep/file": source.file(lines(30, "deep")),
        b"sub/gone": source.file(b"will be removed"),
        b"odd": directory(2**64 - 1),
        b"odd/\xff\xfe": source.file(b"no text"),
        b"odd/new\nline": source.file(b"two lines"),
        b"odd/-rf": source.file(b"dash"),
        b"odd/ ": source.file(b"blank"),
        "odd/naïve ☃".encode(): source.file(b"snow"),
        b"odd/" + b"n" * 255: source.file(b"long name"),
    }


def later_states(source: Source, model: Model) -> Iterator[Model]:
    model = dict(model)
    model[b"note.txt"] = source.file(b"a longer note\n", mtime=1_789_500_000_000_000_000)
    model[b"new.txt"] = source.file(lines(100, "new"))
    model[b"some.txt"] = source.file(b"a line in front\n" + lines(700, "some chunks"))
    del model[b"sub/gone"], model[b"empty"]
    yield dict(model)
    moved = {path: model.pop(path) for path in list(model) if path == b"sub" or path.startswith(b"sub/")}
    model |= {b"odd/moved" + path[3:]: each for path, each in moved.items()}
    model[b"note.txt"] = source.file(b"the third note\n")
    model[b"empty"] = directory(3)  # another kind of thing under a name that was gone
    model[b"empty/not any more"] = source.file(b"x")
    del model[b"new.txt"]
    yield dict(model)


# -- the vault --------------------------------------------------------------------------------------------------


@dataclass
class Vault:
    """The store directory of the vault, and the account of what went into it."""

    top: Path
    account: list[dict[str, object]] = field(default_factory=list)
    seen: dict[bytes, Signed] = field(default_factory=dict)

    def put(self, name: str, data: bytes) -> None:
        path = self.top / KEYS.vault.hex() / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)

    def put_pack(self, parts: list[tuple[int, list[Chunk]]], record: bytes | None, device: Device) -> None:
        if parts:
            raw, plan = pack_of(parts, record, device.id, device.suite, device.draw)
            self.put(f"packs/{plan.root.hex()[:2]}/{plan.root.hex()}", raw)

    def accept(self, signed: Signed, details: Details, model: Model) -> None:
        position = len(self.account) + 1
        name = f"commits/{signed.device.hex()}/{signed.commit.sequence:016x}-{signed.id.hex()}"
        self.put(name, signed.raw)
        order = struct.pack("<32sQ", signed.id, START_MS + position * 1000)
        self.put(f"order/{position:016x}", order + struct.pack("<I", zlib.crc32(order)))
        self.seen[signed.device] = signed
        self.account.append({
            "id": signed.id.hex(), "device": signed.device.hex(), "sequence": signed.commit.sequence,
            "previous": signed.commit.previous.hex(), "time_ms": signed.commit.time_ms,
            "source": signed.commit.source.hex(), "host": details.host, "source_name": details.source_name,
            "source_path": text(details.path), "program": details.program, "complete": details.complete,
            "paths": {text(path): described(*each) for path, each in sorted(model.items())},
        })  # fmt: skip


@dataclass
class Device:
    """One device that writes to the vault."""

    name: str
    suite: int
    vault: Vault

    def __post_init__(self) -> None:
        self.seed = hashlib.sha256(self.name.encode()).digest()
        self.id = public_of(self.seed)
        self.draw = stream(self.name)
        self.incarnation = self.draw(16)

    def commit(self, source: Source, base: bytes | None, runs: tuple[bytes, ...], model: Model) -> None:
        """Packs what is new in the source, signs the record and has it accepted."""
        head = self.vault.seen.get(self.id)
        self.vault.put_pack([(DATA, part) for part in bundles(source.data.values())], None, self)
        own = [chunk for id_, chunk in source.nodes.items() if id_ in runs]
        rest = [chunk for id_, chunk in source.nodes.items() if id_ not in runs]
        parts = [(NODE, part) for part in bundles(rest)] + [(RUN, part) for part in bundles(own)]
        self.vault.put_pack(parts, head.raw if head else None, self)
        source.data.clear()
        source.nodes.clear()
        files = [each for each, _ in model.values() if each.kind == "f"]
        details = Details(
            self.name, source.name, source.path, len(files), len(model), sum(each.size for each in files),
            len(model), 0, 0, base is not None or bool(runs), "contbak 0.1.0",
        )  # fmt: skip
        others = sorted((each for id_, each in self.vault.seen.items() if id_ != self.id), key=lambda each: each.id)
        witnesses = tuple(Witness(each.device[:8], each.commit.sequence, each.id) for each in others)
        sealed = commit.seal_details(details, Sealer(KEYS, self.draw(32), self.suite), self.draw(32))
        record = Commit(
            1, KEYS.vault, self.id, self.incarnation, head.commit.sequence + 1 if head else 1,
            head.id if head else NO_PREVIOUS, START_MS + 60_000 * len(self.vault.account), source.id, base, runs,
            witnesses, vouch(OWNER.admin_seed, KEYS.vault, self.id), sealed,
        )  # fmt: skip
        self.vault.accept(commit.encode(record, self.seed), details, model)


def make_vault(top: Path) -> list[dict[str, object]]:
    """Writes the store; what is in it."""
    vault = Vault(top)
    top.mkdir(parents=True)
    (top / "contbak-store").write_bytes(b"contbak store 1\n")
    note = codec.encode((1, KEYS.read_public, KEYS.admin_public, "golden"))
    vault.put("vault", note + digest(note))
    laptop, desk = Device("laptop", AEGIS, vault), Device("desk", XCHACHA, vault)

    home = Source("home", b"/home/anna/caf\xe9", b"source 1")
    desk_source = Source("notes", b"/notes", b"source 2")
    stored: dict[bytes, Node] = {}

    def made(id_: bytes, node: Node) -> None:
        stored[id_] = node
        home.nodes.setdefault(id_, Chunk(id_, node.payload, node.refs))

    home.emit = made  # type: ignore[method-assign]
    model = first_state(home)
    base = home.trees().build(rows(model).items())
    laptop.commit(home, base, (), model)
    desk.commit(desk_source, None, (), {})
    runs: list[bytes] = []
    first = model
    for state in later_states(home, model):
        runs.append(home.trees().build(changes(model, state)))
        laptop.commit(home, base, tuple(runs), state)
        model = state
    notes: Model = {b"": directory(0), b"note.txt": desk_source.file(lines(40, "on the desk"))}
    desk.commit(desk_source, None, (desk_source.trees().build(rows(notes).items()),), notes)
    folded, _ = home.trees().edit(base, changes(first, model), stored.__getitem__)
    laptop.commit(home, folded, (), model)
    return vault.account


# -- what is written --------------------------------------------------------------------------------------------


def text(raw: bytes) -> str:
    return raw.decode("utf-8", "surrogateescape")


def described(each: Entry, data: bytes) -> dict[str, object]:
    return {
        "kind": each.kind, "mode": each.mode, "uid": each.uid, "gid": each.gid, "user": each.user,
        "group": each.group, "size": each.size, "mtime": each.mtime, "ctime": each.ctime, "target": text(each.target),
        "rdev": each.rdev, "xattrs": [[text(name), value.hex()] for name, value in each.xattrs],
        "extents": each.extents, "link": each.link.hex(), "flags": each.flags,
        "sha256": hashlib.sha256(data).hexdigest() if each.kind == "f" else None,
    }  # fmt: skip


def node_vectors() -> dict[str, Node]:
    ids = [hashlib.sha256(b"%d" % n).digest() for n in range(5)]
    file = entry("f", size=500, content=Content(500, ids[4], None, 0, (ids[1], ids[0], ids[1])))
    inline = entry("f", size=3, content=Content(3, ids[3], b"abc", 0, ()), xattrs=((b"user.a", b"b"),))
    leaf = [((TOP_DIR, b""), directory(0)[0]), ((TOP_DIR, b"a"), file), ((b"\0" * 7 + b"\1", b"\xff"), inline)]
    children = [Child((TOP_DIR, b""), ids[2], 100), Child((b"\0" * 7 + b"\1", b"name"), ids[0], 28)]
    items = [Item(ids[3], 1000), Item(ids[0], 2000), Item(ids[3], 1000)]
    return {
        "leaf": encode_leaf(leaf),
        "inner": encode_inner(1, children),
        "run": encode_leaf([((TOP_DIR, b"gone"), None), ((TOP_DIR, b"new"), inline)]),
        "list 0": encode_list(0, items),
        "list 1": encode_list(1, items[:2]),
    }


def make_frames(top: Path) -> dict[str, object]:
    """One frame of every kind and suite; what is in them."""
    table: dict[str, object] = {}
    nodes = node_vectors()
    chunks = {
        DATA: [Chunk(KEYS.data_id(each), each) for each in (b"", b"short", bytes(range(256)), lines(50, "text"))],
        NODE: [Chunk(KEYS.node_id(*nodes[each]), nodes[each].payload, nodes[each].refs) for each in ("leaf", "list 0")],
        RUN: [Chunk(KEYS.node_id(*nodes["run"]), nodes["run"].payload, nodes["run"].refs)],
    }
    for kind, name in ((DATA, "data"), (NODE, "node"), (RUN, "run")):
        for suite in SUITES:
            draw = stream(f"frame {name} {suite}")
            raw = frame.encode(kind, chunks[kind], Sealer(KEYS, draw(32), suite), b"device 1", draw(32))
            (top / f"frame-{name}-{suite}.bin").write_bytes(raw)
            table[f"frame-{name}-{suite}.bin"] = [
                {"id": each.id.hex(), "refs": [ref.hex() for ref in each.refs], "payload": bytes(each.payload).hex()}
                for each in chunks[kind]
            ]
    record = one_commit()
    (top / "frame-commit.bin").write_bytes(frame.encode_commit(record.raw, b"device 1"))
    for name, parts, copy in (
        ("data", [(DATA, chunks[DATA])], None),
        ("metadata", [(NODE, chunks[NODE]), (RUN, chunks[RUN])], record.raw),
    ):
        raw, plan = pack_of(parts, copy, b"device 1", XCHACHA, stream(f"pack {name}"))
        (top / f"pack-{name}.bin").write_bytes(raw)
        table[f"pack-{name}.bin"] = {"root": plan.root.hex(), "segments": [each.hex() for each in plan.hashes]}
    return table


DEVICE_SEED = hashlib.sha256(b"device").digest()


def one_commit() -> Signed:
    draw = stream("commit")
    details = Details("host", "home", b"/home/\xff", 10, 12, 12345, 3, 2, 1, True, "contbak 0.1.0")
    sealed = commit.seal_details(details, Sealer(KEYS, draw(32), XCHACHA), draw(32))
    body = Commit(
        1, KEYS.vault, public_of(DEVICE_SEED), draw(16), 7, draw(32), START_MS, b"source 1", draw(32),
        (draw(32), draw(32)), (Witness(draw(8), 3, draw(32)),),
        vouch(OWNER.admin_seed, KEYS.vault, public_of(DEVICE_SEED)), sealed,
    )  # fmt: skip
    return commit.encode(body, DEVICE_SEED)


def make_records(top: Path) -> dict[str, object]:
    """The commit record, a receipt, key files; what is in them."""
    draw = stream("records")
    record = one_commit()
    relay_seed = hashlib.sha256(b"relay").digest()
    receipt = messages.Receipt(1, public_of(relay_seed), KEYS.vault, record.id, messages.RELAY, 42, START_MS)
    (top / "commit.bin").write_bytes(record.raw)
    (top / "receipt.bin").write_bytes(messages.sign_receipt(receipt, relay_seed))
    stretch = Stretch(draw(16), 1, 8192)
    wrapped = wrap_secret(ROOT, b"correct horse", stretch, draw(24))
    roots = {
        "none": (keyfile.NONE, b"", b"", 0, 0),
        "clear": (keyfile.CLEAR, ROOT, b"", 0, 0),
        "passphrase": (keyfile.PASSPHRASE, wrapped, stretch.salt, stretch.passes, stretch.memory),
    }
    for name, (kind, root, salt, passes, memory) in roots.items():
        keys = keyfile.KeyRecord(
            1, KEYS.vault, KEYS.read_public, KEYS.admin_public, KEYS.psk, KEYS.chunk_id_key, KEYS.chunker_key,
            DEVICE_SEED, "laptop", vouch(OWNER.admin_seed, KEYS.vault, public_of(DEVICE_SEED)),
            kind, root, salt, passes, memory,
        )  # fmt: skip
        with tempfile.TemporaryDirectory() as scratch:
            keyfile.save(Path(scratch), keys)
            (top / f"keyfile-{name}.bin").write_bytes((Path(scratch) / keyfile.FILES[0]).read_bytes())
    address = Address(public_of(relay_seed), "2001:db8::7", 7443, draw(32))
    return {
        "commit": {"id": record.id.hex(), "device": record.device.hex()},
        "receipt": {"relay": public_of(relay_seed).hex(), "commit": record.id.hex()},
        "invite": Invite(address, draw(32), KEYS.vault).line(),
        "socket invite": Invite(Address(public_of(relay_seed), socket="/run/a b.sock"), draw(32)).line(),
    }


def key_vectors() -> dict[str, object]:
    sizes = ChunkSizes().jittered(KEYS.chunker_key)
    names = "vault read_public admin_public psk chunk_id_key chunker_key".split()
    return {
        "root": ROOT.hex(),
        "recovery code": recovery.encode(ROOT),
        **{name: getattr(KEYS, name).hex() for name in names},
        "read_secret": OWNER.read_secret.hex(),
        "admin_seed": OWNER.admin_seed.hex(),
        "device_seed": DEVICE_SEED.hex(),
        "device": public_of(DEVICE_SEED).hex(),
        "data ids": {each: KEYS.data_id(each.encode()).hex() for each in ("", "a", "some content")},
        "split": {each: KEYS.split(each.encode()) for each in ("", "a", "some content")},
        "chunk sizes": [sizes.min, sizes.avg, sizes.max],
        "cuts": Chunker(SIZES).cuts(memoryview(lines(500, "chunks")), True),
    }


def make(top: Path) -> None:
    """Writes everything into the directory `top`, which must not exist or be empty.

    With zstd's level 1, as the program compressed when they were frozen: how hard it tries is no part of the format.
    """
    with patch.object(compress, "compressor", lambda: zstandard.ZstdCompressor(level=1, write_content_size=True)):
        _make(top)


def _make(top: Path) -> None:
    top.mkdir(parents=True, exist_ok=True)
    nodes = {
        name: {"id": KEYS.node_id(*node).hex(), "refs": [ref.hex() for ref in node.refs], "payload": node.payload.hex()}
        for name, node in node_vectors().items()
    }
    vectors = {"zstd": list(zstandard.ZSTD_VERSION), "keys": key_vectors(), "nodes": nodes}
    vectors |= make_records(top) | make_frames(top)
    (top / "vectors.json").write_text(json.dumps(vectors, indent=1) + "\n")
    (top / "store.json").write_text(json.dumps(make_vault(top / "store"), indent=1) + "\n")


if __name__ == "__main__":
    make(Path(sys.argv[1]))
