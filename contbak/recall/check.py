"""The end-to-end check of what a place keeps for a vault: can every snapshot be restored?

    records    every signature, chain and witness (recall/snapshots)
    trees      every node that any snapshot reaches is read, opened, verified, and is what its parent says
    chunks     every data chunk that they name has a place in a pack
    packs      every pack ends with a sound trailer, as long as it says and named as it must be
    data       a share of the packs, chosen by a seed, is read whole: every segment and every frame verified

Rules: it goes on past what is wrong and tells each thing once.  It repairs nothing.
Memory: 16 bytes for each node of the whole history.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from contbak.core import frame, pack
from contbak.core.errors import ContbakError, FormatError, NotFound, StoreError
from contbak.core.messages import PackInfo
from contbak.core.node import Child, Inner, Leaf, Node, decode_node
from contbak.core.spanlist import decode_list
from contbak.recall.chunks import Chunks
from contbak.recall.frames import opened
from contbak.recall.snapshots import History

PROBLEMS_MAX = 1_000
"""Problems that are listed; `problem_count` has the true number."""
_SEEN_LEN = 16
_AHEAD = 128
_LOCATE = 16_384


@dataclass(slots=True)
class CheckReport:
    """What was checked, and what is wrong in one sentence each.

    read_packs, read_bytes   packs read whole, and their bytes
    chunks                   references to data chunks that were looked up (the same chunk counts each time)
    seed                     chooses the packs to read: the same seed, the same packs
    """

    seed: int
    snapshots: int = 0
    nodes: int = 0
    chunks: int = 0
    packs: int = 0
    pack_bytes: int = 0
    read_packs: int = 0
    read_bytes: int = 0
    problem_count: int = 0
    problems: list[str] = field(default_factory=list)

    def add(self, problem: str) -> None:
        """Notes a problem."""
        self.problem_count += 1
        if len(self.problems) < PROBLEMS_MAX:
            self.problems.append(problem)


Progress = Callable[[CheckReport], None]


def check(history: History, read_data: float = 0.0, seed: int = 0, progress: Progress | None = None) -> CheckReport:
    """Checks everything; `read_data` (0 to 1) is the share of the packs that is read whole, rounded up.

    Raises Unreachable.
    """
    report = CheckReport(seed, snapshots=len(history.snapshots))
    for problem in history.problems:
        report.add(problem)
    tick = progress or (lambda _: None)
    _Trees(history, report, tick).run()
    _check_packs(history, report, tick, read_data)
    for problem in history.place.problems:
        report.add(problem)
    return report


class _Want(NamedTuple):
    """A node to visit and what is known of it beforehand."""

    id: bytes
    snapshot: str
    child: Child | None = None
    level: int = -1
    """Of a tree: what its parent says (-1: a root)."""
    list_level: int = -1
    """Of a list node (-1: it is of a tree)."""
    length: int = -1
    """Bytes beneath a list node, if its parent says."""


class _Trees:
    """Visits every node once, several at a time."""

    def __init__(self, history: History, report: CheckReport, tick: Progress) -> None:
        self._history = history
        self._chunks = history.chunks
        self._report = report
        self._tick = tick
        self._seen: set[bytes] = set()
        self._pending: list[_Want] = []
        self._data: dict[bytes, str] = {}

    def run(self) -> None:
        for snapshot in reversed(self._history.snapshots):
            for root in snapshot.roots:
                if root is not None:
                    self._push(_Want(root, snapshot.hex[:12]))
            while self._pending:
                self._visit()
        self._locate()

    def _push(self, want: _Want) -> None:
        if want.id[:_SEEN_LEN] not in self._seen:
            self._seen.add(want.id[:_SEEN_LEN])
            self._pending.append(want)

    def _visit(self) -> None:
        """Takes the newest wants: depth first, so that what is pending stays small."""
        wants = self._pending[-_AHEAD:]
        del self._pending[-_AHEAD:]
        for want, piece in zip(wants, self._chunks.fetch([want.id for want in wants]), strict=True):
            self._report.nodes += 1
            if piece.data is None:
                self._report.add(f"snapshot {want.snapshot} and others: a part of the tree is lost: {piece.error}")
                continue
            try:
                self._look_into(want, Node(piece.refs, piece.data))
            except FormatError as error:
                self._report.add(f"snapshot {want.snapshot} and others: node {want.id.hex()}: {error}")
        self._tick(self._report)

    def _look_into(self, want: _Want, node: Node) -> None:
        if want.list_level >= 0:
            self._look_into_list(want, node)
            return
        found = decode_node(node)
        if want.child is not None and not _as_told(want, found):
            raise FormatError("it is not what its parent says")
        if isinstance(found, Inner):
            for child in found.items:
                self._push(_Want(child.id, want.snapshot, child, found.level - 1))
            return
        for _, entry in found.items:
            content = entry.content if entry is not None else None
            if content is None:
                continue
            for id_ in content.chunks:
                self._content(id_, want.snapshot, content.level)

    def _look_into_list(self, want: _Want, node: Node) -> None:
        items = decode_list(node, want.list_level)
        if want.length >= 0 and sum(item.length for item in items) != want.length:
            raise FormatError("it is not as long as its parent says")
        for item in items:
            self._content(item.id, want.snapshot, want.list_level, item.length)

    def _content(self, id_: bytes, snapshot: str, level: int, length: int = -1) -> None:
        """A chunk of a file (level 0) or a list node (of level - 1)."""
        if level:
            self._push(_Want(id_, snapshot, list_level=level - 1, length=length))
            return
        self._data[id_] = snapshot
        if len(self._data) >= _LOCATE:
            self._locate()

    def _locate(self) -> None:
        """Whether the place has the data chunks gathered so far."""
        data, self._data = self._data, {}
        if not data:
            return
        self._report.chunks += len(data)
        for id_, places in zip(data, self._chunks.place.locate(list(data)), strict=True):
            if not places:
                self._report.add(f"snapshot {data[id_]} and others: chunk {id_.hex()} is not there")
        self._tick(self._report)


def _as_told(want: _Want, found: Leaf | Inner) -> bool:
    child = want.child
    if child is None:
        return True
    return found.level == want.level and found.items[0][0] == child.key and found.rows == child.rows


def _check_packs(history: History, report: CheckReport, tick: Progress, share: float) -> None:
    chunks = history.chunks
    packs = list(history.place.packs())
    report.packs, report.pack_bytes = len(packs), sum(info.length for info in packs)
    count = min(len(packs), -int(-share * len(packs) // 1)) if share > 0 else 0
    whole = {info.pack for info in random.Random(report.seed).sample(packs, count)}
    for info in packs:
        try:
            if info.pack in whole:
                report.read_packs += 1
                report.read_bytes += info.length
                for problem in _read_whole(chunks, info):
                    report.add(f"pack {info.pack.hex()}: {problem}")
            else:
                _plan(chunks, info)
        except (FormatError, NotFound, StoreError) as error:
            report.add(f"pack {info.pack.hex()}: {error}")
        tick(report)


def _plan(chunks: Chunks, info: PackInfo) -> pack.Plan:
    """The pack's plan.  Raises FormatError unless it fits the name and the length."""
    if info.length < pack.TRAILER_LEN:
        raise FormatError("it is too short")
    trailer = chunks.place.read(info.pack, info.length - pack.TRAILER_LEN, pack.TRAILER_LEN)
    length = pack.plan_length(trailer)
    if length > info.length:
        raise FormatError("it is too short")
    plan = pack.parse_plan(chunks.place.read(info.pack, info.length - length, length))
    if plan.root != info.pack or plan.file_len != info.length:
        raise FormatError("its name or its length is not that of its trailer")
    return plan


def _read_whole(chunks: Chunks, info: PackInfo) -> Iterator[str]:
    """What is wrong with any byte of a pack.  Holds the pack in memory."""
    plan = _plan(chunks, info)
    body = bytearray()
    step = max(plan.segment_size, 4 << 20)
    for at in range(0, plan.body_len, step):
        body += chunks.place.read(info.pack, at, min(step, plan.body_len - at))
    view = memoryview(body)
    bad = [n for n in range(len(plan.hashes)) if not plan.verify(n, view[slice(*_bounds(plan, n))])]
    if bad:
        yield f"{len(bad)} of its {len(plan.hashes)} segments are damaged"
    rows = _rows(view, plan)
    if pack.parse_header(view)[0] != chunks.opener.writer.vault:
        yield "it belongs to another vault"
    for row in rows:
        try:
            _open_frame(view[row.offset : row.offset + row.length], row, chunks)
        except ContbakError as error:
            yield f"the frame at {row.offset}: {error}"


def _rows(view: memoryview, plan: pack.Plan) -> Sequence[pack.Row]:
    start = plan.directory_offset
    return pack.parse_directory(bytes(view[start : start + plan.directory_len]))


def _open_frame(raw: memoryview, row: pack.Row, chunks: Chunks) -> None:
    header = frame.parse_header(raw)
    if (header.kind, header.ids) != (row.kind, row.ids):
        raise FormatError("it is not what the pack's directory says")
    if header.kind == frame.COMMIT:
        frame.decode_commit(header, raw[len(header.raw) :])
    else:
        opened(raw, chunks.opener)


def _bounds(plan: pack.Plan, index: int) -> tuple[int, int]:
    offset, length = plan.span(index)
    return offset, offset + length
