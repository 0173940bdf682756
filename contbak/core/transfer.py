"""Moves packs and commits to a peer that may vanish at any moment (docs/protocol.md).  No I/O, no clock, no network.

Rule 1: every state and every legal move is in a table (core.moves); an answer that is not in it is a PeerError.
Rule 2: nothing counts as held before the shell has said so (`Receiver.written`): the promise follows the disk.
Rule 3: every request may be sent again with the same result, and answers may come in any order.
Rule 4: time comes in as an argument; a lost request is cured by `failed` or `handle_timer`, and only there.

It does not read packs, open connections or wait: the shells in upload/uplink and in the relay do.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

from contbak.core.commit import Signed
from contbak.core.errors import ContbakError, FormatError, PeerError
from contbak.core.exchange import (
    Answer,
    CommitRequest,
    Committed,
    Event,
    Missing,
    OtherHead,
    PlanRequest,
    Receipted,
    Refusal,
    Rejected,
    Request,
    Sealed,
    SealRequest,
    SegmentsRequest,
    WholeRequest,
)
from contbak.core.messages import PUT_MAX, Head, PlanState, bitmap, bits
from contbak.core.moves import COMMIT_MOVES, PACK_MOVES, Act, CommitState, PackState, Word, word_of
from contbak.core.names import ChunkId, CommitId, PackId
from contbak.core.pack import Plan

WINDOW_MAX = 8
"""Requests under way at the same time, at most."""
PATIENCE_S = 300.0
"""Seconds after which a request without an answer counts as lost.  Shells give up long before and say `failed`."""
STRIKES_MAX = 8
"""Refusals of bytes of one pack in a row ("not what their hash says") until the pack is given up."""


class MissingChunks(PeerError):
    """The relay lacks chunks that a commit refers to.  Attribute `ids`: up to 4,096 of them."""

    def __init__(self, ids: Collection[ChunkId]) -> None:
        super().__init__(f"the relay lacks {len(ids)} or more chunks; their files are read again")
        self.ids = tuple(ids)


class HeadMismatch(PeerError):
    """The relay's newest commit of this device is another one.  Attribute `head`: that one, or None."""

    def __init__(self, head: Head | None) -> None:
        super().__init__("the relay's newest snapshot of this device is not the one known here")
        self.head = head


class RejectedByPeer(PeerError):
    """The relay does not take a pack or a commit.  Attribute `kind`: the protocol's word for the reason."""

    def __init__(self, kind: str, reason: str) -> None:
        super().__init__(f"the relay refused: {reason or kind}")
        self.kind = kind


def from_bitmap(raw: bytes, count: int) -> set[int]:
    """The set indexes of a bitmap of `count` bits.  Raises PeerError if it is not one."""
    try:
        return {index for index, is_set in enumerate(bits(raw, count)) if is_set}
    except FormatError as error:
        raise PeerError(f"the relay's answer makes no sense: {error}") from None


class Receiver:
    """The relay's side of one pack: which segments are there.

    Keeps numbers, never bytes.  After a restart it is made anew; the shell passes as `held` the numbers of the
    segments whose bytes on disk it has verified against `plan`.
    """

    def __init__(self, plan: Plan, held: Iterable[int] = ()) -> None:
        self.plan = plan
        self._held: set[int] = set()
        for index in held:
            self.written(index)

    def take(self, first: int, data: bytes | memoryview) -> list[tuple[int, memoryview]]:
        """The segments in `data` that are not held yet, as (index, bytes), all of `data` verified.

        `data`: whole consecutive segments from number `first` on.  The caller writes each at `plan.span(index)`
        and then says `written(index)`.  Raises PeerError if the numbers, the lengths or a hash are wrong; then
        nothing of `data` is to be kept.
        """
        view, plan = memoryview(data), self.plan
        if not 0 <= first < len(plan.hashes) or not len(view):
            raise PeerError(f"the pack has no segments at {first}")
        found, index, at = [], first, 0
        while at < len(view):
            if index >= len(plan.hashes):
                raise PeerError("more bytes than the pack has")
            piece = view[at : at + plan.span(index)[1]]
            if not plan.verify(index, piece):
                raise PeerError(f"segment {index} is not what the plan says")
            if index not in self._held:
                found.append((index, piece))
            at += len(piece)
            index += 1
        return found

    def written(self, index: int) -> None:
        """Segment `index` is in the file.  Raises PeerError if the pack has no such segment."""
        if not 0 <= index < len(self.plan.hashes):
            raise PeerError(f"the pack has no segment {index}")
        self._held.add(index)

    def bitmap(self) -> bytes:
        """Which segments are held, as `PlanState.have` wants it."""
        return bitmap([index in self._held for index in range(len(self.plan.hashes))])

    @property
    def complete(self) -> bool:
        """Whether every segment is held."""
        return len(self._held) == len(self.plan.hashes)


# -- the agent's side ---------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Outgoing:
    """A pack on its way: its plan, which segments the relay has as far as we know, refusals in a row."""

    plan: Plan
    state: PackState = PackState.PLANNING
    have: set[int] = field(default_factory=set)
    strikes: int = 0

    def settle(self) -> None:
        """SENDING or SEALING, as `have` says."""
        self.state = PackState.SEALING if len(self.have) == len(self.plan.hashes) else PackState.SENDING


@dataclass(slots=True)
class _Pending:
    """The commit and the packs it still waits for."""

    signed: Signed
    needs: set[PackId]
    state: CommitState = CommitState.WAITING


class Sender:
    """The agent's side: a queue of packs, oldest first, and at most one commit.

    Shell: carry what `to_send` gives, in any order and in parallel; say `receive` or `failed` once for each, then look
    at `events` and `to_send` again.  `parallel`: requests under way at first; their number halves with each failure
    and grows by one with each answer, 1 to 8.  `whole_max`: packs of at most so many bytes go in one request.
    """

    def __init__(self, parallel: int = 4, patience_s: float = PATIENCE_S, whole_max: int = 0) -> None:
        self.window = max(1, min(parallel, WINDOW_MAX))
        self._patience_s = patience_s
        self._whole_max = whole_max
        self._packs: dict[PackId, _Outgoing] = {}
        self._sealed: set[PackId] = set()
        self._commit: _Pending | None = None
        self._flying: dict[Request, float] = {}
        self._events: list[Event] = []

    @property
    def idle(self) -> bool:
        """Whether nothing is left to do."""
        return not self._packs and self._commit is None

    def offer(self, plan: Plan) -> None:
        """Queues a pack.  Again: nothing, or Sealed once more if it is known to be durable."""
        if plan.root in self._sealed:
            self._events.append(Sealed(plan.root))
        elif plan.root not in self._packs:
            self._packs[plan.root] = _Outgoing(plan)

    def commit(self, signed: Signed, needs: Collection[PackId]) -> None:
        """Queues a commit, to be sent when all of `needs` are sealed.

        A pack that was never offered counts as sealed before: the relay checks and has the last word.  Raises
        ContbakError if another commit is pending.
        """
        if self._commit is not None and self._commit.signed.id != signed.id:
            raise ContbakError("another commit is pending")
        self._commit = _Pending(signed, {root for root in needs if root in self._packs})

    def withdraw(self, id: CommitId) -> None:
        """Nobody waits for the commit any more.  The relay may have taken it all the same."""
        if self._commit is not None and self._commit.signed.id == id:
            self._commit = None

    def drop(self, root: PackId, reason: str) -> None:
        """Gives up a pack whose bytes this side has lost; ends in Rejected, also for a commit that needs it."""
        if root in self._packs:
            self._reject(PlanRequest(root), "lost", reason)

    def forget(self, roots: Collection[PackId]) -> None:
        """Frees what is remembered of sealed packs."""
        self._sealed.difference_update(roots)

    def to_send(self, now: float) -> list[Request]:
        """Requests to carry now; none if nothing is to do or enough is under way."""
        out: list[Request] = []
        while len(self._flying) < self.window:
            request = self._next()
            if request is None:
                break
            self._flying[request] = now + self._patience_s
            out.append(request)
        return out

    def receive(self, request: Request, answer: Answer, now: float) -> None:
        """The relay answered.  Raises PeerError for an answer that does not fit; then say `failed` too."""
        word = word_of(request, answer)
        if isinstance(request, CommitRequest):
            self._on_commit(request, word, answer)
        elif request.root in self._packs:
            self._on_pack(request, self._packs[request.root], word, answer)
        if self._flying.pop(request, None) is not None:
            self.window = min(self.window + 1, WINDOW_MAX)

    def failed(self, request: Request, now: float) -> None:
        """No answer, or one that says "later".  The pack goes on from what the relay then says it has."""
        if self._flying.pop(request, None) is None:
            return
        self.window = max(self.window // 2, 1)
        if isinstance(request, CommitRequest):
            if self._commit is not None and self._commit.signed.id == request.id:
                self._commit.state = CommitState.WAITING
        elif request.root in self._packs:
            self._start_over(self._packs[request.root])

    def events(self) -> list[Event]:
        """What happened since the last call."""
        out, self._events = self._events, []
        return out

    def get_timer(self) -> float | None:
        """When to call `handle_timer`; None while nothing is under way."""
        return min(self._flying.values(), default=None)

    def handle_timer(self, now: float) -> None:
        """Requests that are overdue at `now` count as lost."""
        for request in [request for request, due in self._flying.items() if due <= now]:
            self.failed(request, now)

    def _next(self) -> Request | None:
        for root, out in self._packs.items():
            request = self._next_of(root, out)
            if request is not None and request not in self._flying:
                return request
        pending = self._commit
        if pending is None or pending.needs or pending.state is not CommitState.WAITING:
            return None
        pending.state = CommitState.SENT
        return CommitRequest(pending.signed.id)

    def _next_of(self, root: PackId, out: _Outgoing) -> Request | None:
        if out.state is PackState.PLANNING:
            return WholeRequest(root) if out.plan.file_len <= self._whole_max else PlanRequest(root)
        if out.state is PackState.SEALING:
            return SealRequest(root)
        return self._next_segments(root, out)

    def _next_segments(self, root: PackId, out: _Outgoing) -> SegmentsRequest | None:
        """The first consecutive segments that are neither there nor under way, up to PUT_MAX bytes."""
        taken = set(out.have)
        for request in self._flying:
            if isinstance(request, SegmentsRequest) and request.root == root:
                taken.update(range(request.first, request.first + request.count))
        total = len(out.plan.hashes)
        first = next((index for index in range(total) if index not in taken), None)
        if first is None:
            return None
        most = max(1, PUT_MAX // out.plan.segment_size)
        end = first + 1
        while end < total and end - first < most and end not in taken:
            end += 1
        return SegmentsRequest(root, first, end - first)

    def _on_pack(self, request: Request, out: _Outgoing, word: Word, answer: Answer) -> None:
        act = PACK_MOVES[out.state, word]
        if act is Act.FINISH:
            self._finish(out)
        elif act is Act.LEARN:
            self._learn(request, out, answer)
        elif act is Act.CORRECT and isinstance(answer, Refusal):
            out.have = from_bitmap(answer.have, len(out.plan.hashes))
            out.settle()
        elif act is Act.START_OVER:
            self._start_over(out)
        elif act is Act.STRIKE or act is Act.REJECT:
            out.strikes += 1
            if isinstance(answer, Refusal) and (act is Act.REJECT or out.strikes >= STRIKES_MAX):
                self._reject(request, answer.kind, answer.detail)

    def _learn(self, request: Request, out: _Outgoing, answer: Answer) -> None:
        if isinstance(answer, PlanState):
            out.have |= from_bitmap(answer.have, len(out.plan.hashes))
            out.settle()
            return
        if isinstance(request, SegmentsRequest):
            out.strikes = 0
            out.have.update(range(request.first, request.first + request.count))
        if out.state is PackState.SENDING:
            out.settle()

    def _start_over(self, out: _Outgoing) -> None:
        out.state = PackState.PLANNING
        out.have.clear()

    def _finish(self, out: _Outgoing) -> None:
        root = out.plan.root
        out.state = PackState.SEALED
        del self._packs[root]
        self._sealed.add(root)
        if self._commit is not None:
            self._commit.needs.discard(root)
        self._events.append(Sealed(root))

    def _reject(self, request: Request, kind: str, reason: str) -> None:
        self._events.append(Rejected(request, kind, reason))
        if isinstance(request, CommitRequest):
            self._commit = None
            return
        del self._packs[request.root]
        pending = self._commit
        if pending is not None and request.root in pending.needs:
            self._reject(CommitRequest(pending.signed.id), kind, reason)

    def _on_commit(self, request: CommitRequest, word: Word, answer: Answer) -> None:
        pending = self._commit
        if pending is None or pending.signed.id != request.id:
            return
        act = COMMIT_MOVES[pending.state, word]
        if act is Act.FINISH and isinstance(answer, Receipted):
            pending.state = CommitState.DONE
            self._commit = None
            self._events.append(Committed(request.id, answer.raw))
        elif act is Act.REPORT and isinstance(answer, Refusal):
            if word is Word.REFUSED:
                self._reject(request, answer.kind, answer.detail)
                return
            self._commit = None
            missing = Missing(request.id, answer.missing)
            self._events.append(missing if word is Word.MISSING else OtherHead(request.id, answer.head))
