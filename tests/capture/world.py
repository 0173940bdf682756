"""A real directory tree that changes at random, and an agent in miniature that commits what a Scan finds.

`World` changes the tree and names the paths as events would; `Keeper` looks, reads and commits, and keeps the
entries that a relay would have, so that the tree they spell can be compared with the disk.
"""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

from contbak.capture import staging, whereabouts
from contbak.capture.attributes import fingerprint, stat_entry, with_content
from contbak.capture.findings import Read, Trouble
from contbak.capture.proof import Proof, unpack
from contbak.capture.proofs import Proofs, Totals
from contbak.capture.scan import Scan
from contbak.core.entry import DIRECTORY, FILE, INLINE_MAX, SYMLINK, Content, Entry
from contbak.core.excludes import Excludes
from contbak.core.names import TOP_DIR, SourceId
from contbak.store.kv import Kv, Writer

SOURCE = SourceId(b"source-1")
Event = tuple[bytes, bool]


class PowerCut(Exception):
    """The process is gone."""


class Fragile:
    """A Kv that loses its power before the n-th write transaction from now, or at its end (undone)."""

    def __init__(self, kv: Kv) -> None:
        self.kv = kv
        self.left: int | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.kv, name)

    @contextmanager
    def write(self) -> Iterator[Writer]:
        if self.left == 0:
            raise PowerCut
        if self.left is not None:
            self.left -= 1
        with self.kv.write() as rows:
            yield rows


def content_of(data: bytes) -> Content:
    """As a worker makes it, but for the hash."""
    mark = sha256(data).digest()
    inline = len(data) <= INLINE_MAX
    return Content(len(data), mark, data if inline else None, 0, () if inline else (mark,))


class Keeper:
    """Commits what differs; `entries` is what the relay has."""

    def __init__(self, kv: Kv | Fragile, top: Path, source: SourceId = SOURCE) -> None:
        self.kv: Any = kv
        self.top = os.fsencode(top)
        self.source = source
        self.left_out = Excludes([])
        self.entries: dict[tuple[bytes, bytes], Entry] = {}
        self.pending: dict[tuple[bytes, bytes], Entry | None] | None = None
        self.totals = Totals()
        self.reads: list[bytes] = []
        self.troubles: list[Trouble] = []
        self.staged = 0
        self.links_wanted = False

    def look(self, events: Iterable[Event], commit_every: int = 1 << 30, forced: bool = False) -> None:
        """One batch."""
        proofs = Proofs(self.kv, self.source)
        scan = Scan(self.top, proofs, self.left_out)
        self.reads, self.troubles, self.staged = [], [], 0
        waiting: list[Read] = []
        found = (item for path, subtree in events for item in scan.look(path, subtree, forced))
        for number, item in enumerate(found, 1):
            if isinstance(item, Trouble):
                self.troubles.append(item)
            else:
                waiting.append(item)
            if number % commit_every == 0:
                self._read(proofs, waiting)
                waiting = []
                self.commit(proofs)
        self._read(proofs, waiting)
        scan.finish()
        self.commit(proofs)
        self.links_wanted = scan.links_wanted
        self.scan = scan

    def full(self, commit_every: int = 1 << 30) -> None:
        self.look([(b"", True)], commit_every)

    def _read(self, proofs: Proofs, reads: list[Read]) -> None:
        for read in reads:
            path = os.path.join(self.top, read.path)
            try:
                st = os.lstat(path)
                with open(path, "rb") as file:
                    data = file.read()
            except OSError:
                continue
            self.reads.append(read.path)
            entry = with_content(stat_entry(path, st), content_of(data))
            proofs.stage(read.dir_id, read.name, Proof(fingerprint(st)), entry)

    def commit(self, proofs: Proofs) -> None:
        """As the agent does: what is staged becomes durable, the relay has it, `confirm`."""
        totals = proofs.totals(self.totals)
        rows = {(row.dir_id, row.name): row.entry for row in proofs.staged()}
        self.staged += len(rows)
        proofs.keep()
        self.totals, self.pending = totals, rows
        self.finish_pending(proofs)

    def finish_pending(self, proofs: Proofs) -> None:
        """The receipt is there; may be repeated, after a crash with Proofs that know of nothing."""
        if self.pending is not None:
            proofs.confirm(batch=7)
            for key, entry in self.pending.items():
                if entry is None:
                    self.entries.pop(key, None)
                else:
                    self.entries[key] = entry
        self.pending = None

    def restart(self) -> None:
        """As the agent does after a crash."""
        if self.pending is None:
            Proofs(self.kv, self.source).drop_staged()
        self.finish_pending(Proofs(self.kv, self.source))

    # -- what must be true ------------------------------------------------------------------------------------

    def rows(self, table: str) -> dict[bytes, bytes]:
        return {key[8:]: value for key, value in self.kv.scan(table, prefix=self.source)}

    def check_rows(self) -> None:
        """Nothing is unreachable, the indexes say what the rows say, and the totals are right."""
        clean = {(key[:8], key[8:]): unpack(value) for key, value in self.rows("clean").items()}
        assert clean.keys() == self.entries.keys()
        for key, proof in clean.items():
            assert proof.directory == self.entries[key].dir
        reached = [key for path, key in walk(self.entries)]
        assert len(reached) == len(set(reached)) and set(reached) == clean.keys(), "garbage"
        placed = {proof.directory: key for key, proof in clean.items() if proof.directory and key != (TOP_DIR, b"")}
        found = {own: whereabouts.parted(raw) for own, raw in self.rows("directories").items()}
        assert {own: (parent, name) for own, (_, parent, name) in found.items()} == placed
        assert {own: clean[key].inode for own, key in placed.items()} == {own: row[0] for own, row in found.items()}
        for inode, own in self.rows("inodes").items():
            assert found[own][0] == int.from_bytes(inode, "little")
        names = {key: proof.mark for key, proof in clean.items() if proof.mark.links > 1}
        assert self.rows("links").keys() == {whereabouts.number(mark.inode) + b"".join(k) for k, mark in names.items()}
        for table in (*staging.TABLES, "detached"):
            assert not self.rows(table), table
        files = [proof for proof in clean.values() if stat.S_ISREG(proof.mode)]
        assert self.totals.files == len(files) and self.totals.entries == len(clean)
        assert self.totals.size == sum(proof.size for proof in files)

    def tree(self) -> dict[bytes, tuple[Any, ...]]:
        """What the relay would restore."""
        return {path: _look_of(self.entries[key]) for path, key in walk(self.entries)}

    def link_groups(self) -> set[frozenset[bytes]]:
        groups: dict[bytes, set[bytes]] = {}
        for path, key in walk(self.entries):
            if self.entries[key].link:
                groups.setdefault(self.entries[key].link, set()).add(path)
        return {frozenset(group) for group in groups.values() if len(group) > 1}


def walk(entries: dict[tuple[bytes, bytes], Entry]) -> Iterator[tuple[bytes, tuple[bytes, bytes]]]:
    """(path, key) of all entries that can be reached from the top."""
    below: dict[bytes, list[bytes]] = {}
    for dir_id, name in entries:
        below.setdefault(dir_id, []).append(name)
    if (TOP_DIR, b"") not in entries:
        return
    yield b"", (TOP_DIR, b"")
    stack, seen = [(b"", bytes(TOP_DIR))], set()
    while stack:
        path, dir_id = stack.pop()
        assert dir_id not in seen, "two ways to one directory"
        seen.add(dir_id)
        for name in below.get(dir_id, ()):
            if name:
                child = path + b"/" + name if path else name
                yield child, (dir_id, name)
                if entries[dir_id, name].kind == DIRECTORY:
                    stack.append((child, entries[dir_id, name].dir))


def _look_of(entry: Entry) -> tuple[Any, ...]:
    content = entry.content.hash if entry.content is not None else entry.target
    return entry.kind, entry.mode, entry.mtime, entry.size, content


def disk(top: Path) -> dict[bytes, tuple[Any, ...]]:
    """The same of what is on disk."""
    found = {}
    paths = [b"", *(path for path in names_in(top))]
    for path in paths:
        absolute = os.path.join(os.fsencode(top), path)
        st = os.lstat(absolute)
        kind = {stat.S_IFREG: FILE, stat.S_IFDIR: DIRECTORY, stat.S_IFLNK: SYMLINK}.get(stat.S_IFMT(st.st_mode), "p")
        content = b""
        if kind == FILE:
            content = sha256(Path(os.fsdecode(absolute)).read_bytes()).digest()
        elif kind == SYMLINK:
            content = os.readlink(absolute)
        size = st.st_size if kind == FILE else 0
        found[path] = kind, stat.S_IMODE(st.st_mode), st.st_mtime_ns, size, content
    return found


def disk_link_groups(top: Path) -> set[frozenset[bytes]]:
    groups: dict[int, set[bytes]] = {}
    for path in names_in(top):
        st = os.lstat(os.path.join(os.fsencode(top), path))
        if stat.S_ISREG(st.st_mode):
            groups.setdefault(st.st_ino, set()).add(path)
    return {frozenset(group) for group in groups.values() if len(group) > 1}


def names_in(top: Path) -> list[bytes]:
    root = os.fsencode(top)
    return sorted(
        os.path.relpath(os.path.join(above, name), root)
        for above, directories, files in os.walk(root)
        for name in (*directories, *files)
    )


class World:
    """Changes of a tree.  Each takes two numbers that pick paths, and returns the events it causes."""

    def __init__(self, top: Path) -> None:
        self.top = top
        self._count = 0

    def create(self, a: int, b: int) -> list[Event]:
        path = self._new(a, b)
        self._fill(path)
        return [(path, False)]

    def edit(self, a: int, b: int) -> list[Event]:
        path = self._pick(a, stat.S_ISREG)
        if path is None:
            return []
        self._fill(path)
        return [(path, False)]

    def make(self, a: int, b: int) -> list[Event]:
        path = self._new(a, b)
        os.mkdir(self._at(path))
        return [(path, True)]

    def make_full(self, a: int, b: int) -> list[Event]:
        """As an archive does, with more directories and files in it."""
        path = self._new(a, b)
        for place in (path, path + b"/in"):
            os.mkdir(self._at(place))
            self._fill(place + b"/x")
        return [(path, True), (path + b"/x", False), (path + b"/in", True)]

    def point(self, a: int, b: int) -> list[Event]:
        path = self._new(a, b)
        self._count += 1
        os.symlink(b"t" * self._count, self._at(path))
        return [(path, False)]

    def point_at_directory(self, a: int, b: int) -> list[Event]:
        """A directory becomes a link to another one with the same names in it."""
        path, other = self._pick(a, stat.S_ISDIR), self._pick(b, stat.S_ISDIR)
        if path is None or other is None:
            return []
        events = self.delete_path(path)
        os.symlink(self._at(other), self._at(path))
        return [*events, (path, False)]

    def link(self, a: int, b: int) -> list[Event]:
        old, new = self._pick(a, stat.S_ISREG), self._new(b, a)
        if old is None:
            return []
        os.link(self._at(old), self._at(new))
        return [(new, False)]

    def chmod(self, a: int, b: int) -> list[Event]:
        path = self._pick(a, lambda mode: not stat.S_ISLNK(mode))
        if path is None:
            return []
        os.chmod(self._at(path), 0o700 | b % 0o100)
        return [(path, False)]

    def rename(self, a: int, b: int) -> list[Event]:
        """Within a directory or into another, over what is there or not."""
        old = self._pick(a, lambda mode: True)
        if old is None:
            return []
        new = self._new(b, a)
        if new.startswith(old + b"/"):
            return []
        return self._move(old, new)

    def rename_over(self, a: int, b: int) -> list[Event]:
        old, new = self._pick(a, stat.S_ISREG), self._pick(b, stat.S_ISREG)
        if old is None or new is None or old == new:
            return []
        if os.path.samefile(self._at(old), self._at(new)):
            return []
        os.rename(self._at(old), self._at(new))
        return [(old, False), (new, False)]

    def swap(self, a: int, b: int) -> list[Event]:
        one, two = self._pick(a, stat.S_ISDIR), self._pick(b, stat.S_ISDIR)
        if one is None or two is None or (one + b"/").startswith(two + b"/") or (two + b"/").startswith(one + b"/"):
            return []
        aside = self._new(0, 0)
        for old, new in ((one, aside), (two, one), (aside, two)):
            os.rename(self._at(old), self._at(new))
        return [(one, True), (two, True), (aside, True)]

    def turn(self, a: int, b: int) -> list[Event]:
        """A file becomes a directory, or the other way round."""
        path = self._pick(a, lambda mode: True)
        if path is None:
            return []
        was_directory = stat.S_ISDIR(os.lstat(self._at(path)).st_mode)
        events = self.delete_path(path)
        if was_directory:
            self._fill(path)
        else:
            os.mkdir(self._at(path))
            self._fill(path + b"/y")
        return [*events, (path, not was_directory)]

    def make_again(self, a: int, b: int) -> list[Event]:
        """A directory is deleted and another made, which often gets the same inode number."""
        path = self._pick(a, stat.S_ISDIR)
        if path is None:
            return []
        events = self.delete_path(path)
        new = path if b % 2 else self._new(b, a)
        os.mkdir(self._at(new))
        self._fill(new + b"/x")
        return [*events, (new, True)]

    def delete(self, a: int, b: int) -> list[Event]:
        path = self._pick(a, lambda mode: True)
        return [] if path is None else self.delete_path(path)

    def delete_path(self, path: bytes) -> list[Event]:
        inside = [name for name in names_in(self.top) if name.startswith(path + b"/")]
        absolute = self._at(path)
        if stat.S_ISDIR(os.lstat(absolute).st_mode):
            shutil.rmtree(absolute)
        else:
            os.unlink(absolute)
        return [*((name, False) for name in reversed(inside)), (path, False)]

    def _move(self, old: bytes, new: bytes) -> list[Event]:
        is_directory = stat.S_ISDIR(os.lstat(self._at(old)).st_mode)
        os.rename(self._at(old), self._at(new))
        return [(old, False), (new, is_directory)]

    def _at(self, path: bytes) -> bytes:
        return os.path.join(os.fsencode(self.top), path)

    def _fill(self, path: bytes) -> None:
        self._count += 1  # each size once, so that no change hides within one tick of the clock
        with open(self._at(path), "wb") as file:
            file.write(b"c" * self._count)

    def _pick(self, number: int, fits: Callable[[int], bool]) -> bytes | None:
        paths = [path for path in names_in(self.top) if fits(os.lstat(self._at(path)).st_mode)]
        return paths[number % len(paths)] if paths else None

    def _new(self, number: int, other: int) -> bytes:
        """A name that is not taken, of which there are few, so that names come again."""
        above = [b"", *(path for path in names_in(self.top) if stat.S_ISDIR(os.lstat(self._at(path)).st_mode))]
        prefix = above[number % len(above)]
        prefix = prefix + b"/" if prefix else b""
        taken = set(names_in(self.top))
        free = (prefix + b"%c" % (97 + (other + step) % 26) + b"z" * (step // 26) for step in range(1 << 10))
        return next(path for path in free if path not in taken)


CHANGES = [
    "create", "edit", "make", "make_full", "point", "point_at_directory", "link", "chmod", "rename", "rename_over",
    "swap", "turn", "make_again", "delete",
]  # fmt: skip
