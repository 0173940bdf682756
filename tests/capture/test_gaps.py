"""Gaps are merged, closed only by a scan that began later, and found by the clocks."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contbak.capture.gaps import (
    CLOCK_SET,
    DENIED,
    OVERFLOW,
    SUSPENDED,
    Clocks,
    CoverageGap,
    Gaps,
    SuspendDetector,
    break_between,
    is_below,
    read_clocks,
)


def test_a_wider_gap_swallows_those_below() -> None:
    gaps = Gaps()
    gaps.add("home", b"/h/a/b", DENIED, 5.0, 1)
    gaps.add("home", b"/h/ab", DENIED, 6.0, 2)
    gaps.add("work", b"/h/a/c", DENIED, 7.0, 3)
    gaps.add("home", b"/h/a", OVERFLOW, 8.0, 4)
    assert gaps.list() == [
        CoverageGap("home", b"/h/a", OVERFLOW, 5.0, 4),
        CoverageGap("home", b"/h/ab", DENIED, 6.0, 2),
        CoverageGap("work", b"/h/a/c", DENIED, 7.0, 3),
    ]


def test_a_gap_below_an_open_one_renews_it() -> None:
    gaps = Gaps()
    gaps.add("home", b"/h", OVERFLOW, 5.0, 1)
    assert gaps.add("home", b"/h/a", DENIED, 9.0, 7) == CoverageGap("home", b"/h", OVERFLOW, 5.0, 7)
    assert gaps.close("home", b"/h", 6) == []
    assert len(gaps.close("home", b"/h", 7)) == 1
    assert gaps.list() == []


def test_a_scan_closes_what_lies_below_it_only() -> None:
    gaps = Gaps()
    for path in (b"/h/a", b"/h/a b", b"/h/b/c"):
        gaps.add("home", path, DENIED, 1.0, 1)
    gaps.add("work", b"/h/a", DENIED, 1.0, 1)
    assert [gap.path for gap in gaps.close("home", b"/h/a", 1)] == [b"/h/a"]
    assert [gap.path for gap in gaps.covering(b"/h/b/c/d")] == [b"/h/b/c"]
    assert [gap.source for gap in gaps.covering(b"/h/a")] == ["work"]
    assert gaps.covering(b"/h/b") == []


def test_the_root_holds_everything() -> None:
    assert is_below(b"/x", b"/")
    assert is_below(b"/", b"/")
    assert not is_below(b"/xy", b"/x")


paths = st.lists(st.sampled_from([b"a", b"b", b"ab"]), max_size=4).map(lambda parts: b"/".join([b"/h", *parts]))


@given(st.lists(st.tuples(paths, st.integers(0, 9), st.integers(0, 9))))
def test_what_was_added_stays_covered(added: list[tuple[bytes, int, int]]) -> None:
    gaps = Gaps()
    for path, since, generation in added:
        gaps.add("home", path, DENIED, float(since), generation)
        found = gaps.list()
        assert not any(one != two and is_below(one.path, two.path) for one in found for two in found)
    for path, since, generation in added:
        (cover,) = gaps.covering(path)
        assert cover.since <= since
        assert cover.generation >= generation


@pytest.mark.parametrize(
    ("awake", "passed", "wall", "reason"),
    [
        (10, 10, 10, None),
        (10, 3610, 3610, SUSPENDED),
        (10, 3610, 10, SUSPENDED),
        (10, 10, 3610, CLOCK_SET),
        (10, 10, -3600, CLOCK_SET),
        (10, 11, 11, None),
        (86400, 86401, 86400, None),
    ],
)
def test_breaks_in_time(awake: float, passed: float, wall: float, reason: str | None) -> None:
    start = Clocks(100.0, 200.0, 1e9)
    assert break_between(start, Clocks(100.0 + awake, 200.0 + passed, 1e9 + wall)) == reason


def test_the_detector_compares_with_the_last_reading() -> None:
    detector = SuspendDetector(Clocks(0, 0, 0))
    assert detector.check(Clocks(1, 101, 101)) == SUSPENDED
    assert detector.check(Clocks(2, 102, 102)) is None
    assert SuspendDetector(read_clocks()).check(read_clocks()) is None
