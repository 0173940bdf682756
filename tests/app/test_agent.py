"""The agent in one process, with a real embedded relay and real workers."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from contbak.app import keyfile, setup
from contbak.app.agent import Agent
from contbak.app.batch import Tally, Work
from contbak.app.config import Settings, Source, load_sources, new_source, save_source
from contbak.app.home import Home
from contbak.capture.journal import Gap

WHOLE = Work(gaps=(Gap(b"", 0, 0, "a test", quiet=True),))


class Place:
    """A home with a vault, and a source with a few files."""

    def __init__(self, top: Path) -> None:
        self.home = Home(top / "config", top / "data", top / "state", top / "run")
        self.files = top / "files"
        self.files.mkdir()
        for number in range(5):
            (self.files / f"file {number}").write_bytes(os.urandom(20_000))
        self.said: list[str] = []
        asyncio.run(setup.initialise(self.home, setup.Choices("here")))
        save_source(self.home, new_source(self.home, str(self.files), None, [], "normal"))

    @property
    def source(self) -> Source:
        return load_sources(self.home)[0]

    @asynccontextmanager
    async def agent(self, **settings: int) -> AsyncIterator[Agent]:
        relay = setup.adopted(self.home)
        keys = keyfile.load(self.home.keys)
        settings = {"workers": 1, "nice": 0} | settings
        agent = Agent(self.home, Settings(**settings), keys, relay.address(self.home), relay.embedded)
        agent.alarm = self.said.append
        try:
            await agent.open()
            yield agent
        finally:
            await agent.close()

    def backup(self) -> Tally:
        """One run of an agent that is connected before it begins."""

        async def run() -> Tally:
            async with self.agent() as agent:
                await agent.uplink.connected()
                tally, _ = await agent.protect(self.source, WHOLE)
                return tally

        return asyncio.run(run())


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def test_a_restart_reads_nothing_again(place: Place) -> None:
    assert place.backup().new == 6
    time.sleep(0.05)  # the files are no longer fresh
    again = place.backup()
    assert (again.new, again.changed, again.read_files, place.said) == (0, 0, 0, [])
