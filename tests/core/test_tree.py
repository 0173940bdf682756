"""Trees: what is built reads back, an edit gives the tree that building gives, and touches little."""

from __future__ import annotations

import hashlib
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from contbak.core import tree
from contbak.core.entry import Content, Entry
from contbak.core.errors import FormatError, NotFound
from contbak.core.node import REFS_MAX, Child, Inner, Leaf, Node, decode_node, encode_inner, encode_leaf, weigh
from contbak.core.tree import TreeWriter


def ident(n: int) -> bytes:
    return hashlib.blake2b(b"%d" % n, digest_size=32).digest()


def node_id(refs, payload: bytes) -> bytes:
    return hashlib.blake2b(b"".join(refs) + b"|" + payload, digest_size=32).digest()


def split(key: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "big")


def often(key: bytes) -> int:
    """Ends a leaf after 4 rows on average, an inner node after 2 and a bit: high trees of few rows."""
    return split(key) // 32


class Nodes(dict):
    """A store of nodes that insists on children before parents, and counts what is asked of it."""

    def __init__(self, *args) -> None:
        super().__init__(*args)
        self.asked: list[bytes] = []

    def emit(self, id_: bytes, node: Node) -> None:
        assert node_id(*node) == id_
        if node.payload[2]:
            assert all(ref in self for ref in node.refs)
        self[id_] = node

    def get(self, id_: bytes) -> Node:
        self.asked.append(id_)
        if id_ not in self:
            raise NotFound("no such node")
        return self[id_]


def entry(n: int, chunks: int = 0) -> Entry:
    content = Content(chunks, bytes(32), None, 0, tuple(ident(n * 100 + c) for c in range(chunks))) if chunks else None
    return Entry("f", 0o644, 0, 0, "", "", n, 0, 0, content=content)


def key(n: int, per_dir: int = 10) -> tuple[bytes, bytes]:
    return (n // per_dir).to_bytes(8, "big"), b"%06d" % (n % per_dir)


def build(rows, splitter=often):
    nodes = Nodes()
    return TreeWriter(node_id, splitter, nodes.emit).build(rows), nodes


def built(table: dict[int, int], splitter=often, chunks: int = 0):
    return build([(key(n), entry(v, chunks)) for n, v in sorted(table.items())], splitter)


TABLE = st.dictionaries(st.integers(0, 120), st.integers(0, 5), max_size=80)
CHANGES = st.dictionaries(st.integers(0, 130), st.none() | st.integers(0, 5), max_size=40)
SPLITS = st.sampled_from([often, split, lambda k: split(k) // 2**40, lambda k: 2**64 - 1])


@settings(deadline=None)
@given(TABLE, SPLITS, st.integers(-1, 125), st.integers(-1, 125))
def test_rows_read_back(table, splitter, low, high) -> None:
    root, nodes = built(table, splitter)
    rows = [(key(n), entry(v)) for n, v in sorted(table.items())]
    assert (root is None) == (not table)
    assert list(tree.rows(root, nodes.get)) == rows
    assert tree.count(root, nodes.get) == len(rows)
    assert sorted(tree.walk_ids(root, nodes.get)) == sorted(nodes)
    start, stop = key(low) if low >= 0 else None, key(high) if high >= 0 else None
    expected = [row for row in rows if (start is None or row[0] >= start) and (stop is None or row[0] < stop)]
    assert list(tree.rows(root, nodes.get, start, stop)) == expected
    assert tree.lookup(root, key(max(low, 0)), nodes.get) == dict((row[0], row) for row in rows).get(key(max(low, 0)))
    for dir_id in {key(max(low, 0))[0], b"\xff" * 8}:
        names = [(name, found) for (parent, name), found in rows if parent == dir_id]
        assert list(tree.directory(root, dir_id, nodes.get)) == names


def test_last_directory_and_empty_name() -> None:
    top = Entry("d", 0, 0, 0, "", "", 0, 0, 0, dir=bytes(8))
    root, nodes = build([((bytes(8), b""), top), ((bytes(8), b"\x01"), None), ((b"\xff" * 8, b"\xff"), entry(1))])
    assert list(tree.directory(root, bytes(8), nodes.get)) == [(b"\x01", None)]
    assert list(tree.directory(root, b"\xff" * 8, nodes.get)) == [(b"\xff", entry(1))]
    assert tree.lookup(root, (bytes(8), b""), nodes.get) == ((bytes(8), b""), top)
    assert tree.lookup(root, (bytes(8), b"\x01"), nodes.get) == ((bytes(8), b"\x01"), None)
    assert tree.lookup(root, (bytes(8), b"\x02"), nodes.get) is None


def check_edit(table, changes, splitter=often, chunks: int = 0) -> None:
    root, nodes = built(table, splitter, chunks)
    before = set(tree.walk_ids(root, nodes.get))
    fresh = Nodes()
    fresh.update(nodes)
    emitted: list[bytes] = []

    def emit(id_: bytes, node: Node) -> None:
        emitted.append(id_)
        fresh.emit(id_, node)

    rows = [(key(n), None if v is None else entry(v, chunks)) for n, v in sorted(changes.items())]
    edited, gone = TreeWriter(node_id, splitter, emit).edit(root, rows, nodes.get)
    after = {n: v for n, v in {**table, **changes}.items() if v is not None}
    expected, whole = built(after, splitter, chunks)
    assert edited == expected
    assert sorted(gone) == sorted(before - whole.keys())
    assert sorted(emitted) == sorted(whole.keys() - before)
    assert list(tree.rows(edited, fresh.get)) == [(key(n), entry(v, chunks)) for n, v in sorted(after.items())]


@settings(max_examples=400, deadline=None)
@given(TABLE, CHANGES, SPLITS)
def test_edit_is_rebuild(table, changes, splitter) -> None:
    check_edit(table, changes, splitter)


@settings(max_examples=60, deadline=None)
@given(TABLE, st.sampled_from([(0, 40), (0, 121), (40, 121), (1, 121), (0, 120), (20, 60)]), SPLITS)
def test_edit_is_rebuild_when_much_goes(table, span, splitter) -> None:
    check_edit(table, {n: None for n in range(*span)}, splitter)


@settings(max_examples=100, deadline=None)
@given(TABLE, CHANGES, SPLITS)
def test_edit_is_rebuild_with_size_caps(table, changes, splitter) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tree, "WEIGHT_MAX", 500)
        patch.setattr(tree, "REFS_MAX", 64 + 7)
        check_edit(table, changes, splitter, chunks=3)


@pytest.mark.parametrize("size", range(20, 120))
def test_edit_leaves_the_last_leaf(size) -> None:
    table = {n: n for n in range(size)}
    nodes = built(table)[1]
    last = max(found.items[0][0] for node in nodes.values() if isinstance(found := decode_node(node), Leaf))
    check_edit(table, {n: None for n in table if key(n) < last})


def test_edit_of_nothing_and_into_nothing() -> None:
    root, nodes = built({1: 1, 2: 2})
    writer = TreeWriter(node_id, often, lambda *_: pytest.fail("nothing to write"))
    assert writer.edit(root, [], nodes.get) == (root, [])
    assert writer.edit(root, [(key(1), entry(1)), (key(7), None)], nodes.get) == (root, [])
    assert writer.edit(None, [(key(7), None)], nodes.get) == (None, [])
    assert writer.edit(root, [(key(1), None), (key(2), None)], nodes.get) == (None, list(nodes))


@pytest.mark.parametrize("order", [(2, 1), (1, 1)])
def test_order_is_asked_for(order) -> None:
    root, nodes = built({1: 1})
    rows = [(key(n), entry(n)) for n in order]
    for splitter in (split, lambda k: 0):  # in one leaf, and across leaves
        writer = TreeWriter(node_id, splitter, lambda *_: None)
        with pytest.raises(FormatError):
            writer.build(rows)
        with pytest.raises(FormatError):
            writer.edit(root, rows, nodes.get)


def test_order_is_asked_for_from_leaf_to_leaf() -> None:
    writer = TreeWriter(node_id, lambda k: 0 if k == b"".join(key(2)) else 2**64 - 1, lambda *_: None)
    for again in (1, 2):
        with pytest.raises(FormatError):
            writer.build([(key(n), None) for n in (1, 2, again, 3)])


def test_every_key_ends_a_node() -> None:
    root, nodes = build([(key(n), entry(n)) for n in range(1000)], lambda k: 0)
    levels = [nodes[id_].payload[2] for id_ in nodes]
    assert [levels.count(level) for level in range(11)] == [1000, 500, 250, 125, 63, 32, 16, 8, 4, 2, 1]
    assert sum(1 for _ in tree.rows(root, nodes.get)) == 1000


def test_no_key_is_hashed_alike_at_two_levels() -> None:
    hashed: list[bytes] = []
    _, nodes = build([(key(n), entry(n)) for n in range(500)], lambda k: hashed.append(k) or often(k))
    assert max(node.payload[2] for node in nodes.values()) > 2
    assert len(hashed) == len(set(hashed)) > 600


@pytest.mark.parametrize("chunks", [0, 60])
def test_nodes_are_bounded(chunks) -> None:
    random_ = random.Random(1)
    heavy = [((n.to_bytes(8, "big"), b"n" * random_.randrange(1, 255)), entry(n, chunks)) for n in range(3000)]
    root, nodes = build(heavy, lambda k: 2**64 - 1)
    decoded = [(node, decode_node(node)) for node in nodes.values()]
    assert sum(isinstance(found, Leaf) for _, found in decoded) > (10 if not chunks else 50)
    for node, found in decoded:
        assert len(node.refs) <= REFS_MAX
        assert len(node.payload) <= tree.WEIGHT_MAX + max(map(weigh, found.items))
    assert list(tree.rows(root, nodes.get)) == heavy


def large(count: int):
    return {key(n, 50): entry(n, 1) for n in range(count)}


@pytest.fixture(scope="module")
def hundred_thousand():
    table = large(100_000)
    return table, *build(table.items(), split)


def test_shape(hundred_thousand) -> None:
    _, root, nodes = hundred_thousand
    leaves = [found for node in nodes.values() if isinstance(found := decode_node(node), Leaf)]
    assert 100 < 100_000 / len(leaves) < 160
    assert nodes[root].payload[2] == 2


@pytest.mark.parametrize("what", ["change", "remove", "insert", "first", "last"])
def test_one_change_rewrites_one_path(hundred_thousand, what) -> None:
    table, root, nodes = hundred_thousand
    depth = nodes[root].payload[2] + 1
    for seed in range(10):
        place = random.Random(seed).choice(list(table))
        change = {
            "change": (place, entry(7)),
            "remove": (place, None),
            "insert": ((place[0], place[1] + b"x"), entry(7)),
            "first": ((bytes(8), b"!%d" % seed), entry(7)),
            "last": ((b"\xff" * 8, b"%d" % seed), entry(7)),
        }[what]
        made, old = Nodes(), Nodes(nodes)
        edited, gone = TreeWriter(node_id, split, lambda id_, node, made=made: made.update({id_: node})).edit(
            root, [change], old.get
        )
        assert edited != root
        assert len(made) <= depth + 2 and len(gone) <= depth + 2
        assert len(old.asked) <= 4 * depth
    assert tree.lookup(root, place, old.get) == (place, table[place])


def test_reading_a_little_asks_little(hundred_thousand) -> None:
    table, root, nodes = hundred_thousand
    for place in random.Random(3).sample(list(table), 20):
        nodes.asked.clear()
        assert tree.lookup(root, place, nodes.get) == (place, table[place])
        assert len(nodes.asked) == 3
    nodes.asked.clear()
    assert len(list(tree.directory(root, place[0], nodes.get))) == 50
    assert len(nodes.asked) <= 8
    nodes.asked.clear()
    assert sum(1 for _ in tree.walk_ids(root, nodes.get)) == len(nodes)
    assert len(nodes.asked) < len(nodes) / 20


@settings(max_examples=100, deadline=None)
@given(TABLE.filter(bool), st.data())
def test_reading_survives_damage(table, data) -> None:
    root, nodes = built(table)
    hurt = data.draw(st.sets(st.sampled_from(sorted(nodes)), max_size=4))
    missing = {id_ for id_ in hurt if data.draw(st.booleans())}
    lost: list[tuple[bytes, tuple, Exception]] = []

    def get(id_: bytes) -> Node:
        if id_ in missing:
            raise NotFound("gone")
        return Node(nodes[id_].refs, nodes[id_].payload[:-1]) if id_ in hurt else nodes[id_]

    found = list(tree.rows_surviving(root, get, lambda *args: lost.append(args)))
    ranges = [span for _, span, _ in lost]

    def in_lost(place) -> bool:
        return any((low is None or low <= place) and (high is None or place < high) for low, high in ranges)

    assert found == [(key(n), entry(v)) for n, v in sorted(table.items()) if not in_lost(key(n))]
    assert {id_ for id_, _, _ in lost} <= hurt and bool(lost) == bool(hurt)
    assert all(isinstance(error, NotFound if id_ in missing else FormatError) for id_, _, error in lost)
    if hurt:
        with pytest.raises((NotFound, FormatError)):
            list(tree.rows(root, get))


LEAF = encode_leaf([(key(1), entry(1)), (key(3), entry(3))])
NEXT = encode_leaf([(key(5), entry(5))])
AMID = encode_leaf([(key(2), entry(2))])


@pytest.mark.parametrize(
    "children",
    [
        [Child(key(0), node_id(*LEAF), 2), Child(key(5), node_id(*NEXT), 1)],
        [Child(key(1), node_id(*LEAF), 3), Child(key(5), node_id(*NEXT), 1)],
        [Child(key(1), node_id(*LEAF), 2), Child(key(2), node_id(*AMID), 1)],
    ],
    ids=["first key", "count", "reaches into the next"],
)
def test_a_node_that_its_parent_denies(children) -> None:
    nodes = {node_id(*node): node for node in (LEAF, NEXT, AMID)}
    good = encode_inner(1, [Child(key(1), node_id(*LEAF), 2), Child(key(5), node_id(*NEXT), 1)])
    bad = encode_inner(1, children)
    high = encode_inner(2, [Child(key(1), node_id(*LEAF), 2), Child(key(5), node_id(*NEXT), 1)])
    nodes |= {b"good": good, b"bad": bad, b"high": high}
    assert len(list(tree.rows(b"good", nodes.__getitem__))) == 3
    for root in (b"bad", b"high"):
        with pytest.raises(FormatError):
            list(tree.rows(root, nodes.__getitem__))
        with pytest.raises(FormatError):
            TreeWriter(node_id, split, lambda *_: None).edit(root, [(key(n), None) for n in (1, 5)], nodes.__getitem__)


def test_get_may_give_decoded_nodes() -> None:
    root, nodes = built({n: n for n in range(100)})
    assert isinstance(decode_node(nodes[root]), Inner)
    assert list(tree.rows(root, lambda id_: decode_node(nodes[id_]))) == list(tree.rows(root, nodes.get))
