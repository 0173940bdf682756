"""What a scan is asked and what it answers: how much a name is doubted, files to read, trouble, counts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

TOUCHED = 1
"""How much a look doubts a file: an event told of it, so it is read though it looks unchanged."""
LOST = 2
"""Its content is needed again: it is read whatever else is known."""


class How(NamedTuple):
    """How to look at a name.

    subtree  all beneath it too
    doubt    0, TOUCHED or LOST
    beside   something lies beside it that could belong to it, if it is a database
    """

    subtree: bool = False
    doubt: int = 0
    beside: bool = False


class Read(NamedTuple):
    """A regular file that must be read.  `path` is relative to the source; `known`: there is an older copy."""

    path: bytes
    dir_id: bytes
    name: bytes
    size: int
    known: bool


class Trouble(NamedTuple):
    """A path that could not be looked at."""

    path: bytes
    reason: str


Found = Iterator[Read | Trouble]


@dataclass(slots=True)
class Counts:
    """Names looked at, names that had not changed."""

    seen: int = 0
    unchanged: int = 0
