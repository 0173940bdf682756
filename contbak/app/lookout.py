"""What makes the agent look: events that have settled, coverage gaps, suspends, and the calendar of rescans.

Everything ends in the journal; `wake` is called after each entry.  All methods run in the event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import time
from collections.abc import Callable, Coroutine

from contbak.app.agent import Agent, left_out_of
from contbak.app.config import Source
from contbak.capture import gaps
from contbak.capture.journal import Change, Gap
from contbak.capture.watcher import Changed, Notice, Watcher
from contbak.core.debounce import Debouncer
from contbak.core.errors import StoreError
from contbak.store.kv import KvDamaged

CLOCK_CHECK_S = 5.0
LATER_S = 1.0
"""Between two attempts to write down what could not be written (the disk is full, say)."""
RESCAN = "routine scan of everything"


class Lookout:
    """Watches sources for one agent."""

    def __init__(self, agent: Agent, wake: Callable[[], None]) -> None:
        self.sources: dict[str, Source] = {}
        self._agent = agent
        self._wake = wake
        self._debouncers: dict[str, Debouncer] = {}
        self._armed: set[str] = set()
        self._gone: set[str] = set()
        self._appeared: set[bytes] = set()
        self._stirred = asyncio.Event()
        self._in_hand: dict[str, list[Change]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._loop = asyncio.get_running_loop()
        self._fault: asyncio.Future[None] = self._loop.create_future()
        self._watcher = Watcher(self._from_watcher)

    def start(self) -> None:
        """Starts the watcher's threads."""
        self._watcher.start()

    async def stop(self) -> None:
        """Ends them."""
        await asyncio.to_thread(self._watcher.stop)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def watch(self, source: Source) -> None:
        """Protects one more source: everything in it is in doubt first."""
        self.sources[source.name] = source
        self._debouncers[source.name] = Debouncer(self._agent.settings.settle_s, self._agent.settings.max_wait_s)
        await self.doubt(source, b"", gaps.DOWNTIME)
        left_out = left_out_of(self._agent.home, source)
        ready = self._watcher.watch(source.name, source.top, left_out.excluded)
        self._keep(self._note_armed(source.name, ready.wait))

    def unwatch(self, name: str) -> None:
        """Forgets a source."""
        self._watcher.unwatch(name)
        self.sources.pop(name, None)
        self._debouncers.pop(name, None)
        self._armed.discard(name)
        self._gone.discard(name)

    def armed(self, name: str) -> bool:
        """Whether the source is watched: a scan that begins now misses nothing."""
        return name in self._armed

    def unsettled(self, name: str) -> tuple[int, float | None]:
        """(paths that have not settled yet, seconds since the first event of the oldest)."""
        debouncer, in_hand = self._debouncers[name], self._in_hand.get(name, [])
        oldest = debouncer.oldest()
        ages = [] if oldest is None else [time.monotonic() - oldest]
        ages += [time.time() - change.since_ms / 1000 for change in in_hand]
        return debouncer.pending() + len(in_hand), max(ages, default=None)

    async def open_gap(self, source: Source, path: bytes, reason: str, quiet: bool = False) -> None:
        """A place where events may have been lost, from now until it was scanned."""
        gap = Gap(path, 0, int(time.time() * 1000), reason, quiet)
        await self._agent.run(lambda: self._agent.journal.open_gap(source.source_id, gap))
        self._wake()

    async def doubt(self, source: Source, path: bytes, reason: str, quiet: bool = False) -> None:
        """As `open_gap`; if it cannot be written down now (the disk is full) it is later, for it must not be lost."""
        try:
            await self.open_gap(source, path, reason, quiet)
        except KvDamaged:
            raise
        except StoreError as error:
            self._agent.alarm(f"{source.name}: what is to be looked at cannot be noted yet: {error}")
            self._keep(self._later(lambda: self.open_gap(source, path, reason, quiet)))

    async def _later(self, write: Callable[[], Coroutine[None, None, None]]) -> None:
        while True:
            await asyncio.sleep(LATER_S)
            try:
                return await write()
            except KvDamaged:
                raise
            except StoreError:
                continue

    async def fault(self) -> None:
        """For ever; raises what a task came to grief of that nobody waits for."""
        await asyncio.shield(self._fault)

    # -- tasks of the daemon --------------------------------------------------------------------------------------

    async def settle(self) -> None:
        """For ever: moves what has settled into the journal."""
        while True:
            due = [timer for d in self._debouncers.values() if (timer := d.get_timer()) is not None]
            wait = max(0.0, min(due) - time.monotonic()) if due else None
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait):  # wait_for would lose a cancel that comes with the event
                    await self._stirred.wait()
            self._stirred.clear()
            for name, debouncer in list(self._debouncers.items()):
                settled = debouncer.settled(time.monotonic())
                if settled and name in self.sources:
                    await self._journal(self.sources[name], [(s.path, s.since, s.subtree) for s in settled])

    async def watch_clocks(self) -> None:
        """For ever: a suspend or a clock that was set makes everything doubtful."""
        detector = gaps.SuspendDetector(gaps.read_clocks())
        while True:
            await asyncio.sleep(CLOCK_CHECK_S)
            reason = detector.check(gaps.read_clocks())
            if reason == gaps.SUSPENDED:
                await self._agent.uplink.reset()
            if reason is not None:
                for source in list(self.sources.values()):
                    await self.doubt(source, b"", reason)

    async def revive(self) -> None:
        """For ever: a source that was gone (unmounted, renamed) is watched again when it is back."""
        while True:
            await asyncio.sleep(CLOCK_CHECK_S)
            for name in list(self._gone):
                source = self.sources[name]
                if os.path.isdir(source.top):
                    self.unwatch(name)
                    await self.watch(source)

    async def rescan(self) -> None:
        """For ever: events are hints, so now and then everything is looked at."""
        while True:
            await asyncio.sleep(self._agent.settings.rescan_s * random.uniform(0.9, 1.1))
            for source in list(self.sources.values()):
                await self.doubt(source, b"", RESCAN, quiet=True)

    # -- from the watcher -----------------------------------------------------------------------------------------

    def _from_watcher(self, notice: Notice) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended
            self._loop.call_soon_threadsafe(self._take, notice)

    def _take(self, notice: Notice) -> None:
        source = self.sources.get(notice.source)
        if source is None:
            return
        path = relative(source.top, notice.path)
        if isinstance(notice, Changed):
            if notice.appeared_directory:
                self._appeared.add(notice.path)
            self._debouncers[source.name].receive(path, time.monotonic())
            self._stirred.set()
        else:
            if notice.reason in (gaps.GONE, gaps.UNMOUNTED):
                self._gone.add(source.name)
            self._keep(self.doubt(source, path, notice.reason))

    async def _journal(self, source: Source, settled: list[tuple[bytes, float, bool]]) -> None:
        offset = time.time() - time.monotonic()
        changes = []
        for path, since, subtree in settled:
            absolute = os.path.join(source.top, path) if path else source.top
            appeared = absolute in self._appeared
            self._appeared.discard(absolute)
            changes.append(Change(path, 0, int((since + offset) * 1000), subtree or appeared))
        try:
            await self._write_changes(source, changes)
        except KvDamaged:
            raise
        except StoreError as error:
            self._agent.alarm(f"{source.name}: {len(changes)} changes cannot be noted yet: {error}")
            self._in_hand[source.name] = changes
            await self._later(lambda: self._write_changes(source, changes))
            self._in_hand.pop(source.name, None)

    async def _write_changes(self, source: Source, changes: list[Change]) -> None:
        await self._agent.run(lambda: self._agent.journal.add(source.source_id, changes))
        self._wake()

    async def _note_armed(self, name: str, wait: Callable[[], object]) -> None:
        await asyncio.to_thread(wait)
        if name in self.sources:
            self._armed.add(name)
        self._wake()

    def _keep(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._kept)

    def _kept(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is not None and not self._fault.done():
            self._fault.set_exception(error)


def relative(top: bytes, path: bytes) -> bytes:
    """`path` as the source with this top names it."""
    return path[len(top) :].lstrip(b"/")
