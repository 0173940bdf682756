"""The content of a large file: the ids of its chunks in order, as a tree of list nodes.

Up to CHUNKS_MAX ids stand in the entry itself (level 0).  More of them go into list nodes, and the entry holds
the ids of those (level 1), or of list nodes over list nodes (level 2), until CHUNKS_MAX are enough:

    list     [1, 64 + level, [[index, length], ...]]      level 0: data chunks; n: list nodes of level n - 1

`length` is the bytes of data beneath, so a reader can skip.  A list ends after a child whose id says so, one in
256, with LEAST children at least and MOST at most: a file that grows, or changes in the middle, keeps all
but a few of its list nodes.

Rules: as in node.  A list node is emitted before what points at it.  It does not read the data, and it cannot
know the length of a chunk that stands in the entry itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, TypeAlias

from contbak.core.codec import Record, decode, encode
from contbak.core.errors import FormatError
from contbak.core.node import CHUNKS_MAX, VERSION, Node, check_refs, check_used, node_level, referred
from contbak.core.tree import Emit, NodeId

LIST_MARK = 64
"""Added to the level, so that no list node is taken for a node of a tree."""
LIST_LEVEL_MAX = 7
"""Each level divides the number of ids by LEAST at least."""
LEAST = 16
AVERAGE = 256
MOST = 1024

ListGet: TypeAlias = Callable[[bytes], Node]
"""Gives the list node of an id; raises NotFound or FormatError if it is lost."""


class Item(NamedTuple):
    """A chunk, or a list node, and the bytes of data in it or beneath it."""

    id: bytes
    length: int


class Span(NamedTuple):
    """A chunk at its place: bytes `start` to `start` + `length` of the data."""

    id: bytes
    start: int
    length: int


class _ListRecord(Record, frozen=True, array_like=True, forbid_unknown_fields=True):
    version: int
    kind: int
    items: tuple[tuple[int, int], ...]


def encode_list(level: int, items: Sequence[Item]) -> Node:
    """The list node of `items`: one at least; an id may stand in it more than once."""
    refs = tuple(sorted({item.id for item in items}))
    check_refs(refs)
    place = {id_: index for index, id_ in enumerate(refs)}
    _check_list(level, [item.length for item in items])
    return Node(refs, encode((VERSION, LIST_MARK + level, [(place[id_], length) for id_, length in items])))


def decode_list(node: Node, level: int) -> list[Item]:
    """The items of a list node of `level`.  Raises FormatError if it is none."""
    check_refs(node.refs)
    if node_level(node.payload) != LIST_MARK + level:
        raise FormatError(f"list node: not a list of level {level}")
    record = decode(node.payload, _ListRecord, "list node")
    _check_list(level, [length for _, length in record.items])
    items = [Item(referred(node.refs, index), length) for index, length in record.items]
    check_used(node.refs, {index for index, _ in record.items})
    return items


def _check_list(level: int, lengths: Sequence[int]) -> None:
    if not 0 <= level <= LIST_LEVEL_MAX:
        raise FormatError(f"list node: level {level}")
    if not 1 <= len(lengths) <= MOST:
        raise FormatError(f"list node: {len(lengths)} children")
    if min(lengths) < 1 or sum(lengths) >> 63:
        raise FormatError("list node: a length that cannot be")


class _ListCutter:
    """Collects the items of one level; cuts none while they would fit into the entry."""

    def __init__(self, split_id: Callable[[bytes], int]) -> None:
        self.items: list[Item] = []
        self.cutting = False
        self._split_id = split_id

    def add(self, item: Item) -> Iterator[list[Item]]:
        """Takes the next item; gives the lists that end with it."""
        if self.cutting:
            yield from self._cut(item)
        elif len(self.items) < CHUNKS_MAX:
            self.items.append(item)
        else:
            self.cutting = True
            held, self.items = self.items, []
            for each in (*held, item):
                yield from self._cut(each)

    def _cut(self, item: Item) -> Iterator[list[Item]]:
        self.items.append(item)
        ends = len(self.items) >= LEAST and self._split_id(item.id) < 2**64 // AVERAGE
        if ends or len(self.items) == MOST:
            done, self.items = self.items, []
            yield done


class SpanListWriter:
    """Takes the chunks of one file in order and makes its list nodes, holding one unfinished of each level.

    node_id    names a node by its references and payload (keyed)
    split_id   64-bit number of an id, evenly spread: where lists end
    emit       takes every list node made, lower levels first; the same one may come again
    """

    def __init__(self, node_id: NodeId, split_id: Callable[[bytes], int], emit: Emit) -> None:
        self._node_id = node_id
        self._split_id = split_id
        self._emit = emit
        self._cutters = [_ListCutter(split_id)]

    def add(self, chunk_id: bytes, length: int) -> None:
        """Takes the next chunk, of `length` bytes, 1 at least."""
        self._rise(Item(chunk_id, length), 0)

    def finish(self) -> tuple[int, tuple[bytes, ...]]:
        """What goes into Content: level, and CHUNKS_MAX ids at most.  Nothing can be added afterwards."""
        level = 0
        while self._cutters[level].cutting:
            if self._cutters[level].items:
                self._end(self._cutters[level].items, level)
            level += 1
        return level, tuple(item.id for item in self._cutters[level].items)

    def _rise(self, item: Item, level: int) -> None:
        for items in self._cutters[level].add(item):
            self._end(items, level)

    def _end(self, items: Sequence[Item], level: int) -> None:
        node = encode_list(level, items)
        id_ = self._node_id(*node)
        self._emit(id_, node)
        if level + 1 == len(self._cutters):
            self._cutters.append(_ListCutter(self._split_id))
        self._rise(Item(id_, sum(item.length for item in items)), level + 1)


def spans(level: int, ids: Sequence[bytes], get: ListGet) -> Iterator[tuple[bytes, int | None]]:
    """The chunks of a content in order: (id, bytes), or (id, None) at level 0, where nobody noted the length.

    Raises what `get` raises, and FormatError for a damaged list node.
    """
    if level == 0:
        yield from ((id_, None) for id_ in ids)
        return
    for id_ in ids:
        for span in _from(decode_list(get(id_), level - 1), level - 1, get, 0, 0):
            yield span.id, span.length


def locate(
    level: int, ids: Sequence[bytes], get: ListGet, offset: int, length_of: Callable[[bytes], int]
) -> Iterator[Span]:
    """The chunks from the one that holds byte `offset` of the data on to the end; none if that is beyond it.

    List nodes that end before `offset` are skipped, but for those in `ids` itself.  `length_of` gives the bytes
    of a chunk and is asked at level 0 only.
    """
    start = 0
    for id_ in ids:
        items = decode_list(get(id_), level - 1) if level else [Item(id_, length_of(id_))]
        yield from _from(items, max(level - 1, 0), get, start, offset)
        start += sum(item.length for item in items)


def list_ids(level: int, ids: Sequence[bytes], get: ListGet) -> Iterator[bytes]:
    """The id of every list node of a content, parents first."""
    if level:
        for id_ in ids:
            yield id_
            if level > 1:
                yield from list_ids(level - 1, [item.id for item in decode_list(get(id_), level - 1)], get)


def _from(items: Sequence[Item], level: int, get: ListGet, start: int, offset: int) -> Iterator[Span]:
    """The chunks of a list that begins at `start`, from the one that holds `offset` on."""
    for id_, length in items:
        if start + length > offset:
            if level:
                yield from _from(_beneath(id_, length, level - 1, get), level - 1, get, start, offset)
            else:
                yield Span(id_, start, length)
        start += length


def _beneath(id_: bytes, length: int, level: int, get: ListGet) -> list[Item]:
    items = decode_list(get(id_), level)
    if sum(item.length for item in items) != length:
        raise FormatError("list node: not the length that its parent says")
    return items
