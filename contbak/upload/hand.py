"""One worker process as the main process holds it: its start, its pipes, its end.

Rules: messages cross as upload/orders writes them; a process that sends anything else is killed.  The process notes
which file of which job it is at in a file that outlives it (the mark), so that its death has a culprit.

It does not know the files behind the numbers and does not start a successor: upload/workers does.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

from contbak.core.errors import ContbakError, FormatError
from contbak.upload import orders
from contbak.upload.jobs import Task
from contbak.upload.orders import Order, Report, Setup

MARK_LEN = 8
_PACKAGES = str(Path(__file__).resolve().parents[2])
# Not `-m`: that would look for modules in the current directory, which may be anyone's.
_START = (
    "import sys; sys.path.append(sys.argv[1]); from contbak.upload.worker import main; sys.exit(main(int(sys.argv[2])))"
)


class Hand:
    """A worker process.  `id`: which one; no two have the same."""

    def __init__(self, id: int, process: asyncio.subprocess.Process, mark: int) -> None:
        self.id = id
        self.process = process
        self.jobs: dict[int, Task] = {}
        """What it was given and has not reported, by number."""
        self.waiting: set[int] = set()
        """The numbers of those that it has not begun."""
        self.large = False
        """Busy with a large file: gets no more jobs until it is read."""
        self.broken: orders.Broken | None = None
        self.useful = False
        """Has reported something."""
        self._mark = mark
        self._closing: dict[int, asyncio.Future[None]] = {}
        self._numbers = itertools.count(1)

    def give(self, order: Order) -> None:
        """Sends an order; nothing if the process is being ended."""
        stdin = self.process.stdin
        if stdin is not None and not stdin.is_closing():
            stdin.write(orders.pack_order(order))

    async def report(self) -> Report | None:
        """The next report; None when there will be no more."""
        stdout = self.process.stdout
        assert stdout is not None
        try:
            (length,) = orders.LENGTH.unpack(await stdout.readexactly(orders.LENGTH.size))
            if length > orders.MESSAGE_MAX:
                raise FormatError("a worker's report has an impossible length")
            return orders.parse_report(await stdout.readexactly(length))
        except (asyncio.IncompleteReadError, ConnectionError):
            return None
        except FormatError:
            self.process.kill()
            return None

    def close_packs(self) -> asyncio.Future[None]:
        """Has the open packs closed; the future tells when they are (or the process is dead)."""
        number = next(self._numbers)
        self._closing[number] = asyncio.get_running_loop().create_future()
        self.give(orders.Close(number))
        return self._closing[number]

    def closed(self, number: int) -> None:
        """The process says that it has closed the packs of the `number`-th request, and so of those before."""
        for earlier in [each for each in self._closing if each <= number]:
            _resolve(self._closing.pop(earlier))

    def let_go(self) -> None:
        """Nobody needs to wait for packs to be closed."""
        for waiting in self._closing.values():
            _resolve(waiting)

    def dismiss(self) -> None:
        """Tells the process to end."""
        if self.process.stdin is not None:
            self.process.stdin.close()

    async def kill(self) -> None:
        """Ends the process at once."""
        with suppress(ProcessLookupError):
            self.process.kill()
        await self.process.wait()

    def bury(self) -> tuple[int, int] | None:
        """The process is dead: (number of the job, which of its files) that it was at, None for none.  Once only."""
        mark = int.from_bytes(os.pread(self._mark, MARK_LEN, 0), "little")
        os.close(self._mark)
        self.let_go()
        return divmod(mark, orders.LOT_MAX) if mark else None


async def start(id: int, setup: Setup) -> Hand:
    """Starts a process.  Raises ContbakError."""
    with tempfile.TemporaryFile() as file:
        mark = os.dup(file.fileno())
        os.ftruncate(mark, MARK_LEN)
    try:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-P", "-c", _START, _PACKAGES, str(mark),
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, pass_fds=[mark],
        )  # fmt: skip
    except OSError as error:
        os.close(mark)
        raise ContbakError(f"a worker process could not be started: {error}") from error
    hand = Hand(id, process, mark)
    hand.give(setup)
    return hand


def _resolve(waiting: asyncio.Future[None]) -> None:
    if not waiting.done():
        waiting.set_result(None)
