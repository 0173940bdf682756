"""The transfer machine over a link that loses, repeats, reorders and damages, to a relay whose power fails.

Time is a variable and chance comes from a seed: thousands of bad days in a few seconds.  The second half plants bugs
in the machine and sees the simulation fail.
"""

import random
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contbak.core import transfer
from contbak.core.crypto import XCHACHA, OwnerKeys, Sealer, digest
from contbak.core.errors import ContbakError, PeerError
from contbak.core.exchange import (
    Accepted,
    CommitRequest,
    Committed,
    Missing,
    OtherHead,
    PlanRequest,
    Receipted,
    Refusal,
    Rejected,
    Sealed,
    SealRequest,
    SegmentsRequest,
    WholeRequest,
)
from contbak.core.frame import DATA, Chunk, encode, parse_header
from contbak.core.messages import PUT_MAX, PlanState, bitmap
from contbak.core.pack import PackBuilder
from contbak.core.transfer import Act, CommitState, PackState, Receiver, Sender, Word, from_bitmap

KEYS = OwnerKeys.from_root(bytes(32)).writer


def make_pack(size, seed):
    """(plan, body) of a pack with about `size` bytes of noise."""
    chance = random.Random(seed)
    builder = PackBuilder(KEYS.vault, chance.randbytes(16), bytes(8))
    data = chance.randbytes(size)
    sealer = Sealer(KEYS, chance.randbytes(32), XCHACHA)
    raw = encode(DATA, [Chunk(KEYS.data_id(data), data)], sealer, bytes(8), chance.randbytes(32))
    pieces = builder.add(parse_header(raw), raw)
    rest, plan = builder.finish()
    return plan, b"".join([*pieces, *rest])[: plan.body_len]


PACKS = [make_pack(size, seed) for seed, size in enumerate((10, 5_000, 20_000, 60_000, 130_000))]
BODIES = {plan.root: body for plan, body in PACKS}
PLANS = {plan.root: plan for plan, _ in PACKS}


@dataclass(frozen=True)
class Record:
    """As much of a signed commit as the machine looks at."""

    id: bytes


def receipt(id):
    return b"receipt of " + id


class Relay:
    """Files that a power cut thins out, sealed packs and commits that it does not touch."""

    def __init__(self, chance):
        self.chance = chance
        self.keeps_plans = chance.random() < 0.5
        """Whether a plan survives a power cut, so that what it lost shows at the seal only."""
        self.files = {}
        self.receivers = {}
        self.sealed = set()
        self.commits = set()
        self.received = 0

    def power_cut(self):
        """Forgets the sessions; loses some of what was not synced."""
        self.receivers.clear()
        for written in self.files.values():
            for index in [index for index in written if self.chance.random() < 0.3]:
                del written[index]
        for root in list(self.files) if self.keeps_plans else ():
            self.take_plan(PlanRequest(root))

    def answer(self, request, body):
        if isinstance(request, CommitRequest):
            return self.take_commit(request)
        if request.root in self.sealed:
            return PlanState(True, b"") if isinstance(request, PlanRequest) else Accepted()
        if isinstance(request, PlanRequest):
            return self.take_plan(request)
        if isinstance(request, WholeRequest):
            return self.take_whole(request, body)
        receiver = self.receivers.get(request.root)
        if receiver is None:
            return Refusal("no-plan")
        if isinstance(request, SealRequest):
            return self.seal(request, receiver)
        return self.take_segments(request, receiver, body)

    def take_plan(self, request):
        plan = PLANS[request.root]
        if request.root not in self.receivers:
            written = self.files.setdefault(request.root, {})
            held = [index for index, data in written.items() if digest(data) == plan.hashes[index]]
            self.receivers[request.root] = Receiver(plan, held)
        return PlanState(False, self.receivers[request.root].bitmap())

    def take_whole(self, request, body):
        if body != BODIES[request.root]:
            return Refusal("mismatch")
        self.sealed.add(request.root)
        return Accepted()

    def take_segments(self, request, receiver, body):
        try:
            taken = receiver.take(request.first, body)
        except PeerError:
            return Refusal("mismatch")
        for index, data in taken:
            if self.chance.random() < 0.05:  # the disk is full, or the power fails, between two segments
                if self.chance.random() < 0.5:
                    self.power_cut()
                return None
            self.files[request.root][index] = bytes(data)
            self.received += 1
            receiver.written(index)
        return Accepted()

    def seal(self, request, receiver):
        if not receiver.complete:
            return Refusal("incomplete", have=receiver.bitmap())
        written = self.files[request.root]
        body = b"".join(written[index] for index in sorted(written))
        assert body == BODIES[request.root], "a pack was sealed that is not what was sent"
        self.sealed.add(request.root)
        return Accepted()

    def take_commit(self, request):
        if self.sealed != set(BODIES):
            return Refusal("missing", missing=(bytes(32),))
        self.commits.add(request.id)
        return Receipted(receipt(request.id))


@dataclass
class Weather:
    """Chances, each of one message."""

    loss: float = 0.2
    twin: float = 0.15
    late: float = 0.2
    damage: float = 0.03
    cut: float = 0.04


@dataclass
class World:
    """Sender, link and relay, driven round by round."""

    seed: int
    weather: Weather = field(default_factory=Weather)

    def __post_init__(self):
        self.chance = random.Random(self.seed)
        self.relay = Relay(self.chance)
        # in every third world the small packs go whole
        self.sender = Sender(self.chance.randint(1, 16), patience_s=5.0, whole_max=(self.seed % 3 == 0) * 30_000)
        self.now = 0.0
        self.late = []
        self.events = []
        self.requests = []

    def bytes_of(self, request):
        if not isinstance(request, SegmentsRequest | WholeRequest):
            return b""
        plan = PLANS[request.root]
        body = BODIES[request.root]
        if isinstance(request, SegmentsRequest):
            body = body[plan.span(request.first)[0] : sum(plan.span(request.first + request.count - 1))]
        if self.chance.random() < self.weather.damage:
            return bytes([body[0] ^ 1]) + body[1:]
        return body

    def carry(self, messages):
        """What of `messages` arrives, and in which order; some come rounds later."""
        messages = [*messages, *self.late]
        self.late = [each for each in messages if self.chance.random() < self.weather.late]
        here = [each for each in messages if each not in self.late and self.chance.random() >= self.weather.loss]
        here += [each for each in here if self.chance.random() < self.weather.twin]
        self.chance.shuffle(here)
        return here

    def round(self):
        answers = []
        sent = self.sender.to_send(self.now)
        self.requests += sent
        for request in self.carry([("request", each) for each in sent]):
            if request[0] == "answer":
                answers.append(request)
                continue
            if self.chance.random() < self.weather.cut:
                self.relay.power_cut()
            answer = self.relay.answer(request[1], self.bytes_of(request[1]))
            if answer is None:
                self.sender.failed(request[1], self.now)
            else:
                answers.append(("answer", request[1], answer))
        for message in self.carry(answers):
            if message[0] == "request":
                self.late.append(message)
                continue
            self.deliver(message[1], message[2])
        self.now += self.chance.random() * 3
        self.sender.handle_timer(self.now)

    def deliver(self, request, answer):
        self.sender.receive(request, answer, self.now)
        for event in self.sender.events():
            if isinstance(event, Sealed):
                assert event.root in self.relay.sealed, "the promise leads the disk"
            if isinstance(event, Committed):
                assert event.id in self.relay.commits and event.receipt == receipt(event.id)
            assert isinstance(event, Sealed | Committed), f"{event} on a relay that takes everything"
            self.events.append(event)

    def run(self, rounds=3000):
        """Sends everything and the commit; fails if that does not come to an end."""
        order = list(PLANS.values())
        self.chance.shuffle(order)
        record = Record(b"c" * 32)
        for plan in order[:3]:
            self.sender.offer(plan)
        self.round()
        for plan in order:  # some twice
            self.sender.offer(plan)
        self.sender.commit(record, list(BODIES))
        for _ in range(rounds):
            if self.sender.idle:
                break
            self.round()
        assert self.sender.idle, "stuck"
        sealed = [event.root for event in self.events if isinstance(event, Sealed)]
        assert set(sealed) == set(BODIES) == self.relay.sealed
        assert [event for event in self.events if isinstance(event, Committed)] == [
            Committed(record.id, receipt(record.id))
        ]
        assert 1 <= self.sender.window <= transfer.WINDOW_MAX
        return self


STORM = Weather()
OUTAGES = Weather(loss=0, twin=0.1, late=0, damage=0, cut=0.1)
"""Nothing is lost on the way, so nothing is cured by asking again."""


@pytest.mark.parametrize("weather", [STORM, OUTAGES])
@pytest.mark.parametrize("seed", range(100))
def test_everything_arrives_whatever_happens(seed, weather):
    World(seed, weather).run()


def test_a_perfect_line_carries_every_segment_once():
    world = World(1, Weather(0, 0, 0, 0, 0))
    world.relay.chance = random.Random(99)
    world.relay.chance.random = lambda: 1.0
    world.run(rounds=200)
    assert world.relay.received == sum(len(plan.hashes) for plan in PLANS.values())
    kinds = [type(request) for request in world.requests]
    assert kinds.count(PlanRequest) == kinds.count(SealRequest) == len(PLANS) and kinds.count(CommitRequest) == 1
    for request in world.requests:
        if isinstance(request, SegmentsRequest):
            assert request.count * PLANS[request.root].segment_size <= PUT_MAX


def test_what_the_relay_has_is_not_sent_again():
    sender, plan = Sender(), PACKS[4][0]
    sender.offer(plan)
    assert sender.to_send(0) == [PlanRequest(plan.root)]
    total = len(plan.hashes)
    have = bitmap([index not in (3, 4, 9) for index in range(total)])
    sender.receive(PlanRequest(plan.root), PlanState(False, have), 0)
    assert sender.to_send(0) == [SegmentsRequest(plan.root, 3, 2), SegmentsRequest(plan.root, 9, 1)]
    sender.receive(SegmentsRequest(plan.root, 9, 1), Accepted(), 0)
    sender.receive(SegmentsRequest(plan.root, 3, 2), Accepted(), 0)
    assert sender.to_send(0) == [SealRequest(plan.root)]


def test_small_packs_go_whole():
    sender, (small, _), (large, _) = Sender(whole_max=PACKS[1][0].file_len), PACKS[1], PACKS[2]
    sender.offer(small)
    sender.offer(large)
    request = WholeRequest(small.root)
    assert sender.to_send(0) == [request, PlanRequest(large.root)]
    sender.failed(request, 0)
    assert sender.to_send(0) == [request]
    sender.receive(request, Refusal("mismatch"), 0)
    assert sender.to_send(0) == [request], "as any bytes that were damaged on the way"
    sender.receive(request, Accepted(), 0)
    assert sender.events() == [Sealed(small.root)]
    sender.offer(large)
    sender.receive(request, Accepted(), 0)  # a late twin
    assert sender.events() == []


def test_a_sealed_pack_is_not_sent_at_all():
    sender, plan = Sender(), PACKS[4][0]
    sender.offer(plan)
    sender.to_send(0)
    sender.receive(PlanRequest(plan.root), PlanState(True, b""), 0)
    assert sender.events() == [Sealed(plan.root)] and sender.to_send(0) == [] and sender.idle
    sender.offer(plan)
    assert sender.events() == [Sealed(plan.root)] and sender.idle
    sender.forget([plan.root])
    sender.offer(plan)
    assert not sender.idle


def test_the_window_halves_and_grows():
    sender = Sender(8)
    for plan, _ in PACKS:
        sender.offer(plan)
    sent = sender.to_send(0)
    assert len(sent) == 5
    for request in sent[:4]:
        sender.failed(request, 0)
        sender.failed(request, 0)  # said twice counts once
    assert sender.window == 1 and sender.to_send(0) == []
    sender.receive(sent[4], PlanState(True, b""), 0)
    assert sender.window == 2 and len(sender.to_send(0)) == 2


def test_a_request_without_answer_is_sent_again_after_the_patience():
    sender, plan = Sender(patience_s=5), PACKS[0][0]
    assert sender.get_timer() is None
    sender.offer(plan)
    assert sender.to_send(10) == [PlanRequest(plan.root)] and sender.get_timer() == 15
    sender.handle_timer(14.9)
    assert sender.to_send(14.9) == []
    sender.handle_timer(15)
    assert sender.to_send(15) == [PlanRequest(plan.root)]


def waiting_commit():
    sender, record = Sender(), Record(b"c" * 32)
    sender.commit(record, [])
    (request,) = sender.to_send(0)
    return sender, request


def test_a_commit_waits_for_its_packs_and_no_others():
    sender, record = Sender(), Record(b"c" * 32)
    needed, other = PACKS[0][0], PACKS[1][0]
    sender.offer(other)
    sender.offer(needed)
    sender.commit(record, [needed.root, b"x" * 32])
    assert CommitRequest(record.id) not in sender.to_send(0)
    sender.receive(PlanRequest(needed.root), PlanState(True, b""), 0)
    assert CommitRequest(record.id) in sender.to_send(0)


def test_refused_commits_are_reported_and_dropped():
    for refusal, event in [
        (Refusal("missing", missing=(b"m" * 32,)), Missing(b"c" * 32, (b"m" * 32,))),
        (Refusal("head"), OtherHead(b"c" * 32, None)),
        (Refusal("invalid", "no"), Rejected(CommitRequest(b"c" * 32), "invalid", "no")),
    ]:
        sender, request = waiting_commit()
        sender.receive(request, refusal, 0)
        assert sender.events() == [event] and sender.idle
        sender.receive(request, refusal, 0)  # a late twin
        assert sender.events() == []


def test_one_commit_at_a_time():
    sender, request = waiting_commit()
    with pytest.raises(ContbakError, match="pending"):
        sender.commit(Record(b"d" * 32), [])
    sender.withdraw(request.id)
    sender.commit(Record(b"d" * 32), [])


def test_a_rejected_pack_takes_its_commit_along():
    sender, plan, record = Sender(), PACKS[0][0], Record(b"c" * 32)
    sender.offer(plan)
    sender.commit(record, [plan.root])
    sender.to_send(0)
    sender.receive(PlanRequest(plan.root), Refusal("invalid", "bad"), 0)
    assert [type(event) for event in sender.events()] == [Rejected, Rejected] and sender.idle
    sender.offer(plan)
    assert not sender.idle
    sender.drop(plan.root, "the file is gone")
    assert sender.events() == [Rejected(PlanRequest(plan.root), "lost", "the file is gone")] and sender.idle


def test_bytes_that_never_match_are_given_up():
    sender, plan = Sender(), PACKS[0][0]
    sender.offer(plan)
    for _ in range(transfer.STRIKES_MAX):
        (request,) = sender.to_send(0)
        assert sender.events() == []
        sender.receive(request, Refusal("mismatch"), 0)
    assert isinstance(sender.events()[0], Rejected) and sender.idle


def test_every_state_answers_every_word():
    words = {
        PackState: (Word.SEALED, Word.HELD, Word.STORED, Word.NO_PLAN, Word.INCOMPLETE, Word.MISMATCH, Word.REFUSED),
        CommitState: (Word.RECEIPT, Word.MISSING, Word.OTHER_HEAD, Word.REFUSED),
    }
    assert set(transfer.PACK_MOVES) == {(state, word) for state in PackState for word in words[PackState]}
    assert set(transfer.COMMIT_MOVES) == {(state, word) for state in CommitState for word in words[CommitState]}


@pytest.mark.parametrize(
    "request_, answer",
    [
        (PlanRequest(PACKS[0][0].root), Accepted()),
        (SealRequest(PACKS[0][0].root), PlanState(True, b"")),
        (WholeRequest(PACKS[0][0].root), PlanState(True, b"")),
        (SegmentsRequest(PACKS[0][0].root, 0, 1), Receipted(b"")),
        (CommitRequest(b"c" * 32), Accepted()),
        (PlanRequest(PACKS[0][0].root), PlanState(False, b"\1\2\3\4\5\6\7\1")),
        (PlanRequest(PACKS[0][0].root), PlanState(False, b"\xff")),
    ],
)
def test_an_answer_that_does_not_fit_is_the_peers_fault(request_, answer):
    sender = Sender()
    sender.offer(PACKS[0][0])
    with pytest.raises(PeerError):
        sender.receive(request_, answer, 0)


def test_receiver_takes_what_is_right_and_nothing_else():
    plan, body = PACKS[3]
    size, total = plan.segment_size, len(plan.hashes)
    receiver = Receiver(plan, [1])
    taken = receiver.take(0, body[: 3 * size])
    assert [(index, bytes(data)) for index, data in taken] == [(0, body[:size]), (2, body[2 * size : 3 * size])]
    assert receiver.take(0, body[: 3 * size]) == taken, "nothing is held before it is written"
    receiver.written(0)
    assert [index for index, _ in receiver.take(0, body[: 3 * size])] == [2]
    for first, data in [
        (0, body[: size - 1]),
        (0, body[: size + 1]),
        (0, b"x" + body[1:size]),
        (1, body[:size]),
        (total, body[:1]),
        (-1, body[:size]),
        (0, b""),
        (total - 1, body[(total - 1) * size :] + b"x"),
        (0, body[:size] + b"x" + body[size + 1 : 2 * size]),
    ]:
        with pytest.raises(PeerError):
            receiver.take(first, data)
    with pytest.raises(PeerError):
        receiver.written(total)
    assert from_bitmap(receiver.bitmap(), total) == {0, 1} and not receiver.complete
    assert Receiver(plan, range(total)).complete


@given(st.sets(st.integers(0, 99)), st.integers(100, 120))
def test_bitmaps_come_back(indexes, count):
    assert from_bitmap(bitmap([index in indexes for index in range(count)]), count) == indexes


# -- planted bugs -------------------------------------------------------------------------------------------------


def act(state, word, act):
    return lambda patch: patch.setitem(transfer.PACK_MOVES, (state, word), act)


def set_on(cls, name, value):
    return lambda patch: patch.setattr(cls, name, value)


def hasty_take(self, first, data):
    found = take(self, first, data)
    for index, _ in found:
        self.written(index)
    return found


def careless_take(self, first, data):
    view, found = memoryview(data), []
    for index in range(first, len(self.plan.hashes)):
        offset = self.plan.span(index)[0] - self.plan.span(first)[0]
        if offset < len(view) and index not in self._held:
            found.append((index, view[offset : offset + self.plan.span(index)[1]]))
    return found


def hasty_commit(self, signed, needs):
    commit(self, signed, [])


def settled_early(self):
    self.state = PackState.SEALING


take, commit, restart = Receiver.take, Sender.commit, Sender._start_over
MUTANTS = {
    "a seal refused as incomplete is ignored": act(PackState.SEALING, Word.INCOMPLETE, Act.IGNORE),
    "a relay that started anew is not told the plan": act(PackState.SENDING, Word.NO_PLAN, Act.IGNORE),
    "nor when only the seal is missing": act(PackState.SEALING, Word.NO_PLAN, Act.IGNORE),
    "a pack that is there already is not seen": act(PackState.PLANNING, Word.SEALED, Act.IGNORE),
    "a stored segment counts as a sealed pack": act(PackState.SENDING, Word.STORED, Act.FINISH),
    "what is held counts as sealed": act(PackState.PLANNING, Word.HELD, Act.FINISH),
    "damage on the way is final": act(PackState.SENDING, Word.MISMATCH, Act.REJECT),
    "a lost request is forgotten": set_on(Sender, "handle_timer", lambda self, now: None),
    "a failed request stays under way": set_on(Sender, "failed", lambda self, request, now: None),
    "the commit does not wait": set_on(Sender, "commit", hasty_commit),
    "the relay notes segments before it writes them": set_on(Receiver, "take", hasty_take),
    "the relay does not verify": set_on(Receiver, "take", careless_take),
    "sealing starts at once and forever": set_on(transfer._Outgoing, "settle", settled_early),
    "the window closes": lambda patch: patch.setattr(transfer, "WINDOW_MAX", 0),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_a_planted_bug_is_caught(name, monkeypatch):
    MUTANTS[name](monkeypatch)
    with pytest.raises((AssertionError, PeerError, KeyError)):
        for seed in range(60):
            World(seed, STORM).run(rounds=600)
            World(seed, OUTAGES).run(rounds=600)
