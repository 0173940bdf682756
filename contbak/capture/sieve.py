"""Compares the names of one directory with what is known of them: what the time of a scan goes into.

Rules: one pack of the stat per name, compared as bytes; only what differs becomes an object.  Nothing of the source
is open when `sift` returns: a commit, which may take long, can come before the next directory's turn.

It decides nothing about what differs: capture/scan does.
"""

from __future__ import annotations

import os
import stat
import struct
from typing import NamedTuple

from contbak.capture.databases import database_beside, databases_among, is_left_out, is_side
from contbak.capture.findings import Trouble
from contbak.capture.listing import listed, opened
from contbak.capture.proof import PACKED_FILE
from contbak.capture.proofs import Proofs
from contbak.core.excludes import Excludes

_HELD = 4_096
"""Names of one directory whose stat is held until their turn comes; others are asked for it again."""


class Sifted(NamedTuple):
    """What must be looked at of a directory.

    differing  names, stat (None: ask again), and what is known of them, packed
    troubles   what could not be looked at
    missing    what is known of names that are not there
    databases  the names beside which something lies
    unchanged  how many names are as they were
    """

    differing: list[tuple[bytes, os.stat_result | None, bytes]]
    troubles: list[Trouble]
    missing: dict[bytes, bytes]
    databases: frozenset[bytes]
    unchanged: int


class Sieve:
    """`top`: the source's absolute path; `excludes` decides what is left out."""

    def __init__(self, top: bytes, proofs: Proofs, excludes: Excludes) -> None:
        self._top = top
        self._proofs = proofs
        self._excludes = excludes

    def sift(self, path: bytes, dir_id: bytes) -> Sifted:
        """The names of the directory at `path`, relative to the source.  Raises OSError if it cannot be listed."""
        absolute = self._absolute(path)
        descriptor = opened(absolute)
        try:
            return self._compare(path, dir_id, listed(absolute, descriptor))
        finally:
            os.close(descriptor)

    def is_left_beside(self, key: tuple[bytes, bytes], path: bytes, st: os.stat_result) -> bool:
        """Whether the file goes along with a database that SQLite copies, and is no file of its own."""
        if not is_side(key[1]) or not stat.S_ISREG(st.st_mode):
            return False
        return is_left_out(self._absolute(path), self._proofs.find(key[0], database_beside(key[1])))

    def _compare(self, path: bytes, dir_id: bytes, named: list[tuple[bytes, os.DirEntry[str]]]) -> Sifted:
        prefix = path + b"/" if path else b""
        known = self._proofs.packed(dir_id)
        databases = databases_among([name for name, _ in named])
        differing: list[tuple[bytes, os.stat_result | None, bytes]] = []
        troubles: list[Trouble] = []
        left_out = self._excludes.excluded if self._excludes.reach(path) else None
        pack, take, unchanged = PACKED_FILE.pack, known.pop, 0
        for name, entry in named:
            try:
                if left_out is not None and left_out(prefix + name, entry.is_dir(follow_symlinks=False)):
                    continue
                st = entry.stat(follow_symlinks=False)
                mode, inode, _, links, uid, gid, size, _, _, _ = st
                now = pack(mode, uid, gid, size, st.st_mtime_ns, st.st_ctime_ns, inode, links, st.st_rdev)
            except FileNotFoundError:
                continue
            except OSError as error:
                take(name, None)
                troubles.append(Trouble(prefix + name, reason_of(error)))
                continue
            except struct.error:
                now = b"?"  # neither known nor unknown: it is looked at
            if databases and self.is_left_beside((dir_id, name), prefix + name, st):
                continue
            old = take(name, b"")
            if now == old and name not in databases:
                unchanged += 1
            else:
                differing.append((name, st if len(differing) < _HELD else None, old))
        return Sifted(differing, troubles, known, databases, unchanged)

    def _absolute(self, path: bytes) -> bytes:
        return os.path.join(self._top, path) if path else self._top


def reason_of(error: OSError) -> str:
    """What the system says, to be put into a sentence."""
    return (error.strerror or str(error)).lower()
