"""How the relay says no to a request (docs/protocol.md): a status, a word, a sentence.

Knows nothing of HTTP beyond the number of the status.
"""

from __future__ import annotations

from contbak.core.errors import ContbakError, FormatError, NotFound, StoreFull, WrongKey


class Problem(ContbakError):
    """An answer that refuses.  `extra` holds further members of the answer, in types that JSON knows."""

    def __init__(self, status: int, kind: str, detail: str, **extra: object) -> None:
        super().__init__(detail)
        self.status = status
        self.kind = kind
        self.detail = detail
        self.extra = extra

    def members(self) -> dict[str, object]:
        """What the body of the answer holds."""
        title = self.kind.replace("-", " ")
        return {"type": self.kind, "title": title, "status": self.status, "detail": self.detail, **self.extra}


def malformed(detail: str) -> Problem:
    return Problem(400, "malformed", detail)


def denied(detail: str) -> Problem:
    return Problem(403, "denied", detail)


def unknown(detail: str) -> Problem:
    return Problem(404, "unknown", detail)


def invalid(detail: str) -> Problem:
    return Problem(422, "invalid", detail)


def of(error: ContbakError) -> Problem | None:
    """The answer that fits an error from below, None if it is the relay's own fault."""
    if isinstance(error, Problem):
        return error
    if isinstance(error, StoreFull):
        return Problem(507, "full", str(error))
    if isinstance(error, NotFound):
        return unknown(str(error))
    if isinstance(error, WrongKey):
        return denied(str(error))
    if isinstance(error, FormatError):
        return malformed(str(error))
    return None
