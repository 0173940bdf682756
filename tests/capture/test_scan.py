"""Scans of real trees: what the relay would restore is what is on disk, whatever happened and in whatever order."""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from contbak.capture.proofs import TABLES, Proofs
from contbak.core.names import SourceId
from contbak.store.kv import Kv
from tests.capture.world import CHANGES, Event, Fragile, Keeper, PowerCut, World, disk, disk_link_groups

_serial = itertools.count()


@pytest.fixture(scope="module")
def kv(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kv]:
    with Kv.open(tmp_path_factory.mktemp("kv"), TABLES) as opened:
        yield opened


@pytest.fixture
def place(tmp_path: Path) -> Path:
    top = tmp_path / "top"
    top.mkdir()
    return top


@pytest.fixture
def keeper(kv: Kv, place: Path) -> Keeper:
    return fresh_keeper(kv, place)


def fresh_keeper(kv: Kv | Fragile, top: Path) -> Keeper:
    return Keeper(kv, top, SourceId(b"%08d" % next(_serial)))


def check(keeper: Keeper, top: Path) -> None:
    assert keeper.tree() == disk(top)
    keeper.check_rows()


# -- the model ------------------------------------------------------------------------------------------------

numbers = st.integers(0, 1000)
steps = st.tuples(st.sampled_from(CHANGES), numbers, numbers)
looks = st.sampled_from(["all", "some", "full", "crash"])
stories = st.lists(st.one_of(steps, steps, looks), min_size=3, max_size=25)


class Story:
    """Plays a list of changes and looks."""

    def __init__(self, keeper: Keeper, top: Path, seed: int) -> None:
        self.keeper, self.top = keeper, top
        self.world = World(top)
        self.events: list[Event] = []
        self.random = random.Random(seed)
        self.doubtful = True

    def play(self, story: list[Any]) -> None:
        self.keeper.full()
        for act in [*story, "all", "full"]:
            if isinstance(act, tuple):
                self.events += getattr(self.world, act[0])(act[1], act[2])
            else:
                getattr(self, act)()

    def all(self) -> None:
        """All events, in any order."""
        self.random.shuffle(self.events)
        self.keeper.look(self.events, self.random.choice([1 << 30, 1, 3]))
        self.events = []
        if self.keeper.links_wanted:
            self.keeper.full()
        check(self.keeper, self.top)
        assert self.keeper.link_groups() == disk_link_groups(self.top)

    def some(self) -> None:
        """A part of the events: what is committed need not be the disk, but nothing may be left lying about."""
        self.random.shuffle(self.events)
        half = len(self.events) // 2
        self.keeper.look(self.events[:half], self.random.choice([1 << 30, 2]))
        del self.events[:half]
        self.keeper.check_rows()

    def full(self) -> None:
        self.keeper.full(self.random.choice([1 << 30, 2]))
        self.events = []
        check(self.keeper, self.top)
        self.keeper.full()
        assert (self.keeper.reads, self.keeper.staged, self.keeper.troubles) == ([], 0, [])

    def crash(self) -> None:
        """The power fails before some write transaction of a look; a full scan heals."""
        fragile = self.keeper.kv
        fragile.left = self.random.randrange(12)
        with contextlib.suppress(PowerCut):
            self.keeper.look(self.events, self.random.choice([1 << 30, 1, 2, 3]))
        fragile.left = None
        self.keeper.restart()
        self.full()


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(story=stories, seed=st.integers(0, 1 << 16))
def test_what_is_kept_is_what_is_there(kv: Kv, tmp_path_factory: pytest.TempPathFactory, story: Any, seed: int) -> None:
    top = tmp_path_factory.mktemp("top")
    keeper = fresh_keeper(Fragile(kv), top)
    try:
        Story(keeper, top, seed).play(story)
    finally:
        shutil.rmtree(top)
        Proofs(kv, keeper.source).forget()
