"""What a transfer says: requests to the relay, its answers, and what the machine reports (core.transfer).

Pure data.  One request is one exchange of docs/protocol.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from contbak.core.messages import Head, PlanState
from contbak.core.names import ChunkId, CommitId, PackId

# -- what the shell carries ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class PlanRequest:
    """Put the pack's plan.  Answers: PlanState, Refusal."""

    root: PackId


@dataclass(frozen=True, slots=True)
class SegmentsRequest:
    """Put `count` consecutive segments from number `first`, at most PUT_MAX bytes.  Answers: Accepted, Refusal."""

    root: PackId
    first: int
    count: int


@dataclass(frozen=True, slots=True)
class WholeRequest:
    """Put a small pack whole, and make it durable.  Answers: Accepted, Refusal."""

    root: PackId


@dataclass(frozen=True, slots=True)
class SealRequest:
    """Make the pack durable.  Answers: Accepted, Refusal."""

    root: PackId


@dataclass(frozen=True, slots=True)
class CommitRequest:
    """Send the commit record.  Answers: Receipted, Refusal."""

    id: CommitId


Request: TypeAlias = PlanRequest | WholeRequest | SegmentsRequest | SealRequest | CommitRequest


@dataclass(frozen=True, slots=True)
class Accepted:
    """Done; for a seal: and durable."""


@dataclass(frozen=True, slots=True)
class Receipted:
    """The commit is durable; `raw`: the signed receipt, checked by the shell."""

    raw: bytes


@dataclass(frozen=True, slots=True)
class Refusal:
    """A problem that will not pass by itself; `kind` is the protocol's word for it.

    have     "incomplete": bitmap of the segments that are there
    missing  "missing": the first ids of chunks that the commit lacks
    head     "head": the relay's newest commit of this device, nil if there is none
    """

    kind: str
    detail: str = ""
    have: bytes = b""
    missing: tuple[ChunkId, ...] = ()
    head: Head | None = None


Answer: TypeAlias = PlanState | Accepted | Receipted | Refusal


# -- what the machine reports -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Sealed:
    """The pack is durable at the relay."""

    root: PackId


@dataclass(frozen=True, slots=True)
class Committed:
    """The commit is durable at the relay; `receipt` proves it."""

    id: CommitId
    receipt: bytes


@dataclass(frozen=True, slots=True)
class Missing:
    """The relay lacks chunks that the commit needs.  The commit is dropped; a new one comes after they are there."""

    id: CommitId
    ids: tuple[ChunkId, ...]


@dataclass(frozen=True, slots=True)
class OtherHead:
    """The relay's newest commit of this device is not the one that the commit continues.  The commit is dropped."""

    id: CommitId
    head: Head | None


@dataclass(frozen=True, slots=True)
class Rejected:
    """The relay will never take this pack or commit; it is dropped."""

    request: Request
    kind: str
    reason: str


Event: TypeAlias = Sealed | Committed | Missing | OtherHead | Rejected
