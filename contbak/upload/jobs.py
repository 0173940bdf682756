"""The files that the workers read, from the queue to their result.

    queued -> with a worker -> read, waiting for packs -> Done

Rules:
- A file is Done only when each of its chunks is in a finished pack or was known to the vault (upload/claims).
- Each attempt at a file has a number of its own, so that late reports about old ones fall flat.
- What is to be read again goes before all others, in its old order.

Bookkeeping on one event loop.  It does not know processes: upload/workers gives the files to them.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

from contbak.core.entry import TORN, Entry
from contbak.core.errors import ContbakError
from contbak.upload.claims import Claims


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
class Task:
    """A file on its way.

    number  of this attempt
    read    what it will be Done with, once it is read
    kills   deaths of workers that were at it; losses: deaths of workers that it waited for
    """

    path: bytes
    allow_torn: bool
    future: asyncio.Future[Done | Failed]
    number: int = 0
    read: Done | None = None
    kills: int = 0
    losses: int = 0


class Jobs:
    """Files on their way: the queue, those under way, and which chunks they wait for."""

    def __init__(self) -> None:
        self.queue: deque[Task] = deque()
        """Those that no worker has."""
        self.open: dict[int, Task] = {}
        """All that have not come to an end, by number."""
        self.claims = Claims()
        self._numbers = itertools.count(1)
        self._changed = asyncio.Event()

    def add(self, path: bytes, allow_torn: bool) -> Task:
        """Queues a file."""
        task = Task(path, allow_torn, asyncio.get_running_loop().create_future())
        self._number(task)
        self.queue.append(task)
        return task

    def again(self, tasks: Iterable[Task]) -> None:
        """These are to be read again, before all others and in their order."""
        for task in sorted(tasks, key=lambda task: task.number, reverse=True):
            self._forget(task)
            self._number(task)
            self.queue.appendleft(task)

    def end(self, task: Task, result: Done | Failed) -> None:
        """The file has come to an end."""
        self._forget(task)
        if not task.future.done():
            task.future.set_result(result)

    def settle(self, numbers: Iterable[int]) -> None:
        """Ends those of the jobs that are read and wait for no chunk."""
        for number in numbers:
            task = self.open.get(number)
            if task is not None and task.read is not None and self.claims.settled(number):
                self.end(task, task.read)
                self.notify()

    def stored(self, ids: Iterable[bytes]) -> None:
        """These chunks are in a finished pack or known to the vault; ends the files that waited for nothing else."""
        self.settle(self.claims.stored(ids))

    def cancel(self) -> None:
        """Nothing will be read any more."""
        for task in self.open.values():
            task.future.cancel()
        self.open.clear()
        self.queue.clear()

    def fail(self, error: ContbakError) -> None:
        """All files end in `error`."""
        for task in list(self.open.values()):
            self.end(task, Failed(task.path, error))
        self.queue.clear()

    def notify(self) -> None:
        """Something has changed: whoever waits for it looks again."""
        event, self._changed = self._changed, asyncio.Event()
        event.set()

    async def change(self) -> None:
        """Returns at the next `notify`."""
        await self._changed.wait()

    def _number(self, task: Task) -> None:
        task.number, task.read = next(self._numbers), None
        self.open[task.number] = task

    def _forget(self, task: Task) -> None:
        self.open.pop(task.number, None)
        self.claims.forget(task.number)
