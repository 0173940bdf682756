"""Commits: whatever is changed in whatever steps, the state is the one of a dict, and what it needs is in the packs."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from contbak.core import commit as records
from contbak.core import frame, pack
from contbak.core.crypto import XCHACHA, Opener, OwnerKeys, public_of
from contbak.core.entry import FILE, Content, Entry
from contbak.core.errors import FormatError, NotFound
from contbak.core.frame import COMMIT, NODE, RUN
from contbak.core.node import Node
from contbak.core.tree import walk_ids
from contbak.core.view import View
from contbak.upload import commit
from contbak.upload.bundle import Bundler, Seal
from contbak.upload.commit import CommitWriter, Places, Roots, sealed_details
from contbak.upload.spool import Spool

OWNER = OwnerKeys.from_root(bytes(32))
SEAL = Seal(OWNER.writer, public_of(bytes(32)), XCHACHA)


def entry(number):
    return Entry(FILE, 0o600, 0, 0, "", "", 4, number, number, content=Content(4, bytes(32), b"abcd", 0, ()))


def rows(changes):
    return sorted(changes.items())


class Source:
    """A source: its state as a dict, as roots, and the agent's store of nodes."""

    def __init__(self, top):
        self.spool = Spool(top, 0)
        self.chance = random.Random(1)
        self.nodes = {}
        self.vault = {}
        self.kinds = set()
        self.copies = []
        self.state = {}
        self.roots = Roots()

    def get(self, id):
        if id not in self.nodes:
            raise NotFound("node")
        return self.nodes[id]

    def keep(self, nodes):
        self.nodes.update(nodes)

    def commit(self, changes, previous=b"", fold=False):
        bundler = Bundler(SEAL, self.spool, self.chance.randbytes, metadata=True)
        have = lambda ids: [id in self.vault for id in ids]  # noqa: E731
        writer = CommitWriter(OWNER.writer, bundler, Places(self.get, self.keep, have))
        built = writer.build(self.roots, iter(rows(changes)), previous, fold)
        for packed in built.packs + bundler.flush():
            self.receive(packed)
        for id in built.obsolete:
            del self.nodes[id]
        self.state.update(changes)
        self.state = {key: value for key, value in self.state.items() if value is not None}
        self.roots = built.roots
        return built

    def receive(self, packed):
        """What a relay would have of the pack."""
        plan = self.spool.plan(packed.root)
        for row in pack.parse_directory(self.spool.read(packed.root, plan.directory_offset, plan.directory_len)):
            raw = self.spool.read(packed.root, row.offset, row.length)
            self.kinds.add(row.kind)
            if row.kind == COMMIT:
                header = frame.parse_header(raw)
                self.copies.append(frame.decode_commit(header, raw[len(header.raw) :]))
                continue
            for chunk in frame.decode(raw, Opener(OWNER)):
                assert chunk.id not in self.vault, "a node that the vault has was stored again"
                self.vault[chunk.id] = Node(chunk.refs, bytes(chunk.payload))
        self.spool.remove(packed.root)

    def check(self):
        for get in (self.get, self.vault.__getitem__):
            view = View([self.roots.base, *self.roots.runs], get)
            assert dict(view.all_rows()) == self.state
        used = {id for root in (self.roots.base, *self.roots.runs) if root for id in walk_ids(root, self.get)}
        assert set(self.nodes) == used, "the agent keeps the nodes of its state and no others"


KEYS = st.tuples(st.integers(0, 2).map(lambda n: n.to_bytes(8, "big")), st.integers(0, 40).map(b"%03d".__mod__))
STEPS = st.lists(st.dictionaries(KEYS, st.one_of(st.none(), st.integers(0, 5).map(entry)), max_size=12), max_size=12)


@settings(max_examples=60)
@given(steps=STEPS, runs_max=st.integers(1, 4), fold_rows=st.integers(3, 40), slice_rows=st.integers(1, 50))
def test_any_history_ends_in_the_state_of_a_dict(tmp_path_factory, steps, runs_max, fold_rows, slice_rows):
    source = Source(tmp_path_factory.mktemp("spool"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(commit, "RUNS_MAX", runs_max)
        patch.setattr(commit, "FOLD_ROWS", fold_rows)
        patch.setattr(commit, "SLICE_ROWS", slice_rows)
        for changes in steps:
            source.commit(changes)
            assert len(source.roots.runs) <= runs_max and source.roots.run_rows <= fold_rows
            source.check()


def test_a_first_backup_is_a_base_and_small_changes_are_runs(tmp_path):
    source = Source(tmp_path)
    first = source.commit({(bytes(8), b"%05d" % n): entry(n) for n in range(30_000)})
    assert first.folded and first.roots.base and not first.roots.runs and source.kinds == {NODE}
    source.check()
    built = source.commit({(bytes(8), b"00007"): entry(9), (bytes(8), b"00008"): None})
    assert not built.folded and built.roots == Roots(first.roots.base, built.roots.runs, 2) and not built.obsolete
    assert source.kinds == {NODE, RUN}
    assert source.commit({}).roots is built.roots
    for n in range(63):
        source.commit({(bytes(8), b"%05d" % n): entry(n + 1)})
    assert len(source.roots.runs) == records.RUNS_MAX
    built = source.commit({(bytes(8), b"x"): entry(1)})
    assert built.folded and built.roots.run_rows == 0
    source.check()
    before = len(source.vault)
    built = source.commit({(bytes(8), b"%05d" % n): None for n in range(20_001)})
    assert built.folded and len(source.vault) - before < 20, "only what was touched is written anew"
    source.check()
    source.commit({key: None for key in source.state})
    assert source.roots.base is None or source.roots.runs
    source.check()


def test_folding_on_demand_leaves_nothing_that_was_replaced(tmp_path):
    """A relay that has lost what only a row out of date needs must not be asked for it again."""
    source, fresh = Source(tmp_path / "one"), Source(tmp_path / "two")
    source.commit({(bytes(8), b"%d" % n): entry(n) for n in range(50)})
    source.commit({(bytes(8), b"7"): entry(1000)})
    for changes in ({(bytes(8), b"8"): None}, {}):
        source.commit({(bytes(8), b"7"): entry(1001)})
        built = source.commit(changes, fold=True)
        assert built.folded and not source.roots.runs
        fresh.roots = Roots()
        fresh.commit(source.state)
        assert source.roots.base == fresh.roots.base
    assert not source.commit({}, fold=True).folded  # nothing to fold


def test_the_previous_record_goes_along(tmp_path):
    source = Source(tmp_path)
    source.commit({(bytes(8), b"a"): entry(1)}, previous=b"the record before")
    assert source.copies == [b"the record before"] and COMMIT in source.kinds


def test_a_lost_node_is_said_and_everything_can_be_written_again(tmp_path):
    source = Source(tmp_path)
    source.commit({(bytes(8), b"%05d" % n): entry(n) for n in range(500)})
    source.nodes.clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(commit, "RUNS_MAX", 0)
        with pytest.raises(NotFound):
            source.commit({(bytes(8), b"00001"): entry(3)})
    state, source.roots, source.state = source.state, Roots(), {}
    base, stored = source.roots, len(source.vault)
    source.commit(state)
    assert source.roots != base and len(source.vault) == stored, "the same tree: the vault has it all"
    source.check()


def test_rows_out_of_order_are_refused(tmp_path):
    source = Source(tmp_path)
    bundler = Bundler(SEAL, source.spool, source.chance.randbytes, metadata=True)
    places = Places(source.get, source.keep, lambda ids: [False for _ in ids])
    bad = [((bytes(8), b"b"), entry(1)), ((bytes(8), b"a"), entry(1))]
    with pytest.raises(FormatError):
        CommitWriter(OWNER.writer, bundler, places).build(Roots(), bad)


def test_sealed_details_open_for_the_owner(tmp_path):
    details = records.Details("host", "home", b"/home", 1, 2, 3, 4, 5, 6, True, "contbak")
    sealed = [sealed_details(details, SEAL, random.Random(n).randbytes) for n in range(2)]
    assert [records.open_details(each, Opener(OWNER)) for each in sealed] == [details, details]
    assert sealed[0].ephemeral != sealed[1].ephemeral
