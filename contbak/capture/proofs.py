"""What is known to be safe: one row per name of a source, written only when a commit that holds it was acknowledged.

Tables (all keys begin with the 8 bytes of the source):
    clean   directory id, name   -> the stat that the acknowledged copy was made from, a packed proof

What the commit in the making will change is in contbak.capture.staging, where directories are in
contbak.capture.whereabouts.  A lost or damaged row only means that a file is read again.  Rules: `clean` and its
indexes change together, in `confirm`, and for single rows in `renew`; what is staged can be dropped at any time and
leaves no trace.  One thread uses a Proofs at a time, and one Proofs of a source stages at a time, and confirms, or
after a crash another one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from itertools import groupby
from operator import itemgetter

from contbak.capture import staging, whereabouts
from contbak.capture.proof import Proof, is_plain, pack, size_in, unpack, void
from contbak.capture.staging import GONE, Staging, drop, entry_in, joined, proof_in
from contbak.core import codec
from contbak.core.entry import Entry
from contbak.core.names import DIR_ID_LEN, SOURCE_ID_LEN, TOP_DIR, DirId, SourceId
from contbak.core.node import Key, check_entry
from contbak.store.kv import Kv, Reader, Writer

TABLES = ("clean", *staging.TABLES, *whereabouts.TABLES)


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

    def count(self, old: bytes, new: bytes) -> None:
        """Takes the step from one packed proof to another into account; b"": there is none."""
        if new:
            self._add(new, 1)
        if old:
            self._add(old, -1)
        if not old:
            self.new += 1
        elif not new:
            self.gone += 1
        else:
            self.changed += 1

    def _add(self, packed: bytes, number: int) -> None:
        self.entries += number
        size = size_in(packed)
        if size is not None:
            self.files += number
            self.size += number * size


class Proofs:
    """The rows of one source."""

    def __init__(self, kv: Kv, source: SourceId) -> None:
        self._kv = kv
        self._source = source
        self._staging = Staging(kv, source)

    # -- looking up -------------------------------------------------------------------------------------------

    def find(self, dir_id: bytes, name: bytes) -> Proof | None:
        """The newest state of a name: staged if it is, else clean; None if there is or will be none."""
        with self._kv.read() as rows:
            change = self._staging.find(rows, dir_id, name)
            packed = rows.get("clean", self._source + dir_id + name) if change is None else proof_in(change)
        return unpack(packed) if packed else None

    def committed(self, dir_id: bytes, name: bytes) -> Proof | None:
        """The state that the last commit holds; None if there is none, or another one is staged."""
        return self.committed_many([(dir_id, name)])[0]

    def committed_many(self, keys: Sequence[Key]) -> list[Proof | None]:
        """`committed` for each (directory id, name)."""
        with self._kv.read() as rows:
            packed = [
                rows.get("clean", self._source + dir_id + name)
                if self._staging.find(rows, dir_id, name) is None
                else None
                for dir_id, name in keys
            ]
        return [unpack(proof) if proof else None for proof in packed]

    def packed(self, dir_id: bytes) -> dict[bytes, bytes]:
        """The newest state of all names in a directory, as packed proofs (of the source's top: not its own)."""
        with self._kv.read() as rows:
            found = rows.within("clean", self._source + dir_id)
            changes = self._staging.within(rows, dir_id)
        for name, change in changes.items():
            if change == GONE:
                found.pop(name, None)
            else:
                found[name] = proof_in(change)
        found.pop(b"", None)
        return found

    def children(self, dir_id: bytes) -> dict[bytes, Proof]:
        """The newest state of all names in a directory."""
        return {name: unpack(packed) for name, packed in self.packed(dir_id).items()}

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
        if proof.directory:
            mark = proof.mark
            if mark.directory:
                self._staging.place(mark.directory, whereabouts.number(mark.inode) + dir_id + name)
        self._staging.put(dir_id, name, joined(pack(proof), raw))

    def stage_encoded(self, dir_id: bytes, name: bytes, proof: Proof, raw: bytes) -> None:
        """As `stage` of a file whose entry is encoded and was checked already."""
        self._staging.put(dir_id, name, joined(pack(proof), raw))

    def stage_gone(self, dir_id: bytes, name: bytes) -> None:
        """The next commit will not hold this name."""
        self._staging.put(dir_id, name, GONE)

    def renew(self, dir_id: bytes, name: bytes, proof: Proof) -> None:
        """The copy that the last commit holds was found to be right as of this stat too.  Nothing may be staged."""
        with self._kv.write() as rows:
            _confirm(rows, self._source + dir_id + name, pack(proof))

    def staged(self) -> Iterator[Staged]:
        """All staged rows, sorted by directory id and name."""
        for dir_id, name, change in self._staging.all():
            if change == GONE:
                yield Staged(dir_id, name, None, None)
            else:
                entry = codec.decode_own(entry_in(change), Entry, "a staged entry")
                yield Staged(dir_id, name, unpack(proof_in(change)), entry)

    def any_staged(self) -> bool:
        """Whether the next commit would change anything."""
        return not self._staging.empty()

    def totals(self, before: Totals) -> Totals:
        """What the source will hold once all that is staged is committed; `before`: what it holds now."""
        after = Totals(before.files, before.entries, before.size)
        for dir_id, same in groupby(self._staging.all(), key=itemgetter(0)):
            self._count(after, dir_id, [(name, proof_in(change)) for _, name, change in same])
        return after

    def _count(self, totals: Totals, dir_id: bytes, changes: list[tuple[bytes, bytes]]) -> None:
        prefix = self._source + dir_id
        with self._kv.read() as rows:
            known = rows.any("clean", prefix)
            for name, packed in changes:
                old = (rows.get("clean", prefix + name) if known else None) or b""
                if old or packed:
                    totals.count(old, packed)

    def keep(self) -> None:
        """What is staged is durable on return, and so can be confirmed after a crash: to be called before the commit
        is on record."""
        self._staging.keep()

    def confirm(self, batch: int = 10_000) -> None:
        """What was staged is acknowledged, so it is clean.  Several transactions; may be repeated after a crash."""
        if self._staging.changed:
            self._staging.keep()
        left = True
        while left:
            with self._kv.write() as rows:
                left = self._confirm_some(rows, batch)
        self._staging.drop()
        whereabouts.sweep(self._kv, self._source, batch)

    def _confirm_some(self, rows: Writer, batch: int) -> bool:
        """Confirms about `batch` names; returns whether there may be more."""
        done = 0
        for key, promises in list(self._staging.promised(rows, batch // staging.BLOCK + 1)):
            for dir_id, names in promises:
                _confirm_all(rows, self._source + dir_id, names)
            rows.delete("promised", key)
            done += 1
        return done > 0

    def drop_staged(self) -> None:
        """Forgets what was staged: those names will be looked at again."""
        self._staging.drop()

    def forget(self) -> None:
        """The source is no longer protected."""
        self._staging.drop()
        for table in TABLES:
            drop(self._kv, table, self._source)

    def doubt(self, dir_id: bytes, name: bytes) -> None:
        """The copy of this name may be lost at the relay: it counts as changed until it is read again."""
        key = self._source + dir_id + name
        with self._kv.write() as rows:
            clean = rows.get("clean", key)
            if clean is not None:
                proof = unpack(clean)
                rows.put("clean", key, pack(proof._replace(fingerprint=void(proof.fingerprint))))

    # -- rows -------------------------------------------------------------------------------------------------

    def _place(self, rows: Reader, dir_id: bytes) -> bytes | None:
        staged = self._staging.place_of(rows, dir_id)
        return rows.get("directories", self._source + dir_id) if staged is None else staged


def checked(key: Key, entry: Entry) -> bytes:
    """`entry` encoded.  Raises FormatError if no tree may hold it under `key`."""
    check_entry(key, entry)
    return codec.encode(entry)


def _confirm_all(rows: Writer, prefix: bytes, names: Iterable[tuple[bytes, bytes]]) -> None:
    """Of one directory; `prefix`: source and directory id."""
    if rows.any("clean", prefix) or not all(packed for _, packed in names):
        for name, packed in names:
            _confirm(rows, prefix + name, packed)
        return
    for name, packed in names:
        if not is_plain(packed):
            whereabouts.note(rows, prefix + name, None, unpack(packed).mark)
    rows.put_many("clean", [(prefix + name, packed) for name, packed in names])


def _confirm(rows: Writer, key: bytes, packed: bytes) -> None:
    clean = rows.get("clean", key)
    if not (packed and is_plain(packed) and (clean is None or is_plain(clean))):
        old = None if clean is None else unpack(clean).mark
        whereabouts.note(rows, key, old, unpack(packed).mark if packed else None)
    if packed:
        rows.put("clean", key, packed)
    else:
        rows.delete("clean", key)
