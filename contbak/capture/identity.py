"""Which directory is which: they keep their ids when they move, and rows leave with the directory that is gone.

One Identities serves one Scan.  Rules: the inode number recognises a directory, but only one that is not where it
was any more (else it is a second mount of it); whoever takes an id away from a place empties the place; nothing is
staged as gone before `finish`, when all places were looked at.
"""

from __future__ import annotations

import os
from collections.abc import Callable

from contbak.capture.attributes import fingerprint_of_directory
from contbak.capture.proof import Proof
from contbak.capture.proofs import Proofs
from contbak.core.names import TOP_DIR

Key = tuple[bytes, bytes]
"""(directory id, name)"""

_DEPTH_MAX = 4096


class Identities:
    """`top` is the source's absolute path, `device` the st_dev of its file system."""

    def __init__(self, top: bytes, device: int, proofs: Proofs) -> None:
        self._top = top
        self._device = device
        self._proofs = proofs
        self._missing: dict[Key, bytes] = {}
        self._detached: dict[bytes, None] = {}
        self.changes = 0
        """Rises whenever a path may lead to another directory than before."""

    def fingerprint(self, st: os.stat_result) -> bytes:
        """With inode number 0 for what is mounted: numbers of another file system say nothing in this one."""
        made = fingerprint_of_directory(st)
        return made if st.st_dev == self._device else made[:-8] + bytes(8)

    def identify(self, key: Key, path: bytes, st: os.stat_result, proof: Proof | None) -> tuple[bytes, bool]:
        """(id of the directory at `path`, whether all beneath it must be looked at); `proof`: that of the key.

        What moved here must be looked at, too: a reused inode number looks like a move.
        """
        self._missing.pop(key, None)
        mounted = st.st_dev != self._device
        if proof is not None and proof.directory:
            if mounted or proof.inode in (st.st_ino, 0):
                return proof.directory, proof.inode == 0
            self.detach(proof.directory)
        known = None if mounted else self._proofs.directory_with(st.st_ino)
        before = self._proofs.location(known) if known is not None else None
        if known is None or before is None or self._is_in_place(before, st):
            return self._proofs.new_directory_id(path), True
        old = self._proofs.find(*before)
        if old is not None and old.directory == known:
            self._proofs.stage_gone(*before)
            self.changes += 1
        return known, True

    def detach(self, dir_id: bytes) -> None:
        """Something else is in the place of this directory."""
        self._detached[dir_id] = None
        self.changes += 1

    def miss(self, key: Key, dir_id: bytes) -> None:
        """The directory is not in its place."""
        self._missing[key] = dir_id
        self.changes += 1

    def finish(self, lost: Callable[[Key, Proof], None]) -> None:
        """Stages as gone the directories that were not found again, with all that was in them: `lost` is told."""
        for key, dir_id in self._missing.items():
            proof = self._proofs.find(*key)
            if proof is not None and proof.directory == dir_id:
                self._proofs.stage_gone(*key)
                self._detached[dir_id] = None
        queue = [*self._detached, *self._proofs.detached()]
        while queue:
            dir_id = queue.pop()
            if self._proofs.attached(dir_id):
                continue
            for name, proof in self._proofs.children(dir_id).items():
                self._proofs.stage_gone(dir_id, name)
                lost((dir_id, name), proof)
                if proof.directory:
                    queue.append(proof.directory)
        self._missing.clear()
        self._detached.clear()

    def path_of(self, key: Key) -> bytes | None:
        """Where a row is, as far as is known; None for what is in a directory without a place."""
        dir_id, name = key
        names = [name]
        while dir_id != TOP_DIR:
            above = self._proofs.location(dir_id)
            if above is None or len(names) > _DEPTH_MAX:
                return None
            dir_id, name = above
            names.append(name)
        return b"/".join(reversed(names))

    def is_at(self, path: bytes, inode: int) -> bool:
        """Whether the file or directory with this inode number is (also) at `path`."""
        try:
            there = os.lstat(os.path.join(self._top, path))
        except OSError:
            return False
        return (there.st_dev, there.st_ino) == (self._device, inode)

    def _is_in_place(self, before: Key, st: os.stat_result) -> bool:
        path = self.path_of(before)
        return path is not None and self.is_at(path, st.st_ino)
