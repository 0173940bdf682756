"""Carries finished packs from the spool to the relay, and answers what need not be stored at all.

A pack leaves the spool when the relay has sealed it: then it is durable there.  When the spool is over its budget,
nobody is told what to store, so the workers wait.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Sequence
from contextlib import suppress
from typing import TypeVar

from contbak.core.errors import ContbakError
from contbak.core.names import ChunkId, PackId
from contbak.upload.bundle import Packed
from contbak.upload.known import Known
from contbak.upload.spool import Spool
from contbak.upload.uplink import Uplink

T = TypeVar("T")


class Carrier:
    """Made for one event loop.  `run` runs a function in the agent's thread; `alarm` takes a sentence for a person.

    sealed   packs of this device that are known to be sealed at the relay
    """

    def __init__(
        self, spool: Spool, known: Known, uplink: Uplink, run: Callable[[Callable[[], object]], Awaitable[object]],
        alarm: Callable[[str], None],
    ) -> None:  # fmt: skip
        self.sealed = 0
        self._spool = spool
        self._known = known
        self._uplink = uplink
        self._run = run
        self._alarm = alarm
        self._loop = asyncio.get_running_loop()
        self._room = asyncio.Event()
        self._unsealed: dict[PackId, asyncio.Task[None]] = {}
        self._flushing: asyncio.Task[None] | None = None

    def start(self, packs: Collection[PackId]) -> None:
        """Has what was left in the spool sent."""
        for root in packs:
            self._offer(root)
        self._check_room()

    async def stop(self) -> None:
        """What is under way is sent again next time."""
        tasks = [*self._unsealed.values(), *((self._flushing,) if self._flushing else ())]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def unsealed(self) -> list[PackId]:
        """Packs that the relay has not sealed yet.  From any thread."""
        return [*self._unsealed]

    async def have(self, ids: Sequence[ChunkId]) -> Sequence[bool]:
        """Whether the vault has these: from our own records, then from the relay if others write there too."""
        await self._room.wait()
        have = self._known.have(ids)
        unknown = [id_ for id_, there in zip(ids, have, strict=True) if not there]
        if unknown and self._others_wrote() and self._uplink.status().reachable:  # else each file waits in vain
            with suppress(ContbakError):
                answers = await self._uplink.have(unknown)
                found = {id_ for id_, there in zip(unknown, answers, strict=True) if there}
                self._known.note(found)
                have = [there or id_ in found for id_, there in zip(ids, have, strict=True)]
        return have

    def on_pack(self, packed: Packed) -> None:
        """A worker finished a pack."""
        self._known.note(packed.ids)
        self._offer(packed.root)
        self._check_room()
        if self._flushing is None or self._flushing.done():
            self._flushing = asyncio.create_task(self._flush())

    def send(self, packs: Collection[Packed]) -> None:
        """From the agent's thread: have these sent."""
        for packed in packs:
            self._known.note(packed.ids)
        roots = [packed.root for packed in packs]
        asyncio.run_coroutine_threadsafe(self._offer_all(roots), self._loop).result()

    async def _flush(self) -> None:
        await self._run(self._known.flush)

    async def _offer_all(self, roots: Collection[PackId]) -> None:
        for root in roots:
            self._offer(root)

    def _others_wrote(self) -> bool:
        session = self._uplink.session
        if session is None:
            return False
        return session.foreign > 0 or bool(session.heads) or session.packs > self.sealed

    def _offer(self, root: PackId) -> None:
        if root in self._unsealed:
            return
        try:
            self._uplink.offer(root)
        except ContbakError as error:
            self._alarm(f"a pack in the spool cannot be sent and will be made again: {error}")
            with suppress(ContbakError):  # or it would take room for ever
                self._spool.remove(root)
            return
        self._unsealed[root] = asyncio.create_task(self._until_sealed(root))

    async def _until_sealed(self, root: PackId) -> None:
        try:
            await self._uplink.sealed(root)
            self.sealed += 1
        except ContbakError as error:
            self._alarm(f"a pack was refused and will be made again: {error}")
        del self._unsealed[root]
        await self._run(lambda: self._spool.remove(root))
        self._check_room()

    def _check_room(self) -> None:
        if self._spool.over_budget:
            self._room.clear()
        else:
            self._room.set()
