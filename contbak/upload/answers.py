"""What the relay's answers mean (docs/protocol.md): problems into errors and into refusals for the machine."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from contbak.core.errors import FormatError, PeerError, Unreachable
from contbak.core.exchange import Refusal
from contbak.core.messages import MISSING_MAX, Head
from contbak.core.names import ID_LEN, ChunkId, checked
from contbak.core.problem import Problem

ANSWER_MAX = 4 << 20
"""Bytes of an answer; the longest are lists of missing ids."""

_PASSING = frozenset((429, 500, 502, 503, 504, 507))
_LATER = frozenset(("denied", "token", "full"))
"""Problems that end without us: an administrator's work, a new login, more space."""

T = TypeVar("T")


def expect(answer: bytes | Problem) -> bytes:
    """The body.  Raises Unreachable for a problem that may pass, PeerError for others."""
    if not isinstance(answer, Problem):
        return answer
    sentence = f"the relay refuses: {answer.detail or answer.kind}"
    raise Unreachable(sentence) if _may_pass(answer) else PeerError(sentence)


def refusal_of(problem: Problem) -> Refusal:
    """The refusal for the machine.  Raises Unreachable if it may pass, PeerError if it makes no sense."""
    if _may_pass(problem):
        expect(problem)
    return understood(lambda: _refusal(problem))


def understood(read: Callable[[], T]) -> T:
    """What `read` makes of an answer; what it cannot read is the relay's fault.  Raises PeerError."""
    try:
        return read()
    except (FormatError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise PeerError(f"the relay's answer makes no sense: {error}") from None


def _may_pass(problem: Problem) -> bool:
    """Whether the same request may succeed later."""
    return problem.status in _PASSING or problem.kind in _LATER


def _refusal(problem: Problem) -> Refusal:
    fields = problem.fields
    missing = fields.get("missing", ())
    return Refusal(
        problem.kind,
        problem.detail,
        bytes.fromhex(fields.get("have", "")),
        tuple(ChunkId(checked(bytes.fromhex(id), ID_LEN, "a chunk id")) for id in missing[:MISSING_MAX]),
        _head(fields.get("head")),
    )


def _head(fields: dict[str, Any] | None) -> Head | None:
    """The head of this device; the field `device` stays empty, since the relay does not repeat it."""
    if fields is None:
        return None
    commit = checked(bytes.fromhex(fields["commit"]), ID_LEN, "a commit id")
    return Head(b"", bytes.fromhex(fields["incarnation"]), int(fields["sequence"]), commit)
