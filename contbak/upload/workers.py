"""The worker processes as the main process sees them: lots of files in, entries and packs out.

    submit(files) -> a worker reads them -> Claim -> packs in the spool -> Done

Rules:
- A file is Done only when each of its chunks is in a finished pack or was known to the vault.
- A chunk that the vault lacks goes to exactly one worker (upload/claims); lots with the same chunk wait for it.
- A worker that dies takes nothing along: its unfinished packs are void, every lot that counted on them is read
  again, and another worker takes its place.  A file that kills a worker twice is Failed and left.
- One event loop, no threads.  Whoever submits waits while enough is queued.

It does not know the index or the relay (`known` asks them) and does not decide what is read when.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TypeAlias

from contbak.core.errors import ContbakError, SourceError
from contbak.core.messages import bitmap
from contbak.core.names import ID_LEN, ChunkId
from contbak.upload import orders
from contbak.upload.bundle import Packed
from contbak.upload.hand import Hand, start
from contbak.upload.jobs import Failed, Jobs, Outcome, Task
from contbak.upload.orders import Asked, Report, Setup
from contbak.upload.spool import Spool

Known: TypeAlias = Callable[[Sequence[ChunkId]], Awaitable[Sequence[bool]]]
"""known(ids) -> for each id whether the vault has the chunk, as far as index and relay can tell.  Must not raise."""
OnPack: TypeAlias = Callable[[Packed], None]
"""on_pack(packed): a pack is in the spool.  Called before the files that waited for it are Done."""

QUEUED = 3
"""Lots that wait with a worker: enough to keep it busy while the main process does something else."""
WAITING = 4
"""Lots that wait for a worker, above which `submit` waits."""
KILLS_MAX = 2
LOSSES_MAX = 6
"""Deaths of workers that a lot sees, without a file that is to blame, until it is given up."""
FALSE_STARTS_MAX = 4
STOP_S = 10.0


class Workers:
    """A few worker processes, `count` of them.  To be used from one event loop.

    They start when there is something to read for the first time.
    """

    def __init__(self, setup: Setup, known: Known, on_pack: OnPack, count: int) -> None:
        self._count = max(1, count)
        self._starting = asyncio.Lock()
        self._setup = setup
        self._known = known
        self._on_pack = on_pack
        self._spool = Spool(Path(setup.spool), 0)
        self._numbers = itertools.count(1)
        self._jobs = Jobs()
        self._hands: dict[int, Hand] = {}
        self._tenders: list[asyncio.Task[None]] = []
        self._stopping = False
        self._false_starts = 0
        self.deaths = 0
        """Workers that died before they were told to."""

    async def start(self) -> None:
        """Starts the processes that do not run yet.  Raises ContbakError; then it is over with all of them."""
        async with self._starting:
            while len(self._tenders) < self._count and not self._stopping:
                try:
                    hand = await self._start_one()
                except ContbakError:
                    self._stopping = True  # all or none: nobody must wait for those that are not there
                    raise
                tender = asyncio.create_task(self._tend(hand), name="worker")
                tender.add_done_callback(self._tender_ended)
                self._tenders.append(tender)

    async def stop(self) -> None:
        """Ends the processes; what is under way is thrown away, and its futures are cancelled.

        Raises what `known` or `on_pack` raised, if one did.
        """
        self._stopping = True
        for hand in self._hands.values():
            hand.dismiss()
        late = set(self._tenders)
        if late:
            _, late = await asyncio.wait(late, timeout=STOP_S)
        for tender in late:
            tender.cancel()
        results = await asyncio.gather(*self._tenders, return_exceptions=True)
        for hand in list(self._hands.values()):  # those whose tender is gone
            await hand.kill()
            self._bury(hand)
        self._tenders.clear()
        self._jobs.cancel()
        self._jobs.notify()
        for result in results:
            if isinstance(result, Exception):
                raise result

    @property
    def stopped(self) -> bool:
        """Whether nothing is read any more: told so, or because the processes do not run."""
        return self._stopping

    @property
    def pids(self) -> list[int]:
        """The processes' ids."""
        return [hand.process.pid for hand in self._hands.values()]

    async def submit(self, files: Sequence[Asked], allow_torn: bool = False) -> asyncio.Future[list[Outcome]]:
        """Queues a lot of files, 1 to LOT_MAX; waits while enough is queued.

        The future is never an exception: Done or Failed for each file.  It may need `flush` to come true.
        allow_torn: a file that never holds still is kept in a copy labelled torn.  Raises ContbakError if the processes
        have ended or do not start.
        """
        await self.start()
        while len(self._jobs.queue) >= WAITING and not self._stopping:
            await self._jobs.change()
        if self._stopping:
            raise ContbakError("the workers have been stopped")
        task = self._jobs.add(files, allow_torn)
        self._dispatch()
        return task.future

    async def flush(self) -> None:
        """Returns when every lot submitted before has come to an end; closes packs as needed."""
        wanted = list(self._jobs.open.values())
        while not self._stopping:
            wanted = [task for task in wanted if not task.future.done()]
            if not wanted:
                return
            if self._jobs.queue or not self._hands:
                await self._jobs.change()
            else:
                await self._close_packs()

    async def _close_packs(self) -> None:
        """Closes the open packs, once what is being read has been read, so that all of it is Done."""
        waits = [hand.close_packs() for hand in self._hands.values()]
        if waits:
            await asyncio.wait(waits)

    def _dispatch(self) -> None:
        """Gives queued lots to the workers that have the fewest to begin."""
        free = [hand for hand in self._hands.values() if not hand.large and hand.broken is None]
        while self._jobs.queue:
            hand = min(free, key=lambda hand: len(hand.waiting), default=None)
            if hand is None or len(hand.waiting) >= QUEUED:
                break
            task = self._jobs.queue.popleft()
            hand.jobs[task.number] = task
            hand.waiting.add(task.number)
            files = tuple([task.files[index] for index in task.left])
            hand.give(orders.Job(task.number, files, task.allow_torn))
        self._jobs.notify()

    # -- reports ----------------------------------------------------------------------------------------------

    async def _on_report(self, hand: Hand, report: Report) -> None:
        if not isinstance(report, orders.Broken):
            hand.useful = True
            self._false_starts = 0
        if isinstance(report, orders.Claim):
            await self._on_claim(hand, report)
        elif isinstance(report, orders.Finished):
            self._on_pack(report.packed)
            self._jobs.stored(report.packed.ids)
        elif isinstance(report, orders.Begun):
            hand.waiting.discard(report.job)
            self._dispatch()
        elif isinstance(report, orders.Read):
            self._on_read(hand, report)
        elif isinstance(report, orders.Returned):
            hand.large = True
            back = [(number, hand.jobs.pop(number)) for number in report.jobs if number in hand.jobs]
            hand.waiting.difference_update(report.jobs)
            self._jobs.again(task for number, task in back if task.number == number)
            self._dispatch()
        elif isinstance(report, orders.Free):
            hand.large = False
            self._dispatch()
        elif isinstance(report, orders.Closed):
            hand.closed(report.number)
        else:
            hand.broken = report

    async def _on_claim(self, hand: Hand, claim: orders.Claim) -> None:
        """Reserves first and asks then, so that no chunk is given away twice in between."""
        ids: list[ChunkId] = []
        mine: list[bool] = []
        for job, joined in claim.parts:
            part = [ChunkId(joined[at : at + ID_LEN]) for at in range(0, len(joined), ID_LEN)]
            ids += part
            mine += self._jobs.claims.reserve(hand.id, job, part)
        asked = [id for id, is_mine in zip(ids, mine, strict=True) if is_mine]
        known: set[bytes] = set()
        if asked:
            answers = await self._known(asked)
            known = {id for id, is_known in zip(asked, answers, strict=True) if is_known}
            self._jobs.stored(known)
        hand.give(orders.Claimed(bitmap([is_mine and id not in known for id, is_mine in zip(ids, mine, strict=True)])))

    def _on_read(self, hand: Hand, report: orders.Read) -> None:
        task = hand.jobs.pop(report.job, None)
        if task is None or task.number != report.job:
            self._jobs.claims.forget(report.job)  # it is being read again already
            return
        outcomes: list[Outcome] = []
        for index, outcome in zip(task.left, report.outcomes, strict=True):
            if isinstance(outcome, orders.Unread):
                path = task.files[index].path
                outcomes.append(Failed(path, orders.error_of(outcome.kind, path, outcome.reason)))
            else:
                outcomes.append(outcome)
        self._jobs.read(task, outcomes)

    # -- processes --------------------------------------------------------------------------------------------

    async def _start_one(self) -> Hand:
        hand = await start(next(self._numbers), self._setup)
        self._hands[hand.id] = hand
        return hand

    def _tender_ended(self, tender: asyncio.Task[None]) -> None:
        """A callback of the app raised: nobody is left waiting, and `stop` raises it again."""
        error = None if tender.cancelled() else tender.exception()
        if error is not None:
            self._give_up(f"{type(error).__name__}: {error}", last=True)

    async def _tend(self, hand: Hand) -> None:
        """Listens to a worker; when it dies, to the one that takes its place."""
        while True:
            while (report := await hand.report()) is not None:
                await self._on_report(hand, report)
            await hand.process.wait()
            self._bury(hand)
            if self._stopping:
                return
            self.deaths += 1
            self._false_starts += not hand.useful
            if self._false_starts >= FALSE_STARTS_MAX:
                reason = hand.broken.reason if hand.broken else f"they end at once, status {hand.process.returncode}"
                self._give_up(reason, last=not self._hands)
                return
            await asyncio.sleep(0.05 * self._false_starts**2)
            if self._stopping:
                return
            hand = await self._start_one()
            self._dispatch()

    def _bury(self, hand: Hand) -> None:
        """A worker is dead: what it had and what counted on it is given out again."""
        culprit = hand.bury()
        del self._hands[hand.id]
        with suppress(ContbakError):  # a spool out of reach is reported when it is written to
            self._spool.sweep(hand.process.pid)
        void = self._jobs.claims.void(hand.id)
        lost = {number: self._jobs.open[number] for number in void if number in self._jobs.open}
        lost |= {number: task for number, task in hand.jobs.items() if task.number == number}
        hand.jobs.clear()
        again = []
        for number, task in lost.items():
            if hand.broken is not None:
                reason = orders.error_of(hand.broken.kind, task.files[0].path, hand.broken.reason)
                self._jobs.fail(task, reason)
                continue
            self._blame(task, None if culprit is None else culprit[1] if culprit[0] == number else -1)
            if not task.left:
                self._jobs.end(task)
            elif not self._stopping:
                again.append(task)
        self._jobs.again(again)
        self._jobs.notify()

    def _blame(self, task: Task, at: int | None) -> None:
        """Gives up what died too often.  at: which of the files left the worker was at; -1: one of another lot."""
        if at is None:
            task.losses += 1
            guilty = task.left if task.losses >= LOSSES_MAX else []
        elif at >= 0:
            index = task.left[at]
            task.kills[index] = task.kills.get(index, 0) + 1
            guilty = [index] if task.kills[index] >= KILLS_MAX else []
        else:
            guilty = []
        for index in guilty:
            path = task.files[index].path
            task.given_up[index] = Failed(path, SourceError(path, "the process that read it died, more than once"))

    def _give_up(self, reason: str, last: bool) -> None:
        """A worker does not run and will not; after the last one nothing is read any more, and everyone is told."""
        if last:
            self._stopping = True
            self._jobs.fail_all(ContbakError(f"the worker processes do not run: {reason}"))
            for hand in self._hands.values():
                hand.let_go()
        self._jobs.notify()
