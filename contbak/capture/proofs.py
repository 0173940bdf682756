"""What is known to be safe: one row per name of a source, written only when a commit that holds it was acknowledged.

Tables (all keys begin with the 8 bytes of the source):
    clean        directory id, name   -> the stat that the acknowledged copy was made from
    staged       directory id, name   -> the same and the new entry, for the commit in the making; nil entry = gone
    directories  directory id         -> parent's directory id, name: where it was last seen
    inodes       inode number         -> directory id, so that a moved directory is known again
    links        link id              -> how many names the file had when it was last looked at

A lost or damaged row only means that a file is read again.  Rules: `clean` changes in `confirm` alone; the other
tables are hints and may run ahead of it.  One thread uses a Proofs at a time.
"""

from __future__ import annotations

import stat
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import blake2b
from itertools import islice

from contbak.core import codec
from contbak.core.entry import DIRECTORY, Entry
from contbak.core.names import DIR_ID_LEN, SOURCE_ID_LEN, TOP_DIR, DirId, SourceId
from contbak.store.kv import Kv, Writer

TABLES = ("clean", "staged", "directories", "inodes", "links")
_HEAD = struct.Struct("<BH8s")
_FLUSH_ROWS = 2_000
_FILE = struct.Struct("<IIIQ")


@dataclass(frozen=True, slots=True)
class Proof:
    """The stat (a fingerprint of capture.attributes) that the copy of one name was made from.

    `directory`: the directory's own id, b"" for anything else.
    """

    fingerprint: bytes
    directory: bytes = b""

    @property
    def mode(self) -> int:
        return int.from_bytes(self.fingerprint[:4], "little")

    @property
    def size(self) -> int:
        """Bytes of a regular file, 0 for anything else."""
        return _FILE.unpack_from(self.fingerprint)[3] if stat.S_ISREG(self.mode) else 0


@dataclass(frozen=True, slots=True)
class Staged:
    """One row of the commit in the making; `entry` nil: the name is gone."""

    dir_id: bytes
    name: bytes
    proof: Proof | None
    entry: Entry | None


@dataclass(slots=True)
class Totals:
    """What a source holds, and what a commit changed in it."""

    files: int = 0
    entries: int = 0
    size: int = 0
    new: int = 0
    changed: int = 0
    gone: int = 0

    def count(self, old: Proof | None, new: Proof | None) -> None:
        """Takes the step from `old` to `new` into account."""
        for proof, sign in ((old, -1), (new, 1)):
            if proof is not None:
                self.entries += sign
                self.files += sign * stat.S_ISREG(proof.mode)
                self.size += sign * proof.size
        if old is None and new is not None:
            self.new += 1
        elif old is not None and new is None:
            self.gone += 1
        elif old is not None:
            self.changed += 1


class Proofs:
    """The rows of one source."""

    def __init__(self, kv: Kv, source: SourceId) -> None:
        self._kv = kv
        self._source = source
        self._fresh: dict[str, dict[bytes, bytes]] = {table: {} for table in TABLES[2:]}
        self._staged: dict[bytes, dict[bytes, bytes]] = {}
        self._waiting = 0

    # -- looking up -------------------------------------------------------------------------------------------

    def find(self, dir_id: bytes, name: bytes) -> Proof | None:
        """The newest state of a name: staged if it is, else clean; None if there is or will be none."""
        staged = self._staged.get(dir_id, {}).get(name)
        clean = None
        if staged is None:
            with self._kv.read() as rows:
                staged = rows.get("staged", self._source + dir_id + name)
                if staged is None:
                    clean = rows.get("clean", self._source + dir_id + name)
        if staged is not None:
            return _unpack_staged(staged)[0]
        return None if clean is None else _unpack(clean)

    def children(self, dir_id: bytes) -> dict[bytes, Proof]:
        """The newest state of all names in a directory."""
        start, prefix = SOURCE_ID_LEN + DIR_ID_LEN, self._source + dir_id
        with self._kv.read() as rows:
            found = {key[start:]: _unpack(value) for key, value in rows.items("clean", prefix=prefix)}
            staged = {key[start:]: value for key, value in rows.items("staged", prefix=prefix)}
        for name, value in (staged | self._staged.get(dir_id, {})).items():
            proof = _unpack_staged(value)[0]
            if proof is None:
                found.pop(name, None)
            else:
                found[name] = proof
        return found

    def directory_of(self, path: bytes) -> DirId | None:
        """The id of the directory at `path` (relative, no slash at the ends; b"" = top), None if unknown."""
        dir_id = TOP_DIR
        if path:
            for name in path.split(b"/"):
                proof = self.find(dir_id, name)
                if proof is None or not proof.directory:
                    return None
                dir_id = DirId(proof.directory)
        return dir_id

    def location(self, dir_id: bytes) -> tuple[DirId, bytes] | None:
        """(parent, name) where a directory was last seen."""
        raw = self._get("directories", dir_id)
        return None if raw is None else (DirId(raw[:DIR_ID_LEN]), raw[DIR_ID_LEN:])

    def directory_with(self, inode: int) -> DirId | None:
        """The directory that had this inode number when it was last seen."""
        raw = self._get("inodes", inode.to_bytes(8, "little"))
        return None if raw is None else DirId(raw)

    def new_directory_id(self, path: bytes) -> DirId:
        """An unused id for a directory first seen at `path`.

        It follows from the path, so that a machine that lost its state writes the same tree again; siblings share
        a prefix, which keeps them together in the tree.
        """
        parent = path.rpartition(b"/")[0]
        for attempt in range(1 << 32):
            own = blake2b(attempt.to_bytes(4, "little") + path, digest_size=5).digest()
            dir_id = DirId(blake2b(parent, digest_size=3).digest() + own)
            if dir_id != TOP_DIR and self._get("directories", dir_id) is None:
                return dir_id
        raise AssertionError("unreachable: 2^32 directories of one path")

    # -- staging ----------------------------------------------------------------------------------------------

    def stage(self, dir_id: bytes, name: bytes, proof: Proof, entry: Entry) -> None:
        """The next commit will hold `entry`."""
        self._stage(dir_id, name, _pack_staged(proof, codec.encode(entry)))

    def stage_gone(self, dir_id: bytes, name: bytes) -> None:
        """The next commit will not hold this name."""
        self._stage(dir_id, name, _pack_staged(None, b""))

    def place(self, dir_id: bytes, parent: bytes, name: bytes, inode: int) -> None:
        """Notes where a directory is."""
        self._put("directories", dir_id, parent + name)
        self._put("inodes", inode.to_bytes(8, "little"), dir_id)

    def links_changed(self, link: bytes, count: int) -> bool:
        """Whether a file's number of names differs from when it was last asked; notes the new one."""
        raw = count.to_bytes(4, "little")
        if self._get("links", link) == raw:
            return False
        self._put("links", link, raw)
        return True

    def flush(self) -> None:
        """Writes what was staged since the last flush, in one transaction."""
        if not self._waiting:
            return
        with self._kv.write() as rows:
            for dir_id, names in self._staged.items():
                for name, value in names.items():
                    rows.put("staged", self._source + dir_id + name, value)
            for table, fresh in self._fresh.items():
                for key, value in fresh.items():
                    rows.put(table, key, value)
        self._forget_fresh()

    def staged(self) -> Iterator[Staged]:
        """All staged rows, sorted by directory id and name."""
        self.flush()
        at = SOURCE_ID_LEN + DIR_ID_LEN
        for key, value in self._kv.scan("staged", prefix=self._source):
            proof, raw = _unpack_staged(value)
            entry = codec.decode(raw, Entry, "a staged entry") if proof is not None else None
            yield Staged(key[SOURCE_ID_LEN:at], key[at:], proof, entry)

    def any_staged(self) -> bool:
        """Whether the next commit would change anything."""
        if self._staged:
            return True
        with self._kv.read() as rows:
            return any(True for _ in rows.items("staged", prefix=self._source))

    def totals(self, before: Totals) -> Totals:
        """What the source will hold once all that is staged is committed; `before`: what it holds now."""
        after = Totals(before.files, before.entries, before.size)
        self.flush()
        with self._kv.read() as rows:
            for key, value in self._kv.scan("staged", prefix=self._source):
                clean = rows.get("clean", key)
                old, new = None if clean is None else _unpack(clean), _unpack_staged(value)[0]
                if old is not None or new is not None:
                    after.count(old, new)
        return after

    def confirm(self, batch: int = 10_000) -> None:
        """What was staged is acknowledged, so it is clean.  Several transactions; may be repeated after a crash."""
        self.flush()
        while True:
            with self._kv.write() as rows:
                part = list(islice(rows.items("staged", prefix=self._source), batch))
                for key, value in part:
                    self._confirm(rows, key, _unpack_staged(value)[0])
            if len(part) < batch:
                return

    def _confirm(self, rows: Writer, key: bytes, proof: Proof | None) -> None:
        if proof is not None:
            rows.put("clean", key, _pack(proof))
        else:
            clean = rows.get("clean", key)
            directory = b"" if clean is None else _unpack(clean).directory
            if directory and rows.get("directories", self._source + directory) == key[SOURCE_ID_LEN:]:
                rows.delete("directories", self._source + directory)
            rows.delete("clean", key)
        rows.delete("staged", key)

    def drop_staged(self) -> None:
        """Forgets what was staged: those names will be looked at again."""
        self._forget_fresh()
        self._drop("staged")

    def forget(self) -> None:
        """The source is no longer protected."""
        self._forget_fresh()
        for table in TABLES:
            self._drop(table)

    def _drop(self, table: str, batch: int = 10_000) -> None:
        while True:
            with self._kv.write() as rows:
                keys = [key for key, _ in islice(rows.items(table, prefix=self._source), batch)]
                for key in keys:
                    rows.delete(table, key)
            if len(keys) < batch:
                return

    def doubt(self, dir_id: bytes, name: bytes) -> None:
        """The copy of this name may be lost at the relay: it counts as changed until it is read again."""
        key = self._source + dir_id + name
        with self._kv.write() as rows:
            clean = rows.get("clean", key)
            if clean is not None:
                proof = _unpack(clean)
                rows.put("clean", key, _pack(Proof(void(proof.fingerprint), proof.directory)))

    # -- rows -------------------------------------------------------------------------------------------------

    def _get(self, table: str, key: bytes) -> bytes | None:
        key = self._source + key
        fresh = self._fresh[table].get(key)
        if fresh is not None:
            return fresh
        with self._kv.read() as rows:
            return rows.get(table, key)

    def _put(self, table: str, key: bytes, value: bytes) -> None:
        self._fresh[table][self._source + key] = value
        self._count()

    def _stage(self, dir_id: bytes, name: bytes, value: bytes) -> None:
        self._staged.setdefault(dir_id, {})[name] = value
        self._count()

    def _count(self) -> None:
        self._waiting += 1
        if self._waiting >= _FLUSH_ROWS:
            self.flush()

    def _forget_fresh(self) -> None:
        self._staged.clear()
        for fresh in self._fresh.values():
            fresh.clear()
        self._waiting = 0


def void(fingerprint: bytes) -> bytes:
    """A fingerprint that no file has, with the same mode and size."""
    return fingerprint[:-1] + bytes((fingerprint[-1] ^ 0xFF,))


def proof_of(entry: Entry, fingerprint: bytes) -> Proof:
    """The proof that goes with an entry."""
    return Proof(fingerprint, entry.dir if entry.kind == DIRECTORY else b"")


def _pack(proof: Proof) -> bytes:
    return proof.directory.ljust(8, b"\0") + bytes((bool(proof.directory),)) + proof.fingerprint


def _unpack(raw: bytes) -> Proof:
    return Proof(raw[9:], raw[:8] if raw[8] else b"")


def _pack_staged(proof: Proof | None, entry: bytes) -> bytes:
    if proof is None:
        return _HEAD.pack(0, 0, b"")
    return _HEAD.pack(2 if proof.directory else 1, len(proof.fingerprint), proof.directory) + proof.fingerprint + entry


def _unpack_staged(raw: bytes) -> tuple[Proof | None, bytes]:
    kind, length, directory = _HEAD.unpack_from(raw)
    if not kind:
        return None, b""
    at = _HEAD.size + length
    return Proof(raw[_HEAD.size : at], directory if kind == 2 else b""), raw[at:]
