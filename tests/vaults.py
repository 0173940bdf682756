"""Vaults for tests, made with contbak.core alone: directory trees become commits in a store directory.

    maker = VaultMaker(tmp_path / "store")
    device = maker.device("laptop")
    device.commit("home", tmp_path / "home")           # scans the tree; a base, or a run on the last commit
    maker.keys, maker.opener(), maker.packs()

The layout is the relay's, so a DirectoryPlace reads it, and so would a relay that takes the directory over.
"""

import hashlib
import os
import random
import stat
import struct
import zlib

from contbak.core import codec, commit, frame, pack
from contbak.core.crypto import XCHACHA, Hasher, Opener, OwnerKeys, Sealer, digest, public_of, vouch
from contbak.core.entry import BLOCK, CHARACTER, DIRECTORY, FIFO, FILE, INLINE_MAX, SOCKET, SYMLINK, Content, Entry
from contbak.core.names import TOP_DIR, PackId
from contbak.core.node import CHUNKS_MAX
from contbak.core.spanlist import SpanListWriter
from contbak.core.tree import TreeWriter
from tests.trees import extents_of

KINDS = {
    stat.S_IFREG: FILE,
    stat.S_IFDIR: DIRECTORY,
    stat.S_IFLNK: SYMLINK,
    stat.S_IFIFO: FIFO,
    stat.S_IFSOCK: SOCKET,
    stat.S_IFCHR: CHARACTER,
    stat.S_IFBLK: BLOCK,
}


class VaultMaker:
    """One vault in a store directory.  `chunk`: bytes of a chunk; `bundle`: chunks of a frame; `pack_frames`."""

    def __init__(self, store, seed=0, chunk=4096, bundle=16, pack_frames=64):
        self.chance = random.Random(seed)
        self.store = store
        self.keys = OwnerKeys.from_root(self.chance.randbytes(32))
        self.vault = self.keys.writer.vault
        self.top = store / self.vault.hex()
        self.chunk, self.bundle, self.pack_frames = chunk, bundle, pack_frames
        self.top.mkdir(parents=True)
        (store / "contbak-store").write_text("contbak store 1\n")
        record = codec.encode((1, self.keys.writer.read_public, self.keys.writer.admin_public, "test vault"))
        (self.top / "vault").write_bytes(record + digest(record))
        self.position = 0
        self.stored = set()

    def opener(self):
        return Opener(self.keys)

    def device(self, name="laptop"):
        return DeviceMaker(self, name)

    def packs(self):
        return sorted((self.top / "packs").glob("*/*"))

    def sealer(self):
        return Sealer(self.keys.writer, self.chance.randbytes(32), XCHACHA)

    def write_packs(self, kind, chunks, writer, record=b""):
        """Packs of these chunks; `record`: a commit record of which the first pack carries a copy."""
        chunks = [chunk for chunk in chunks if chunk.id not in self.stored]
        self.stored.update(chunk.id for chunk in chunks)
        bundles = [chunks[at : at + self.bundle] for at in range(0, len(chunks), self.bundle)]
        step = self.pack_frames
        for at in range(0, len(bundles), step):
            self._write_pack(kind, bundles[at : at + step], writer, record if at == 0 else b"")

    def accept(self, signed, received_ms):
        """Files a commit as the relay does."""
        folder = self.top / "commits" / signed.device.hex()
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{signed.commit.sequence:016x}-{signed.id.hex()}").write_bytes(signed.raw)
        self.position += 1
        order = self.top / "order"
        order.mkdir(exist_ok=True)
        raw = struct.pack("<32sQ", signed.id, received_ms)
        (order / f"{self.position:016x}").write_bytes(raw + struct.pack("<I", zlib.crc32(raw)))

    def _write_pack(self, kind, bundles, writer, record):
        builder = pack.PackBuilder(self.vault, self.chance.randbytes(16), writer)
        sealer = self.sealer()
        out = []
        for bundle in bundles:
            raw = frame.encode(kind, bundle, sealer, writer, self.chance.randbytes(32))
            out += builder.add(frame.parse_header(raw), raw)
        if record:
            raw = frame.encode_commit(record, writer)
            out += builder.add(frame.parse_header(raw), raw)
        rest, plan = builder.finish()
        self.file_pack(plan.root, b"".join(out + rest))

    def file_pack(self, root: PackId, raw):
        folder = self.top / "packs" / root.hex()[:2]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / root.hex()).write_bytes(raw)


class DeviceMaker:
    """One device and its chain."""

    def __init__(self, maker, name):
        self.maker, self.name = maker, name
        self.seed = maker.chance.randbytes(32)
        self.device = public_of(self.seed)
        self.incarnation = maker.chance.randbytes(16)
        self.head = None
        self.sequence = 0
        self.sources = {}

    def commit(self, source, path, *, at=None, time_ms=None, received_ms=None, fold=False, witnesses=()):
        """Commits the tree at `path` as the source `source`, which lies at `at` (else there) on the device."""
        rows = scan(path, self)
        self.sequence += 1
        old = self.sources.get(source)
        data, nodes = [], []
        rows = [(key, self._entry(entry, file, data, nodes)) for key, entry, file in rows]
        if old is None or fold:
            base, runs, changes = self._tree(rows, nodes), (), rows
        else:
            changes = sorted(changes_of(old["rows"], dict(rows)).items())
            base = old["base"]
            runs = (*old["runs"], *([self._tree(changes, nodes)] if changes else []))
        writer = self.device[:8]
        self.maker.write_packs(frame.DATA, data, writer)
        self.maker.write_packs(frame.NODE, nodes, writer, self.head.raw if self.head else b"")
        time_ms = 1_000_000 * self.sequence if time_ms is None else time_ms
        identity = old["id"] if old else self.maker.chance.randbytes(8)
        details = commit.Details(
            self.name, source, os.fsencode(at or path), sum(e.kind == FILE for _, e in rows), len(rows),
            sum(e.content.length for _, e in rows if e.content), len(changes), 0, 0, True, "test",
        )  # fmt: skip
        record = commit.Commit(
            1, self.maker.vault, self.device, self.incarnation, self.sequence,
            self.head.id if self.head else commit.NO_PREVIOUS, time_ms, identity, base, runs, tuple(witnesses),
            vouch(self.maker.keys.admin_seed, self.maker.vault, self.device),
            commit.seal_details(details, self.maker.sealer(), self.maker.chance.randbytes(32)),
        )  # fmt: skip
        self.head = commit.encode(record, self.seed)
        self.sources[source] = {"id": identity, "rows": dict(rows), "base": base, "runs": runs}
        self.maker.accept(self.head, time_ms + 1000 if received_ms is None else received_ms)
        return self.head

    def _tree(self, rows, nodes):
        writer = self.maker.keys.writer
        tree = TreeWriter(
            writer.node_id, writer.split, lambda id_, node: nodes.append(frame.Chunk(id_, node.payload, node.refs))
        )
        return tree.build(rows)

    def _entry(self, entry, file, data, nodes):
        """The entry with its content, whose chunks go to `data` and list nodes to `nodes`."""
        if entry.kind != FILE:
            return entry
        keys = self.maker.keys.writer
        hasher, length, parts = Hasher(), 0, []
        spans = SpanListWriter(
            keys.node_id,
            lambda id_: int.from_bytes(id_[:8], "little"),
            lambda id_, node: nodes.append(frame.Chunk(id_, node.payload, node.refs)),
        )
        for piece in pieces_of(file, entry.extents, self.maker.chunk):
            hasher.update(piece)
            length += len(piece)
            parts.append(piece)
            if length > INLINE_MAX:
                for part in parts:
                    id_ = keys.data_id(part)
                    data.append(frame.Chunk(id_, part))
                    spans.add(id_, len(part))
                parts.clear()
        if length <= INLINE_MAX:
            content = Content(length, hasher.digest(), b"".join(parts), 0, ())
        else:
            level, ids = spans.finish()
            assert len(ids) <= CHUNKS_MAX
            content = Content(length, hasher.digest(), None, level, ids)
        fields = {name: getattr(entry, name) for name in entry.__struct_fields__}
        return Entry(**{**fields, "content": content})


def changes_of(old, new):
    """The run that leads from one dict of rows to another."""
    changes = {key: entry for key, entry in new.items() if old.get(key) != entry}
    return changes | {key: None for key in old.keys() - new.keys()}


def pieces_of(path, extents, size):
    """The data of a file in pieces of at most `size` bytes, none across two extents."""
    with open(path, "rb") as file:
        for offset, length in extents if extents is not None else ((0, os.path.getsize(path)),):
            file.seek(offset)
            while length:
                piece = file.read(min(size, length))
                length -= len(piece)
                yield piece


def scan(top, device):
    """Sorted (key, entry without content, path) of everything below `top`, which may be a file's directory."""
    top = os.fsencode(top)
    rows = [((TOP_DIR, b""), entry_of(top, TOP_DIR), top)]
    pending = [(top, bytes(TOP_DIR))]
    while pending:
        folder, dir_id = pending.pop()
        for name in os.listdir(folder):
            path = os.path.join(folder, name)
            own = hashlib.sha256(b"%d" % os.lstat(path).st_ino).digest()[:8]  # kept when it is renamed
            entry = entry_of(path, own)
            rows.append(((dir_id, name), entry, path))
            if entry.kind == DIRECTORY:
                pending.append((path, own))
    return sorted(rows, key=lambda row: row[0])


def entry_of(path, dir_id):
    """The entry of what is at `path`, without content."""
    st = os.lstat(path)
    kind = KINDS[stat.S_IFMT(st.st_mode)]
    extents = None
    if kind == FILE:
        found = extents_of(path)
        if sum(length for _, length in found) < st.st_size:
            extents = found
    return Entry(
        kind, stat.S_IMODE(st.st_mode), st.st_uid, st.st_gid, "", "", st.st_size if kind == FILE else 0,
        st.st_mtime_ns, st.st_ctime_ns,
        dir=dir_id if kind == DIRECTORY else b"",
        target=os.readlink(path) if kind == SYMLINK else b"",
        rdev=(os.major(st.st_rdev), os.minor(st.st_rdev)) if kind in (CHARACTER, BLOCK) else None,
        xattrs=tuple(sorted((os.fsencode(n), os.getxattr(path, n, follow_symlinks=False)) for n in _xattrs(path))),
        extents=extents,
        link=struct.pack("<Q", st.st_ino) if kind == FILE and st.st_nlink > 1 else b"",
    )  # fmt: skip


def _xattrs(path):
    try:
        return os.listxattr(path, follow_symlinks=False)
    except OSError:
        return []
