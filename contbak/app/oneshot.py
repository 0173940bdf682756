"""A backup without a daemon: this process does the work itself, then ends."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable

from contbak.app.agent import Agent
from contbak.app.batch import Tally, Work
from contbak.app.config import Source, load_settings, load_sources
from contbak.app.continuity import StartedOver
from contbak.app.control import Message
from contbak.app.daemon import chosen
from contbak.app.home import Home, locked
from contbak.app.keyfile import Keys
from contbak.app.rounds import Request, follow
from contbak.app.setup import adopted
from contbak.app.summary import summary
from contbak.capture.journal import Gap
from contbak.core.commit import Signed
from contbak.core.names import CommitId


async def backup_once(
    home: Home, keys: Keys, paths: list[str], wait: str, say: Callable[[str], None]
) -> AsyncIterator[Message]:
    """As the daemon's backup: progress, and a summary for each source.  Raises Refused if a daemon is at work."""
    relay = adopted(home)
    agent = Agent(home, load_settings(home), keys, relay.address(home), relay.embedded)
    agent.alarm = say
    with locked(home):
        try:
            sources = {source.name: source for source in load_sources(home)}
            wanted = chosen({name: source.top for name, source in sources.items()}, paths)
            await agent.open()
            await agent.drop_leftovers(list(sources.values()))
            for name, path in wanted:
                async for message in _one(agent, sources[name], path, wait):
                    yield message
        finally:
            await agent.close()


async def _one(agent: Agent, source: Source, path: bytes, wait: str) -> AsyncIterator[Message]:
    started, sent = time.monotonic(), agent.uplink.status().bytes_sent
    request = Request()

    def on_local(signed: Signed, last: bool) -> None:
        if last:
            request.local.set()

    agent.local = on_local
    task = asyncio.create_task(_protect(agent, source, path))
    task.add_done_callback(lambda done: _pass_on(done, request))
    try:
        async for message in follow(request, wait, agent):
            yield message
        if request.done.done():
            tally, head = request.done.result()
            yield summary(source, tally, head, time.monotonic() - started, agent.uplink.status().bytes_sent - sent)
        else:
            yield summary(source, agent.tally, None, time.monotonic() - started, 0)
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def _protect(agent: Agent, source: Source, path: bytes) -> tuple[Tally, CommitId | None]:
    id_ = source.source_id
    owed = await agent.run(lambda: tuple(agent.journal.changes(id_, 1 << 20)))
    gaps = await agent.run(lambda: tuple(agent.journal.gaps(id_)))
    asked = Gap(path, 0, int(time.time() * 1000), "asked for", quiet=True)
    while True:
        try:
            return await agent.protect(source, Work(owed, (asked, *gaps)))
        except StartedOver as error:
            agent.alarm(str(error))
            asked, owed = Gap(b"", 0, asked.since_ms, "the relay knows another history", quiet=True), ()


def _pass_on(task: asyncio.Task[tuple[Tally, CommitId | None]], request: Request) -> None:
    if task.cancelled() or request.done.done():
        return
    error = task.exception()
    if error is None:
        request.done.set_result(task.result())
    else:
        request.done.set_exception(error)
