"""The lookout on a real journal: nothing that it heard of is lost, also when it cannot be written down."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from contbak.app import lookout as lookouts
from contbak.app.batch import Work
from contbak.app.lookout import Lookout
from contbak.app.status import describe
from contbak.capture import gaps
from contbak.capture.journal import Journal
from contbak.core.errors import StoreFull
from contbak.store.kv import KvDamaged
from tests.app.test_agent import WHOLE, Place


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


class Full:
    """A method that fails as on a full disk, until there is room."""

    def __init__(self, journal: Journal, method: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self._real = getattr(journal, method)
        self.has_room = False
        monkeypatch.setattr(journal, method, self)
        monkeypatch.setattr(lookouts, "LATER_S", 0.01)

    def __call__(self, *args: Any) -> None:
        if not self.has_room:
            raise StoreFull("there is no space left")
        self._real(*args)


async def until(wake: asyncio.Event, true: Any) -> None:
    async with asyncio.timeout(60):
        while not true():
            wake.clear()
            await wake.wait()


def test_changes_wait_for_room_and_are_counted_meanwhile(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    async def run() -> None:
        async with place.agent() as agent:
            await agent.protect(place.source, WHOLE)
            disk, wake, said = Full(agent.journal, "add", monkeypatch), asyncio.Event(), asyncio.Event()
            agent.alarm = lambda _: said.set()
            lookout, source = Lookout(agent, wake.set), place.source
            lookout.start()
            settling = asyncio.create_task(lookout.settle())
            try:
                await lookout.watch(source)
                await until(wake, lambda: lookout.armed(source.name))
                (place.files / "new").write_bytes(b"new")
                await asyncio.wait_for(said.wait(), 60)
                number, age = lookout.unsettled(source.name)
                assert number >= 1 and age is not None and not settling.done()
                disk.has_room = True
                await until(wake, lambda: agent.journal.changes(source.source_id, 9))
                while lookout.unsettled(source.name) != (0, None):
                    await asyncio.sleep(0.01)
            finally:
                settling.cancel()
                await lookout.stop()

    asyncio.run(run())


def test_a_gap_waits_for_room(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    async def run() -> None:
        async with place.agent() as agent:
            disk, wake = Full(agent.journal, "open_gap", monkeypatch), asyncio.Event()
            lookout, source = Lookout(agent, wake.set), place.source
            await lookout.doubt(source, b"there", "events were lost")
            assert agent.journal.gaps(source.source_id) == []
            disk.has_room = True
            await until(wake, lambda: agent.journal.gaps(source.source_id))
            (gap,) = agent.journal.gaps(source.source_id)
            assert (gap.path, gap.reason) == (b"there", "events were lost")
            await lookout.stop()

    asyncio.run(run())


def test_what_happened_while_nobody_watched_is_in_doubt_and_shown(place: Place) -> None:
    """Also in a source whose last snapshot is complete: until it was scanned nobody can say that all is safe."""

    async def run() -> None:
        async with place.agent() as agent:
            await agent.protect(place.source, WHOLE)
            lookout = Lookout(agent, lambda: None)
            lookout.start()
            await lookout.watch(place.source)
            shown = (await describe(agent, lookout))["sources"][0]
            assert [gap["reason"] for gap in shown["gaps"]] == [gaps.DOWNTIME]
            await agent.protect(place.source, Work(gaps=tuple(agent.journal.gaps(place.source.source_id))))
            assert (await describe(agent, lookout))["sources"][0]["gaps"] == []
            await lookout.stop()

    asyncio.run(run())


def test_damage_met_in_the_background_reaches_the_daemon(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    async def run() -> None:
        async with place.agent() as agent:
            lookout = Lookout(agent, lambda: None)

            def damaged(*_: object) -> None:
                raise KvDamaged("a row has a wrong checksum")

            monkeypatch.setattr(agent.journal, "open_gap", damaged)
            lookout._keep(lookout.doubt(place.source, b"", "events were lost"))
            with pytest.raises(KvDamaged):
                await asyncio.wait_for(lookout.fault(), 60)
            await lookout.stop()

    asyncio.run(run())
