"""The agent in one process, with a real embedded relay and real workers."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from contbak.app import agent as agents
from contbak.app import keyfile, setup
from contbak.app.agent import Agent
from contbak.app.batch import Tally, Work
from contbak.app.config import Settings, Source, load_sources, new_source, save_source
from contbak.app.home import Home
from contbak.app.tables import TABLES, sources_in
from contbak.capture.journal import Change, Gap
from contbak.core.errors import ContbakError, StoreError, StoreFull
from contbak.store.kv import KvDamaged
from contbak.upload.commit import CommitWriter

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


def test_workers_that_cannot_be_replaced_for_a_while_come_back(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine short of memory or processes must not end the backups for good."""

    async def no_process(*_: object, **__: object) -> None:
        raise OSError(errno.EAGAIN, "no more processes")

    async def run() -> None:
        async with place.agent() as agent:
            await agent.workers.start()
            with monkeypatch.context() as short:
                short.setattr(asyncio, "create_subprocess_exec", no_process)
                os.kill(agent.workers.pids[0], signal.SIGKILL)
                while not agent.workers.stopped:
                    await asyncio.sleep(0.01)
                with pytest.raises(ContbakError):
                    await agent.protect(place.source, WHOLE)
            tally, _ = await agent.protect(place.source, WHOLE)
            assert (tally.new, tally.failed) == (6, {})
            assert agent.workers.pids, "they are there once something was read"

    asyncio.run(run())


def test_no_worker_is_started_where_nothing_is_to_be_read(place: Place) -> None:
    place.backup()
    time.sleep(0.05)  # the files are no longer fresh

    async def run() -> None:
        async with place.agent() as agent:
            await agent.protect(place.source, WHOLE)
            assert not agent.workers.pids

    asyncio.run(run())


def test_processes_that_cannot_be_started_at_first_are_started_later(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def no_process(*_: object, **__: object) -> None:
        raise OSError(errno.EAGAIN, "no more processes")

    async def run() -> None:
        async with place.agent() as agent:
            with monkeypatch.context() as short:
                short.setattr(asyncio, "create_subprocess_exec", no_process)
                with pytest.raises(ContbakError, match="could not be started"):
                    await agent.protect(place.source, WHOLE)
            tally, _ = await agent.protect(place.source, WHOLE)
            assert (tally.new, tally.failed) == (6, {})

    asyncio.run(run())


def test_damage_that_a_worker_meets_is_not_taken_for_a_fault_of_files(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    def damaged(*_: object) -> list[bool]:
        raise KvDamaged("a row has a wrong checksum")

    async def run() -> None:
        async with place.agent() as agent:
            with monkeypatch.context() as broken:
                broken.setattr(agent.known, "have", damaged)
                with pytest.raises(StoreError):
                    await agent.protect(place.source, WHOLE)
                with pytest.raises(KvDamaged):  # the daemon sets the state aside then
                    await agent.protect(place.source, WHOLE)

    asyncio.run(run())


def test_a_commit_that_cannot_be_written_leaves_no_open_pack(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    real = CommitWriter.build

    def full(writer: CommitWriter, *args: Any) -> None:
        real(writer, *args)
        writer._bundler._close_bundle()
        raise StoreFull("there is no space left")

    async def run() -> None:
        async with place.agent() as agent:
            with monkeypatch.context() as small:
                small.setattr(CommitWriter, "build", full)
                for _ in range(3):
                    with pytest.raises(StoreFull):
                        await agent.protect(place.source, WHOLE)
                assert list(place.home.spool.glob(".tmp-*")) == []
            tally, _ = await agent.protect(place.source, WHOLE)
            assert tally.new == 6

    asyncio.run(run())


def test_a_time_of_change_that_lies_ahead_makes_no_snapshots(place: Place) -> None:
    os.utime(place.files / "file 0", (4e9, 4e9))
    place.backup()
    time.sleep(0.05)
    place.backup()  # the change of the time itself may have been fresh
    time.sleep(0.05)
    again = place.backup()
    assert (again.changed, again.read_files) == (0, 0)


def lose_content(place: Place) -> None:
    """The relay's disk loses what the files hold."""
    found = sorted(place.home.embedded_relay.rglob("packs/*/*"), key=lambda path: path.stat().st_size)
    found[-1].unlink()


def test_lost_content_that_was_replaced_meanwhile_holds_nothing_up(place: Place) -> None:
    """Nobody has it any more, so the next commit must not refer to it, also not in a row that is out of date."""
    place.backup()
    lose_content(place)
    (place.files / "file 0").write_bytes(b"something else" * 1000)
    (place.files / "file 1").unlink()
    tally = place.backup()
    assert (tally.new, tally.gone, tally.failed) == (0, 1, {})
    assert any("the relay lacks" in text for text in place.said)
    place.said.clear()
    (place.files / "file 2").write_bytes(b"and on" * 1000)
    assert place.backup().failed == {} and place.said == []


def test_lost_content_that_cannot_be_read_again_holds_nothing_up(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One bad file never stops the others: it is named, is left out, and comes back once it can be read."""
    place.backup()
    lose_content(place)
    (place.files / "new").write_bytes(b"new" * 1000)
    with monkeypatch.context() as bad:
        bad.setattr(agents, "READER", "tests.upload.faulty:Unreadable")
        bad.setenv("CONTBAK_TEST_UNREADABLE", "file 0")
        tally = place.backup()
    assert tally.failed == {b"file 0": "input/output error"} and (tally.new, tally.gone) == (1, 1)
    time.sleep(0.05)
    tally = place.backup()
    assert (tally.new, tally.failed) == (1, {})


def test_what_is_of_a_removed_source_is_forgotten(place: Place, tmp_path: Path) -> None:
    other = tmp_path / "other"
    (other / "in").mkdir(parents=True)
    (other / "in" / "x").write_bytes(b"x")
    os.link(other / "in" / "x", other / "y")
    save_source(place.home, new_source(place.home, str(other), None, [], "normal"))
    files, removed = sorted(load_sources(place.home), key=lambda source: source.top != os.fsencode(place.files))

    async def run() -> None:
        async with place.agent() as agent:
            for source in (files, removed):
                agent.journal.add(source.source_id, [Change(b"gone", 0, 0, False)])
                await agent.protect(source, WHOLE)
                agent.journal.open_gap(source.source_id, Gap(b"", 0, 0, "a test"))
            both = sources_in(agent.kv)
            assert both == {files.source_id, removed.source_id}
            for kept in ([files, removed], []):
                await agent.drop_leftovers(kept)
                assert sources_in(agent.kv) == both
            before = [row for table in TABLES for row in agent.kv.scan(table)]
            await agent.drop_leftovers([files])
            assert sources_in(agent.kv) == {files.source_id}
            after = [row for table in TABLES for row in agent.kv.scan(table)]
            assert after == [row for row in before if not row[0].startswith(removed.source_id)]
            assert agent.ledger.state(files.source_id).files == 5
            tally, _ = await agent.protect(removed, WHOLE)
            assert tally.new == 4, "protected again, it is read again"

    asyncio.run(run())
