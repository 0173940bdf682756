"""Files with several names: who changes one changes all of them, and no event names the others.

One Links serves one Scan.  It collects the changed files while the scan looks, then says which other names are to be
looked at.  Rules: what is collected is bounded; when in doubt it asks for a scan of the whole source (`wanted`).
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field

from contbak.capture.identity import Identities, Key
from contbak.capture.proof import Proof
from contbak.capture.proofs import Proofs

_REMEMBERED = 10_000


@dataclass(slots=True)
class _File:
    """`count`: how many names it has, 0 if that need not be known: whoever looked before asked for the others."""

    seen: set[Key] = field(default_factory=set)
    count: int = 0


class Links:
    """The changed files that have, or had, several names."""

    def __init__(self, proofs: Proofs, identities: Identities) -> None:
        self._proofs = proofs
        self._identities = identities
        self._files: dict[int, _File] = {}
        self.wanted = False
        """A file has names that were not looked at: a scan of the whole source finds them."""

    def note(self, key: Key, st: os.stat_result, proof: Proof | None) -> None:
        """A file at `key` changed, or is new; `proof`: what is known of it."""
        if proof is not None and proof.mark.inode != st.st_ino:
            self.lost(key, proof)
        had = proof.mark.links if proof is not None else 0
        if max(st.st_nlink, had) > 1:
            self._file(st.st_ino, key).count = st.st_nlink if st.st_nlink != had else 0

    def lost(self, key: Key, proof: Proof) -> None:
        """What was at `key` is not there any more."""
        if proof.mark.links > 1:
            self._file(proof.mark.inode, key)

    def forget(self) -> None:
        """All names were looked at."""
        self._files.clear()

    def others(self) -> list[tuple[Key, bytes]]:
        """(key, path) of the other names of all files noted since the last call."""
        files, self._files = self._files, {}
        found: list[tuple[Key, bytes]] = []
        for inode, file in files.items():
            there = set(file.seen)
            for key in self._proofs.names_of(inode):
                path = self._identities.path_of(key)
                if key not in there and path is not None and self._identities.is_at(path, inode):
                    there.add(key)
                    found.append((key, path))
            if len(there) < file.count:
                self.wanted = True
        return found

    def finish(self) -> None:
        """No more will be looked at: what was noted since is only asked for."""
        files, self._files = self._files, {}
        self.wanted = self.wanted or any(
            self._is_kept(inode, *key) for inode in files for key in self._proofs.names_of(inode)
        )

    def _is_kept(self, inode: int, dir_id: bytes, name: bytes) -> bool:
        proof = self._proofs.find(dir_id, name)
        return proof is not None and proof.mark.inode == inode

    def _file(self, inode: int, key: Key) -> _File:
        if len(self._files) >= _REMEMBERED:
            self._files.clear()
            self.wanted = True
        file = self._files.setdefault(inode, _File())
        file.seen.add(key)
        return file
