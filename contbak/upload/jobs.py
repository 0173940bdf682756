"""The lots of files that the workers read, from the queue to their outcome.

    queued -> with a worker -> read and in packs -> (waiting for other workers' packs) -> Done or Failed, each file

Rules:
- A file is Done only when each of its chunks is in a finished pack or was known to the vault (upload/claims).
- Each attempt at a lot has a number of its own, so that late reports about old ones fall flat.
- What is to be read again goes before all others, in its old order.

Bookkeeping on one event loop.  It does not know processes: upload/workers gives the lots to them.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from contbak.core.errors import ContbakError
from contbak.upload.claims import Claims
from contbak.upload.orders import Asked, Done


@dataclass(frozen=True, slots=True)
class Failed:
    """A file was not read.  `error`: SourceError or one of its kin for the file's fault, StoreError for the spool's."""

    path: bytes
    error: ContbakError


Outcome: TypeAlias = Done | Failed


@dataclass(eq=False, slots=True)
class Task:
    """A lot on its way.

    number   of this attempt
    given_up files that are Failed whatever happens, by index among `files`
    read     what a worker has reported of those left: then the lot only waits for packs of other workers
    kills    deaths of workers that were at a file, by index; losses: deaths that no file is to blame for
    """

    files: tuple[Asked, ...]
    allow_torn: bool
    future: asyncio.Future[list[Outcome]]
    number: int = 0
    given_up: dict[int, Failed] = field(default_factory=dict)
    read: list[Outcome] | None = None
    kills: dict[int, int] = field(default_factory=dict)
    losses: int = 0

    @property
    def left(self) -> list[int]:
        """The indexes of the files that a worker is to read."""
        return [index for index in range(len(self.files)) if index not in self.given_up]


class Jobs:
    """Lots on their way: the queue, those under way, and which chunks they wait for."""

    def __init__(self) -> None:
        self.queue: deque[Task] = deque()
        """Those that no worker has."""
        self.open: dict[int, Task] = {}
        """All that have not come to an end, by number."""
        self.claims = Claims()
        self._numbers = itertools.count(1)
        self._changed = asyncio.Event()

    def add(self, files: Sequence[Asked], allow_torn: bool) -> Task:
        """Queues a lot."""
        task = Task(tuple(files), allow_torn, asyncio.get_running_loop().create_future())
        self._number(task)
        self.queue.append(task)
        return task

    def again(self, tasks: Iterable[Task]) -> None:
        """These are to be read again, before all others and in their order."""
        for task in sorted(tasks, key=lambda task: task.number, reverse=True):
            self._forget(task)
            self._number(task)
            self.queue.appendleft(task)

    def read(self, task: Task, outcomes: Sequence[Outcome]) -> None:
        """A worker reports what became of the files that were left."""
        task.read = list(outcomes)
        self.settle([task.number])

    def fail(self, task: Task, error: ContbakError) -> None:
        """The files that were left end in `error`."""
        task.read = [Failed(task.files[index].path, error) for index in task.left]
        self.end(task)

    def end(self, task: Task) -> None:
        """The lot has come to an end: there is an outcome of each file."""
        self._forget(task)
        if not task.future.done():
            outcomes = task.given_up | dict(zip(task.left, task.read or (), strict=True))
            task.future.set_result([outcomes[index] for index in range(len(task.files))])

    def settle(self, numbers: Iterable[int]) -> None:
        """Ends those of the lots that are read and wait for no chunk."""
        for number in numbers:
            task = self.open.get(number)
            if task is not None and task.read is not None and self.claims.settled(number):
                self.end(task)
                self.notify()

    def stored(self, ids: Iterable[bytes]) -> None:
        """These chunks are in a finished pack or known to the vault; ends the lots that waited for nothing else."""
        self.settle(self.claims.stored(ids))

    def cancel(self) -> None:
        """Nothing will be read any more."""
        for task in self.open.values():
            task.future.cancel()
        self.open.clear()
        self.queue.clear()

    def fail_all(self, error: ContbakError) -> None:
        """All files end in `error`."""
        for task in list(self.open.values()):
            self.fail(task, error)
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
