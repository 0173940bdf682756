"""The journal forgets a change or a gap only for who looked after its newest event."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from contbak.capture.journal import TABLES, Change, Gap, Journal, Problem
from contbak.core.names import SourceId
from contbak.store.kv import Kv

ONE, TWO = SourceId(b"source-1"), SourceId(b"source-2")


@pytest.fixture(scope="module")
def kv(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kv]:
    with Kv.open(tmp_path_factory.mktemp("kv"), TABLES) as opened:
        yield opened


@pytest.fixture
def journal(kv: Kv) -> Iterator[Journal]:
    made = Journal(kv)
    yield made
    made.forget(ONE)
    made.forget(TWO)


def change(path: bytes, since: int = 5, subtree: bool = False, forced: bool = False) -> Change:
    return Change(path, 0, since, subtree, forced=forced)


def test_events_for_one_path_become_one_change(journal: Journal) -> None:
    journal.add(ONE, [change(b"a", 7, subtree=True), change(b"b", 8)])
    journal.add(ONE, [change(b"a", 5, forced=True), change(b"a", 9)])
    found = {c.path: c for c in journal.changes(ONE, 10)}
    assert found[b"a"] == Change(b"a", 2, 5, True, 0, True) and found[b"b"] == change(b"b", 8)
    assert len(journal.changes(ONE, 1)) == 1 and journal.changes(TWO, 10) == []


def test_a_change_with_a_newer_event_stays(journal: Journal, kv: Kv) -> None:
    journal.add(ONE, [change(b"a"), change(b"b")])
    journal.add(TWO, [change(b"a")])
    done = journal.changes(ONE, 10)
    journal.add(ONE, [change(b"a")])
    with kv.write() as rows:
        journal.settle(rows, ONE, [*done, change(b"unknown")])
    assert [c.path for c in journal.changes(ONE, 10)] == [b"a"] and len(journal.changes(TWO, 10)) == 1
    with kv.write() as rows:
        journal.settle(rows, ONE, journal.changes(ONE, 10))
    assert journal.changes(ONE, 10) == []


def test_what_fails_to_settle_is_undone_with_its_transaction(journal: Journal, kv: Kv) -> None:
    journal.add(ONE, [change(b"a")])
    with pytest.raises(ZeroDivisionError), kv.write() as rows:
        journal.settle(rows, ONE, journal.changes(ONE, 10))
        raise ZeroDivisionError
    assert len(journal.changes(ONE, 10)) == 1


def test_tries_are_those_of_the_newest(journal: Journal) -> None:
    for tries in (0, 1, 2):
        journal.add(ONE, [Change(b"a", 0, 5, True, tries)])
        assert journal.changes(ONE, 1)[0].tries == tries
    journal.add(ONE, [change(b"a")])  # an event: it is looked at again at once
    assert journal.changes(ONE, 1)[0].tries == 0


def test_count_leaves_out_what_is_told_elsewhere(journal: Journal) -> None:
    assert journal.count(ONE) == (0, None)
    journal.add(ONE, [change(b"a", 7), change(b"b", 6), change(b"c", 8), Change(b"d", 0, 1, False, 2)])
    assert journal.count(ONE) == (3, 6)
    assert journal.count(ONE, {(b"b", 0), (b"c", 1)}) == (2, 7)


def test_a_renewed_gap_is_not_closed_by_an_older_scan(journal: Journal, kv: Kv) -> None:
    journal.open_gap(ONE, Gap(b"a", 0, 5, "first"))
    journal.open_gap(ONE, Gap(b"", 0, 3, "second"))
    old = journal.gaps(ONE)
    assert [gap.path for gap in old] == [b"", b"a"]
    journal.open_gap(ONE, Gap(b"a", 0, 9, "again"))
    with kv.write() as rows:
        for gap in old:
            journal.close_gap(rows, ONE, gap)
    assert journal.gaps(ONE) == [Gap(b"a", 1, 5, "first")]
    with kv.write() as rows:
        journal.close_gap(rows, TWO, journal.gaps(ONE)[0])
        journal.close_gap(rows, ONE, journal.gaps(ONE)[0])
    assert journal.gaps(ONE) == []


def test_a_routine_gap_gives_way_to_a_real_one(journal: Journal) -> None:
    journal.open_gap(ONE, Gap(b"", 0, 5, "routine", quiet=True))
    journal.open_gap(ONE, Gap(b"", 0, 6, "overflow"))
    journal.open_gap(ONE, Gap(b"", 0, 7, "routine", quiet=True))
    assert journal.gaps(ONE) == [Gap(b"", 2, 5, "overflow", False)]


def test_problems(journal: Journal, kv: Kv) -> None:
    with kv.write() as rows:
        journal.report(rows, ONE, Problem(b"a", "no", 5))
        journal.report(rows, ONE, Problem(b"a", "still no", 9))
        journal.report(rows, TWO, Problem(b"a", "other", 9))
    assert list(journal.problems(ONE)) == [Problem(b"a", "still no", 5)]
    with kv.write() as rows:
        journal.resolve(rows, ONE, b"a")
        journal.resolve(rows, ONE, b"never")
    assert list(journal.problems(ONE)) == [] and len(list(journal.problems(TWO))) == 1
    journal.forget(TWO)
    assert list(journal.problems(TWO)) == []


acts = st.tuples(st.sampled_from(["event", "take", "settle"]), st.integers(0, 2))


@settings(max_examples=50, deadline=None, suppress_health_check=list(HealthCheck))
@given(story=st.lists(acts, max_size=20))
def test_no_event_is_forgotten_that_came_after_its_look(kv: Kv, story: list[tuple[str, int]]) -> None:
    journal = Journal(kv)
    journal.forget(ONE)
    events = [0, 0, 0]
    safe = [0, 0, 0]
    taken: list[tuple[list[Change], list[int]]] = []
    for act, which in story:
        if act == "event":
            events[which] += 1
            journal.add(ONE, [change(b"%d" % which)])
        elif act == "take":
            taken.append((journal.changes(ONE, 10), list(events)))
        elif taken:
            done, seen = taken.pop()
            taken = []
            with kv.write() as rows:
                journal.settle(rows, ONE, done)
            for one in done:
                safe[int(one.path)] = max(safe[int(one.path)], seen[int(one.path)])
        waiting = {int(one.path) for one in journal.changes(ONE, 10)}
        assert {n for n in range(3) if events[n] > safe[n]} <= waiting


def test_rows_outlive_the_process(tmp_path: Path) -> None:
    with Kv.open(tmp_path / "kv", TABLES) as kv:
        Journal(kv).add(ONE, [change(b"\xff\n")])
        Journal(kv).open_gap(ONE, Gap(b"a" * 5000, 0, 5, "why"))
    with Kv.open(tmp_path / "kv", TABLES) as kv:
        assert Journal(kv).changes(ONE, 9)[0].path == b"\xff\n" and len(Journal(kv).gaps(ONE)[0].path) == 5000
