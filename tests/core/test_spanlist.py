"""Span lists: what goes in comes out, at any place, and a small change costs few nodes."""

from __future__ import annotations

import hashlib
import random
from itertools import accumulate

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from contbak.core.codec import encode
from contbak.core.errors import FormatError, NotFound
from contbak.core.node import CHUNKS_MAX, Node, decode_node
from contbak.core.spanlist import (
    LEAST,
    MOST,
    Item,
    Span,
    SpanListWriter,
    decode_list,
    encode_list,
    list_ids,
    locate,
    spans,
)


def ident(n: int) -> bytes:
    return hashlib.blake2b(b"%d" % n, digest_size=32).digest()


def node_id(refs, payload: bytes) -> bytes:
    return hashlib.blake2b(b"".join(refs) + b"|" + payload, digest_size=32).digest()


def written(items, number=lambda id_: int.from_bytes(id_[:8], "big")):
    """(level, ids, nodes by id)"""
    nodes: dict[bytes, Node] = {}

    def emit(id_: bytes, node: Node) -> None:
        assert all(ref in nodes or ref in chunks for ref in node.refs)  # what is pointed at comes first
        nodes[id_] = node

    chunks = {id_ for id_, _ in items}
    writer = SpanListWriter(node_id, number, emit)
    for id_, length in items:
        writer.add(id_, length)
    return *writer.finish(), nodes


def chunks(count: int, seed: int = 0, distinct: int = 10**9) -> list[tuple[bytes, int]]:
    random_ = random.Random(seed)
    return [(ident(n), 1 + n % 1000) for n in (random_.randrange(distinct) for _ in range(count))]


@settings(max_examples=40, deadline=None)
@given(
    st.one_of(st.integers(0, 200), st.sampled_from([63, 64, 65, 1023, 1024, 1025, 5000, 9000])),
    st.sampled_from([1, 3, 10**9]),
    st.sampled_from([1, 8, 2**63]),
)
def test_all_comes_back(count, distinct, rarer) -> None:
    items = chunks(count, distinct=distinct)
    # rarer: 1 as in use; 8 ends lists often (high trees); 2**63 ends all at LEAST
    level, ids, nodes = written(items, lambda id_: int.from_bytes(id_[:8], "big") // rarer)
    assert len(ids) <= CHUNKS_MAX
    assert (level == 0) == (count <= CHUNKS_MAX)
    assert [id_ for id_, _ in spans(level, ids, nodes.__getitem__)] == [id_ for id_, _ in items]
    if level:
        assert [length for _, length in spans(level, ids, nodes.__getitem__)] == [length for _, length in items]
    else:
        assert all(length is None for _, length in spans(level, ids, nodes.__getitem__))
    assert set(list_ids(level, ids, nodes.__getitem__)) == set(nodes)
    assert written(items, lambda id_: int.from_bytes(id_[:8], "big") // rarer)[:2] == (level, ids)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from([0, 1, 64, 65, 3000]), st.sampled_from([1, 2**63]), st.data())
def test_locate_is_the_rest_of_the_chunks(count, rarer, data) -> None:
    items = chunks(count)
    level, ids, nodes = written(items, lambda id_: int.from_bytes(id_[:8], "big") // rarer)
    starts = [0, *accumulate(length for _, length in items)]
    edges = st.sampled_from(starts).flatmap(lambda s: st.sampled_from([max(0, s - 1), s, s + 1]))
    offset = data.draw(edges | st.integers(0, starts[-1] + 10))
    expected = [Span(id_, start, length) for (id_, length), start in zip(items, starts, strict=False)]
    expected = [span for span in expected if span.start + span.length > offset]
    assert list(locate(level, ids, nodes.__getitem__, offset, dict(items).__getitem__)) == expected


def test_locate_skips() -> None:
    items = chunks(200_000)
    level, ids, nodes = written(items)
    assert level == 2
    asked: list[bytes] = []

    def get(id_: bytes) -> Node:
        asked.append(id_)
        return nodes[id_]

    total = sum(length for _, length in items)
    found = next(locate(level, ids, get, total - 1, lambda _: pytest.fail("asked for a length")))
    assert found == Span(items[-1][0], total - items[-1][1], items[-1][1])
    assert len(asked) <= CHUNKS_MAX + 1 < len(nodes) / 5


def test_nodes_are_bounded_and_of_the_right_size() -> None:
    level, _, nodes = written(chunks(100_000))
    sizes = [len(decode_list(node, 0)) for node in nodes.values() if node.payload[2] == 64]
    assert level >= 1 and max(sizes) <= MOST
    assert min(sorted(sizes)[1:]) >= LEAST  # the last may have fewer
    assert 200 < sum(sizes) / len(sizes) < 330


@pytest.mark.parametrize("place", [0, 50_000, 100_000])
def test_an_insertion_costs_few_nodes(place) -> None:
    items = chunks(100_000)
    before = written(items)[2]
    items[place:place] = chunks(3, seed=1)
    after = written(items)[2]
    assert 1 <= len(after.keys() - before.keys()) <= 5


def test_one_chunk_over_and_over_ends() -> None:
    for number in (0, 2**64 - 1):
        level, ids, nodes = written([(ident(1), 5)] * 100_000, lambda _, n=number: n)
        assert sum(length for _, length in spans(level, ids, nodes.__getitem__)) == 500_000
        assert len(nodes) < 10


A, B = sorted((ident(1), ident(2)))


@pytest.mark.parametrize(
    ("refs", "payload"),
    [
        ((A,), (2, 64, [(0, 1)])),
        ((A,), (1, 65, [(0, 1)])),
        ((A,), (1, 0, [(0, 1)])),
        ((), (1, 64, [])),
        ((A,), (1, 64, [(1, 1)])),
        ((A,), (1, 64, [(-1, 1)])),
        ((A, B), (1, 64, [(0, 1)])),
        ((B, A), (1, 64, [(0, 1), (1, 1)])),
        ((A,), (1, 64, [(0, 0)])),
        ((A,), (1, 64, [(0, 2**62), (0, 2**62)])),
        ((A,), (1, 64, [(0, 1)] * (MOST + 1))),
        ((A,), (1, 64, [(0, 1, 1)])),
        ((A,), (1, 64, [(0, 1)], 0)),
    ],
)
def test_rules_are_enforced(refs, payload) -> None:
    with pytest.raises(FormatError):
        decode_list(Node(refs, encode(payload)), 0)


def test_a_list_is_no_node_of_a_tree() -> None:
    node = encode_list(0, [Item(A, 1), Item(B, 2), Item(A, 1)])
    assert decode_list(node, 0) == [Item(A, 1), Item(B, 2), Item(A, 1)]
    with pytest.raises(FormatError):
        decode_node(node)
    with pytest.raises(FormatError):
        decode_list(node, 1)
    with pytest.raises(FormatError):
        encode_list(8, [Item(A, 1)])
    with pytest.raises(FormatError):
        encode_list(0, [Item(A, 0)])


def test_a_child_of_another_length_is_refused() -> None:
    low = encode_list(0, [Item(A, 1), Item(B, 2)])
    high = encode_list(1, [Item(node_id(*low), 4)])
    nodes = {node_id(*low): low, node_id(*high): high}
    with pytest.raises(FormatError):
        list(spans(2, [node_id(*high)], nodes.__getitem__))


def test_what_get_raises_comes_through() -> None:
    def get(_: bytes) -> Node:
        raise NotFound("gone")

    with pytest.raises(NotFound):
        list(spans(1, [A], get))
