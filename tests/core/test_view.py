"""Views: a base and runs read like the one table they stand for; paths, loops, damage and differences."""

from __future__ import annotations

import hashlib
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from contbak.core import tree
from contbak.core.entry import Entry
from contbak.core.errors import FormatError, NotFound
from contbak.core.names import TOP_DIR
from contbak.core.node import Node
from contbak.core.tree import TreeWriter
from contbak.core.view import BARE_TOP, View, merged_runs


def node_id(refs, payload: bytes) -> bytes:
    return hashlib.blake2b(b"".join(refs) + b"|" + payload, digest_size=32).digest()


def split(key: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "big")


def often(key: bytes) -> int:
    """Ends a leaf after 4 rows on average, an inner node after 2 and a bit."""
    return split(key) // 32


PLAIN = {"mode": 0, "uid": 0, "gid": 0, "user": "", "group": "", "mtime": 0, "ctime": 0}


def file(n: int) -> Entry:
    return Entry(kind="f", size=n, **PLAIN)


def folder(n: int) -> Entry:
    return Entry(kind="d", size=0, dir=d(n), **PLAIN)


def d(n: int) -> bytes:
    return n.to_bytes(8, "big")


class Source:
    """A source as its writer keeps it: commits of runs, folds, and the table they should stand for."""

    def __init__(self, table=None, splitter=often) -> None:
        self.nodes: dict[bytes, Node] = {}
        self.writer = TreeWriter(node_id, splitter, self.nodes.__setitem__)
        self.table: dict = dict(table or {})
        self.roots: list[bytes | None] = [self.writer.build(sorted(self.table.items(), key=lambda r: r[0]))]

    def commit(self, changes) -> None:
        run = self.writer.build(sorted(changes.items(), key=lambda r: r[0]))
        if run is not None:
            self.roots.append(run)
        for key, entry in changes.items():
            if entry is None:
                self.table.pop(key, None)
            else:
                self.table[key] = entry

    def fold(self) -> None:
        runs = [run for run in self.roots[1:] if run]
        base, _ = self.writer.edit(self.roots[0], merged_runs(runs, self.get), self.get)
        self.roots = [base]

    def get(self, id_: bytes) -> Node:
        if id_ not in self.nodes:
            raise NotFound("no such node")
        return self.nodes[id_]

    def view(self, lost=None) -> View:
        return View(list(self.roots), self.get, lost)


def walked(table, dir_id=TOP_DIR, prefix=b"", seen=None):
    """What `walk` should give, the slow way."""
    seen = {TOP_DIR} if seen is None else seen
    for (parent, name), entry in sorted(table.items(), key=lambda r: r[0]):
        if parent == dir_id and name:
            path = prefix + b"/" + name if prefix else name
            yield path, entry
            if entry.kind == "d" and entry.dir not in seen:
                seen.add(entry.dir)
                yield from walked(table, entry.dir, path, seen)


KEYS = st.tuples(st.integers(0, 6).map(d), st.sampled_from([b"a", b"b", b"c", b"a.", b"\xff"]))
ENTRIES = st.builds(file, st.integers(0, 3)) | st.builds(folder, st.integers(0, 6))
TOP_ENTRY = {(TOP_DIR, b""): folder(0)}
TABLES = st.tuples(st.dictionaries(KEYS, ENTRIES, max_size=30), st.sampled_from([{}, TOP_ENTRY])).map(
    lambda two: two[0] | two[1]
)
CHANGES = st.dictionaries(KEYS, st.none() | ENTRIES, max_size=10)
STEPS = st.lists(CHANGES | st.just("fold") | st.just({(TOP_DIR, b""): None}), max_size=8)


def apply(source: Source, steps) -> None:
    for step in steps:
        if step == "fold":
            source.fold()
        else:
            source.commit(step)


@settings(max_examples=200, deadline=None)
@given(TABLES, STEPS)
def test_a_view_is_the_table(table, steps) -> None:
    source = Source(table)
    apply(source, steps)
    view = source.view(lambda *_: None)
    rows = sorted(source.table.items(), key=lambda r: r[0])
    assert list(view.all_rows()) == rows
    for dir_id in map(d, range(8)):
        names = [(name, entry) for (parent, name), entry in rows if parent == dir_id and name]
        assert list(view.directory(dir_id)) == names
        for name in (b"a", b"b", b"\xff", b"zz"):
            assert view.lookup(dir_id, name) == source.table.get((dir_id, name))
    assert list(view.walk()) == list(walked(source.table))
    assert list(view.walk(d(3), b"x/y")) == list(walked(source.table, d(3), b"x/y", {d(3)}))
    fresh = Source(source.table)
    source.fold()
    assert source.roots == fresh.roots


@settings(max_examples=100, deadline=None)
@given(TABLES, STEPS)
def test_paths_resolve_to_what_is_walked(table, steps) -> None:
    source = Source(table)
    apply(source, steps)
    view = source.view(lambda *_: None)
    for path, entry in view.walk():
        parent, _, name = path.rpartition(b"/")
        found = view.resolve(path)
        assert found is not None and found[0] == entry and found[2] == name
        assert view.resolve(parent)[0].dir == found[1]
        assert view.resolve(path + b"/no such name") is None
    assert view.resolve(b"") == (source.table.get((TOP_DIR, b""), BARE_TOP), TOP_DIR, b"")


def test_resolve_by_hand() -> None:
    table = {(d(0), b"x"): folder(1), (d(1), b"y"): folder(2), (d(2), b"z"): file(5), (d(9), b"z"): file(6)}
    view = Source(table).view()
    assert view.resolve(b"x/y/z") == view.resolve(b"/x//y/z/") == (file(5), d(2), b"z")
    assert view.resolve(b"x/y/z/w") is None  # a file is no directory
    assert view.resolve(b"x/z") is None
    assert view.resolve(b"..") is None


def test_nothing_at_all() -> None:
    for roots in ([], [None]):
        view = View(roots, lambda _: pytest.fail("nothing to get"))
        assert list(view.walk()) == list(view.all_rows()) == []
        assert view.lookup(TOP_DIR, b"a") is None
        assert view.resolve(b"") == (BARE_TOP, TOP_DIR, b"")
        assert list(view.diff(view)) == []


def test_a_loop_of_directories_ends_and_is_reported() -> None:
    source = Source(
        {(d(0), b"a"): folder(1), (d(1), b"up"): folder(0), (d(1), b"self"): folder(1), (d(1), b"f"): file(1)}
    )
    lost: list = []
    assert [path for path, _ in source.view(lambda *args: lost.append(args)).walk()] == [
        b"a",
        b"a/f",
        b"a/self",
        b"a/up",
    ]
    assert [(id_, type(error)) for id_, _, error in lost] == [(d(1), FormatError), (d(0), FormatError)]
    with pytest.raises(FormatError):
        list(source.view().walk())
    assert list(source.view().diff(source.view())) == []


def test_a_very_deep_directory() -> None:
    table = {(d(n), b"d"): folder(n + 1) for n in range(3000)}
    assert sum(1 for _ in Source(table, split).view().walk()) == 3000


@settings(max_examples=100, deadline=None)
@given(TABLES, STEPS, st.data())
def test_damage_hides_only_what_is_lost(table, steps, data) -> None:
    source = Source(table)
    apply(source, steps)
    if not source.nodes:
        return
    victim = data.draw(st.sampled_from(sorted(source.nodes)))
    used = {id_ for root in source.roots for id_ in tree.walk_ids(root, source.get)}
    rows = dict(source.view().all_rows())
    base_hurt = victim in set(tree.walk_ids(source.roots[0], source.get))
    del source.nodes[victim]
    lost: list = []
    found = dict(source.view(lambda *args: lost.append(args)).all_rows())
    assert {args[0] for args in lost} == ({victim} if victim in used else set())
    if base_hurt and len(source.roots) == 1:
        low, high = lost[0][1]
        assert found == {
            k: e for k, e in rows.items() if not ((low is None or low <= k) and (high is None or k < high))
        }
    if victim in used:
        with pytest.raises(NotFound):
            list(source.view().all_rows())
    else:
        assert found == rows


def places(table):
    """{directory id: path} of every directory that paths lead to; the first of several paths to one."""
    return {TOP_DIR: b"", **{e.dir: p for p, e in reversed(list(walked(table))) if e.kind == "d" and e.dir != TOP_DIR}}


# Each directory in one place only, as a writer keeps it: directory n stands in one of 0 .. n - 1.
TREES = st.tuples(
    st.dictionaries(st.integers(1, 5), st.tuples(st.integers(0, 4), st.sampled_from([b"p", b"q"])), max_size=5),
    st.dictionaries(
        st.tuples(st.integers(0, 5).map(d), st.sampled_from([b"a", b"b", b"c"])), st.integers(0, 2), max_size=15
    ),
)


def table_of(drawn):
    dirs, files = drawn
    table = {key: file(n) for key, n in files.items()}
    for n, (parent, name) in dirs.items():
        table[d(min(parent, n - 1)), name + b"%d" % n] = folder(n)
    return table


@settings(max_examples=300, deadline=None)
@given(TREES, TREES, st.integers(0, 3), st.booleans())
def test_diff_is_what_changed(old_drawn, new_drawn, cut, folded) -> None:
    old, new = table_of(old_drawn), table_of(new_drawn)
    before = Source(old)
    after = Source(old)
    changes = sorted({k: new.get(k) for k in old.keys() | new.keys() if old.get(k) != new.get(k)}.items())
    after.commit(dict(changes[:cut]))
    after.commit(dict(changes[cut:]))
    if folded:
        after.fold()
    found = list(before.view().diff(after.view()))
    # The slow way: an entry is seen under (id of its directory, name) where a path leads to that directory.
    old_dirs, new_dirs = places(old), places(new)
    seen_old = {k: e for k, e in old.items() if k[0] in old_dirs}
    seen_new = {k: e for k, e in new.items() if k[0] in new_dirs}
    expected = []
    for k in seen_old.keys() | seen_new.keys():
        if seen_old.get(k) != seen_new.get(k):
            above = (new_dirs if k in seen_new else old_dirs)[k[0]]
            expected.append((above + b"/" + k[1] if above else k[1], seen_old.get(k), seen_new.get(k)))
    assert sorted(found, key=repr) == sorted(expected, key=repr)
    back = [(one, two) for _, two, one in after.view().diff(before.view())]
    assert sorted(back, key=repr) == sorted([change[1:] for change in found], key=repr)


def test_diff_gives_a_key_once_however_often_it_was_written() -> None:
    table = {(d(0), b"%d" % n): file(n) for n in range(50)}
    before, after = Source(table), Source(table)
    before.commit({(d(0), b"7"): file(70)})
    after.commit({(d(0), b"7"): file(71), (d(0), b"8"): file(71)})
    assert set(before.view().diff(after.view())) == {(b"7", file(70), file(71)), (b"8", file(8), file(71))}
    after.fold()
    after.commit({(d(0), b"7"): file(72)})
    assert len(list(before.view().diff(after.view()))) == 2


def test_diff_ends_where_directories_loop() -> None:
    source = Source({(d(0), b"a"): folder(1), (d(1), b"b"): folder(2), (d(2), b"up"): folder(1), (d(2), b"f"): file(1)})
    before = source.view()
    source.commit({(d(2), b"f"): file(2)})
    assert list(before.diff(source.view())) == [(b"a/b/f", file(1), file(2))]


def test_a_moved_directory_is_one_entry() -> None:
    table = {(d(0), b"a"): folder(1), (d(0), b"b"): folder(2), **{(d(1), b"%d" % n): file(n) for n in range(50)}}
    before, after = Source(table), Source(table)
    after.commit({(d(0), b"a"): None, (d(2), b"new"): folder(1), (d(1), b"7"): file(70)})
    assert set(before.view().diff(after.view())) == {
        (b"a", folder(1), None),
        (b"b/new", None, folder(1)),
        (b"b/new/7", file(7), file(70)),
    }


@pytest.mark.parametrize("tombstones", [False, True])
def test_a_directory_that_went_takes_all_along(tombstones) -> None:
    table = {(d(0), b"a"): folder(1), (d(1), b"b"): folder(2), (d(2), b"f"): file(1), (d(1), b"c"): folder(3)}
    before, after = Source(table), Source(table)
    gone = {(d(0), b"a"): None, (d(0), b"kept"): folder(3)}
    if tombstones:
        gone |= {(d(1), b"b"): None, (d(1), b"c"): None, (d(2), b"f"): None}
    after.commit(gone)
    expected = {
        (b"a", folder(1), None),
        (b"a/b", folder(2), None),
        (b"a/b/f", file(1), None),
        (b"a/c", folder(3), None),
        (b"kept", None, folder(3)),
    }
    assert set(before.view().diff(after.view())) == expected
    assert {(path, new, old) for path, old, new in after.view().diff(before.view())} == expected


def test_diff_reads_only_where_bases_differ() -> None:
    table = {(d(0), b"%06d" % n): file(n) for n in range(20_000)}
    before, after = Source(table, split), Source(table, split)
    random_ = random.Random(1)
    changes = {key: random_.choice([None, file(-1)]) for key in random_.sample(sorted(table), 5)}
    after.commit(changes)
    after.fold()
    asked: list[bytes] = []

    def get(id_: bytes) -> Node:
        asked.append(id_)
        return after.nodes.get(id_) or before.nodes[id_]

    found = list(View(before.roots, get).diff(View(after.roots, get)))
    assert found == [(key[1], table[key], changes[key]) for key in sorted(changes)]
    assert len(asked) <= 2 * (5 * 3 + 3) < len(after.nodes)


def test_a_directory_is_read_with_few_nodes() -> None:
    table = {(d(n // 10), b"%d" % n): file(n) for n in range(20_000)}
    source = Source(table, split)
    source.commit({(d(5), b"x"): file(1)})
    asked: list[bytes] = []

    def get(id_: bytes) -> Node:
        asked.append(id_)
        return source.get(id_)

    view = View(source.roots, get)
    assert len(list(view.directory(d(5)))) == 11
    assert len(asked) <= 6
    list(view.directory(d(5)))
    assert len(asked) <= 6


def test_runs_merge_into_one() -> None:
    source = Source()
    source.commit({(d(0), b"a"): file(1), (d(0), b"b"): file(1)})
    source.commit({(d(0), b"a"): None, (d(1), b"c"): file(2)})
    source.commit({(d(1), b"c"): file(3)})
    runs = [run for run in source.roots if run]
    assert merged_runs(runs, source.get) == [((d(0), b"a"), None), ((d(0), b"b"), file(1)), ((d(1), b"c"), file(3))]
    del source.nodes[runs[1]]
    lost: list = []
    assert len(merged_runs(runs, source.get, lambda *args: lost.append(args))) == 3
    assert lost[0][0] == runs[1]
    with pytest.raises(NotFound):
        merged_runs(runs, source.get)
