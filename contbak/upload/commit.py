"""From changed entries to the roots of the next commit.

A small commit adds one run: the changed rows as a tree of their own.  After RUNS_MAX runs, or when they hold
FOLD_ROWS rows, runs and changes are folded into the base: only the nodes that they touch are written anew.

Rules: nodes go into a metadata Bundler and into the agent's own store of nodes, in batches, so memory does not grow
with the tree.  What the vault knows already is not stored again.  Nothing here is durable and nothing is signed: the
app syncs, signs and sends, and on any error throws the bundler's open pack away and keeps the state it had.

It reads no content and no clock, and talks to nobody.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, groupby, islice
from operator import itemgetter

from contbak.core.commit import RUNS_MAX, Details, Sealed, seal_details
from contbak.core.crypto import Sealer, WriterKeys
from contbak.core.entry import Entry
from contbak.core.frame import NODE, RUN, Chunk
from contbak.core.node import Inner, Key, Leaf, Node, Row
from contbak.core.tree import Get, TreeWriter, walk_ids
from contbak.core.view import merged_runs
from contbak.upload.bundle import Bundler, Packed, Random, Seal

FOLD_ROWS = 20_000
"""Rows in runs, this commit's included, above which they are folded into the base."""
SLICE_ROWS = 5_000
"""Rows that are folded into the base at a time."""
BATCH_NODES = 64
"""Nodes that are handed on together; one is 64 KiB at most, mostly 20."""

Keep = Callable[[Sequence[tuple[bytes, Node]]], None]
"""keep(nodes): the agent's own store of nodes takes these; `get` must find them from then on."""
Have = Callable[[Sequence[bytes]], Sequence[bool]]
"""have(ids) -> which chunks the vault has, as far as known here."""


@dataclass(frozen=True, slots=True)
class Roots:
    """The state of a source: base (None: empty), runs on top of it, oldest first, and how many rows these hold."""

    base: bytes | None = None
    runs: tuple[bytes, ...] = ()
    run_rows: int = 0


@dataclass(frozen=True, slots=True)
class Built:
    """The next state.

    packs     finished on the way; the bundler's open pack is still to be flushed
    obsolete  nodes of the state before that this one does not use
    folded    whether runs and changes went into the base
    """

    roots: Roots
    packs: list[Packed]
    obsolete: list[bytes]
    folded: bool


@dataclass(slots=True)
class Places:
    """Where nodes come from and go to: the agent's own store (`get`, `keep`), and what the vault has (`have`)."""

    get: Get
    keep: Keep
    have: Have


class CommitWriter:
    """Writes the trees of one commit into `bundler` (a metadata one).  Made for each commit."""

    def __init__(self, keys: WriterKeys, bundler: Bundler, places: Places) -> None:
        self._keys = keys
        self._bundler = bundler
        self._places = places
        self._packs: list[Packed] = []
        self._batch: dict[bytes, Node] = {}
        self._batch_kind = NODE
        self._emitted: set[bytes] = set()
        self._written: set[bytes] = set()
        self._opened: set[bytes] = set()

    def build(self, before: Roots, changes: Iterable[Row], previous: bytes = b"", fold: bool = False) -> Built:
        """The state after `changes`: rows in strictly rising order of key, None where an entry is gone.

        previous   the record of the device's previous commit; a copy goes along
        fold       into the base in any case: then nothing refers any more to content that has been replaced
        Raises NotFound or FormatError if a node of the state before is lost (then build it anew from an empty
        Roots and all entries), FormatError for rows out of order, StoreFull, StoreError.
        """
        rows = iter(changes)
        first = list(islice(rows, max(FOLD_ROWS - before.run_rows, 0) + 1))
        is_full = fold or before.run_rows + len(first) > FOLD_ROWS or len(before.runs) >= RUNS_MAX
        nothing_there = before.base is None and not before.runs
        after, obsolete = before, list[bytes]()
        if not first and not (fold and before.runs):
            pass
        elif nothing_there or is_full:
            after, obsolete = self._fold(before, chain(first, rows))
        else:
            after, obsolete = self._add_run(before, first), []
        self._hand_on()
        if previous:
            self._packs += self._bundler.add_commit(previous)
        return Built(after, self._packs, obsolete, after is not before and not after.runs)

    def _add_run(self, before: Roots, rows: Sequence[Row]) -> Roots:
        run = self._writer(RUN).build(rows)
        runs = before.runs if run is None else (*before.runs, run)
        return Roots(before.base, runs, before.run_rows + len(rows))

    def _fold(self, before: Roots, changes: Iterator[Row]) -> tuple[Roots, list[bytes]]:
        writer = self._writer(NODE)
        if before.base is None and not before.runs:  # a first backup: streamed, however many
            return Roots(writer.build(row for row in changes if row[1] is not None)), []
        newest = _newest(merged_runs(before.runs, self._get), changes)
        old = [id for run in before.runs for id in walk_ids(run, self._get)]
        self._opened.clear()
        base, gone = before.base, set[bytes]()
        while part := list(islice(newest, SLICE_ROWS)):  # in slices, so that memory does not grow with the changes
            self._emitted.clear()
            base, replaced = writer.edit(base, part, self._get)
            gone = (gone - self._emitted) | set(replaced)
        # A leaf of a run may be, byte for byte, one of the base that stays.
        stays = (self._opened | self._written) - gone
        return Roots(base), [*gone, *(id for id in dict.fromkeys(old) if id not in stays and id not in gone)]

    def _writer(self, kind: int) -> TreeWriter:
        self._batch_kind = kind
        return TreeWriter(self._keys.node_id, self._keys.split, self._emit)

    def _get(self, id: bytes) -> Node | Leaf | Inner:
        self._opened.add(id)
        waiting = self._batch.get(id)
        return self._places.get(id) if waiting is None else waiting

    def _emit(self, id: bytes, node: Node) -> None:
        self._emitted.add(id)
        self._written.add(id)
        self._batch[id] = node
        if len(self._batch) >= BATCH_NODES:
            self._hand_on()

    def _hand_on(self) -> None:
        batch, self._batch = self._batch, {}
        if not batch:
            return
        self._places.keep(list(batch.items()))
        for (id, node), known in zip(batch.items(), self._places.have(list(batch)), strict=True):
            if not known:
                self._packs += self._bundler.add(Chunk(id, node.payload, node.refs), self._batch_kind)


def _newest(old: Iterable[Row], new: Iterable[Row]) -> Iterator[Row]:
    """Both, sorted by key; where both have a key, the new row."""
    tagged = heapq.merge(((row[0], 1, row[1]) for row in old), ((row[0], 0, row[1]) for row in new), key=_order)
    for key, same in groupby(tagged, key=itemgetter(0)):
        yield key, next(same)[2]


def _order(tagged: tuple[Key, int, Entry | None]) -> tuple[Key, int]:
    return tagged[:2]


def sealed_details(details: Details, seal: Seal, random: Random) -> Sealed:
    """`details` sealed with a fresh key, for the record."""
    return seal_details(details, Sealer(seal.keys, random(32), seal.suite), random(32))
