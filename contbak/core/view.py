"""One state of a source: a base tree with runs over it, read as if it were one table.

For every key the newest run that has it decides; a tombstone there means that the entry is gone.

Rules: the runs are held in memory, merged (the writer folds them into the base before they are many), and a
few decoded nodes of the base with them; everything else streams.  Directories are found by their id, so a
directory that moved takes all that is in it along, and rows of a directory that nothing leads to are not
seen by paths.  With `lost`, damage and contradictions are reported to it and reading goes on wherever several
entries are asked for; without it they raise.
It does not read content, and it does not check ids: whoever supplies `get` does.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache, partial
from heapq import merge
from itertools import groupby
from operator import itemgetter
from typing import NamedTuple, TypeAlias

from contbak.core.entry import DIRECTORY, Entry
from contbak.core.errors import ContbakError, FormatError
from contbak.core.names import TOP_DIR
from contbak.core.node import Child, Key, Leaf, Row
from contbak.core.tree import (
    Get,
    KeyRange,
    Lost,
    Place,
    below,
    directory_range,
    load,
    lookup,
    opened,
    rows,
    rows_surviving,
    top,
)

NODES_KEPT = 128
"""Decoded nodes of the base that a view keeps."""
BARE_TOP = Entry(DIRECTORY, 0o700, 0, 0, "", "", 0, 0, 0, dir=TOP_DIR)
"""Stands for the top of a source that has no entry of its own, that is, none under (TOP_DIR, b"")."""

Difference: TypeAlias = "tuple[bytes, Entry | None, Entry | None]"
"""(path, entry before, entry after)."""


def merged_runs(runs: Iterable[bytes], get: Get, lost: Lost | None = None) -> list[Row]:
    """The rows of `runs`, oldest first, as one run: sorted, newest wins, tombstones kept.

    This is what `TreeWriter.edit` takes to fold runs into their base.
    """
    newest: dict[Key, Entry | None] = {}
    for run in runs:
        newest.update(_all(run, get, (None, None), lost))
    return sorted(newest.items(), key=itemgetter(0))


class View:
    """The state made of `roots`: the base, or None, and then the runs, oldest first.

    get    gives the node of an id; raises NotFound or FormatError if it is lost
    lost   told of what cannot be read: (node id, keys beneath it, error); of a directory that stands in two
           places: (directory id, its keys, error)
    """

    def __init__(self, roots: Sequence[bytes | None], get: Get, lost: Lost | None = None) -> None:
        self._base = roots[0] if roots else None
        self._runs = [run for run in roots[1:] if run is not None]
        self._get: Get = lru_cache(NODES_KEPT)(partial(load, get))
        self._get_passing = get
        self._lost = lost
        self._loaded: tuple[list[Row], dict[Key, Entry | None]] | None = None
        self._parents: dict[bytes, Key] | None = None

    def lookup(self, dir_id: bytes, name: bytes) -> Entry | None:
        """The entry of that name, None if there is none.  Damage on the way raises."""
        key = (dir_id, name)
        over = self._over()[1]
        if key in over:
            return over[key]
        row = lookup(self._base, key, self._get)
        return row[1] if row else None

    def directory(self, dir_id: bytes) -> Iterator[tuple[bytes, Entry]]:
        """The names in a directory, sorted, with their entries."""
        return ((key[1], entry) for key, entry in self._rows(directory_range(dir_id)))

    def resolve(self, path: bytes) -> tuple[Entry, bytes, bytes] | None:
        """The entry at `path`, relative to the top, with the directory id and the name it has there.

        None if there is none.  Slashes too many do not matter; symbolic links are not followed.  b"" is the
        top itself: its own entry if it has one, else BARE_TOP.
        """
        dir_id, name = bytes(TOP_DIR), b""
        entry = self.lookup(dir_id, name) or BARE_TOP
        for part in filter(None, path.split(b"/")):
            if entry.kind != DIRECTORY:
                return None
            dir_id, name = entry.dir, part
            found = self.lookup(dir_id, name)
            if found is None:
                return None
            entry = found
        return entry, dir_id, name

    def walk(self, dir_id: bytes = TOP_DIR, prefix: bytes = b"") -> Iterator[tuple[bytes, Entry]]:
        """Everything beneath a directory, with paths that begin with `prefix`: a directory, then what is in it.

        Names are sorted within their directory.  A directory id is entered once; where it comes again, as in
        a loop, that is reported to `lost` (raised without it) and its entry stands without what is in it.
        """
        return self._walk(dir_id, prefix, None)

    def all_rows(self) -> Iterator[tuple[Key, Entry]]:
        """Every entry by its key, sorted, also those that no path leads to: the rows of a new base."""
        return self._rows((None, None))

    def diff(self, other: View) -> Iterator[Difference]:
        """What changed from this state to `other`, in no particular order of path.

        A moved directory is its one entry, gone at one path and new at another: what is in it has not changed.
        A directory that went or came does so with all that is in it.  The path is the new one where there are
        both.  Nodes that both bases share are not read, but paths beneath the top cost one reading of either
        state.  Damage raises, or with `lost` hides what it hides.
        """
        for key in self._keys_apart(other):
            before, after = self.lookup(*key), other.lookup(*key)
            old_dir, new_dir = self._dir_path(key[0]), other._dir_path(key[0])
            # Where only one state leads to the directory, it came or went with a directory above it.
            if before == after or old_dir is None or new_dir is None:
                continue
            old_path, new_path = _joined(old_dir, key[1]), _joined(new_dir, key[1])
            yield new_path if after else old_path, before, after
            if before and before.dir and other._dir_path(before.dir) is None:
                yield from ((path, entry, None) for path, entry in self._walk(before.dir, old_path, other))
            if after and after.dir and self._dir_path(after.dir) is None:
                yield from ((path, None, entry) for path, entry in other._walk(after.dir, new_path, self))

    def _walk(self, dir_id: bytes, prefix: bytes, without: View | None) -> Iterator[tuple[bytes, Entry]]:
        """`walk`, but not into directories that `without` has somewhere."""
        entered = {dir_id}
        open_dirs = [(prefix, self.directory(dir_id))]
        while open_dirs:
            above, names = open_dirs[-1]
            name, entry = next(names, (b"", None))
            if entry is None:
                open_dirs.pop()
                continue
            path = _joined(above, name)
            yield path, entry
            if entry.kind != DIRECTORY or (without is not None and without._dir_path(entry.dir) is not None):
                continue
            if entry.dir in entered:
                self._report(entry.dir, FormatError(f"the directory at {path!r} stands elsewhere too"))
            else:
                entered.add(entry.dir)
                open_dirs.append((path, self.directory(entry.dir)))

    def _report(self, dir_id: bytes, error: ContbakError) -> None:
        if self._lost is None:
            raise error
        self._lost(dir_id, directory_range(dir_id), error)

    def _over(self) -> tuple[list[Row], dict[Key, Entry | None]]:
        """The merged runs, sorted and by key."""
        if self._loaded is None:
            merged = merged_runs(self._runs, self._get_passing, self._lost)
            self._loaded = merged, dict(merged)
        return self._loaded

    def _rows(self, span: KeyRange) -> Iterator[tuple[Key, Entry]]:
        merged, over = self._over()
        start, stop = span
        low = 0 if start is None else bisect_left(merged, start, key=itemgetter(0))
        high = len(merged) if stop is None else bisect_left(merged, stop, key=itemgetter(0))
        # A sweep through everything would only drive out of the memory what is there.
        get = self._get_passing if span == (None, None) else self._get
        beneath = (row for row in _all(self._base, get, span, self._lost) if row[0] not in over)
        rows_both = merge(beneath, merged[low:high], key=itemgetter(0))
        return ((key, entry) for key, entry in rows_both if entry is not None)

    def _keys_apart(self, other: View) -> Iterator[Key]:
        """Every key, once, sorted, whose entry may differ."""
        bases = _apart(self._base, self._get, other._base, other._get)
        runs = ([key for key, _ in view._over()[0]] for view in (self, other))
        return (key for key, _ in groupby(merge(bases, *runs)))

    def _dir_path(self, dir_id: bytes) -> bytes | None:
        """The path of a directory; None if none leads to it."""
        if dir_id == TOP_DIR:
            return b""
        if self._parents is None:
            self._parents = self._led_to()
        names: list[bytes] = []
        while dir_id != TOP_DIR:
            if dir_id not in self._parents:
                return None
            dir_id, name = self._parents[dir_id]
            names.append(name)
        return b"/".join(reversed(names))

    def _led_to(self) -> dict[bytes, Key]:
        """Where each directory stands that a path leads to: the key of its entry."""
        within: dict[bytes, list[tuple[Key, bytes]]] = {}
        for key, entry in self.all_rows():
            if entry.kind == DIRECTORY:
                within.setdefault(key[0], []).append((key, entry.dir))
        parents: dict[bytes, Key] = {}
        pending: list[bytes] = [TOP_DIR]
        while pending:
            for key, dir_id in within.get(pending.pop(), ()):
                if dir_id != TOP_DIR and dir_id not in parents:
                    parents[dir_id] = key
                    pending.append(dir_id)
        return parents


def _all(root: bytes | None, get: Get, span: KeyRange, lost: Lost | None) -> Iterator[Row]:
    return rows(root, get, *span) if lost is None else rows_surviving(root, get, lost, span)


def _joined(above: bytes, name: bytes) -> bytes:
    return above + b"/" + name if above and name else above or name


class _Head(NamedTuple):
    """A row (level -1) or a node that has not been read, with the key that it begins with."""

    key: Key
    level: int
    what: Child | Entry | None
    limit: Key | None = None


class _Side:
    """What is left of one of two trees that are compared, from the left, the next piece last."""

    def __init__(self, root: bytes | None, get: Get) -> None:
        self.pending: list[_Head] = []
        self._get = get
        if root is not None:
            self._read(top(root))

    def take(self) -> Iterator[Key]:
        """Takes the next piece: gives the key of a row, puts in place of a node what is in it."""
        head = self.pending.pop()
        if isinstance(head.what, Child):
            self._read(Place(head.what, head.level, head.limit))
        else:
            yield head.key

    def _read(self, place: Place) -> None:
        node = opened(self._get, place)
        if isinstance(node, Leaf):
            heads = [_Head(key, -1, entry) for key, entry in node.items]
        else:
            heads = [_Head(each.child.key, each.level, each.child, each.limit) for each in below(node, place.limit)]
        self.pending += reversed(heads)


def _apart(old: bytes | None, old_get: Get, new: bytes | None, new_get: Get) -> Iterator[Key]:
    """The keys, sorted, whose rows differ between two trees.  Nodes that both have are not read."""
    if old == new:
        return
    left, right = _Side(old, old_get), _Side(new, new_get)
    while left.pending and right.pending:
        one, two = left.pending[-1], right.pending[-1]
        if one[:3] == two[:3]:
            left.pending.pop()
            right.pending.pop()
        elif (one.key, -one.level) < (two.key, -two.level):
            # What begins first, or reaches further from the same key, cannot be met whole on the other side.
            yield from left.take()
        elif (one.key, -one.level) > (two.key, -two.level):
            yield from right.take()
        else:
            yield from left.take()
            for _ in right.take():
                pass
    for side in (left, right):
        while side.pending:
            yield from side.take()
