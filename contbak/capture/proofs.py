"""What is known to be safe: one row per name of a source, written only when a commit that holds it was acknowledged.

Tables (all keys begin with the 8 bytes of the source):
    clean   directory id, name   -> the stat that the acknowledged copy was made from
    staged  directory id, name   -> the same and the new entry, for the commit in the making; nil entry = gone
    placed  directory id         -> where the staged rows have it (as in `directories` of contbak.capture.whereabouts)

A lost or damaged row only means that a file is read again.  Rules: `clean` and its indexes change together, in
`confirm`, and for single rows in `renew`; what is staged can be dropped at any time and leaves no trace.  One thread
uses a Proofs at a time, and one Proofs of a source stages at a time.
"""

from __future__ import annotations

import stat
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import blake2b
from itertools import islice

from contbak.capture import whereabouts
from contbak.capture.proof import Proof, void
from contbak.core import codec
from contbak.core.entry import Entry
from contbak.core.names import DIR_ID_LEN, SOURCE_ID_LEN, TOP_DIR, DirId, SourceId
from contbak.core.node import Key, check_entry
from contbak.store.kv import Kv, Reader, Writer

TABLES = ("clean", "staged", "placed", *whereabouts.TABLES)
_HEAD = struct.Struct("<BH8s")
_FLUSH_ROWS = 2_000


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
        self._placed: dict[bytes, bytes] = {}
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

    def committed(self, dir_id: bytes, name: bytes) -> Proof | None:
        """The state that the last commit holds; None if there is none, or another one is staged."""
        key = self._source + dir_id + name
        if name in self._staged.get(dir_id, {}):
            return None
        with self._kv.read() as rows:
            clean = None if rows.get("staged", key) is not None else rows.get("clean", key)
        return None if clean is None else _unpack(clean)

    def children(self, dir_id: bytes) -> dict[bytes, Proof]:
        """The newest state of all names in a directory (not of the source's top, which is no name in it)."""
        start, prefix = SOURCE_ID_LEN + DIR_ID_LEN, self._source + dir_id
        with self._kv.read() as rows:
            found = {key[start:]: _unpack(value) for key, value in rows.items("clean", prefix=prefix)}
            staged = {key[start:]: value for key, value in rows.items("staged", prefix=prefix)}
        staged.update(self._staged.get(dir_id, {}))
        for name, value in staged.items():
            proof = _unpack_staged(value)[0]
            if proof is None:
                found.pop(name, None)
            else:
                found[name] = proof
        found.pop(b"", None)
        return found

    def location(self, dir_id: bytes) -> tuple[DirId, bytes] | None:
        """(parent, name) where a directory is, or was if it is detached."""
        with self._kv.read() as rows:
            raw = self._place(rows, dir_id)
        if raw is None:
            return None
        _, parent, name = whereabouts.parted(raw)
        return DirId(parent), name

    def attached(self, dir_id: bytes) -> bool:
        """Whether there is a row that leads to this directory."""
        key = self.location(dir_id)
        proof = None if key is None else self.find(*key)
        return proof is not None and proof.directory == dir_id

    def directory_with(self, inode: int) -> DirId | None:
        """The directory that has this inode number as far as is known; it may be detached."""
        with self._kv.read() as rows:
            raw = rows.get("inodes", self._source + whereabouts.number(inode))
            place = None if raw is None else self._place(rows, raw)
        if raw is None or place is None or whereabouts.parted(place)[0] != inode:
            return None
        return DirId(raw)

    def names_of(self, inode: int) -> list[tuple[DirId, bytes]]:
        """The names that a file with several of them has as of the last commit."""
        prefix = self._source + whereabouts.number(inode)
        with self._kv.read() as rows:
            keys = [key[len(prefix) :] for key, _ in rows.items("links", prefix=prefix)]
        return [(DirId(key[:DIR_ID_LEN]), key[DIR_ID_LEN:]) for key in keys]

    def detached(self) -> list[DirId]:
        """Directories whose row a commit replaced while there were rows in them."""
        with self._kv.read() as rows:
            return [DirId(key[SOURCE_ID_LEN:]) for key, _ in rows.items("detached", prefix=self._source)]

    def new_directory_id(self, path: bytes) -> DirId:
        """An unused id for a directory first seen at `path`.

        It follows from the path, so that a machine that lost its state writes the same tree again; siblings share
        a prefix, which keeps them together in the tree.
        """
        parent = path.rpartition(b"/")[0]
        for attempt in range(1 << 32):
            own = blake2b(attempt.to_bytes(4, "little") + path, digest_size=5).digest()
            dir_id = DirId(blake2b(parent, digest_size=3).digest() + own)
            if dir_id != TOP_DIR and self.location(dir_id) is None:
                return dir_id
        raise AssertionError("unreachable: 2^32 directories of one path")

    # -- staging ----------------------------------------------------------------------------------------------

    def stage(self, dir_id: bytes, name: bytes, proof: Proof, entry: Entry) -> None:
        """The next commit will hold `entry`.  Raises FormatError, and has not taken it, if no tree may hold it."""
        raw = checked((dir_id, name), entry)
        mark = proof.mark
        if mark.directory:
            self._placed[mark.directory] = whereabouts.number(mark.inode) + dir_id + name
        self._stage(dir_id, name, _pack_staged(proof, raw))

    def stage_encoded(self, dir_id: bytes, name: bytes, proof: Proof, raw: bytes) -> None:
        """As `stage` of a file whose entry is encoded and was checked already."""
        self._stage(dir_id, name, _pack_staged(proof, raw))

    def stage_gone(self, dir_id: bytes, name: bytes) -> None:
        """The next commit will not hold this name."""
        self._stage(dir_id, name, _pack_staged(None, b""))

    def renew(self, dir_id: bytes, name: bytes, proof: Proof) -> None:
        """The copy that the last commit holds was found to be right as of this stat too.  Nothing may be staged."""
        with self._kv.write() as rows:
            _confirm(rows, self._source + dir_id + name, proof)

    def flush(self) -> None:
        """Writes what was staged since the last flush, in one transaction."""
        if not self._waiting:
            return
        with self._kv.write() as rows:
            for dir_id, names in self._staged.items():
                for name, value in names.items():
                    rows.put("staged", self._source + dir_id + name, value)
            for dir_id, place in self._placed.items():
                rows.put("placed", self._source + dir_id, place)
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
                    _confirm(rows, key, _unpack_staged(value)[0])
            if len(part) < batch:
                break
        self._drop("placed")
        whereabouts.sweep(self._kv, self._source, batch)

    def drop_staged(self) -> None:
        """Forgets what was staged: those names will be looked at again."""
        self._forget_fresh()
        for table in ("staged", "placed"):
            self._drop(table)

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
                rows.put("clean", key, _pack(proof._replace(fingerprint=void(proof.fingerprint))))

    # -- rows -------------------------------------------------------------------------------------------------

    def _place(self, rows: Reader, dir_id: bytes) -> bytes | None:
        fresh = self._placed.get(dir_id)
        if fresh is not None:
            return fresh
        key = self._source + dir_id
        placed = rows.get("placed", key)
        return rows.get("directories", key) if placed is None else placed

    def _stage(self, dir_id: bytes, name: bytes, value: bytes) -> None:
        self._staged.setdefault(dir_id, {})[name] = value
        self._waiting += 1
        if self._waiting >= _FLUSH_ROWS:
            self.flush()

    def _forget_fresh(self) -> None:
        self._staged.clear()
        self._placed.clear()
        self._waiting = 0


def checked(key: Key, entry: Entry) -> bytes:
    """`entry` encoded.  Raises FormatError if no tree may hold it under `key`."""
    check_entry(key, entry)
    return codec.encode(entry)


def _confirm(rows: Writer, key: bytes, proof: Proof | None) -> None:
    clean = rows.get("clean", key)
    old = None if clean is None else _unpack(clean).mark
    whereabouts.note(rows, key, old, None if proof is None else proof.mark)
    if proof is not None:
        rows.put("clean", key, _pack(proof))
    else:
        rows.delete("clean", key)
    rows.delete("staged", key)


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
