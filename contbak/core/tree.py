"""Trees: sorted rows as a content-defined B-tree whose nodes are chunks.

Where a node ends depends on the rows within it and on nothing after it:

    leaf     after a row whose key hashes below 2**64 / 128, or which brings it to 64 KiB or REFS_MAX ids
    inner    after a child, not the first, whose key hashes (with the level) below 2**64 / 64, or by size

So one set of rows has one tree, whatever way it came about, and trees that share most rows share most nodes.
`TreeWriter.edit` keeps that without reading the rest: it divides again from the first node touched up to
the place where a new node ends where an old one ended.

Rules: a node is emitted before the one that points at it; the root is never an inner node with one child.
Reading checks every node against what its parent says of it (level, first key, count, key range); whoever
supplies `get` has checked the id.  A missing tree (root None) is one without rows.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache, partial
from itertools import pairwise
from operator import itemgetter
from typing import NamedTuple, TypeAlias

from contbak.core.entry import Entry
from contbak.core.errors import ContbakError, FormatError, NotFound
from contbak.core.names import DIR_ID_LEN
from contbak.core.node import (
    CHUNKS_MAX,
    REFS_MAX,
    Child,
    Inner,
    Key,
    Leaf,
    Node,
    Row,
    decode_node,
    encode_inner,
    encode_leaf,
    pointers,
    weigh,
)

LEAF_ROWS = 128
INNER_CHILDREN = 64
WEIGHT_MAX = 65536  # bytes at which a node ends; the last row may carry it beyond

NODES_KEPT = 64  # decoded nodes of the old tree that an edit holds

NodeId: TypeAlias = Callable[[Sequence[bytes], bytes], bytes]
Emit: TypeAlias = Callable[[bytes, Node], None]
Get: TypeAlias = "Callable[[bytes], Node | Leaf | Inner]"
"""Gives the node of an id, as stored or decoded; raises NotFound or FormatError if it is lost."""
KeyRange: TypeAlias = "tuple[Key | None, Key | None]"
"""From the first key up to, not including, the second; None is the end on that side."""
Lost: TypeAlias = Callable[[bytes, KeyRange, ContbakError], None]
"""Told of a node that cannot be read: its id, which keys were beneath it, and why."""
Write: TypeAlias = "Callable[[int, Sequence[Row | Child]], Child]"
Change: TypeAlias = "tuple[Key, Row | Child | None]"


class Place(NamedTuple):
    """A node and what is known of it before it is read; level -1: a root, of which nothing is known."""

    child: Child
    level: int
    limit: Key | None


class _Cutter:
    """Collects the rows (or children) of one level and ends a node where the rule says so."""

    def __init__(self, level: int, split: Callable[[bytes], int], write: Write) -> None:
        self.items: list[Row | Child] = []
        self.made = 0
        self._level = level
        self._split = split
        self._write = write
        # The level goes into the hash, or a key that ends a node at one level would do so at each.
        self._mark = bytes((level,)) if level else b""
        self._bound = 2**64 // (INNER_CHILDREN if level else LEAF_ROWS)
        self._least = 2 if level else 1
        self._last: Key = (b"", b"")
        self._weight = 0
        self._refs = 0

    def add(self, item: Row | Child) -> Child | None:
        """Takes the next item; the node that ends with it, if one does."""
        key = item[0]
        if key <= self._last:
            raise FormatError("tree: rows are not in order")
        self._last = key
        self.items.append(item)
        self._weight += weigh(item)
        self._refs += pointers(item)
        if len(self.items) < self._least:
            return None
        full = self._weight >= WEIGHT_MAX or self._refs > REFS_MAX - CHUNKS_MAX
        return self.end() if full or self._split(self._mark + key[0] + key[1]) < self._bound else None

    def end(self) -> Child:
        """Ends the node here."""
        items, self.items, self._weight, self._refs = self.items, [], 0, 0
        self.made += 1
        return self._write(self._level, items)


class TreeWriter:
    """Makes trees.

    node_id   names a node by its references and payload (keyed)
    split     64-bit hash of a key (keyed): where nodes end
    emit      takes every node made, children first; a node that another tree has already may come again
    """

    def __init__(self, node_id: NodeId, split: Callable[[bytes], int], emit: Emit) -> None:
        self.node_id = node_id
        self.split = split
        self.emit = emit

    def build(self, rows: Iterable[Row]) -> bytes | None:
        """The root of a new tree of `rows`, in strictly rising order of key; None if there are none.

        Holds one unfinished node of each level.  Raises FormatError for rows out of order or a bad entry.
        """
        return self.stack(rows, 0, self._write)

    def edit(self, root: bytes | None, changes: Sequence[Row], get: Get) -> tuple[bytes | None, list[bytes]]:
        """The root after `changes`, in strictly rising order of key, and the ids of the nodes that went.

        An entry is put under its key, None removes what is there.  The tree is the one that `build` makes of
        the rows that result; only nodes that the old tree has not are emitted.  Raises what `get` raises, and
        FormatError for a damaged tree or changes out of order.
        """
        if any(before[0] >= after[0] for before, after in pairwise(changes)):
            raise FormatError("tree: changes are not in order")
        if root is None:
            return self.build(row for row in changes if row[1] is not None), []
        return _Edit(self, root, get).run([(row[0], row if row[1] is not None else None) for row in changes])

    def stack(self, items: Iterable[Row | Child], level: int, write: Write) -> bytes | None:
        """The root over `items`, which go into nodes of `level` and up; None if there are none."""
        cutters: list[_Cutter] = []

        def rise(item: Row | Child | None, height: int) -> None:
            while item is not None:
                if height == len(cutters):
                    cutters.append(_Cutter(level + height, self.split, write))
                item = cutters[height].add(item)
                height += 1

        for item in items:
            rise(item, 0)
        for height, cutter in enumerate(cutters):  # which grow while it runs
            if height and cutters[height - 1].made == 1:
                return cutter.items[0][1]  # type: ignore[return-value]  # a Child's id
            if cutter.items:
                rise(cutter.end(), height + 1)
        return None

    def _write(self, level: int, items: Sequence[Row | Child]) -> Child:
        node, child = self.made(level, items)
        self.emit(child.id, node)
        return child

    def made(self, level: int, items: Sequence[Row | Child]) -> tuple[Node, Child]:
        """The node of `items`, and how its parent knows it."""
        if level == 0:
            node, rows = encode_leaf(items), len(items)  # type: ignore[arg-type]  # level 0 has rows only
        else:
            node = encode_inner(level, items)  # type: ignore[arg-type]  # and the others children only
            rows = sum(child.rows for child in items)  # type: ignore[union-attr, misc]
        return node, Child(items[0][0], self.node_id(*node), rows)


class _Edit:
    """One edit: level by level from the leaves up, each level turning changes into changes of the next."""

    def __init__(self, writer: TreeWriter, root: bytes, get: Get) -> None:
        self._writer = writer
        # Each change is sought from the root, and its path is mostly that of the change before.
        self._get = lru_cache(NODES_KEPT)(partial(load, get))
        node = self._get(root)
        self._root = Place(Child(node.items[0][0], root, node.rows), node.level, None)
        self._old: set[bytes] = set()
        self._gone: list[bytes] = []
        # Inner nodes wait for the end: those at the top may turn out to be too high.
        self._waiting: dict[bytes, Node] = {}

    def run(self, changes: list[Change]) -> tuple[bytes | None, list[bytes]]:
        for level in range(self._root.level + 1):
            changes = self._level(level, changes)
            if not changes:
                return self._root.child.id, []
        tops = _applied([self._root.child], changes)
        height = self._root.level + 1
        root = self._lowest(tops[0]) if len(tops) == 1 else self._writer.stack(tops, height, self._write)
        for id_, node in self._waiting.items():
            self._writer.emit(id_, node)
        return root, self._gone

    def _lowest(self, root: Row | Child) -> bytes:
        """The id of the root without the inner nodes that have one child only."""
        id_: bytes = root[1]  # type: ignore[assignment]  # a Child's
        for _ in range(self._root.level):
            waiting = self._waiting.get(id_)
            node = self._get(id_) if waiting is None else decode_node(waiting)
            if len(node.items) > 1 or isinstance(node, Leaf):
                break
            if self._waiting.pop(id_, None) is None:
                self._gone.append(id_)
            id_ = node.items[0].id
        return id_

    def _level(self, level: int, changes: list[Change]) -> list[Change]:
        """Rewrites the nodes of `level` that `changes` touch; what that changes for the level above."""
        cursor = _Cursor(self._root, level, self._get)
        cutter = _Cutter(level, self._writer.split, self._write)
        old: list[Child] = []
        new: list[Child] = []
        done = 0
        while done < len(changes):
            cursor.seek(changes[done][0])
            while True:
                place, items = cursor.read()
                old.append(place.child)
                self._old.add(place.child.id)
                reach = len(changes) if place.limit is None else _position(changes, place.limit, done)
                made = [cutter.add(item) for item in _applied(items, changes[done:reach])]
                new += [child for child in made if child is not None]
                done = reach
                if not cutter.items or not cursor.step():
                    break
        if cutter.items:
            new.append(cutter.end())
        same = set(old).intersection(new)
        self._gone += [child.id for child in old if child not in same]
        above: dict[Key, Row | Child | None] = {child.key: None for child in old if child not in same}
        above.update((child.key, child) for child in new if child not in same)
        return sorted(above.items(), key=itemgetter(0))

    def _write(self, level: int, items: Sequence[Row | Child]) -> Child:
        node, child = self._writer.made(level, items)
        if child.id in self._old:
            return child
        if level:
            self._waiting[child.id] = node
        else:
            self._writer.emit(child.id, node)
        return child


class _Cursor:
    """A place among the nodes of one level of a tree."""

    def __init__(self, root: Place, level: int, get: Get) -> None:
        self._root = root
        self._level = level
        self._get = get
        self._path: list[tuple[list[Place], int]] = []

    def seek(self, key: Key) -> None:
        """Goes to the node within which `key` lies, or would lie."""
        self._path = [([self._root], 0)]
        self._descend(key)

    def step(self) -> bool:
        """Goes to the next node; False if there is none."""
        while self._path and self._path[-1][1] + 1 == len(self._path[-1][0]):
            self._path.pop()
        if self._path:
            places, index = self._path.pop()
            self._path.append((places, index + 1))
            self._descend(None)
        return bool(self._path)

    def read(self) -> tuple[Place, Sequence[Row | Child]]:
        """The node here."""
        places, index = self._path[-1]
        return places[index], opened(self._get, places[index]).items

    def _descend(self, key: Key | None) -> None:
        places, index = self._path[-1]
        while places[index].level > self._level:
            node = opened(self._get, places[index])
            places = below(node, places[index].limit)
            index = 0 if key is None else max(0, bisect_right(node.items, key, key=itemgetter(0)) - 1)
            self._path.append((places, index))


def rows(root: bytes | None, get: Get, start: Key | None = None, stop: Key | None = None) -> Iterator[Row]:
    """The rows from `start` up to, not including, `stop`, tombstones among them.

    Raises what `get` raises, and FormatError for a damaged tree.
    """
    return _read(root, get, (start, stop), None)


def rows_surviving(root: bytes | None, get: Get, lost: Lost, span: KeyRange = (None, None)) -> Iterator[Row]:
    """Like `rows`, but a node that is not found or damaged is reported to `lost`, and reading goes on."""
    return _read(root, get, span, lost)


def lookup(root: bytes | None, key: Key, get: Get) -> Row | None:
    """The row of `key`: (key, entry), (key, None) if it is a tombstone, None if there is no such row."""
    return next(_read(root, get, (key, (key[0], key[1] + b"\0")), None), None)


def directory(
    root: bytes | None, dir_id: bytes, get: Get, lost: Lost | None = None
) -> Iterator[tuple[bytes, Entry | None]]:
    """The names in a directory, sorted, with entry or None for a tombstone; not the empty name (node)."""
    return ((key[1], entry) for key, entry in _read(root, get, directory_range(dir_id), lost))


def directory_range(dir_id: bytes) -> KeyRange:
    """The keys of all names in a directory, without the empty one."""
    after = int.from_bytes(dir_id, "big") + 1
    return (dir_id, b"\0"), None if after >> 8 * DIR_ID_LEN else (after.to_bytes(DIR_ID_LEN, "big"), b"")


def walk_ids(root: bytes | None, get: Get) -> Iterator[bytes]:
    """The id of every node, parents first.  Leaves are not read; list nodes of contents are not in it."""
    pending = [] if root is None else [top(root)]
    while pending:
        place = pending.pop()
        yield place.child.id
        if place.level:
            pending += reversed(below(opened(get, place), place.limit))


def count(root: bytes | None, get: Get) -> int:
    """The number of rows, tombstones included.  Reads the root only."""
    return 0 if root is None else load(get, root).rows


def _read(root: bytes | None, get: Get, span: KeyRange, lost: Lost | None) -> Iterator[Row]:
    start, stop = span
    pending = [] if root is None else [top(root)]
    while pending:
        place = pending.pop()
        try:
            node = opened(get, place)
        except (NotFound, FormatError) as error:
            if lost is None:
                raise
            lost(place.child.id, (None if place.level < 0 else place.child.key, place.limit), error)
            continue
        end = len(node.items) if stop is None else _position(node.items, stop)
        if isinstance(node, Leaf):
            yield from node.items[0 if start is None else _position(node.items, start) : end]
        else:
            first = 0 if start is None else max(0, bisect_right(node.items, start, key=itemgetter(0)) - 1)
            pending += reversed(below(node, place.limit)[first:end])


def top(root: bytes) -> Place:
    """The place of the root of a tree."""
    return Place(Child((b"", b""), root, 0), -1, None)


def load(get: Get, id_: bytes) -> Leaf | Inner:
    """The decoded node of an id."""
    node = get(id_)
    return decode_node(node) if isinstance(node, Node) else node


def opened(get: Get, place: Place) -> Leaf | Inner:
    """The node at `place`; raises FormatError if it is not what its parent says."""
    node = load(get, place.child.id)
    if place.level < 0:
        return node
    if node.level != place.level or node.items[0][0] != place.child.key or node.rows != place.child.rows:
        raise FormatError("tree: a node is not the one that its parent describes")
    if place.limit is not None and node.items[-1][0] >= place.limit:
        raise FormatError("tree: a node reaches into the next one")
    return node


def below(node: Leaf | Inner, limit: Key | None) -> list[Place]:
    """The children of `node`, which ends before `limit`; none of a leaf."""
    if isinstance(node, Leaf):
        return []
    limits = [*(child.key for child in node.items[1:]), limit]
    return [Place(child, node.level - 1, end) for child, end in zip(node.items, limits, strict=True)]


def _position(items: Sequence[tuple[Key, object]] | Sequence[Row | Child], key: Key, low: int = 0) -> int:
    """The index of the first of `items`, from `low` on, whose key is not below `key`."""
    return bisect_left(items, key, low, key=itemgetter(0))


def _applied(items: Sequence[Row | Child], changes: Sequence[Change]) -> Sequence[Row | Child]:
    if not changes:
        return items
    after: dict[Key, Row | Child | None] = {item[0]: item for item in items}
    after.update(changes)
    return [item for _, item in sorted(after.items(), key=itemgetter(0)) if item is not None]
