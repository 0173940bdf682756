"""The worker processes as the main process sees them: files in, entries and packs out.

    submit(path) -> a worker reads it -> Claim -> packs in the spool -> Done

Rules:
- A file is Done only when each of its chunks is in a finished pack or was known to the vault.
- A chunk that the vault lacks goes to exactly one worker (upload/claims); files with the same chunk wait for it.
- A worker that dies takes nothing along: its unfinished packs are void, every file that counted on them is read
  again, and another worker takes its place.  A file that kills a worker twice is Failed and left.
- One event loop, no threads.  Whoever submits waits while enough is queued.

It does not know the index or the relay (`known` asks them) and does not decide what is read when.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import sys
import tempfile
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

from contbak.core.entry import TORN, Entry
from contbak.core.errors import ContbakError, FormatError, SourceError
from contbak.core.messages import bitmap
from contbak.core.names import ID_LEN, ChunkId
from contbak.upload import orders
from contbak.upload.bundle import Packed
from contbak.upload.claims import Claims
from contbak.upload.orders import Order, Report, Setup
from contbak.upload.spool import Spool

Known: TypeAlias = Callable[[Sequence[ChunkId]], Awaitable[Sequence[bool]]]
"""known(ids) -> for each id whether the vault has the chunk, as far as index and relay can tell.  Must not raise."""
OnPack: TypeAlias = Callable[[Packed], None]
"""on_pack(packed): a pack is in the spool.  Called before the files that waited for it are Done."""

QUEUED = 48
"""Jobs that are with a worker at the same time: enough to keep it busy while the main process does something else."""
WAITING = 256
"""Jobs that wait for a worker, above which `submit` waits."""
KILLS_MAX = 2
LOSSES_MAX = 6
"""Deaths of workers that a file sees, without being at fault, until it is given up."""
FALSE_STARTS_MAX = 4
STOP_S = 10.0
_PACKAGES = str(Path(__file__).resolve().parents[2])
# Not `-m`: that would look for modules in the current directory, which may be anyone's.
_START = (
    "import sys; sys.path.append(sys.argv[1]); from contbak.upload.worker import main; sys.exit(main(int(sys.argv[2])))"
)


@dataclass(frozen=True, slots=True)
class Done:
    """A file was read and every chunk of it is in the spool or in the vault.

    entry        with its content
    fingerprint  of the stat; while the file has it, it need not be read again
    length       bytes read; new_bytes: how many of them this device stored anew for this file
    """

    path: bytes
    entry: Entry
    fingerprint: bytes
    length: int
    new_bytes: int
    attempts: int
    database: bool

    @property
    def torn(self) -> bool:
        """Whether the copy may mix several states."""
        return bool(self.entry.flags & TORN)


@dataclass(frozen=True, slots=True)
class Failed:
    """A file was not read.  `error`: SourceError or one of its kin for the file's fault, StoreError for the spool's."""

    path: bytes
    error: ContbakError


@dataclass(eq=False, slots=True)
class _Task:
    """A file on its way.  `number` is new for each attempt, so that late reports about old ones fall flat."""

    path: bytes
    allow_torn: bool
    future: asyncio.Future[Done | Failed]
    number: int = 0
    read: Done | None = None
    kills: int = 0
    losses: int = 0


@dataclass(eq=False, slots=True)
class _Hand:
    """One worker process."""

    id: int
    process: asyncio.subprocess.Process
    mark: int
    jobs: dict[int, _Task] = field(default_factory=dict)
    large: bool = False
    """Busy with a large file: gets no more jobs until it is read."""
    closing: dict[int, asyncio.Future[None]] = field(default_factory=dict)
    broken: orders.Broken | None = None
    useful: bool = False
    """Has reported something."""

    def give(self, order: Order) -> None:
        stdin = self.process.stdin
        if stdin is not None and not stdin.is_closing():
            stdin.write(orders.pack_order(order))


class Workers:
    """A few worker processes.  To be used from one event loop."""

    def __init__(self, setup: Setup, known: Known, on_pack: OnPack) -> None:
        self._setup = setup
        self._known = known
        self._on_pack = on_pack
        self._spool = Spool(Path(setup.spool), 0)
        self._numbers = itertools.count(1)
        self._claims = Claims()
        self._hands: dict[int, _Hand] = {}
        self._tenders: list[asyncio.Task[None]] = []
        self._queue: deque[_Task] = deque()
        self._open: dict[int, _Task] = {}
        self._changed = asyncio.Event()
        self._stopping = False
        self._false_starts = 0
        self.deaths = 0
        """Workers that died before they were told to."""

    async def start(self, count: int) -> None:
        """Starts `count` processes, 1 or more."""
        for _ in range(max(1, count)):
            hand = await self._start_one()
            tender = asyncio.create_task(self._tend(hand), name="worker")
            tender.add_done_callback(self._tender_ended)
            self._tenders.append(tender)

    async def stop(self) -> None:
        """Ends the processes; what is under way is thrown away, and its futures are cancelled.

        Raises what `known` or `on_pack` raised, if one did.
        """
        self._stopping = True
        for hand in self._hands.values():
            if hand.process.stdin is not None:
                hand.process.stdin.close()
        late = set(self._tenders)
        if late:
            _, late = await asyncio.wait(late, timeout=STOP_S)
        for tender in late:
            tender.cancel()
        results = await asyncio.gather(*self._tenders, return_exceptions=True)
        for hand in list(self._hands.values()):  # those whose tender is gone
            with suppress(ProcessLookupError):
                hand.process.kill()
            await hand.process.wait()
            self._bury(hand)
        self._tenders.clear()
        for task in list(self._open.values()):
            task.future.cancel()
        self._open.clear()
        self._queue.clear()
        self._notify()
        for result in results:
            if isinstance(result, Exception):
                raise result

    @property
    def pids(self) -> list[int]:
        """The processes' ids."""
        return [hand.process.pid for hand in self._hands.values()]

    async def submit(self, path: bytes, allow_torn: bool = False) -> asyncio.Future[Done | Failed]:
        """Queues the file `path` (absolute, raw bytes); waits while enough is queued.

        The future is never an exception: Done, or Failed with the reason.  It may need `flush` to come true.
        allow_torn: a file that never holds still is kept in a copy labelled torn.
        """
        while len(self._queue) >= WAITING and not self._stopping:
            await self._wait_for_change()
        if self._stopping:
            raise ContbakError("the workers have been stopped")
        task = _Task(path, allow_torn, asyncio.get_running_loop().create_future())
        self._enqueue(task)
        self._dispatch()
        return task.future

    async def flush(self) -> None:
        """Returns when every file submitted before has come to an end; closes packs as needed."""
        wanted = [task for task in self._open.values()]
        while True:
            for task in wanted:
                while task.read is None and not task.future.done() and not self._stopping:
                    await self._wait_for_change()
            wanted = [task for task in wanted if not task.future.done()]
            if not wanted or self._stopping:
                return
            if self._hands:
                await self.close_packs()
            else:
                await self._wait_for_change()

    async def close_packs(self) -> None:
        """Closes the open packs, so that what has been read is Done, without waiting for files still being read."""
        waits = []
        for hand in list(self._hands.values()):
            number = next(self._numbers)
            hand.closing[number] = asyncio.get_running_loop().create_future()
            waits.append(hand.closing[number])
            hand.give(orders.Close(number))
        if waits:
            await asyncio.wait(waits)

    # -- jobs -------------------------------------------------------------------------------------------------

    def _enqueue(self, task: _Task, first: bool = False) -> None:
        task.number, task.read = next(self._numbers), None
        self._open[task.number] = task
        if first:
            self._queue.appendleft(task)
        else:
            self._queue.append(task)

    def _dispatch(self) -> None:
        """Gives queued jobs to the workers that have the fewest."""
        free = [hand for hand in self._hands.values() if not hand.large and hand.broken is None]
        while self._queue:
            hand = min(free, key=lambda hand: len(hand.jobs), default=None)
            if hand is None or len(hand.jobs) >= QUEUED:
                break
            task = self._queue.popleft()
            hand.jobs[task.number] = task
            hand.give(orders.Job(task.number, task.path, task.allow_torn))
        self._notify()

    def _again(self, tasks: Iterable[_Task]) -> None:
        """These are to be read again, before all others and in their order."""
        for task in sorted(tasks, key=lambda task: task.number, reverse=True):
            self._open.pop(task.number, None)
            self._claims.forget(task.number)
            self._enqueue(task, first=True)

    def _end(self, task: _Task, result: Done | Failed) -> None:
        self._open.pop(task.number, None)
        self._claims.forget(task.number)
        if not task.future.done():
            task.future.set_result(result)

    def _notify(self) -> None:
        event, self._changed = self._changed, asyncio.Event()
        event.set()

    async def _wait_for_change(self) -> None:
        await self._changed.wait()

    # -- reports ----------------------------------------------------------------------------------------------

    async def _on_report(self, hand: _Hand, report: Report) -> None:
        if not isinstance(report, orders.Broken):
            hand.useful = True
            self._false_starts = 0
        if isinstance(report, orders.Claim):
            await self._on_claim(hand, report)
        elif isinstance(report, orders.Finished):
            self._on_pack(report.packed)
            self._settle(self._claims.stored(report.packed.ids))
        elif isinstance(report, orders.Read | orders.Unread):
            self._on_result(hand, report)
        elif isinstance(report, orders.Returned):
            hand.large = True
            back = [hand.jobs.pop(number) for number in report.jobs if number in hand.jobs]
            self._again(task for task, number in zip(back, report.jobs, strict=True) if task.number == number)
            self._dispatch()
        elif isinstance(report, orders.Closed):
            _resolve(hand.closing.pop(report.number, None))
        else:
            hand.broken = report

    async def _on_claim(self, hand: _Hand, claim: orders.Claim) -> None:
        """Reserves first and asks then, so that no chunk is given away twice in between."""
        ids: list[ChunkId] = []
        mine: list[bool] = []
        for job, joined in claim.parts:
            part = [ChunkId(joined[at : at + ID_LEN]) for at in range(0, len(joined), ID_LEN)]
            ids += part
            mine += self._claims.reserve(hand.id, job, part)
        asked = [id for id, is_mine in zip(ids, mine, strict=True) if is_mine]
        known: set[bytes] = set()
        if asked:
            answers = await self._known(asked)
            known = {id for id, is_known in zip(asked, answers, strict=True) if is_known}
            self._settle(self._claims.stored(known))
        hand.give(orders.Claimed(bitmap([is_mine and id not in known for id, is_mine in zip(ids, mine, strict=True)])))

    def _on_result(self, hand: _Hand, report: orders.Read | orders.Unread) -> None:
        hand.large = False
        task = hand.jobs.pop(report.job, None)
        if task is None or task.number != report.job:
            self._claims.forget(report.job)  # it is being read again already
        elif isinstance(report, orders.Unread):
            self._end(task, Failed(task.path, orders.error_of(report.kind, task.path, report.reason)))
        else:
            task.read = Done(
                task.path, report.entry, report.fingerprint, report.length, report.new_bytes,
                report.attempts, report.database,
            )  # fmt: skip
            self._settle([task.number])
        self._dispatch()

    def _settle(self, numbers: Iterable[int]) -> None:
        """Ends those of the jobs that are read and wait for no chunk."""
        for number in numbers:
            task = self._open.get(number)
            if task is not None and task.read is not None and self._claims.settled(number):
                self._end(task, task.read)
                self._notify()

    # -- processes --------------------------------------------------------------------------------------------

    async def _start_one(self) -> _Hand:
        with tempfile.TemporaryFile() as file:
            mark = os.dup(file.fileno())
        try:
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-P", "-c", _START, _PACKAGES, str(mark),
                stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, pass_fds=[mark],
            )  # fmt: skip
        except OSError as error:
            os.close(mark)
            raise ContbakError(f"a worker process could not be started: {error}") from error
        hand = _Hand(next(self._numbers), process, mark)
        hand.give(self._setup)
        self._hands[hand.id] = hand
        return hand

    def _tender_ended(self, tender: asyncio.Task[None]) -> None:
        """A callback of the app raised: nobody is left waiting, and `stop` raises it again."""
        error = None if tender.cancelled() else tender.exception()
        if error is not None:
            self._give_up(f"{type(error).__name__}: {error}", last=True)

    async def _tend(self, hand: _Hand) -> None:
        """Listens to a worker; when it dies, to the one that takes its place."""
        while True:
            await self._listen(hand)
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

    async def _listen(self, hand: _Hand) -> None:
        stdout = hand.process.stdout
        assert stdout is not None
        try:
            while True:
                (length,) = orders.LENGTH.unpack(await stdout.readexactly(orders.LENGTH.size))
                if length > orders.MESSAGE_MAX:
                    raise FormatError("a worker's report has an impossible length")
                await self._on_report(hand, orders.parse_report(await stdout.readexactly(length)))
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        except FormatError:
            hand.process.kill()

    def _bury(self, hand: _Hand) -> None:
        """A worker is dead: what it had and what counted on it is given out again."""
        culprit = int.from_bytes(os.pread(hand.mark, 8, 0), "little")
        os.close(hand.mark)
        del self._hands[hand.id]
        with suppress(ContbakError):  # a spool out of reach is reported when it is written to
            self._spool.sweep(hand.process.pid)
        void = self._claims.void(hand.id)
        lost = {number: self._open[number] for number in void if number in self._open}
        lost |= {number: task for number, task in hand.jobs.items() if task.number == number}
        hand.jobs.clear()
        for waiting in hand.closing.values():
            _resolve(waiting)
        again = []
        for number, task in lost.items():
            reason = self._blame(task, number == culprit, hand.broken)
            if reason is not None:
                self._end(task, Failed(task.path, reason))
            elif not self._stopping:
                again.append(task)
        self._again(again)
        self._notify()

    def _blame(self, task: _Task, culprit: bool, broken: orders.Broken | None) -> ContbakError | None:
        """Why the task is given up, if it is."""
        if broken is not None:
            return orders.error_of(broken.kind, task.path, broken.reason)
        task.kills += culprit
        task.losses += 1
        if task.kills >= KILLS_MAX or task.losses >= LOSSES_MAX:
            return SourceError(task.path, "the process that read it died, more than once")
        return None

    def _give_up(self, reason: str, last: bool) -> None:
        """A worker does not run and will not; after the last one nothing is read any more, and everyone is told."""
        if last:
            self._stopping = True
            for task in list(self._open.values()):
                self._end(task, Failed(task.path, ContbakError(f"the worker processes do not run: {reason}")))
            self._queue.clear()
        for hand in self._hands.values() if last else ():
            for waiting in hand.closing.values():
                _resolve(waiting)
        self._notify()


def _resolve(waiting: asyncio.Future[None] | None) -> None:
    if waiting is not None and not waiting.done():
        waiting.set_result(None)
