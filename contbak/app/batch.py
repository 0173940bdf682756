"""One batch: from changes and gaps of one source to staged entries, all their chunks in finished packs.

The comparing (system calls, lmdb) runs in one thread of the agent, the reading in the workers; this module keeps
them both busy and collects what comes back.  A file that fails is reported and left; the others go on.  A file that
was read and found to be what the last commit holds is not staged.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import TypeVar

from contbak.app.config import Source
from contbak.app.stored import Stored
from contbak.capture.findings import LOST, TOUCHED, Read, Trouble
from contbak.capture.journal import Change, Gap
from contbak.capture.proof import Proof, settled_fingerprint, void
from contbak.capture.proofs import Proofs
from contbak.capture.scan import Scan
from contbak.core.errors import ContbakError, SourceError, StoreError, Unsettled, Vanished
from contbak.upload.jobs import Outcome
from contbak.upload.orders import Asked, Done
from contbak.upload.workers import Workers

T = TypeVar("T")
InThread = Callable[[Callable[[], T]], Awaitable[T]]

_PART = 1024
LOT_FILES = 256
LOT_BYTES = 4 << 20
"""A worker gets files together up to this much, so that nothing is waited for at each; a larger one goes alone."""


@dataclass(frozen=True, slots=True)
class Work:
    """What a batch is to look at."""

    changes: tuple[Change, ...] = ()
    gaps: tuple[Gap, ...] = ()

    @property
    def whole(self) -> bool:
        """Whether it includes everything in the source."""
        return any(gap.path == b"" for gap in self.gaps) or any(c.path == b"" and c.subtree for c in self.changes)

    @property
    def since_ms(self) -> int:
        """When the oldest of it came up."""
        return min((*(change.since_ms for change in self.changes), *(gap.since_ms for gap in self.gaps)), default=0)

    def covers(self, path: bytes) -> bool:
        """Whether the batch looks at `path`."""
        return any(c.path == path or (c.subtree and _under(path, c.path)) for c in self.changes) or any(
            _under(path, gap.path) for gap in self.gaps
        )


@dataclass(slots=True)
class Tally:
    """What a batch did.  Bytes are of file content; new, changed, gone count names that were committed."""

    seen: int = 0
    unchanged: int = 0
    read_files: int = 0
    read_bytes: int = 0
    new_bytes: int = 0
    torn: int = 0
    new: int = 0
    changed: int = 0
    gone: int = 0
    failed: dict[bytes, str] = field(default_factory=dict)


class Batch:
    """Made for one Work; `fill` may be called several times, with a commit in between."""

    def __init__(
        self, source: Source, work: Work, scan: Scan, proofs: Proofs, workers: Workers, stored: Stored
    ) -> None:  # fmt: skip
        self.work = work
        self.tally = Tally()
        self.fold = False
        """The relay has lost chunks: the commit must not refer to content that was replaced, which nobody has."""
        self._prefix = os.path.join(source.top, b"")
        self._scan = scan
        self._proofs = proofs
        self._workers = workers
        self._stored = stored
        self._lost = frozenset(change.path for change in work.changes if change.forced)
        self._findings = self._look()
        self._lot: list[Read] = []
        """Files for the next lot, and their size."""
        self._lot_bytes = 0
        self._results: list[tuple[Read, Done, int]] = []
        self._broken: ContbakError | None = None
        self._retry: list[Read] = []
        self._databases: list[tuple[bytes, bool]] = []
        """Those in use that were read, with whether SQLite refused: then what lies beside them is saved, else not."""
        self.reread: set[bytes] = set()
        """Files that were to be read even if they looked unchanged, and were."""

    @property
    def links_wanted(self) -> bool:
        """A file gained or lost names that nobody told of: the source should be scanned."""
        return self._scan.links_wanted and not self.work.whole

    async def fill(self, thread: InThread[object], max_rows: int, max_bytes: int) -> bool:
        """Stages entries until all is looked at (True) or there is enough for one commit (False).

        Raises StoreError if the spool cannot take more.
        """
        rows = size = 0
        done = False
        while not done and rows < max_rows and size < max_bytes:
            part = await _in(thread, lambda: list(islice(self._findings, _PART)))
            done = not part
            for found in part:
                rows += 1
                size += await self._take(found)
            await self._stage(thread)
            self.tally.seen, self.tally.unchanged = self._scan.counts.seen, self._scan.counts.unchanged
        await self._read_out(thread, done)
        if done:
            await _in(thread, self._scan.finish)
        if self._broken is not None:
            raise self._broken
        return done

    async def _read_out(self, thread: InThread[object], done: bool) -> None:
        """Until all that was found is read and staged; if all is looked at (`done`), with what turns up by that."""
        while True:
            await self._send_lot()
            await self._workers.flush()
            await asyncio.sleep(0)  # the callbacks of the last futures
            await self._stage(thread)
            again, self._retry = self._retry, []
            more = await _in(thread, self._look_at_logs) if done and self._databases else []
            if not again and not more:
                return
            for retried in again:
                await self._submit([retried], True)
            for found in more:
                await self._take(found)

    async def _take(self, found: Read | Trouble) -> int:
        """Has it read or reports it; returns the bytes to read."""
        if isinstance(found, Trouble):
            self.tally.failed[found.path] = found.reason
            return 0
        if found.size > LOT_BYTES:
            await self._submit([found], False)
            return found.size
        self._lot.append(found)
        self._lot_bytes += found.size
        if len(self._lot) >= LOT_FILES or self._lot_bytes >= LOT_BYTES:
            await self._send_lot()
        return found.size

    def _look(self) -> Iterator[Read | Trouble]:
        for gap in self.work.gaps:
            yield from self._scan.look(gap.path, subtree=True)
        for change in self.work.changes:
            yield from self._scan.look(change.path, change.subtree, LOST if change.forced else TOUCHED)

    def _look_at_logs(self) -> list[Read | Trouble]:
        databases, self._databases = self._databases, []
        return [found for path, refused in databases for found in self._scan.look_at_logs(path, refused)]

    async def _send_lot(self) -> None:
        lot, self._lot, self._lot_bytes = self._lot, [], 0
        if lot:
            await self._submit(lot, False)

    async def _submit(self, lot: list[Read], allow_torn: bool) -> None:
        asked_ns = time.time_ns()
        files = [Asked(self._prefix + found.path, found.dir_id) for found in lot]
        future = await self._workers.submit(files, allow_torn)
        future.add_done_callback(lambda done: self._collect(lot, asked_ns, done))

    def _collect(self, lot: list[Read], asked_ns: int, future: asyncio.Future[list[Outcome]]) -> None:
        if future.cancelled():
            return
        for found, result in zip(lot, future.result(), strict=True):
            if isinstance(result, Done):
                self._results.append((found, result, asked_ns))
            else:
                self._fail(found, result.error)

    def _fail(self, found: Read, error: ContbakError) -> None:
        if isinstance(error, Unsettled):
            self._retry.append(found)
        elif isinstance(error, Vanished):
            pass  # its deletion is an event of its own, and the next scan sees it too
        elif isinstance(error, SourceError):
            self.tally.failed[found.path] = error.reason
        elif isinstance(error, StoreError):
            self._broken = error
        else:
            self.tally.failed[found.path] = str(error)

    async def _stage(self, thread: InThread[object]) -> None:
        results, self._results = self._results, []
        if results:
            await _in(thread, lambda: self._stage_all(results))

    def _stage_all(self, results: list[tuple[Read, Done, int]]) -> None:
        for found, done, asked_ns in results:
            fingerprint = done.fingerprint
            if done.torn and not Proof(fingerprint).refused:
                fingerprint = void(fingerprint)
            proof = Proof(settled_fingerprint(fingerprint, asked_ns))
            if proof.in_use:
                self._databases.append((found.path, not done.database))
            if found.path in self._lost:
                self.reread.add(found.path)
            if not (found.known and self._is_stored(found, proof, done)):
                self._proofs.stage_encoded(found.dir_id, found.name, proof, done.raw)
            self.tally.read_files += 1
            self.tally.read_bytes += done.length
            self.tally.new_bytes += done.new_bytes
            self.tally.torn += done.torn

    def _is_stored(self, found: Read, proof: Proof, done: Done) -> bool:
        """Whether the last commit holds just this.  It is asked only where the stamps are those of its copy.

        Content that the relay has lost must go along with a commit, which vouches for it.
        """
        known = self._proofs.committed(found.dir_id, found.name)
        if known is None or known.stamps != proof.stamps or found.path in self._lost:
            return False
        if self._stored.entry(found.dir_id, found.name) != done.entry:
            return False
        if known != proof:
            self._proofs.renew(found.dir_id, found.name, proof)
        return True


async def _in(thread: InThread[object], function: Callable[[], T]) -> T:
    return await thread(function)  # type: ignore[return-value]


def _under(path: bytes, top: bytes) -> bool:
    return not top or path == top or path.startswith(top + b"/")
