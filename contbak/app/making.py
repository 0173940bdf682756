"""Makes the commit of what is staged: trees, metadata packs, the signed record, and the debt to send it.

Blocking; for the agent's thread.  From the return of `make` on, the commit is durable on this machine.
"""

from __future__ import annotations

import os
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress

from contbak.app.batch import Batch
from contbak.app.carrier import Carrier
from contbak.app.config import Source
from contbak.app.continuity import Tables
from contbak.app.keyfile import Keys
from contbak.capture.proofs import Proofs, Totals
from contbak.core import commit as commits
from contbak.core.commit import Commit, Details, Signed, Witness
from contbak.core.errors import NotFound
from contbak.core.frame import NODE, Chunk
from contbak.core.names import ChunkId
from contbak.upload.bundle import Bundler, Packed, Seal
from contbak.upload.chain import Chain, Pending, SourceState
from contbak.upload.commit import Built, CommitWriter, Places, Roots, sealed_details
from contbak.upload.spool import Spool

PROGRAM = "contbak 0.1.0"


class Maker:
    """Makes the commits of one device."""

    def __init__(self, keys: Keys, seal: Seal, tables: Tables, spool: Spool, carrier: Carrier) -> None:
        self._keys = keys
        self._seal = seal
        self._tables = tables
        self._spool = spool
        self._carrier = carrier

    def make(
        self, source: Source, batch: Batch, proofs: Proofs, chain: Chain, complete: bool, witnesses: tuple[Witness, ...]
    ) -> Pending:
        """The next commit of `source`, put on record as pending.

        complete: a whole scan stands behind it.  Raises NotFound or FormatError if our copy of the tree is damaged,
        StoreFull, StoreError.
        """
        ledger = self._tables.ledger
        state = ledger.state(source.source_id)
        totals = proofs.totals(Totals(state.files, state.entries, state.size))
        built, packs = self._trees(state, batch, proofs, chain)
        signed = self._signed(source, chain, built.roots, totals, complete, witnesses)
        self._carrier.send(packs)
        needs = self._carrier.unsealed()
        self._tables.known.flush()
        self._spool.sync(root for root in needs if self._spool.path_of(root).exists())
        after = SourceState(
            built.roots.base, built.roots.runs, built.roots.run_rows, totals.files, totals.entries, totals.size,
            complete, signed.id, signed.commit.time_ms,
        )  # fmt: skip
        tally = batch.tally
        tally.new += totals.new
        tally.changed += totals.changed
        tally.gone += totals.gone
        pending = Pending(
            source.source_id, signed.raw, tuple(needs), after, tuple(built.obsolete), batch.work.since_ms
        )
        used = Chain(chain.incarnation, signed.commit.sequence, chain.head, chain.record, self._carrier.sealed)
        proofs.keep()
        ledger.begin(pending, used)
        return pending

    def supply(self, ids: Collection[ChunkId]) -> list[Packed]:
        """Packs with those of the nodes `ids` that are at hand."""
        packs: list[Packed] = []
        with self._bundler() as bundler:
            for id_ in ids:
                with suppress(NotFound):
                    node = self._tables.ledger.node(id_)
                    packs += bundler.add(Chunk(id_, node.payload, node.refs), NODE)
            return [*packs, *bundler.flush()]

    def _trees(self, state: SourceState, batch: Batch, proofs: Proofs, chain: Chain) -> tuple[Built, list[Packed]]:
        ledger = self._tables.ledger
        changes = (((row.dir_id, row.name), row.entry) for row in proofs.staged())
        places = Places(ledger.node, ledger.keep_nodes, self._tables.known.have)
        with self._bundler() as bundler:
            built = CommitWriter(self._keys.writer, bundler, places).build(
                Roots(state.base, state.runs, state.run_rows), changes, chain.record, batch.fold
            )
            return built, [*built.packs, *bundler.flush()]

    def _signed(
        self, source: Source, chain: Chain, roots: Roots, totals: Totals, complete: bool,
        witnesses: tuple[Witness, ...],
    ) -> Signed:  # fmt: skip
        details = Details(
            self._keys.device_name, source.name, source.top, totals.files, totals.entries, totals.size,
            totals.new, totals.changed, totals.gone, complete, PROGRAM,
        )  # fmt: skip
        record = Commit(
            1, self._keys.writer.vault, self._keys.device, chain.incarnation, chain.sequence + 1, chain.head,
            time.time_ns() // 1_000_000, source.source_id, roots.base, roots.runs, witnesses,
            self._keys.vouch, sealed_details(details, self._seal, os.urandom),
        )  # fmt: skip
        return commits.encode(record, self._keys.device_seed)

    @contextmanager
    def _bundler(self) -> Iterator[Bundler]:
        """For metadata; what is still open at the end (after an error) is thrown away."""
        bundler = Bundler(self._seal, self._spool, os.urandom, metadata=True)
        try:
            yield bundler
        finally:
            bundler.abort()
