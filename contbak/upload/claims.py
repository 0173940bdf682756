"""Who stores which chunk: every chunk that the vault lacks goes to exactly one worker.

A claim lasts from the moment a worker is told to store a chunk until the pack that holds it is finished (or the
worker is dead).  A file may be called done when none of its chunks is claimed any more: then each is in a finished
pack or was known before.

Pure bookkeeping.  It does not know what the vault has; the caller asks, between `reserve` and `known`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field


@dataclass(slots=True)
class _Claim:
    worker: int
    waiting: list[int] = field(default_factory=list)
    """Jobs that contain the chunk; some may be over already."""


class Claims:
    """Chunks that are on their way into a pack, and which jobs wait for them.  Memory: one row per such chunk."""

    def __init__(self) -> None:
        self._claims: dict[bytes, _Claim] = {}
        self._needs: dict[int, set[bytes]] = {}

    def __len__(self) -> int:
        return len(self._claims)

    def reserve(self, worker: int, job: int, ids: Iterable[bytes]) -> list[bool]:
        """The chunks of (a part of) a job: True where `worker` now holds the claim and must store the chunk.

        From here on the job waits for all of `ids`.
        """
        mine, needs = [], self._needs.setdefault(job, set())
        for id in ids:
            claim = self._claims.get(id)
            mine.append(claim is None)
            if claim is None:
                claim = self._claims[id] = _Claim(worker)
            if id not in needs:
                needs.add(id)
                claim.waiting.append(job)
        return mine

    def settled(self, job: int) -> bool:
        """Whether the job waits for no chunk."""
        return not self._needs.get(job)

    def stored(self, ids: Iterable[bytes]) -> list[int]:
        """These chunks are in a finished pack, or the vault has them already: the jobs that wait for nothing now."""
        over = []
        for id in ids:
            claim = self._claims.pop(id, None)
            for job in claim.waiting if claim is not None else ():
                needs = self._needs.get(job)
                if needs is not None:
                    needs.discard(id)
                    if not needs:
                        over.append(job)
        return over

    def forget(self, job: int) -> None:
        """The job is over or given up."""
        self._needs.pop(job, None)

    def void(self, worker: int) -> set[int]:
        """The worker is dead and its unfinished packs with it: the jobs that waited for one of them."""
        lost = [id for id, claim in self._claims.items() if claim.worker == worker]
        jobs: set[int] = set()
        for id in lost:
            jobs.update(job for job in self._claims.pop(id).waiting if job in self._needs)
        for job in jobs:
            self.forget(job)
        return jobs


def joined(parts: Sequence[tuple[int, Sequence[bytes]]]) -> list[bytes]:
    """All ids of the parts of a claim, in order."""
    return [id for _, ids in parts for id in ids]
