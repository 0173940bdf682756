"""The agent: turns what the journal owes into acknowledged commits, one batch of one source at a time.

    journal -> Scan -> workers -> spool -> Uplink -> commit -> receipt -> proofs, journal cleared

Rules: the journal is cleared only by a receipt; at most one commit is pending; a chain that the relay knows
otherwise (state lost, restored, cloned) is never argued with: a new incarnation begins and everything is looked at
again, which costs reading and hardly any sending.  Everything that blocks runs in one thread, so that journal,
proofs and ledger have one user.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import stat
import time
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from functools import partial
from typing import TypeVar

from contbak.app.batch import Batch, Tally, Work
from contbak.app.carrier import Carrier
from contbak.app.config import Settings, Source
from contbak.app.continuity import Continuity, StartedOver, Tables
from contbak.app.embedded import EmbeddedRelay
from contbak.app.home import Home
from contbak.app.keyfile import Keys
from contbak.app.lost import paths_of
from contbak.app.making import Maker
from contbak.app.stored import Stored
from contbak.app.tables import TABLES, TRUST_S, sources_in
from contbak.capture.journal import Change, Gap, Journal, Problem
from contbak.capture.proofs import Proofs
from contbak.capture.scan import Scan
from contbak.core import commit as commits
from contbak.core.chunker import check_engine
from contbak.core.commit import Signed
from contbak.core.errors import ContbakError, FormatError, NotFound, StoreError
from contbak.core.excludes import Excludes
from contbak.core.invite import Address
from contbak.core.names import TOP_DIR, ChunkId, CommitId, DirId, PackId, SourceId
from contbak.core.transfer import HeadMismatch, MissingChunks, RejectedByPeer
from contbak.store.kv import Kv, KvDamaged
from contbak.upload.bundle import Seal, choose_suite
from contbak.upload.chain import Ledger, Pending
from contbak.upload.known import Known
from contbak.upload.orders import Setup
from contbak.upload.spool import Spool
from contbak.upload.uplink import Credentials, Uplink
from contbak.upload.workers import Workers

log = logging.getLogger(__name__)
T = TypeVar("T")

READER = "contbak.capture.reader:Reader"
COMMIT_ROWS = 250_000
COMMIT_BYTES = 8 << 30
"""A long batch is committed in steps of this size, so that an interruption costs at most one of them."""
RESUPPLY_MAX = 10


class Agent:
    """Everything between a change and its receipt.  Made for one event loop; `open` before use, `close` after."""

    def __init__(self, home: Home, settings: Settings, keys: Keys, address: Address, embedded: bool) -> None:
        self.home = home
        self.settings = settings
        self.keys = keys
        self.alarm: Callable[[str], None] = lambda text: None
        """Called with one sentence when something happened that a person should know."""
        self.local: Callable[[Signed, bool], None] = lambda signed, last: None
        """Called when a commit is durable on this machine; `last`: it is the last of its batch."""
        self.tally = Tally()
        """What the batch under way has done so far."""
        self.covered: frozenset[tuple[bytes, int]] = frozenset()
        """Changes (path, generation) that the pending commit includes."""
        self._seal = Seal(keys.writer, keys.device, choose_suite(_has_aes()))
        self.address = address
        self._relay = EmbeddedRelay(home) if embedded else None
        self._thread = ThreadPoolExecutor(1, "contbak-journal")
        self._busy = asyncio.Lock()
        self._ends = AsyncExitStack()

    # -- life -------------------------------------------------------------------------------------------------

    async def open(self) -> None:
        """Opens the state (rebuilding what is damaged), starts the uplink.  Raises ContbakError."""
        check_engine()
        gc.freeze()
        gc.set_threshold(50_000, 20, 50)  # a backup makes many objects, and next to none of them in cycles
        self.home.make()
        self._ends.callback(self._thread.shutdown)
        if self._relay is not None:
            self._ends.push_async_callback(self._relay.stop)
            await self._relay.start()
        self._ends.push_async_callback(self._close_state)
        await self.run(self._open_state)
        self.uplink = Uplink(self.address, Credentials(self.keys.writer.vault, self.keys.device_seed), self.spool)
        self.carrier = Carrier(self.spool, self.known, self.uplink, self.run, self.alarm)
        self.carrier.sealed = self._chain.packs if self._chain else 0
        tables = Tables(self.kv, self.ledger, self.known)
        self._maker = Maker(self.keys, self._seal, tables, self.spool, self.carrier)
        self._continuity = Continuity(tables, self.carrier, self.uplink, self.run, self.alarm, self._chain)
        self._ends.push_async_callback(self.carrier.stop)
        self._ends.push_async_callback(self.uplink.close)
        await self.uplink.start()
        self._ends.push_async_callback(self._stop_workers)
        self._make_workers()
        self.carrier.start(await self.run(self.spool.packs))

    def _open_state(self) -> None:
        self.kv = Kv.open(self.home.journal, TABLES, trust_s=TRUST_S, on_damage=lambda reason: self.alarm(
            f"the agent's state was damaged and is made again by reading everything: {reason}"
        ))  # fmt: skip
        self.journal, self.ledger, self.known = Journal(self.kv), Ledger(self.kv), Known(self.kv)
        self.home.spool.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.spool = Spool(self.home.spool, self.settings.spool_mib << 20)
        for _, reason in self.spool.clear():
            self.alarm(f"a damaged pack was dropped from the spool and will be made again: {reason}")
        self._chain = self.ledger.chain()

    async def close(self) -> None:
        """Ends in order, and all of it whatever fails; what is under way is done again next time."""
        await self._ends.aclose()

    async def _close_state(self) -> None:
        if hasattr(self, "kv"):
            await self.run(self.kv.close)

    def _make_workers(self) -> None:
        setup = Setup(
            self._seal, str(self.home.spool), READER, str(self.home.scratch), self.settings.nice
        )
        count = self.settings.workers or os.cpu_count() or 1
        self.workers = Workers(setup, self.carrier.have, self.carrier.on_pack, count)

    async def _stop_workers(self) -> None:
        try:
            await self.workers.stop()
        except KvDamaged:
            raise
        except ContbakError as error:
            self.alarm(f"the worker processes had ended: {error}")

    async def _renew_workers(self) -> None:
        """New processes if the old ones are over (no memory for a new one, say)."""
        if self.workers.stopped:
            await self._stop_workers()
            self._make_workers()

    async def run(self, function: Callable[[], T]) -> T:
        """Runs `function` in the agent's thread."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, function)

    # -- the main job -----------------------------------------------------------------------------------------

    async def protect(self, source: Source, work: Work) -> tuple[Tally, CommitId | None]:
        """Looks at `work` and returns when all that differs is acknowledged by the relay.

        Returns what was done and the newest commit of the source.  Raises StartedOver, StoreError, Vanished (the
        source is not there).
        """
        async with self._busy:
            await self._finish_pending()
            await self._continuity.compare()
            await self._renew_workers()
            proofs = Proofs(self.kv, source.source_id)
            scan = await self.run(lambda: Scan(source.top, proofs, left_out_of(self.home, source)))
            stored = Stored(self.ledger, source.source_id)
            batch = Batch(source, work, scan, proofs, self.workers, stored)
            self.tally = batch.tally
            done = False
            while not done:
                done = await batch.fill(self.run, COMMIT_ROWS, COMMIT_BYTES)
                if self.workers.stopped:
                    raise StoreError("the worker processes have ended; they are started again")
                await self._commit_all(source, batch, proofs, done)
            await self.run(lambda: self._tidy(source, batch))
            state = await self.run(lambda: self.ledger.state(source.source_id))
            return batch.tally, CommitId(state.commit) if state.commit else None

    async def resume(self) -> None:
        """Brings a commit that was pending when the agent last ended to its receipt."""
        async with self._busy:
            await self._finish_pending()

    async def _commit_all(self, source: Source, batch: Batch, proofs: Proofs, done: bool) -> None:
        """Commits what is staged; supplies again what the relay has lost, until it accepts."""
        stubborn: set[bytes] = set()
        tally = batch.tally
        counted = tally.new, tally.changed, tally.gone
        for _ in range(RESUPPLY_MAX):
            tally.new, tally.changed, tally.gone = counted  # of the commit that is accepted alone
            pending = await self._begin(source, batch, proofs, done)
            if pending is None:
                return
            try:
                await self._deliver(pending, proofs)
                return
            except MissingChunks as missing:
                again = await self._withdraw(pending, missing.ids)
                batch.fold = True
                scan = await self.run(lambda: Scan(source.top, proofs, left_out_of(self.home, source)))
                stored = Stored(self.ledger, source.source_id)
                extra = Batch(source, Work(tuple(again)), scan, proofs, self.workers, stored)
                await extra.fill(self.run, 1 << 62, 1 << 62)
                if self.workers.stopped:
                    raise StoreError("the worker processes have ended; they are started again") from None
                stubborn = await self.run(partial(self._unsupplied, batch, extra, proofs, stubborn))
        raise StoreError("the relay keeps losing what it was sent; 'contbak-relay verify' on it may say why")

    def _unsupplied(self, batch: Batch, extra: Batch, proofs: Proofs, before: set[bytes]) -> set[bytes]:
        """Files that the relay has lost and that could not be read again; one bad file must not stop the others.

        Those that failed `before`, too, are left out of this commit; they stay in the journal.
        """
        stubborn = set()
        for path in {change.path for change in extra.work.changes} - extra.reread:
            key = key_of(proofs, path)
            proof = None if key is None else proofs.find(*key)
            if key is None or proof is None or not stat.S_ISREG(proof.mode):
                continue
            stubborn.add(path)
            batch.tally.failed[path] = extra.tally.failed.get(path, "the relay has lost it and it cannot be read again")
            if path in before:
                proofs.stage_gone(*key)
        return stubborn

    async def _begin(self, source: Source, batch: Batch, proofs: Proofs, done: bool) -> Pending | None:
        """Makes the commit of what is staged; from its return on it is durable here.  None: nothing changed."""
        complete = done and batch.work.whole
        chain = await self._continuity.end()
        state = await self.run(lambda: self.ledger.state(source.source_id))
        if not await self.run(proofs.any_staged) and (not complete or state.complete):
            return None
        witnesses, complete = self._continuity.witnesses(), complete or state.complete
        try:
            pending = await self.run(
                lambda: self._maker.make(source, batch, proofs, chain, complete, witnesses)
            )
        except (NotFound, FormatError) as error:
            await self.run(lambda: self._forget_tree(source.source_id, proofs))
            raise StartedOver(f"{source.name}: the agent's copy of its tree is damaged ({error})") from None
        self._continuity.chain = await self.run(self.ledger.chain)
        if done:
            self.covered = frozenset((change.path, change.generation) for change in batch.work.changes)
        self.local(commits.decode(pending.record), done)
        return pending

    def _forget_tree(self, source: SourceId, proofs: Proofs) -> None:
        self.ledger.forget_source(source)
        proofs.forget()

    async def _deliver(self, pending: Pending, proofs: Proofs) -> None:
        """Returns when the relay has acknowledged the commit and that is on record.  Raises MissingChunks."""
        if not pending.receipt:
            signed = commits.decode(pending.record)
            unsealed = self.carrier.unsealed()
            needs = [PackId(root) for root in pending.needs if root in unsealed]
            try:
                receipt = await self.uplink.commit(signed, needs)
            except RejectedByPeer:
                await self.run(lambda: self._give_up(proofs))
                raise
            except HeadMismatch as other:
                await self._continuity.start_over(other.head)
            pending = await self.run(lambda: self.ledger.note_receipt(pending, receipt))
        await self.run(lambda: self._acknowledge(pending, proofs))

    def _acknowledge(self, pending: Pending, proofs: Proofs) -> None:
        signed = commits.decode(pending.record)
        proofs.confirm()
        chain = self._continuity.advanced(signed)
        with self.kv.write() as rows:
            self.ledger.acknowledge(rows, pending, chain)
        self._continuity.settle(chain)
        self.covered = frozenset()
        log.info("snapshot %s: %d files", signed.id.hex()[:12], pending.after.files)

    def _tidy(self, source: Source, batch: Batch) -> None:
        """After the last receipt of a batch: its changes and gaps are done, its failures are on record."""
        id_, work, failed = source.source_id, batch.work, batch.tally.failed
        now = int(time.time() * 1000)
        tries = {change.path: change.tries for change in work.changes}
        with self.kv.write() as rows:
            self.journal.settle(rows, id_, [change for change in work.changes if change.path not in failed])
            for gap in work.gaps:
                self.journal.close_gap(rows, id_, gap)
            for problem in list(self.journal.problems(id_)):
                if problem.path not in failed and work.covers(problem.path):
                    self.journal.resolve(rows, id_, problem.path)
            for path, reason in failed.items():
                self.journal.report(rows, id_, Problem(path, reason, now))
        if failed:
            self.journal.add(
                id_, [Change(path, 0, now, True, tries.get(path, 0) + 1) for path in failed]
            )
        if batch.links_wanted:
            self.journal.open_gap(id_, Gap(b"", 0, now, "a file gained or lost a hard link elsewhere", quiet=True))

    # -- what can happen to a chain -----------------------------------------------------------------------------

    async def _finish_pending(self) -> None:
        pending = await self.run(self.ledger.pending)
        if pending is None:
            return
        proofs = Proofs(self.kv, SourceId(pending.source))
        try:
            await self._deliver(pending, proofs)
        except MissingChunks as missing:
            again = await self._withdraw(pending, missing.ids)
            await self.run(lambda: self.journal.add(SourceId(pending.source), again))
            await self.run(proofs.drop_staged)

    async def drop_leftovers(self, sources: Sequence[Source]) -> None:
        """At start, with no commit pending: what was staged is looked at again, what is of removed sources forgotten.

        `sources`: all that are protected; none at all is rather a configuration that cannot be seen now.
        """
        if await self.run(self.ledger.pending) is None:
            for source in sources:
                await self.run(Proofs(self.kv, source.source_id).drop_staged)
            kept = {source.source_id for source in sources}
            for removed in await self.run(lambda: sources_in(self.kv) - kept) if kept else ():
                await self.run(partial(self._forget_source, removed))

    def _forget_source(self, source: SourceId) -> None:
        self.journal.forget(source)
        self._forget_tree(source, Proofs(self.kv, source))

    async def _withdraw(self, pending: Pending, ids: Collection[ChunkId]) -> list[Change]:
        """The relay lacks `ids`: supplies nodes at once; returns the files to read again for the rest."""
        self.alarm(f"the relay lacks {len(ids)} chunks that it had or was sent; they are supplied again")
        again = await self.run(lambda: self._find_lost(pending, set(ids)))
        if any(change.path == b"" for change in again):  # our own copy of the tree is not whole either
            id_ = SourceId(pending.source)
            await self.run(lambda: self._forget_tree(id_, Proofs(self.kv, id_)))
            raise StartedOver("the relay lacks chunks, and the agent cannot tell whose; everything is read again")
        return again

    def _find_lost(self, pending: Pending, ids: set[ChunkId]) -> list[Change]:
        self.known.doubt(ids)
        self.carrier.send(self._maker.supply(ids))
        paths = paths_of(pending.after, self.ledger.node, ids)
        self._continuity.withdraw()
        now = int(time.time() * 1000)
        return [Change(path, 0, now, False, forced=True) for path in paths]

    def _give_up(self, proofs: Proofs) -> None:
        """The relay will never accept this commit: what it holds is looked at again, for another one."""
        self._continuity.withdraw()
        proofs.drop_staged()


def key_of(proofs: Proofs, path: bytes) -> tuple[DirId, bytes] | None:
    """Where the newest state has `path`: (directory id, name); None if a directory on the way is unknown."""
    dir_id = TOP_DIR
    *above, name = path.split(b"/")
    for part in above:
        proof = proofs.find(dir_id, part)
        if proof is None or not proof.directory:
            return None
        dir_id = DirId(proof.directory)
    return dir_id, name


def left_out_of(home: Home, source: Source) -> Excludes:
    """What is left out of a source: its excludes, and the agent's own places."""
    top = os.path.realpath(source.top)
    prefix = b"/" if top == b"/" else top + b"/"
    own = [place[len(prefix) :] for place in home.own_places() if place.startswith(prefix)]
    return Excludes(source.exclude, own)


def _has_aes() -> bool:
    """Whether the processor has AES instructions; unknown counts as no."""
    try:
        with open("/proc/cpuinfo", encoding="ascii", errors="replace") as facts:
            return any(line.startswith(("flags", "Features")) and " aes" in line for line in facts)
    except OSError:
        return False
