"""The nodes of a tree: rows and children to bytes and back.

A node is a chunk whose references stand apart from its payload: `refs` goes into the clear header of the
frame, so that a relay can follow it without keys, and the sealed payload names each id by its index there.

    leaf     [1, 0, [[dir id, [[name, entry or nil], ...]], ...]]
    inner    [1, level, [[dir id, name, index, count], ...]]          first key, child, rows beneath

An entry in a leaf holds indexes where Entry.content.chunks holds ids; nil is a tombstone.

Rules: rows and children stand in strictly rising order of key; refs is sorted, without repeats, and every one
of it is used; one list of rows has one encoding, and what decodes encodes to the same bytes.  What breaks a
rule is a FormatError, on the way in as on the way out: nothing is written that could not be read again.
It does not know how rows are divided among nodes (tree) nor how a node is named or sealed (crypto, frame).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from operator import attrgetter
from typing import Any, NamedTuple, TypeAlias

from contbak.core.codec import Record, decode, encode
from contbak.core.entry import DIRECTORY, KINDS, Content, Entry
from contbak.core.errors import FormatError
from contbak.core.names import DIR_ID_LEN, ID_LEN, TOP_DIR

VERSION = 1
LEVEL_MAX = 40
"""Inner nodes have two children or more (but for the last of a level), so no tree is as high as this."""
CHUNKS_MAX = 64
"""Ids in Entry.content.chunks; longer contents go through list nodes (spanlist)."""
REFS_MAX = 2048
NAME_MAX = 4096
"""Bytes of a name.  Every known file system stays below 1,100."""

Key: TypeAlias = tuple[bytes, bytes]
"""(directory id, name); sorts as the two written one after the other."""
Row: TypeAlias = "tuple[Key, Entry | None]"
"""None is a tombstone."""

_FIRST_BYTES = bytes((0x93, VERSION))  # an array of three whose first element is the version


class Node(NamedTuple):
    """A node as it is stored: sorted unique 32-byte ids, and the payload that points into them."""

    refs: tuple[bytes, ...]
    payload: bytes


class Child(NamedTuple):
    """One node as its parent knows it: its first key, its id, the number of rows beneath it."""

    key: Key
    id: bytes
    rows: int


class Leaf(NamedTuple):
    """A decoded leaf: at least one row."""

    items: tuple[Row, ...]

    @property
    def level(self) -> int:
        """Leaves are level 0."""
        return 0

    @property
    def rows(self) -> int:
        """The number of rows."""
        return len(self.items)


class Inner(NamedTuple):
    """A decoded inner node: at least one child, each a node of `level` - 1; level 0 are the leaves."""

    level: int
    items: tuple[Child, ...]

    @property
    def rows(self) -> int:
        """The number of rows beneath."""
        return sum(child.rows for child in self.items)


class _StoredContent(Record, frozen=True, array_like=True, forbid_unknown_fields=True):
    length: int
    hash: bytes
    inline: bytes | None
    level: int
    chunks: tuple[int, ...]


class _StoredEntry(Entry, frozen=True, array_like=True, forbid_unknown_fields=True):
    """An Entry with indexes for ids; redefining a field keeps its place."""

    content: _StoredContent | None = None  # type: ignore[assignment]


class _LeafRecord(Record, frozen=True, array_like=True, forbid_unknown_fields=True):
    version: int
    level: int
    groups: tuple[tuple[bytes, tuple[tuple[bytes, _StoredEntry | None], ...]], ...]


class _InnerRecord(Record, frozen=True, array_like=True, forbid_unknown_fields=True):
    version: int
    level: int
    children: tuple[tuple[bytes, bytes, int, int], ...]


# Everything of an entry but its last two fields, content and flags.
_head: attrgetter[tuple[Any, ...]] = attrgetter(*Entry.__struct_fields__[:-2])


def encode_leaf(rows: Sequence[Row]) -> Node:
    """The leaf of `rows`: at least one, in strictly rising order of key."""
    _check_rows(rows)
    refs = tuple(sorted({id_ for _, entry in rows if entry and entry.content for id_ in entry.content.chunks}))
    check_refs(refs)
    place = {id_: index for index, id_ in enumerate(refs)}
    groups: list[tuple[bytes, list[tuple[bytes, object]]]] = []
    names: list[tuple[bytes, object]] = []
    open_dir = None
    for (dir_id, name), entry in rows:
        if dir_id != open_dir:
            names = []
            open_dir = dir_id
            groups.append((dir_id, names))
        names.append((name, _stored(entry, place)))
    return Node(refs, encode((VERSION, 0, groups)))


def encode_inner(level: int, children: Sequence[Child]) -> Node:
    """The inner node of `children`: at least one, in strictly rising order of key, all ids different."""
    refs = tuple(sorted(child.id for child in children))
    check_refs(refs)
    place = {id_: index for index, id_ in enumerate(refs)}
    rows = [(*child.key, place[child.id], child.rows) for child in children]
    _check_children(level, rows)
    return Node(refs, encode((VERSION, level, rows)))


def decode_node(node: Node) -> Leaf | Inner:
    """What `node` holds.  Raises FormatError if it breaks any rule of the format."""
    check_refs(node.refs)
    if node_level(node.payload) == 0:
        return _decode_leaf(node)
    return _decode_inner(node)


def node_level(payload: bytes) -> int:
    """The third byte of a payload, which tells its kind: 0 leaf, up to LEVEL_MAX inner, more: not of a tree.

    Raises FormatError if this is no node, or one of a version that is not known here.
    """
    if len(payload) < 4 or payload[0] != _FIRST_BYTES[0]:
        raise FormatError("tree node: not a node")
    if payload[1] != _FIRST_BYTES[1]:
        raise FormatError("tree node: written by a newer contbak; update this one to read it")
    return payload[2]


def check_refs(refs: Sequence[bytes]) -> None:
    """Raises FormatError unless `refs` are sorted different ids, REFS_MAX at most."""
    if len(refs) > REFS_MAX:
        raise FormatError(f"tree node: {len(refs)} references, {REFS_MAX} are allowed")
    last = b""
    for ref in refs:
        if len(ref) != ID_LEN:
            raise FormatError(f"tree node: a reference of {len(ref)} bytes")
        if ref <= last:
            raise FormatError("tree node: references are not in order")
        last = ref


def check_used(refs: Sequence[bytes], used: Collection[int]) -> None:
    """Raises FormatError unless the indexes `used` (a set, all in range) are those of all `refs`."""
    if len(used) != len(refs):
        raise FormatError("tree node: a reference that nothing uses")


def referred(refs: Sequence[bytes], index: int) -> bytes:
    """The id at `index`; raises FormatError if there is none."""
    if not 0 <= index < len(refs):
        raise FormatError("tree node: an index beyond the references")
    return refs[index]


def weigh(item: Row | Child) -> int:
    """Bytes that a row of a leaf or a child in an inner node takes at most in its payload."""
    # 16 for the group: a new directory id at every row is the worst case.
    if isinstance(item, Child):
        return 32 + len(item.key[1])
    (_, name), entry = item
    if entry is None:
        return 24 + len(name)
    weight = 112 + len(name) + len(entry.user.encode("utf-8", "replace")) + len(entry.group.encode("utf-8", "replace"))
    if entry.content is not None:
        weight += 58 + 3 * len(entry.content.chunks) + len(entry.content.inline or b"")
    if entry.dir or entry.target or entry.link:
        weight += len(entry.dir) + len(entry.target) + len(entry.link)
    if entry.xattrs:
        weight += sum(11 + len(name) + len(value) for name, value in entry.xattrs)
    if entry.extents:
        weight += 19 * len(entry.extents)
    return weight


def pointers(item: Row | Child) -> int:
    """How many ids a row of a leaf or a child in an inner node points to, repeats counted."""
    if isinstance(item, Child):
        return 1
    entry = item[1]
    return len(entry.content.chunks) if entry is not None and entry.content is not None else 0


def check_entry(key: Key, entry: Entry | None) -> None:
    """Raises FormatError if no tree may hold `entry` under `key`.

    The empty name is the top of the source itself: the key (TOP_DIR, b"") of an entry whose `dir` is TOP_DIR.
    """
    dir_id, name = key
    if len(dir_id) != DIR_ID_LEN:
        raise FormatError(f"tree: a directory id of {len(dir_id)} bytes")
    if len(name) > NAME_MAX or b"/" in name or b"\0" in name or name in (b".", b".."):
        raise FormatError(f"tree: {name[:100]!r} cannot be a name")
    if not name and dir_id != TOP_DIR:
        raise FormatError("tree: an empty name")
    if entry is None:
        return
    if entry.kind not in KINDS:
        raise FormatError(f"tree: {name!r} is of an unknown kind")
    if len(entry.dir) != (DIR_ID_LEN if entry.kind == DIRECTORY else 0):
        raise FormatError(f"tree: {name!r} has a directory id of {len(entry.dir)} bytes")
    if not name and entry.dir != TOP_DIR:
        raise FormatError("tree: the entry of the top is not its own")
    if len(entry.link) not in (0, 8):
        raise FormatError(f"tree: {name!r} has a link id of {len(entry.link)} bytes")
    if entry.content is not None and not _sound(entry.content):
        raise FormatError(f"tree: the content of {name!r} contradicts itself")


def _sound(content: Content | _StoredContent) -> bool:
    if len(content.hash) != ID_LEN or not 0 <= content.level <= LEVEL_MAX:
        return False
    if content.inline is not None:
        return len(content.inline) == content.length and not content.chunks and not content.level
    # Data that has a length has chunks, and only that.
    return bool(content.chunks) == (content.length > 0) and 0 <= len(content.chunks) <= CHUNKS_MAX


def _check_rows(rows: Sequence[Row]) -> None:
    if not rows:
        raise FormatError("tree node: a leaf without rows")
    last: Key = (b"", b"")
    for key, entry in rows:
        check_entry(key, entry)
        if key <= last:
            raise FormatError("tree node: rows are not in order")
        last = key


def _check_children(level: int, rows: Sequence[tuple[bytes, bytes, int, int]]) -> None:
    if not 1 <= level <= LEVEL_MAX:
        raise FormatError(f"tree node: level {level}")
    if not rows:
        raise FormatError("tree node: an inner node without children")
    last: Key = (b"", b"")
    for dir_id, name, _, count in rows:
        check_entry((dir_id, name), None)
        if (dir_id, name) <= last:
            raise FormatError("tree node: children are not in order")
        if count < 1:
            raise FormatError("tree node: a child without rows")
        last = (dir_id, name)


def _stored(entry: Entry | None, place: Mapping[bytes, int]) -> object:
    """What stands for `entry` in a leaf.  A plain tuple encodes as the struct does and costs half of one."""
    if entry is None or entry.content is None or not entry.content.chunks:
        return entry
    whole = entry.content
    indexes = [place[id_] for id_ in whole.chunks]
    return (*_head(entry), (whole.length, whole.hash, whole.inline, whole.level, indexes), entry.flags)


def _restored(stored: _StoredEntry | None, refs: Sequence[bytes], used: set[int]) -> Entry | None:
    if stored is None:
        return None
    content = None
    if stored.content is not None:
        part = stored.content
        used.update(part.chunks)
        chunks = tuple([referred(refs, index) for index in part.chunks])
        content = Content(part.length, part.hash, part.inline, part.level, chunks)
    return Entry(*(*_head(stored), content, stored.flags))


def _decode_leaf(node: Node) -> Leaf:
    record = decode(node.payload, _LeafRecord, "tree node")
    rows: list[Row] = []
    used: set[int] = set()
    last = b""
    for dir_id, names in record.groups:
        if dir_id <= last or not names:  # rows in order would still allow one directory in two groups
            raise FormatError("tree node: directories are not in order")
        last = dir_id
        rows += [((dir_id, name), _restored(stored, node.refs, used)) for name, stored in names]
    _check_rows(rows)
    check_used(node.refs, used)
    return Leaf(tuple(rows))


def _decode_inner(node: Node) -> Inner:
    record = decode(node.payload, _InnerRecord, "tree node")
    _check_children(record.level, record.children)
    children = tuple(
        Child((dir_id, name), referred(node.refs, index), count) for dir_id, name, index, count in record.children
    )
    used = {index for _, _, index, _ in record.children}
    check_used(node.refs, used)
    if len(used) != len(children):
        raise FormatError("tree node: one child twice")
    return Inner(record.level, children)
