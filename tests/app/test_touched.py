"""Files that an event told of: read whatever their stat says, committed only if they differ."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from contbak.app.agent import Agent
from contbak.app.batch import Work
from contbak.app.stored import Stored
from contbak.capture.attributes import with_content
from contbak.capture.journal import Change
from contbak.capture.proof import void
from contbak.capture.proofs import Proofs
from contbak.core.entry import Content, Entry
from contbak.core.names import TOP_DIR
from tests.app.test_agent import WHOLE, Place

NAME = b"file 0"
EVENT = Work((Change(NAME, 0, 0, False),))


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


async def first(agent: Agent, place: Place) -> None:
    """Everything is committed, and the stamps are old."""
    await asyncio.sleep(0.05)
    await agent.protect(place.source, WHOLE)


async def stored(agent: Agent, place: Place) -> Entry:
    entry = await agent.run(lambda: Stored(agent.ledger, place.source.source_id).entry(TOP_DIR, NAME))
    assert entry is not None
    return entry


def test_the_same_content_makes_no_commit(place: Place) -> None:
    async def run() -> None:
        async with place.agent() as agent:
            await first(agent, place)
            before = await agent.run(lambda: agent.ledger.state(place.source.source_id))
            for forget in (False, True):
                proofs = Proofs(agent.kv, place.source.source_id)
                if forget:  # as after a read within the same tick of the clock
                    proofs.doubt(TOP_DIR, NAME)
                tally, _ = await agent.protect(place.source, EVENT)
                assert (tally.read_files, tally.changed) == (1, 0)
                assert await agent.run(lambda: agent.ledger.state(place.source.source_id)) == before
            known = proofs.find(TOP_DIR, NAME)
            assert known is not None and known.fingerprint != void(known.fingerprint), "it would be read for ever"
            assert (await agent.protect(place.source, WHOLE))[0].read_files == 0

    asyncio.run(run())


def test_other_content_under_the_same_stat_is_committed(place: Place) -> None:
    async def run() -> None:
        async with place.agent() as agent:
            await first(agent, place)
            known = Proofs(agent.kv, place.source.source_id).find(TOP_DIR, NAME)
            now = await stored(agent, place)
            assert now.content is not None
            other = with_content(now, Content(now.size, bytes(32), None, 0, now.content.chunks))
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(Stored, "entry", lambda *_: other)  # the last commit holds other bytes
                tally, _ = await agent.protect(place.source, WHOLE)
                assert tally.read_files == 0, "its stat is the same"
                tally, _ = await agent.protect(place.source, EVENT)
                assert (tally.read_files, tally.changed) == (1, 1)
            assert Proofs(agent.kv, place.source.source_id).find(TOP_DIR, NAME) == known

    asyncio.run(run())


def test_lost_content_is_committed_though_it_is_the_same(place: Place) -> None:
    async def run() -> None:
        async with place.agent() as agent:
            await first(agent, place)
            lost = Work((Change(NAME, 0, 0, False, forced=True),))
            tally, _ = await agent.protect(place.source, lost)
            assert (tally.read_files, tally.changed) == (1, 1)

    asyncio.run(run())
