"""What a restore did: the record that it fills in and that the user is told from."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from contbak.recall.content import Range

LISTED_MAX = 10_000
"""Items that each list of a report holds at most; the counts are always right."""


class Problem(NamedTuple):
    """One path (raw, as it is in the target) and what is to be said of it."""

    path: bytes
    reason: str


class Damage(NamedTuple):
    """A file that came back with holes: (offset, length) of each range that is lost."""

    path: bytes
    lost: tuple[Range, ...]


@dataclass(slots=True)
class Report:
    """What a restore did.  Lists end at LISTED_MAX items; `counts` has the true numbers by list name.

    restored   files and links written; directories, others: made (symlinks, FIFOs, devices)
    same       left alone, because they are there already with that size and time
    kept       existing things that were not overwritten
    failed     not restored, with the reason
    damaged    restored with holes
    notes      restored, but for some attribute
    written    bytes of data written
    stopped    why the rest was given up, "" if it was not
    """

    restored: int = 0
    directories: int = 0
    others: int = 0
    same: int = 0
    written: int = 0
    stopped: str = ""
    kept: list[bytes] = field(default_factory=list)
    failed: list[Problem] = field(default_factory=list)
    damaged: list[Damage] = field(default_factory=list)
    notes: list[Problem] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(("kept", "failed", "damaged", "notes"), 0))

    @property
    def complete(self) -> bool:
        """Whether all that was asked for is there now (else exit 3)."""
        return not (self.counts["kept"] or self.counts["failed"] or self.counts["damaged"] or self.stopped)

    def add(self, name: str, item: object) -> None:
        """Puts `item` on the list `name`, if that has room, and counts it."""
        self.counts[name] += 1
        items = getattr(self, name)
        if len(items) < LISTED_MAX:
            items.append(item)

    def merge(self, other: Report) -> None:
        """Adds what `other` tells."""
        for name in ("restored", "directories", "others", "same", "written"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.stopped = self.stopped or other.stopped
        for name, count in other.counts.items():
            items = getattr(self, name)
            items += getattr(other, name)[: max(0, LISTED_MAX - len(items))]
            self.counts[name] += count
