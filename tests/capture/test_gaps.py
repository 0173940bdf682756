"""Gaps that only the clocks show."""

from __future__ import annotations

import pytest

from contbak.capture.gaps import (
    CLOCK_SET,
    SUSPENDED,
    Clocks,
    SuspendDetector,
    break_between,
    read_clocks,
)


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
