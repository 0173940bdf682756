"""Nodes: round trips, one encoding each, and every rule of the format broken once."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from contbak.core.codec import encode
from contbak.core.entry import Content, Entry
from contbak.core.errors import FormatError
from contbak.core.node import (
    REFS_MAX,
    Child,
    Inner,
    Leaf,
    Node,
    check_refs,
    decode_node,
    encode_inner,
    encode_leaf,
    weigh,
)


def ident(n: int) -> bytes:
    return hashlib.blake2b(b"%d" % n, digest_size=32).digest()


DIRS = st.sampled_from([bytes(8), b"\x01" * 8, b"12345678", b"\xff" * 8])
NAMES = st.binary(min_size=1, max_size=300).filter(
    lambda n: b"/" not in n and b"\0" not in n and n not in (b".", b"..")
)
KEYS = st.tuples(DIRS, NAMES)
U32 = st.integers(0, 2**32 - 1)
TIME = st.integers(-(2**63), 2**63 - 1)
INLINE = st.builds(lambda raw: Content(len(raw), b"h" * 32, raw, 0, ()), st.binary(max_size=256))
CHUNKED = st.builds(
    lambda length, level, ids: Content(length, b"h" * 32, None, level, tuple(map(ident, ids))),
    st.integers(1, 2**63),
    st.integers(0, 3),
    st.lists(st.integers(0, 300), min_size=1, max_size=64),
)
FILE = st.builds(
    Entry,
    kind=st.just("f"),
    mode=st.integers(0, 0o7777),
    uid=U32,
    gid=U32,
    user=st.text(st.characters(codec="utf-8"), max_size=40),
    group=st.text(st.characters(codec="utf-8"), max_size=40),
    size=st.integers(0, 2**63),
    mtime=TIME,
    ctime=TIME,
    xattrs=st.lists(st.tuples(st.binary(max_size=20), st.binary(max_size=90)), max_size=3).map(tuple),
    extents=st.none() | st.lists(st.tuples(st.integers(0, 2**60), st.integers(0, 2**60)), max_size=3).map(tuple),
    link=st.sampled_from([b"", b"linklink"]),
    content=st.none() | INLINE | CHUNKED,
    flags=st.integers(0, 1),
)
PLAIN = {"mode": 0o644, "uid": 0, "gid": 0, "user": "", "group": "", "size": 0, "mtime": 0, "ctime": 0}
DIRECTORY = st.binary(min_size=8, max_size=8).map(lambda d: Entry(kind="d", dir=d, **PLAIN))
SYMLINK = st.binary(max_size=100).map(lambda t: Entry(kind="l", target=t, **PLAIN))
DEVICE = st.tuples(U32, U32).map(lambda r: Entry(kind="b", rdev=r, **PLAIN))
ENTRIES = st.none() | FILE | DIRECTORY | SYMLINK | DEVICE
ROWS = st.dictionaries(KEYS, ENTRIES, min_size=1, max_size=12).map(lambda d: sorted(d.items(), key=lambda r: r[0]))
CHILDREN = st.dictionaries(KEYS, st.integers(1, 2**60), min_size=1, max_size=40).map(
    lambda d: [Child(key, ident(n), rows) for n, (key, rows) in enumerate(sorted(d.items()))]
)


def file(name: bytes = b"f", **fields: object) -> Entry:
    return Entry(**{"kind": "f", **PLAIN, **fields})  # type: ignore[arg-type]


@given(ROWS)
def test_leaf_round_trip(rows) -> None:
    node = encode_leaf(rows)
    leaf = decode_node(node)
    assert isinstance(leaf, Leaf) and leaf.level == 0 and leaf.rows == len(rows)
    assert list(leaf.items) == rows
    assert encode_leaf(leaf.items) == node
    assert len(node.payload) <= 8 + sum(map(weigh, rows))
    assert set(node.refs) == {c for _, e in rows if e and e.content for c in e.content.chunks}


@given(st.integers(1, 40), CHILDREN)
def test_inner_round_trip(level, children) -> None:
    node = encode_inner(level, children)
    inner = decode_node(node)
    assert inner == Inner(level, tuple(children)) and inner.rows == sum(c.rows for c in children)
    assert encode_inner(level, inner.items) == node
    assert len(node.payload) <= 8 + sum(map(weigh, children))


@settings(max_examples=300)
@given(ROWS, st.data())
def test_any_change_of_a_byte_is_refused_or_is_canonical_too(rows, data) -> None:
    node = encode_leaf(rows)
    at = data.draw(st.integers(0, len(node.payload) - 1))
    flipped = bytearray(node.payload)
    flipped[at] ^= data.draw(st.integers(1, 255))
    hurt = Node(node.refs, bytes(flipped))
    try:
        found = decode_node(hurt)
    except FormatError:
        return
    assert (
        encode_leaf(found.items) == hurt if isinstance(found, Leaf) else encode_inner(found.level, found.items) == hurt
    )


@given(st.binary(max_size=60), st.lists(st.binary(min_size=32, max_size=32), max_size=2))
def test_noise_is_refused(payload, refs) -> None:
    with pytest.raises(FormatError):
        decode_node(Node(tuple(refs), b"\x93\x01" + payload + b"\xc1"))


A, B = sorted((ident(1), ident(2)))
CONTENT = (10, b"h" * 32, None, 0, [0])
HEAD = ("f", 0, 0, 0, "", "", 0, 0, 0, b"", b"", None, [], None, b"")
ROW = (b"n", (*HEAD, CONTENT, 0))
SMALL = (b"n", None)
TOP = bytes(8)


@dataclass
class Bad:
    payload: object
    refs: tuple[bytes, ...] = ()


BAD = {
    "version": Bad((2, 0, [(TOP, [SMALL])])),
    "no groups": Bad((1, 0, [])),
    "empty group": Bad((1, 0, [(TOP, [])])),
    "empty group among others": Bad((1, 0, [(TOP, []), (b"\x01" * 8, [SMALL])])),
    "group twice": Bad((1, 0, [(TOP, [(b"a", None)]), (TOP, [(b"b", None)])])),
    "groups unsorted": Bad((1, 0, [(b"\x01" * 8, [SMALL]), (TOP, [SMALL])])),
    "names unsorted": Bad((1, 0, [(TOP, [(b"b", None), (b"a", None)])])),
    "name twice": Bad((1, 0, [(TOP, [SMALL, SMALL])])),
    "short directory id": Bad((1, 0, [(b"1234567", [SMALL])])),
    "empty name": Bad((1, 0, [(b"\x01" * 8, [(b"", None)])])),
    "top that is a file": Bad((1, 0, [(TOP, [(b"", (*HEAD, None, 0))])])),
    "top that is another": Bad((1, 0, [(TOP, [(b"", ("d", *HEAD[1:9], b"12345678", *HEAD[10:], None, 0))])])),
    "slash": Bad((1, 0, [(TOP, [(b"../x", None)])])),
    "nul": Bad((1, 0, [(TOP, [(b"a\0", None)])])),
    "parent": Bad((1, 0, [(TOP, [(b"..", None)])])),
    "long name": Bad((1, 0, [(TOP, [(b"n" * 4097, None)])])),
    "text name": Bad((1, 0, [(TOP, [("n", None)])])),
    "index beyond": Bad((1, 0, [(TOP, [(b"n", (*HEAD, (10, b"h" * 32, None, 0, [1]), 0))])]), (A,)),
    "negative index": Bad((1, 0, [(TOP, [(b"n", (*HEAD, (10, b"h" * 32, None, 0, [-1]), 0))])]), (A,)),
    "reference unused": Bad((1, 0, [(TOP, [ROW])]), (A, B)),
    "references unsorted": Bad((1, 0, [(TOP, [(b"n", (*HEAD, (10, b"h" * 32, None, 0, [0, 1]), 0))])]), (B, A)),
    "reference twice": Bad((1, 0, [(TOP, [(b"n", (*HEAD, (10, b"h" * 32, None, 0, [0, 1]), 0))])]), (A, A)),
    "short reference": Bad((1, 0, [(TOP, [ROW])]), (A[:31],)),
    "kind": Bad((1, 0, [(TOP, [(b"n", ("x", *HEAD[1:], None, 0))])])),
    "file with directory id": Bad((1, 0, [(TOP, [(b"n", (*HEAD[:9], TOP, *HEAD[10:], None, 0))])])),
    "directory without": Bad((1, 0, [(TOP, [(b"n", ("d", *HEAD[1:], None, 0))])])),
    "link id": Bad((1, 0, [(TOP, [(b"n", (*HEAD[:14], b"1", None, 0))])])),
    "short hash": Bad((1, 0, [(TOP, [(b"n", (*HEAD, (0, b"h", b"", 0, []), 0))])])),
    "inline length": Bad((1, 0, [(TOP, [(b"n", (*HEAD, (3, b"h" * 32, b"ab", 0, []), 0))])])),
    "inline and chunks": Bad((1, 0, [(TOP, [(b"n", (*HEAD, (2, b"h" * 32, b"ab", 0, [0]), 0))])]), (A,)),
    "length without chunks": Bad((1, 0, [(TOP, [(b"n", (*HEAD, (2, b"h" * 32, None, 0, []), 0))])])),
    "65 chunks": Bad((1, 0, [(TOP, [(b"n", (*HEAD, (2, b"h" * 32, None, 0, [0] * 65), 0))])]), (A,)),
    "field too many": Bad((1, 0, [(TOP, [(b"n", (*HEAD, None, 0, 0))])])),
    "element too many": Bad((1, 0, [(TOP, [SMALL])], 0)),
    "level": Bad((1, 41, [(TOP, b"n", 0, 1)]), (A,)),
    "no children": Bad((1, 1, [])),
    "children unsorted": Bad((1, 1, [(TOP, b"b", 0, 1), (TOP, b"a", 1, 1)]), (A, B)),
    "key twice": Bad((1, 1, [(TOP, b"a", 0, 1), (TOP, b"a", 1, 1)]), (A, B)),
    "child twice": Bad((1, 1, [(TOP, b"a", 0, 1), (TOP, b"b", 0, 1)]), (A,)),
    "child beyond": Bad((1, 1, [(TOP, b"a", 1, 1)]), (A,)),
    "child unused": Bad((1, 1, [(TOP, b"a", 0, 1)]), (A, B)),
    "count": Bad((1, 1, [(TOP, b"a", 0, 0)]), (A,)),
}


@pytest.mark.parametrize("what", BAD)
def test_rules_are_enforced(what) -> None:
    with pytest.raises(FormatError):
        decode_node(Node(BAD[what].refs, encode(BAD[what].payload)))


def test_the_bad_ones_are_bad_for_their_one_reason() -> None:
    decode_node(Node((A,), encode((1, 0, [(TOP, [ROW])]))))
    decode_node(Node((), encode((1, 0, [(TOP, [(b"n", (*HEAD, None, 0))])]))))
    decode_node(Node((A, B), encode((1, 1, [(TOP, b"a", 0, 1), (TOP, b"b", 1, 1)]))))
    decode_node(Node((), encode((1, 0, [(TOP, [(b"", None)])]))))
    decode_node(Node((), encode((1, 0, [(TOP, [(b"", ("d", *HEAD[1:9], TOP, *HEAD[10:], None, 0))])]))))


def test_other_encodings_of_the_same_are_refused() -> None:
    good = encode((1, 0, [(TOP, [SMALL])]))
    assert good.startswith(b"\x93\x01\x00\x91")
    decode_node(Node((), good))
    for other in (
        b"\x93\x01\x00\xdc\x00\x01" + good[4:],
        b"\x93\x01\xcc\x00" + good[3:],
        good + b"\0",
        b"",
        b"\x93\x01\x00",
    ):
        with pytest.raises(FormatError):
            decode_node(Node((), other))


@pytest.mark.parametrize(
    "rows",
    [
        [],
        [((TOP, b"b"), None), ((TOP, b"a"), None)],
        [((TOP, b"a"), None), ((TOP, b"a"), None)],
        [((TOP, b"."), None)],
        [((TOP, b"a"), file(mtime=2**64))],
        [((TOP, b"a"), file(user="\udcff"))],
        [((TOP, b"a"), file(content=Content(1, b"h" * 32, None, 0, (b"short",))))],
    ],
)
def test_what_could_not_be_read_is_not_written(rows) -> None:
    with pytest.raises(FormatError):
        encode_leaf(rows)


def test_inner_that_could_not_be_read_is_not_written() -> None:
    one, two = Child((TOP, b"a"), A, 1), Child((TOP, b"b"), B, 1)
    for level, children in ((0, [one]), (1, []), (1, [two, one]), (1, [one, two._replace(id=A)]), (41, [one])):
        with pytest.raises(FormatError):
            encode_inner(level, children)


def test_references_are_bounded() -> None:
    ids = sorted(map(ident, range(REFS_MAX + 1)))
    check_refs(ids[1:])
    with pytest.raises(FormatError):
        check_refs(ids)
