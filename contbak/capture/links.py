"""Files with several names: who changes one changes all of them, and no event names the others.

One Links serves one Scan.  It collects the changed files while the scan looks, then says which other names are to be
looked at.  Rules: what is collected is bounded; when in doubt it asks for a scan of the whole source (`wanted`).
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field

from contbak.capture.identity import Identities, Key
from contbak.capture.proofs import Proof, Proofs

_REMEMBERED = 10_000


@dataclass(slots=True)
class _File:
    """`told`: it had as many names before, and whoever looked then asked for the others."""

    st: os.stat_result
    seen: set[Key] = field(default_factory=set)
    told: bool = False


class Links:
    """The changed files that have, or had, several names."""

    def __init__(self, proofs: Proofs, identities: Identities) -> None:
        self._proofs = proofs
        self._identities = identities
        self._files: dict[int, _File] = {}
        self.wanted = False
        """A file has names that are not known: a scan of the whole source finds them."""

    def note(self, key: Key, st: os.stat_result, proof: Proof | None) -> None:
        """A file at `key` changed, or is new; `proof`: what is known of it."""
        had = proof.mark.links if proof is not None else 0
        if max(st.st_nlink, had) < 2:
            return
        if len(self._files) >= _REMEMBERED:
            self._files.clear()
            self.wanted = True
        file = self._files.setdefault(st.st_ino, _File(st))
        file.seen.add(key)
        file.told |= st.st_nlink == had

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
                if key not in there and path is not None and self._identities.is_at(path, file.st):
                    there.add(key)
                    found.append((key, path))
            if not file.told and len(there) < file.st.st_nlink:
                self.wanted = True
        return found
