"""The daemon: the only owner of tasks and signals.

    Lookout (events, gaps) -> journal -> Rounds (Agent.protect), for ever

At start everything is in doubt, because nobody knows what happened while the daemon was down.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import time
from collections.abc import AsyncIterator, Callable

from contbak.app.agent import Agent
from contbak.app.config import load_settings, load_sources
from contbak.app.control import Control, Message, Verbs
from contbak.app.home import Home, locked
from contbak.app.keyfile import Keys
from contbak.app.lookout import Lookout, relative
from contbak.app.rounds import Rounds, follow
from contbak.app.setup import adopted
from contbak.app.status import describe
from contbak.app.summary import summary
from contbak.core.errors import ContbakError, UsageError
from contbak.store.kv import KvDamaged


async def serve(home: Home, keys: Keys, say: Callable[[str], None]) -> None:
    """Runs the daemon until it is told to stop; `say` takes sentences for a person.

    If its state turns out to be damaged while it runs, the state is set aside and the daemon begins anew.
    Raises ContbakError if it cannot start.
    """
    with locked(home):
        while True:
            daemon = Daemon(home, keys, say)
            try:
                await daemon.run()
                return
            except KvDamaged as error:
                say(f"the agent's state is damaged ({error}); it is set aside and made again by reading everything")


class Daemon:
    """One run.  The caller holds the lock of the home."""

    def __init__(self, home: Home, keys: Keys, say: Callable[[str], None]) -> None:
        relay = adopted(home)
        self._home = home
        self._say = say
        self._agent = Agent(home, load_settings(home), keys, relay.address(home), relay.embedded)
        self._agent.alarm = say
        self._stop = asyncio.Event()
        self._wake = asyncio.Event()
        self._lookout = Lookout(self._agent, self._wake.set)
        self._rounds = Rounds(self._agent, self._lookout, self._wake, say)
        self._control = Control(home.socket, Verbs(self._status, self._backup, self._reload, self._stop.set))

    async def run(self) -> None:
        """From start to stop.  Raises ContbakError if it cannot start, KvDamaged if its state is (set aside then)."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop.set)
        loop.add_signal_handler(signal.SIGHUP, self._hang_up)
        try:
            await self._agent.open()
            await self._agent.drop_leftovers(load_sources(self._home))
            self._lookout.start()
            await self._reload()
            await self._control.start()
            notify("READY=1")
            await self._until_stopped()
        except KvDamaged as error:
            self._agent.kv.quarantine(str(error))
            raise
        finally:
            notify("STOPPING=1")
            await self._control.stop()
            await self._lookout.stop()
            await self._agent.close()

    def _hang_up(self) -> None:
        self._reloading = asyncio.create_task(self._reload_or_say())

    async def _reload_or_say(self) -> None:
        try:
            await self._reload()
        except ContbakError as error:
            self._say(f"the configuration was not taken over: {error}")

    async def _until_stopped(self) -> None:
        tasks = [
            asyncio.create_task(work)
            for work in (
                self._rounds.work(), self._lookout.settle(), self._lookout.watch_clocks(), self._lookout.rescan(),
                self._lookout.revive(), self._lookout.fault(),
            )
        ]  # fmt: skip
        stop = asyncio.create_task(self._stop.wait())
        done, _ = await asyncio.wait([*tasks, stop], return_when=asyncio.FIRST_COMPLETED)
        for task in (*tasks, stop):
            task.cancel()
        await asyncio.gather(*tasks, stop, return_exceptions=True)
        for task in tasks:
            if task in done:
                task.result()

    async def _reload(self) -> None:
        """Reads the sources again: watches new ones, forgets removed ones."""
        wanted = {source.name: source for source in load_sources(self._home)}
        for name in [name for name, source in self._lookout.sources.items() if wanted.get(name) != source]:
            self._lookout.unwatch(name)
        for name, source in wanted.items():
            if name not in self._lookout.sources:
                await self._lookout.watch(source)
        self._wake.set()

    async def _status(self) -> Message:
        return await describe(self._agent, self._lookout)

    async def _backup(self, paths: list[str], wait: str) -> AsyncIterator[Message]:
        """Scans and commits now; yields progress, and a summary for each source."""
        for name, path in self._chosen(paths):
            source = self._lookout.sources[name]
            started, sent = time.monotonic(), self._agent.uplink.status().bytes_sent
            request = await self._rounds.ask(source, path)
            async for message in follow(request, wait, self._agent):
                yield message
            if request.done.done():
                tally, head = request.done.result()
                took, sent = time.monotonic() - started, self._agent.uplink.status().bytes_sent - sent
                yield summary(source, tally, head, took, sent)

    def _chosen(self, paths: list[str]) -> list[tuple[str, bytes]]:
        return chosen({name: source.top for name, source in self._lookout.sources.items()}, paths)


def chosen(tops: dict[str, bytes], paths: list[str]) -> list[tuple[str, bytes]]:
    """(source, path in it) for each of `paths`, or every source whole.  Raises UsageError."""
    if not tops:
        raise UsageError("nothing is protected yet; start with 'contbak add DIR'")
    if not paths:
        return [(name, b"") for name in tops]
    found = []
    for path in paths:
        wanted = os.path.realpath(os.fsencode(path))
        for name, top in tops.items():
            if wanted == top or wanted.startswith(top.rstrip(b"/") + b"/"):
                found.append((name, relative(top, wanted)))
                break
        else:
            raise UsageError(f"{path} is in no source; protect it with 'contbak add'")
    return found


def notify(state: str) -> None:
    """Tells systemd (Type=notify), if it asked to be told."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.sendto(state.encode(), address)
