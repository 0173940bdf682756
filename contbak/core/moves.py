"""The states of a pack and of a commit on their way to the relay, and every legal move (core.transfer makes them).

Rules: what an answer says is one `Word`, whatever request it answers; for each state and each word that may come there
is one `Act`, so every case is decided here and nowhere else.

It keeps no state and does not know what an act does.
"""

from __future__ import annotations

from enum import Enum, auto

from contbak.core.errors import PeerError
from contbak.core.exchange import (
    Accepted,
    Answer,
    CommitRequest,
    PlanRequest,
    Receipted,
    Refusal,
    Request,
    SealRequest,
    SegmentsRequest,
    WholeRequest,
)
from contbak.core.messages import PlanState


class PackState(Enum):
    """Where a pack is on its way."""

    PLANNING = auto()
    SENDING = auto()
    SEALING = auto()
    SEALED = auto()


class CommitState(Enum):
    """WAITING for its packs, SENT, DONE."""

    WAITING = auto()
    SENT = auto()
    DONE = auto()


class Word(Enum):
    """What an answer says."""

    SEALED = auto()
    HELD = auto()
    STORED = auto()
    NO_PLAN = auto()
    INCOMPLETE = auto()
    MISMATCH = auto()
    REFUSED = auto()
    RECEIPT = auto()
    MISSING = auto()
    OTHER_HEAD = auto()


class Act(Enum):
    """What follows from it.  IGNORE is for late twins of answers that came before."""

    IGNORE = auto()
    FINISH = auto()
    LEARN = auto()
    CORRECT = auto()
    START_OVER = auto()
    STRIKE = auto()
    REJECT = auto()
    REPORT = auto()


_P, _C, _W, _A = PackState, CommitState, Word, Act
PACK_MOVES: dict[tuple[PackState, Word], Act] = {
    (_P.PLANNING, _W.SEALED): _A.FINISH,  # it was there already, or the answer to the seal was lost
    (_P.PLANNING, _W.HELD): _A.LEARN,
    (_P.PLANNING, _W.STORED): _A.LEARN,  # sent before the plan was asked for again
    (_P.PLANNING, _W.NO_PLAN): _A.IGNORE,  # the plan is under way
    (_P.PLANNING, _W.INCOMPLETE): _A.IGNORE,
    (_P.PLANNING, _W.MISMATCH): _A.STRIKE,
    (_P.PLANNING, _W.REFUSED): _A.REJECT,
    (_P.SENDING, _W.SEALED): _A.FINISH,
    (_P.SENDING, _W.HELD): _A.LEARN,
    (_P.SENDING, _W.STORED): _A.LEARN,
    (_P.SENDING, _W.NO_PLAN): _A.START_OVER,  # the relay started anew
    (_P.SENDING, _W.INCOMPLETE): _A.CORRECT,
    (_P.SENDING, _W.MISMATCH): _A.STRIKE,
    (_P.SENDING, _W.REFUSED): _A.REJECT,
    (_P.SEALING, _W.SEALED): _A.FINISH,
    (_P.SEALING, _W.HELD): _A.IGNORE,
    (_P.SEALING, _W.STORED): _A.IGNORE,
    (_P.SEALING, _W.NO_PLAN): _A.START_OVER,
    (_P.SEALING, _W.INCOMPLETE): _A.CORRECT,  # a power cut took segments that it had
    (_P.SEALING, _W.MISMATCH): _A.STRIKE,
    (_P.SEALING, _W.REFUSED): _A.REJECT,
    **{(_P.SEALED, word): _A.IGNORE for word in tuple(Word)[:7]},
}
COMMIT_MOVES: dict[tuple[CommitState, Word], Act] = {
    **{(_C.WAITING, word): _A.IGNORE for word in (_W.MISSING, _W.OTHER_HEAD, _W.REFUSED)},
    (_C.WAITING, _W.RECEIPT): _A.FINISH,  # the request was thought lost
    (_C.SENT, _W.RECEIPT): _A.FINISH,
    (_C.SENT, _W.MISSING): _A.REPORT,
    (_C.SENT, _W.OTHER_HEAD): _A.REPORT,
    (_C.SENT, _W.REFUSED): _A.REPORT,
    **{(_C.DONE, word): _A.IGNORE for word in (_W.RECEIPT, _W.MISSING, _W.OTHER_HEAD, _W.REFUSED)},
}
_PACK_REFUSALS = {"no-plan": _W.NO_PLAN, "incomplete": _W.INCOMPLETE, "mismatch": _W.MISMATCH}
_COMMIT_REFUSALS = {"missing": _W.MISSING, "head": _W.OTHER_HEAD}


def word_of(request: Request, answer: Answer) -> Word:
    """What `answer` says.  Raises PeerError if nobody may answer `request` so."""
    if isinstance(answer, Refusal):
        known = _COMMIT_REFUSALS if isinstance(request, CommitRequest) else _PACK_REFUSALS
        return known.get(answer.kind, Word.REFUSED)
    if isinstance(request, PlanRequest) and isinstance(answer, PlanState):
        return Word.SEALED if answer.sealed else Word.HELD
    if isinstance(request, SegmentsRequest) and isinstance(answer, Accepted):
        return Word.STORED
    if isinstance(request, SealRequest | WholeRequest) and isinstance(answer, Accepted):
        return Word.SEALED
    if isinstance(request, CommitRequest) and isinstance(answer, Receipted):
        return Word.RECEIPT
    raise PeerError(f"{type(answer).__name__} is no answer to {type(request).__name__}")
