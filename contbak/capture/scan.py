"""Looks at paths of a source and finds out what differs from the proofs.

Directories, links and special files are staged at once; regular files that changed are handed out to be read.
Rules:
- A directory that cannot be listed never becomes deletions, nor does anything when the source itself is not what it
  was (unmounted, replaced).
- A directory that moved keeps its id, so nothing beneath it is touched.  What is gone is staged as gone only when
  the whole batch was looked at (`finish`), so that a move is seen as one whatever the order of its two ends.
- Every directory on the way to a path is looked at first: it may have been replaced by a link, another directory or
  a mount, and then the path is not what it was.
- The file system of the source is not left; what is mounted in it is a directory whose content is not looked at.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Generator

from contbak.capture.attributes import fingerprint, stat_entry, with_fields
from contbak.capture.databases import LOGS, database_beside
from contbak.capture.findings import LOST, TOUCHED, Counts, Found, How, Read, Trouble
from contbak.capture.identity import Identities, Key
from contbak.capture.links import Links
from contbak.capture.listing import MARKERS, marker_in
from contbak.capture.proof import Proof, unpack
from contbak.capture.proofs import Proofs, checked
from contbak.capture.sieve import Sieve, Sifted, reason_of
from contbak.capture.sqlite import use_mark
from contbak.core.entry import DIRECTORY, Entry
from contbak.core.errors import FormatError, SourceError, Vanished
from contbak.core.excludes import Excludes
from contbak.core.names import TOP_DIR

TOP_KEY: Key = (TOP_DIR, b"")
_REMEMBERED = 10_000
_REPLACED = frozenset((errno.ENOENT, errno.ENOTDIR, errno.ELOOP))
_PLAIN, _BESIDE = How(), How(beside=True)


class Scan:
    """One batch of looking; make a new one for each batch.

    `top`: the source's absolute path; `left_out` decides what is left out.  Raises Vanished if the source is not there,
    here and (when it goes away meanwhile) in `look`.
    """

    def __init__(self, top: bytes, proofs: Proofs, left_out: Excludes) -> None:
        self._top = top
        self._proofs = proofs
        self._excludes = left_out
        self._sieve = Sieve(top, proofs, left_out)
        self._device, self._inode = self._top_now()
        self._identities = Identities(top, self._device, proofs)
        self._ways: dict[bytes, tuple[bytes, bytes | None]] = {}
        self._ways_as_of = 0
        self._asked: dict[bytes, tuple[bytes, bytes]] = {}
        self._links = Links(proofs, self._identities)
        self._logs: set[tuple[bytes, bool]] = set()
        self.counts = Counts()
        self._check_top()

    def look(self, path: bytes, subtree: bool = False, doubt: int = 0) -> Found:
        """Compares one path, and all beneath it if `subtree` or if it is a directory that was not known.

        `doubt`: 0, TOUCHED or LOST, of a file at the path itself.  One write() stamps the file when it begins, a
        mapping when a page is first written, so a file may have changed after its stamp.
        """
        if self._proofs.find(*TOP_KEY) is None:
            path, subtree = b"", True
        parent, _, name = path.rpartition(b"/")
        if name in MARKERS and doubt < LOST:  # it decides about its neighbours
            path, subtree = parent, True
            parent, _, name = path.rpartition(b"/")
        if not path:
            yield from self._look_at_top(subtree)
            self._links.forget()
            return
        way = yield from self._enter(parent)
        if way is None:
            return
        dir_id, marker = way
        yield from self._look_at((dir_id, name), path, marker, How(subtree, doubt))
        database = database_beside(name)
        if database:  # an event of our own reading would make an endless loop of a doubt
            beside = path[: len(path) - len(name)] + database
            yield from self._look_at((dir_id, database), beside, marker, _BESIDE)
        for key, other in self._links.others():
            way = yield from self._enter(other.rpartition(b"/")[0])
            if way is not None and way[0] == key[0]:
                yield from self._look_at(key, other, way[1], How(doubt=min(doubt, TOUCHED)))
        self._links.forget()

    def look_at_logs(self, path: bytes, refused: bool) -> Found:
        """Compares what lies beside the database in use at `path`; `refused`: SQLite made no copy of it."""
        if (path, refused) not in self._logs:
            self._logs.add((path, refused))
            for ending in LOGS:
                yield from self.look(path + ending)

    @property
    def links_wanted(self) -> bool:
        """A file has names that nobody told of: a scan of the whole source finds them."""
        return self._links.wanted

    def finish(self) -> None:
        """Stages as gone what was not found again.  Once, after the last `look`."""
        self._links.forget()
        self._identities.finish(self._links.lost)
        self._links.finish()

    # -- the source itself ------------------------------------------------------------------------------------

    def _top_now(self) -> tuple[int, int]:
        try:
            st = os.lstat(self._top)
        except OSError as error:
            raise Vanished(self._top, reason_of(error)) from None
        if not stat.S_ISDIR(st.st_mode):
            raise Vanished(self._top, "it is not a directory any more")
        return st.st_dev, st.st_ino

    def _check_top(self) -> None:
        """An empty mount point must not pass for a source whose files were deleted."""
        proof = self._proofs.find(*TOP_KEY)
        if proof is None or proof.inode == self._inode:
            return
        known = self._proofs.children(TOP_DIR).keys()
        try:
            there = set(os.listdir(self._top))
        except OSError as error:
            raise Vanished(self._top, reason_of(error)) from None
        if known and not known & there:
            raise Vanished(self._top, "nothing of what was in it is there; is it mounted?")

    def _still_there(self) -> None:
        """To be called after something was found missing and before that is believed."""
        if self._top_now() != (self._device, self._inode):
            raise Vanished(self._top, "it went away while it was looked at")

    def _look_at_top(self, subtree: bool) -> Found:
        st = yield from self._stat(b"")
        if isinstance(st, Trouble):
            return
        if st is None:
            raise Vanished(self._top, "it is not there any more")
        if not stat.S_ISDIR(st.st_mode):
            raise Vanished(self._top, "it is not a directory any more")
        yield from self._directory(TOP_KEY, b"", st, self._proofs.find(*TOP_KEY))
        if subtree:
            yield from self._beneath(b"", TOP_DIR)

    # -- the way to a path ------------------------------------------------------------------------------------

    def _enter(self, path: bytes) -> Generator[Read | Trouble, None, tuple[bytes, bytes | None] | None]:
        """(id, marker) of the directory `path`, once all directories down to it were looked at; None: go no further.

        A directory's own times change with its children and no event says so, so this finds out, too.
        """
        if self._ways_as_of != self._identities.changes:
            self._ways.clear()
            self._ways_as_of = self._identities.changes
        names = path.split(b"/") if path else []
        depth = len(names)
        while depth and b"/".join(names[:depth]) not in self._ways:
            depth -= 1
        at = b"/".join(names[:depth])
        if at not in self._ways:
            yield from self._look_at_top(False)
            self._remember(b"", TOP_DIR)
        for name in names[depth:]:
            dir_id, marker = self._ways[at]
            at = at + b"/" + name if at else name
            own = yield from self._step((dir_id, name), at, marker)
            if own is None:
                return None
            self._remember(at, own)
        return self._ways[path]

    def _step(self, key: Key, path: bytes, marker: bytes | None) -> Generator[Read | Trouble, None, bytes | None]:
        """The id of a directory on the way, None if what lies beneath was looked at already or must not be."""
        st = yield from self._stat(path)
        if isinstance(st, Trouble):
            return None
        if st is None or not stat.S_ISDIR(st.st_mode) or self._left_out(path, st, marker):
            yield from self._compare(key, path, st, marker, _PLAIN)
            return None
        own, fresh = yield from self._directory(key, path, st, self._proofs.find(*key))
        if own is not None and fresh:
            yield from self._beneath(path, own)
            return None
        return own

    def _remember(self, path: bytes, dir_id: bytes) -> None:
        if len(self._ways) >= _REMEMBERED:
            self._ways.clear()
        self._ways[path] = dir_id, marker_in(self._absolute(path))

    # -- one name ---------------------------------------------------------------------------------------------

    def _look_at(self, key: Key, path: bytes, marker: bytes | None, how: How) -> Found:
        st = yield from self._stat(path)
        if not isinstance(st, Trouble):
            yield from self._compare(key, path, st, marker, how)

    def _compare(self, key: Key, path: bytes, st: os.stat_result | None, marker: bytes | None, how: How) -> Found:
        if st is None or self._left_out(path, st, marker) or self._sieve.is_left_beside(key, path, st):
            self._gone(key)
            return
        self.counts.seen += 1
        proof = self._proofs.find(*key)
        if not stat.S_ISDIR(st.st_mode):
            yield from self._leaf(key, path, st, proof, how)
            return
        own, fresh = yield from self._directory(key, path, st, proof)
        if own is not None and (how.subtree or fresh):
            yield from self._beneath(path, own)

    def _leaf(self, key: Key, path: bytes, st: os.stat_result, proof: Proof | None, how: How) -> Found:
        stamp = now = fingerprint(st)
        is_file = stat.S_ISREG(st.st_mode)
        if is_file and (how.beside or (proof is not None and proof.in_use)):
            now += use_mark(self._absolute(path))
        if proof is not None and proof.shows(now) and not (how.doubt and is_file):
            self.counts.unchanged += 1
            return
        if proof is not None and proof.directory:
            self._identities.detach(proof.directory)
        if is_file:
            self._links.note(key, st, proof)
            # a new directory may come with the files in it
            if how.doubt == LOST or self._asked.get(path) != (key[0], stamp):
                if len(self._asked) >= _REMEMBERED:
                    self._asked.clear()
                self._asked[path] = key[0], stamp
                yield Read(path, *key, st.st_size, proof is not None)
            return
        if proof is not None:
            self._links.lost(key, proof)
        entry = yield from self._entry(key, path, st)
        if entry is not None:
            self._proofs.stage(*key, Proof(now), entry)

    def _entry(self, key: Key, path: bytes, st: os.stat_result) -> Generator[Trouble, None, Entry | None]:
        """The entry of what is no regular file (a directory's id is still to be filled in); None: leave it."""
        try:
            entry = stat_entry(self._absolute(path), st)
            entry = with_fields(entry, dir=TOP_DIR) if entry.kind == DIRECTORY else entry
            checked(key, entry)
        except Vanished:
            return None
        except SourceError as error:
            yield Trouble(path, error.reason)
            return None
        except FormatError as error:
            yield Trouble(path, f"it cannot be kept ({error})")
            return None
        return entry

    def _gone(self, key: Key) -> None:
        proof = self._proofs.find(*key)
        if proof is not None:
            self._lost(key, proof)

    def _lost(self, key: Key, proof: Proof) -> None:
        self._still_there()
        if proof.directory:
            self._identities.miss(key, proof.directory)
        else:
            self._proofs.stage_gone(*key)
            self._links.lost(key, proof)

    # -- directories ------------------------------------------------------------------------------------------

    def _directory(
        self, key: Key, path: bytes, st: os.stat_result, proof: Proof | None
    ) -> Generator[Read | Trouble, None, tuple[bytes | None, bool]]:
        """Stages a directory, if need be; returns its id, and whether all beneath it must be looked at.

        The id is None if it must not be entered: it cannot be looked at, is gone, or something is mounted there.
        """
        now = self._identities.fingerprint(st)
        entry = None
        if proof is None or not proof.directory or proof.fingerprint != now:
            entry = yield from self._entry(key, path, st)
            if entry is None:
                return None, False
        if proof is not None:
            self._links.lost(key, proof)
        own, fresh = (TOP_DIR, False) if not path else self._identities.identify(key, path, st, proof)
        if entry is None:
            self.counts.unchanged += 1
        else:
            self._proofs.stage(*key, Proof(now, own), with_fields(entry, dir=own))
        return (own if st.st_dev == self._device else None), fresh

    # -- many names -------------------------------------------------------------------------------------------

    def _beneath(self, path: bytes, dir_id: bytes) -> Found:
        stack = [(path, dir_id)]
        while stack:
            path, dir_id = stack.pop()
            try:
                sifted = self._sieve.sift(path, dir_id)
            except OSError as error:
                if error.errno in _REPLACED:  # deleted just now, which is an event of its own
                    self._still_there()
                else:
                    yield Trouble(path, reason_of(error))
                continue
            yield from self._follow_up(path, dir_id, sifted, stack)

    def _follow_up(self, path: bytes, dir_id: bytes, sifted: Sifted, stack: list[Key]) -> Found:
        """Looks at what differs; what must be entered is put on the stack."""
        self.counts.seen += sifted.unchanged
        self.counts.unchanged += sifted.unchanged
        prefix = path + b"/" if path else b""
        yield from sifted.troubles
        for name, held, packed in sifted.differing:
            key, child, proof = (dir_id, name), prefix + name, unpack(packed) if packed else None
            st = (yield from self._stat(child)) if held is None else held
            if isinstance(st, Trouble):
                continue
            if st is None:
                self._gone(key)
                continue
            self.counts.seen += 1
            if not stat.S_ISDIR(st.st_mode):
                yield from self._leaf(key, child, st, proof, _BESIDE if name in sifted.databases else _PLAIN)
                continue
            own, _ = yield from self._directory(key, child, st, proof)
            if own is not None:
                stack.append((child, own))
        for name, packed in sifted.missing.items():
            self._lost((dir_id, name), unpack(packed))

    # -- paths ------------------------------------------------------------------------------------------------

    def _stat(self, path: bytes) -> Generator[Trouble, None, os.stat_result | Trouble | None]:
        """The lstat of a path, None if there is nothing; yields and returns Trouble if it cannot be had."""
        try:
            return os.lstat(self._absolute(path))
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            trouble = Trouble(path, reason_of(error))
            yield trouble
            return trouble

    def _left_out(self, path: bytes, st: os.stat_result, marker: bytes | None) -> bool:
        """`marker`: that of the directory it is in, which is not left out itself."""
        if marker is not None and path.rpartition(b"/")[2] != marker:
            return True
        return self._excludes.excluded(path, stat.S_ISDIR(st.st_mode))

    def _absolute(self, path: bytes) -> bytes:
        return os.path.join(self._top, path) if path else self._top
