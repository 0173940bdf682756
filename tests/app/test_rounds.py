"""Rounds and the embedded relay: failures of some do not stop the rest."""

from __future__ import annotations

import asyncio
import errno
import socket
import time
from pathlib import Path

import pytest

from contbak.app import rounds, serving
from contbak.app.embedded import EmbeddedRelay
from contbak.app.lookout import Lookout
from contbak.app.rounds import Rounds
from contbak.capture.journal import Change
from tests.app.test_agent import Place


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def test_changes_that_rest_after_a_failure_hide_no_others(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rounds, "BATCH_CHANGES", 3)

    async def run() -> None:
        async with place.agent() as agent:
            id_, wake = place.source.source_id, asyncio.Event()
            work = Rounds(agent, Lookout(agent, wake.set), wake, lambda _: None)
            failing = [Change(b"bad %d" % n, 0, 1, False, tries=1) for n in range(40)]
            agent.journal.add(id_, failing)
            for change in failing:
                work._resting[place.source.name, change.path] = time.monotonic() + 1000
            agent.journal.add(id_, [Change(b"good", 0, 1, False)])
            assert [change.path for change in (await work._next_work(place.source)).changes] == [b"good"]

    asyncio.run(run())


def test_an_embedded_relay_comes_back_when_the_machine_was_short_of_processes(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def run() -> None:
        relay = EmbeddedRelay(place.home)
        await relay.start()
        real, refused = asyncio.create_subprocess_exec, asyncio.Event()

        async def short(*words: str, **more: object) -> asyncio.subprocess.Process:
            if not refused.is_set():
                refused.set()
                raise OSError(errno.EAGAIN, "no more processes")
            return await real(*words, **more)  # type: ignore[arg-type]

        monkeypatch.setattr(asyncio, "create_subprocess_exec", short)
        try:
            assert relay._process is not None
            relay._process.kill()
            await asyncio.wait_for(refused.wait(), 60)
            async with asyncio.timeout(60):
                while not serving.answers(place.home):
                    await asyncio.sleep(0.02)
        finally:
            await relay.stop()

    asyncio.run(run())


def test_a_relay_that_hangs_does_not_answer(place: Place) -> None:
    """It listens and accepts nobody: whoever asks must not wait for it without end."""
    place.home.relay_socket.parent.mkdir(parents=True, exist_ok=True)
    with socket.socket(socket.AF_UNIX) as hung, socket.socket(socket.AF_UNIX) as first:
        hung.bind(str(place.home.relay_socket))
        hung.listen(0)
        first.connect(str(place.home.relay_socket))
        assert not serving.answers(place.home)
