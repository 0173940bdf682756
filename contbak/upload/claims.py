"""Who stores which chunk: every chunk that the vault lacks goes to exactly one worker.

A claim lasts from the moment a worker is told to store a chunk until the pack that holds it is finished (or the
worker is dead).  A worker reports a lot when its own packs with the lot's chunks are finished, so a lot that was
reported waits for nothing but the chunks that other workers hold.

Pure bookkeeping.  It does not know what the vault has; the caller asks, between `reserve` and `stored`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence


class Claims:
    """Chunks that are on their way into a pack, and which jobs wait for them.  Memory: one row per such chunk."""

    def __init__(self) -> None:
        self._holders: dict[bytes, int] = {}
        self._waiting: dict[bytes, list[int]] = {}
        """Jobs that wait for a chunk of another worker; some may be over already."""
        self._needs: dict[int, set[bytes]] = {}

    def __len__(self) -> int:
        return len(self._holders)

    def reserve(self, worker: int, job: int, ids: Sequence[bytes]) -> list[bool]:
        """The chunks of (a part of) a job: True where `worker` now holds the claim and must store the chunk.

        From here on the job waits for those of `ids` that another worker holds.
        """
        mine, holders = [], self._holders
        for id in ids:
            holder = holders.get(id)
            mine.append(holder is None)
            if holder is None:
                holders[id] = worker
            elif holder != worker:
                self._wait(job, id)
        return mine

    def settled(self, job: int) -> bool:
        """Whether the job waits for no chunk of another worker."""
        return not self._needs.get(job)

    def stored(self, ids: Iterable[bytes]) -> list[int]:
        """These chunks are in a finished pack, or the vault has them already: the jobs that wait for nothing now."""
        over = []
        for id in ids:
            self._holders.pop(id, None)
            for job in self._waiting.pop(id, ()) if self._waiting else ():
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
        lost = [id for id, holder in self._holders.items() if holder == worker]
        jobs: set[int] = set()
        for id in lost:
            del self._holders[id]
            jobs.update(job for job in self._waiting.pop(id, ()) if job in self._needs)
        for job in jobs:
            self.forget(job)
        return jobs

    def _wait(self, job: int, id: bytes) -> None:
        needs = self._needs.setdefault(job, set())
        if id not in needs:
            needs.add(id)
            self._waiting.setdefault(id, []).append(job)
