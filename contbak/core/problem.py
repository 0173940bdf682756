"""How a relay says no (docs/protocol.md): the JSON of an answer that is no success, as agents read it.

It does not say what follows from it: that differs between sending and reading.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Problem:
    """An answer that is no success: HTTP status, the protocol's word, a sentence, all fields as they came."""

    status: int
    kind: str
    detail: str
    fields: dict[str, Any]


def problem_of(status: int, raw: bytes) -> Problem:
    """The problem that an answer with an error status describes; of kind "status N" if it describes none."""
    try:
        fields = json.loads(raw)
        return Problem(status, str(fields["type"]), str(fields.get("detail", "")), fields)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return Problem(status, f"status {status}", "", {})
