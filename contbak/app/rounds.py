"""The daemon's work: round after round, whatever the journal owes of one source becomes one acknowledged batch.

A path that fails is tried again, later and later; a source that cannot be worked on rests; whoever asked for a
backup is told when the round that began after the question is over.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

from contbak.app.agent import Agent
from contbak.app.batch import Tally, Work
from contbak.app.config import Source
from contbak.app.continuity import StartedOver
from contbak.app.control import Message
from contbak.app.lookout import Lookout
from contbak.core.commit import Signed
from contbak.core.errors import ContbakError, Unreachable
from contbak.core.names import CommitId
from contbak.store.kv import KvDamaged

BATCH_CHANGES = 20_000
RETRY_MIN_S = 30.0
RETRY_MAX_S = 3600.0
SOURCE_REST_S = 10.0
PATIENCE_S = 15.0
"""How long someone who waits for the relay is kept waiting while it is out of reach."""


@dataclass(slots=True)
class Request:
    """Somebody waits for a source to be safe."""

    done: asyncio.Future[tuple[Tally, CommitId | None]] = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )
    local: asyncio.Event = field(default_factory=asyncio.Event)


class Rounds:
    """Works on the sources of a lookout."""

    def __init__(self, agent: Agent, lookout: Lookout, wake: asyncio.Event, say: Callable[[str], None]) -> None:
        self._agent = agent
        self._lookout = lookout
        self._wake = wake
        self._say = say
        self._requests: dict[str, list[Request]] = {}
        self._current: list[Request] = []
        self._resting: dict[tuple[str, bytes], float] = {}
        self._asleep: dict[str, float] = {}
        self._last_error = ""
        agent.local = self._on_local

    async def ask(self, source: Source, path: bytes) -> Request:
        """Has everything at `path` looked at and committed."""
        await self._lookout.open_gap(source, path, "asked for", quiet=True)
        request = Request()
        self._requests.setdefault(source.name, []).append(request)
        self._asleep.pop(source.name, None)
        self._wake.set()
        return request

    async def work(self) -> None:
        """For ever."""
        await self._resume()
        while True:
            self._wake.clear()
            busy = False
            for source in list(self._lookout.sources.values()):
                if self._lookout.armed(source.name) and self._asleep.get(source.name, 0.0) <= time.monotonic():
                    busy |= await self._round(source)
            if not busy:
                pauses = [at - time.monotonic() for at in (*self._asleep.values(), *self._resting.values())]
                wait = min((pause for pause in pauses if pause > 0), default=None)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(wait):  # wait_for would lose a cancel that comes with the event
                        await self._wake.wait()

    async def _resume(self) -> None:
        pause = 1.0
        while True:
            try:
                await self._agent.resume()
                return
            except StartedOver as error:
                await self._doubt_everything(error)
            except KvDamaged:
                raise
            except ContbakError as error:
                self._note(str(error))
                await asyncio.sleep(pause)
                pause = min(pause * 2, 300.0)

    async def _round(self, source: Source) -> bool:
        """One batch of one source; False if there was nothing to do or it went wrong."""
        self._current = self._requests.pop(source.name, [])
        try:
            work = await self._next_work(source)
            if not work.changes and not work.gaps and not self._current:
                return False
            answer = await self._agent.protect(source, work)
        except StartedOver as error:
            await self._doubt_everything(error)
            self._requests.setdefault(source.name, []).extend(self._current)
            return True
        except KvDamaged:
            raise
        except ContbakError as error:
            self._note(f"{source.name}: {error}")
            self._asleep[source.name] = time.monotonic() + SOURCE_REST_S
            for request in self._current:
                request.done.set_exception(error)
            return False
        finally:
            current, self._current = self._current, []
        for request in current:
            request.local.set()
            if not request.done.cancelled():
                request.done.set_result(answer)
        self._rest(source, work, answer[0])
        self._asleep.pop(source.name, None)
        self._last_error = ""
        return True

    async def _next_work(self, source: Source) -> Work:
        id_, now = source.source_id, time.monotonic()
        self._resting = {key: at for key, at in self._resting.items() if at > now}
        limit = BATCH_CHANGES + len(self._resting)  # or those that rest could hide all others
        changes = await self._agent.run(lambda: self._agent.journal.changes(id_, limit))
        found = await self._agent.run(lambda: self._agent.journal.gaps(id_))
        due = (change for change in changes if (source.name, change.path) not in self._resting or not change.tries)
        return Work(tuple(due), tuple(found))

    def _rest(self, source: Source, work: Work, tally: Tally) -> None:
        tries = {change.path: change.tries for change in work.changes}
        for path in tally.failed:
            pause = min(RETRY_MAX_S, RETRY_MIN_S * 2 ** min(tries.get(path, 0), 10))
            self._resting[source.name, path] = time.monotonic() + pause

    async def _doubt_everything(self, error: StartedOver) -> None:
        self._say(str(error))
        for source in list(self._lookout.sources.values()):
            await self._lookout.doubt(source, b"", "the relay knows another history")

    def _on_local(self, signed: Signed, last: bool) -> None:
        for request in self._current if last else ():
            request.local.set()

    def _note(self, error: str) -> None:
        if error != self._last_error:
            self._last_error = error
            self._say(error)


async def follow(request: Request, wait: str, agent: Agent) -> AsyncIterator[Message]:
    """Progress messages until the request is satisfied at the level `wait`: "local" or "relay".

    Raises what the round raised; Unreachable if the relay is out of reach for long.
    """
    lost_since: float | None = None
    local = asyncio.create_task(request.local.wait())
    try:
        while not request.done.done():
            if wait == "local" and request.local.is_set():
                return
            awaited: set[asyncio.Future[Any]] = {request.done} if local.done() else {request.done, local}
            await asyncio.wait(awaited, timeout=0.5, return_when=asyncio.FIRST_COMPLETED)
            yield progress(agent)
            line = agent.uplink.status()
            lost_since = None if line.reachable else lost_since or time.monotonic()
            waited = lost_since is not None and time.monotonic() - lost_since > PATIENCE_S
            if waited and (wait != "local" or not request.local.is_set()):  # a commit before this one is stuck
                raise Unreachable(
                    f"the relay is out of reach ({line.error}); what changed is queued here and goes out by itself"
                )
        request.done.result()
    finally:
        local.cancel()


def progress(agent: Agent) -> Message:
    """What the batch under way has done so far."""
    tally, line = agent.tally, agent.uplink.status()
    return {
        "message_type": "status",
        "seen": tally.seen,
        "files_read": tally.read_files,
        "bytes_read": tally.read_bytes,
        "bytes_stored": tally.new_bytes,
        "bytes_sent": line.bytes_sent,
        "lag_bytes": line.lag_bytes,
        "reachable": line.reachable,
    }
