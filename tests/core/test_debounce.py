"""Debouncer with invented time: nothing is lost, nothing waits for ever, memory is bounded."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from contbak.core.debounce import Debouncer, Settled
from contbak.core.errors import UsageError


def covers(record: Settled, path: bytes) -> bool:
    if record.path == path:
        return True
    return record.subtree and (record.path == b"" or path.startswith(record.path.rstrip(b"/") + b"/"))


def test_a_path_comes_out_when_it_holds_still() -> None:
    waits = Debouncer(2.0, 30.0)
    waits.receive(b"a", 0.0)
    waits.receive(b"a", 1.5)
    assert waits.get_timer() == 3.5
    assert waits.settled(3.4) == []
    assert waits.settled(3.5) == [Settled(b"a", 0.0, False)]
    assert waits.pending() == 0
    assert waits.get_timer() is None
    assert waits.oldest() is None


def test_a_path_written_all_the_time_comes_out_every_max_wait() -> None:
    waits = Debouncer(2.0, 30.0)
    out: list[float] = []
    for tick in range(0, 1000):
        waits.receive(b"log", float(tick))
        out += [float(tick) for _ in waits.settled(float(tick))]
    assert out[0] == 30.0
    assert all(later - earlier <= 31.0 for earlier, later in pairwise(out))
    assert len(out) >= 1000 // 31


def test_oldest_is_the_first_event_of_what_still_waits() -> None:
    waits = Debouncer(2.0, 30.0)
    waits.receive(b"log", 0.0)
    waits.receive(b"b", 1.0)
    waits.receive(b"log", 2.5)
    assert waits.oldest() == 0.0
    assert [record.path for record in waits.settled(3.0)] == [b"b"]
    assert waits.oldest() == 0.0


def test_time_that_steps_back_loses_nothing() -> None:
    waits = Debouncer(2.0, 30.0)
    waits.receive(b"a", 10.0)
    waits.receive(b"a", 5.0)
    assert waits.get_timer() == 12.0


def test_the_fullest_directory_is_collapsed_first() -> None:
    waits = Debouncer(2.0, 30.0, limit=10)
    waits.receive(b"lonely/one", 0.0)
    for number in range(10):
        waits.receive(b"full/%d" % number, 1.0)
    assert waits.pending() == 2
    assert waits.settled(99.0) == [Settled(b"lonely/one", 0.0, False), Settled(b"full", 1.0, True)]


def test_collapsed_directories_do_not_drag_in_the_one_above() -> None:
    waits = Debouncer(2.0, 30.0, limit=100)
    for number in range(1000):
        waits.receive(b"top/%d/%d" % (number % 40, number), 0.0)
    assert 40 <= waits.pending() <= 100
    assert b"top" not in {record.path for record in waits.settled(99.0)}


def test_a_collapsed_directory_takes_in_what_happens_below() -> None:
    waits = Debouncer(2.0, 30.0, limit=4)
    for number in range(5):
        waits.receive(b"d/%d" % number, float(number))
    waits.receive(b"d/deeper/x", 5.0)
    assert waits.pending() == 1
    assert waits.settled(6.9) == []
    assert waits.settled(7.0) == [Settled(b"d", 0.0, True)]
    waits.receive(b"d/deeper/x", 8.0)
    assert waits.settled(99.0) == [Settled(b"d/deeper/x", 8.0, False)]


def test_nothing_is_collapsed_beyond_the_top() -> None:
    waits = Debouncer(2.0, 30.0, limit=3, top=b"/home/me")
    for number in range(20):
        waits.receive(b"/home/me/%d/%d/x" % (number, number), 0.0)
    assert all(record.path.startswith(b"/home/me") for record in waits.settled(99.0))


def test_values_that_make_no_sense_are_refused() -> None:
    with pytest.raises(UsageError):
        Debouncer(-1.0)
    with pytest.raises(UsageError):
        Debouncer(limit=0)


names = st.sampled_from([b"a", b"b", b"c", b"dd"])
paths = st.builds(b"/".join, st.lists(names, min_size=1, max_size=4))
steps = st.lists(st.tuples(paths, st.floats(0, 5)), max_size=120)


@settings(deadline=None, max_examples=300)
@given(steps=steps, lead=st.sampled_from([b"", b"/"]), limit=st.integers(1, 12), ask=st.sets(st.integers(0, 120)))
def test_every_event_is_covered_in_time(
    steps: list[tuple[bytes, float]], lead: bytes, limit: int, ask: set[int]
) -> None:
    waits = Debouncer(2.0, 10.0, limit=limit)
    owed: dict[bytes, float] = {}
    now = 0.0

    def take() -> None:
        timer = waits.get_timer()
        oldest = waits.oldest()
        records = waits.settled(now)
        assert bool(records) == (timer is not None and timer <= now)
        if records:
            assert oldest is not None and oldest <= min(record.since for record in records)
        claimed = set(owed)
        for record in records:
            assert any(covers(record, path) for path in claimed), "what comes out was asked for"
            met = [path for path in owed if covers(record, path)]
            for path in met:
                assert record.since <= owed.pop(path)
        assert all(now - since < 10.0 for since in owed.values())

    for number, (relative, pause) in enumerate(steps):
        path = lead + relative
        now += pause
        if number not in ask:
            take()
        waits.receive(path, now)
        owed.setdefault(path, now)
        assert waits.pending() <= limit + 1
        if number in ask:
            while (timer := waits.get_timer()) is not None and timer <= now:
                take()
    now += 100
    take()
    assert not owed
    assert waits.pending() == 0
    assert waits.get_timer() is None
