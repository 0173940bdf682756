"""Looks at paths of a source and finds out what differs from the proofs.

Directories, links and special files are staged at once; regular files that changed are handed out to be read.
Rules: a directory that cannot be listed never becomes deletions; a directory that moved keeps its id, so nothing
beneath it is touched; what is gone is staged as gone only when the whole batch was looked at (`finish`), so that
a move is seen as one whatever the order of its two ends.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass

from contbak.capture.attributes import fingerprint, fingerprint_of_directory, link_id, stat_entry, with_fields
from contbak.capture.proofs import Proof, Proofs
from contbak.core.errors import SourceError
from contbak.core.names import TOP_DIR

CACHEDIR_TAG = b"CACHEDIR.TAG"
CACHEDIR_SIGNATURE = b"Signature: 8a477f597d28d172789f06886806bc55"
MARKERS = (CACHEDIR_TAG, b".nobackup")

Prune = Callable[[bytes, bool], bool]
"""(path relative to the source, is it a directory) -> leave it out."""


@dataclass(frozen=True, slots=True)
class Read:
    """A regular file that must be read.  `path` is relative to the source."""

    path: bytes
    dir_id: bytes
    name: bytes
    size: int
    known: bool


@dataclass(frozen=True, slots=True)
class Trouble:
    """A path that could not be looked at."""

    path: bytes
    reason: str


@dataclass(slots=True)
class Counts:
    """Names looked at, names that had not changed."""

    seen: int = 0
    unchanged: int = 0


class Scan:
    """One batch of looking; make a new one for each batch.

    `top`: the source's absolute path; `prune` decides what is left out; the file system of `top` is not left.
    """

    def __init__(self, top: bytes, proofs: Proofs, prune: Prune) -> None:
        self._top = top
        self._proofs = proofs
        self._prune = prune
        self._device = os.lstat(top).st_dev
        self._orphans: dict[bytes, tuple[bytes, bytes] | None] = {}
        self._claimed: set[bytes] = set()
        self._looked: set[bytes] = set()
        self.counts = Counts()
        self.links_wanted = False
        """A file gained or lost names that this batch did not see: a scan of the whole source finds them."""

    def look(self, path: bytes, subtree: bool = False, forced: bool = False) -> Iterator[Read | Trouble]:
        """Compares one path, and all beneath it if `subtree` or if it is a directory that was not known."""
        anchor = self._anchor(path)
        if anchor != path:
            path, subtree = anchor, True
        parent, _, name = path.rpartition(b"/")
        dir_id = self._proofs.directory_of(parent)
        if dir_id is None:  # the source itself was never looked at
            yield from self.look(b"", subtree=True)
            return
        if path and parent not in self._looked:
            self._looked.add(parent)
            yield from self._look_at_parent(parent)
        st = yield from self._stat(path)
        if isinstance(st, Trouble):
            return
        if st is None or (path and self._left_out(path, st)):
            self._gone(dir_id, name)
        elif not path:
            yield from self._top_directory(st, subtree)
        else:
            yield from self._compare(dir_id, name, path, st, forced, subtree)

    def finish(self) -> None:
        """Stages as gone what was not found again."""
        queue = [(dir_id, at) for dir_id, at in self._orphans.items() if dir_id not in self._claimed]
        while queue:
            dir_id, at = queue.pop()
            if at is not None:
                self._proofs.stage_gone(*at)
            for name, proof in self._proofs.children(dir_id).items():
                self._proofs.stage_gone(dir_id, name)
                if proof.directory and proof.directory not in self._claimed:
                    queue.append((proof.directory, None))
        self._orphans.clear()

    # -- one name ---------------------------------------------------------------------------------------------

    def _compare(
        self, dir_id: bytes, name: bytes, path: bytes, st: os.stat_result, forced: bool, subtree: bool
    ) -> Iterator[Read | Trouble]:
        self.counts.seen += 1
        proof = self._proofs.find(dir_id, name)
        if stat.S_ISDIR(st.st_mode):
            yield from self._directory((dir_id, name), path, st, proof, subtree)
        else:
            yield from self._leaf((dir_id, name), path, st, None if forced else proof)

    def _leaf(
        self, key: tuple[bytes, bytes], path: bytes, st: os.stat_result, proof: Proof | None
    ) -> Iterator[Read | Trouble]:
        now = fingerprint(st)
        if proof is not None and proof.fingerprint == now:
            self.counts.unchanged += 1
            return
        if proof is not None and proof.directory:
            self._orphans[proof.directory] = None
        if stat.S_ISREG(st.st_mode):
            if st.st_nlink > 1 and self._proofs.links_changed(link_id(st), st.st_nlink):
                self.links_wanted = True
            yield Read(path, *key, st.st_size, proof is not None)
            return
        try:
            entry = stat_entry(self._absolute(path), st)
        except SourceError as error:
            yield Trouble(path, error.reason)
            return
        self._proofs.stage(*key, Proof(now), entry)

    def _directory(
        self, key: tuple[bytes, bytes], path: bytes, st: os.stat_result, proof: Proof | None, subtree: bool
    ) -> Iterator[Read | Trouble]:
        own, fresh = self._identify(key, path, st, proof)
        trouble = self._stage_directory(key, own, path, st)
        if trouble is not None:
            yield trouble
        if st.st_dev == self._device and (subtree or fresh):
            yield from self._beneath(path, own)

    def _top_directory(self, st: os.stat_result, subtree: bool) -> Iterator[Read | Trouble]:
        if not stat.S_ISDIR(st.st_mode):
            yield Trouble(b"", "it is not a directory any more")
            return
        trouble = self._stage_directory((TOP_DIR, b""), TOP_DIR, b"", st)
        if trouble is not None:
            yield trouble
        if subtree:
            yield from self._beneath(b"", TOP_DIR)

    def _stage_directory(self, key: tuple[bytes, bytes], own: bytes, path: bytes, st: os.stat_result) -> Trouble | None:
        now = Proof(fingerprint_of_directory(st), own)
        if self._proofs.find(*key) == now:
            self.counts.unchanged += 1
            return None
        try:
            entry = with_fields(stat_entry(self._absolute(path), st), dir=own)
        except SourceError as error:
            return Trouble(path, error.reason)
        self._proofs.stage(*key, now, entry)
        if own != TOP_DIR:
            self._proofs.place(own, *key, st.st_ino)
        return None

    def _identify(
        self, key: tuple[bytes, bytes], path: bytes, st: os.stat_result, proof: Proof | None
    ) -> tuple[bytes, bool]:
        """(id of the directory at `path`, whether all beneath it must be looked at)."""
        known = self._proofs.directory_with(st.st_ino)
        if proof is not None and proof.directory:
            if known == proof.directory:
                return known, False
            self._orphans[proof.directory] = None
        if known is None or known in self._claimed or not self._moved(known, key, st):
            return self._proofs.new_directory_id(path), True
        before = self._proofs.location(known)
        old = self._proofs.find(*before) if before is not None else None
        self._claimed.add(known)
        if before is None or old is None or old.directory != known:
            return known, True
        if before != key:
            self._proofs.stage_gone(*before)
        # the same moment of change as before: it moved and nothing in it did, so this is not a reused inode number
        return known, old.fingerprint[12:20] != fingerprint_of_directory(st)[12:20]

    def _moved(self, known: bytes, key: tuple[bytes, bytes], st: os.stat_result) -> bool:
        before = self._proofs.location(known)
        if before is None or before == key:
            return True
        path = self._path_of(before)
        if path is None:
            return True
        try:
            there = os.lstat(self._absolute(path))
        except OSError:
            return True
        return there.st_ino != st.st_ino

    # -- many names -------------------------------------------------------------------------------------------

    def _beneath(self, path: bytes, dir_id: bytes) -> Iterator[Read | Trouble]:
        stack = [(path, dir_id)]
        while stack:
            path, dir_id = stack.pop()
            self._looked.add(path)
            try:
                listed = self._list(path)
            except OSError as error:
                yield Trouble(path, error.strerror or str(error))
                continue
            known = self._proofs.children(dir_id)
            for name in known.keys() - listed.keys() - ({b""} if not path else set()):
                self._gone(dir_id, name)
            prefix = path + b"/" if path else b""
            for name, st in listed.items():
                self.counts.seen += 1
                key, child, proof = (dir_id, name), prefix + name, known.get(name)
                if st is None:
                    yield Trouble(child, "it cannot be looked at")
                elif not stat.S_ISDIR(st.st_mode):
                    yield from self._leaf(key, child, st, proof)
                else:
                    own, _ = self._identify(key, child, st, proof)
                    trouble = self._stage_directory(key, own, child, st)
                    if trouble is not None:
                        yield trouble
                    if st.st_dev == self._device:
                        stack.append((child, own))

    def _list(self, path: bytes) -> dict[bytes, os.stat_result | None]:
        prefix = path + b"/" if path else b""
        found: dict[bytes, os.stat_result | None] = {}
        with os.scandir(self._absolute(path)) as entries:
            for entry in entries:
                try:
                    st = entry.stat(follow_symlinks=False)
                except FileNotFoundError:
                    continue
                except OSError:
                    found[entry.name] = None
                    continue
                if not self._prune(prefix + entry.name, stat.S_ISDIR(st.st_mode)):
                    found[entry.name] = st
        marker = self._marker(path, found.keys() & set(MARKERS))
        return found if marker is None else {marker: found[marker]}

    def _marker(self, path: bytes, candidates: set[bytes]) -> bytes | None:
        """The name in a directory that says: leave the rest of it out."""
        for name in sorted(candidates):
            if name != CACHEDIR_TAG:
                return name
            try:
                with open(os.path.join(self._absolute(path), name), "rb") as tag:
                    if tag.read(len(CACHEDIR_SIGNATURE)) == CACHEDIR_SIGNATURE:
                        return name
            except OSError:
                continue
        return None

    # -- paths ------------------------------------------------------------------------------------------------

    def _anchor(self, path: bytes) -> bytes:
        """`path`, or the highest of its ancestors that is not known yet: looking there finds `path` too."""
        names = path.split(b"/")
        for depth in range(1, len(names)):
            ancestor = b"/".join(names[:depth])
            if self._proofs.directory_of(ancestor) is None:
                return ancestor
        return path

    def _look_at_parent(self, parent: bytes) -> Iterator[Read | Trouble]:
        """A directory's own times change with its children, and no event says so."""
        st = yield from self._stat(parent)
        if st is None or isinstance(st, Trouble) or not stat.S_ISDIR(st.st_mode):
            return
        if not parent:
            yield from self._top_directory(st, False)
            return
        above, _, name = parent.rpartition(b"/")
        dir_id = self._proofs.directory_of(above)
        if dir_id is not None:
            yield from self._compare(dir_id, name, parent, st, False, False)

    def _stat(self, path: bytes) -> Generator[Trouble, None, os.stat_result | Trouble | None]:
        """The lstat of a path, None if there is nothing; yields and returns Trouble if it cannot be had."""
        try:
            return os.lstat(self._absolute(path))
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            trouble = Trouble(path, error.strerror or str(error))
            yield trouble
            return trouble

    def _left_out(self, path: bytes, st: os.stat_result) -> bool:
        names = path.split(b"/")
        for depth in range(1, len(names)):
            above = b"/".join(names[:depth])
            if self._prune(above, True):
                return True
        if self._prune(path, stat.S_ISDIR(st.st_mode)):
            return True
        for depth in range(len(names)):
            above = b"/".join(names[:depth])
            present = {name for name in MARKERS if os.path.lexists(os.path.join(self._absolute(above), name))}
            marker = self._marker(above, present) if present else None
            if marker is not None and names[depth:] != [marker]:
                return True
        return False

    def _gone(self, dir_id: bytes, name: bytes) -> None:
        proof = self._proofs.find(dir_id, name)
        if proof is None:
            return
        if proof.directory:
            self._orphans[proof.directory] = (dir_id, name)
        else:
            self._proofs.stage_gone(dir_id, name)

    def _path_of(self, key: tuple[bytes, bytes]) -> bytes | None:
        dir_id, name = key
        names = [name]
        while dir_id != TOP_DIR:
            above = self._proofs.location(dir_id)
            if above is None or len(names) > 4096:
                return None
            dir_id, name = above
            names.append(name)
        return b"/".join(reversed(names))

    def _absolute(self, path: bytes) -> bytes:
        return os.path.join(self._top, path) if path else self._top
