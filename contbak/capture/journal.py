"""The agent's durable list of what it still owes: changes to look at, coverage gaps to scan, errors to tell.

    changes  source, hash of path   -> Change
    gaps     source, hash of path   -> Gap
    errors   source, hash of path   -> Problem

A change leaves the journal only when a commit that includes it was acknowledged (`settle`), and only if no newer
event came for it meanwhile.  A lost journal is harmless: the agent scans everything when it starts.
Times are milliseconds since 1970 and informational.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from hashlib import blake2b
from typing import TypeVar

from contbak.core import codec
from contbak.core.codec import Record
from contbak.core.names import SourceId
from contbak.store.kv import Kv, Writer

T = TypeVar("T")

TABLES = ("changes", "gaps", "errors")


class Change(Record, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A path (relative to its source, b"" for the top) that has settled and must be looked at.

    generation  rises with every event for the path
    subtree     everything beneath it is in doubt too
    forced      the relay has lost its content: it is read and committed even if nothing changed
    """

    path: bytes
    generation: int
    since_ms: int
    subtree: bool
    tries: int = 0
    forced: bool = False


class Gap(Record, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A place where events may have been lost; closed by a scan of it that began at this generation."""

    path: bytes
    generation: int
    since_ms: int
    reason: str
    quiet: bool = False
    """Routine (a rescan, say): not shown as a gap and no reason to worry."""


class Problem(Record, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A path that could not be saved, and why."""

    path: bytes
    reason: str
    since_ms: int


class Journal:
    """All sources' changes, gaps and problems."""

    def __init__(self, kv: Kv) -> None:
        self._kv = kv

    # -- changes ----------------------------------------------------------------------------------------------

    def add(self, source: SourceId, changes: Iterable[Change]) -> None:
        """Takes responsibility for changes; durable on return."""
        with self._kv.write() as rows:
            for change in changes:
                key = _key(source, change.path)
                old = _load(rows.get("changes", key), Change)
                if old is not None:
                    change = Change(
                        change.path,
                        old.generation + 1,
                        min(old.since_ms, change.since_ms),
                        old.subtree or change.subtree,
                        change.tries,
                        old.forced or change.forced,
                    )
                rows.put("changes", key, codec.encode(change))

    def changes(self, source: SourceId, limit: int) -> list[Change]:
        """Up to `limit` changes of a source."""
        found: list[Change] = []
        with self._kv.read() as rows:
            for _, raw in rows.items("changes", prefix=source):
                found.append(codec.decode(raw, Change, "a journaled change"))
                if len(found) >= limit:
                    break
        return found

    def settle(self, rows: Writer, source: SourceId, done: Iterable[Change]) -> None:
        """Inside the transaction of a receipt: these changes are safe, unless there were newer events."""
        for change in done:
            key = _key(source, change.path)
            now = _load(rows.get("changes", key), Change)
            if now is not None and now.generation == change.generation:
                rows.delete("changes", key)

    def count(self, source: SourceId, covered: Collection[tuple[bytes, int]] = ()) -> tuple[int, int | None]:
        """(how many changes wait, since when the oldest of them does).

        Left out: those that failed before, which are told as problems, and `covered` ones, (path, generation).
        """
        number, oldest = 0, None
        with self._kv.read() as rows:
            for _, raw in rows.items("changes", prefix=source):
                change = codec.decode(raw, Change, "a journaled change")
                if change.tries or (change.path, change.generation) in covered:
                    continue
                number += 1
                oldest = change.since_ms if oldest is None else min(oldest, change.since_ms)
        return number, oldest

    # -- gaps -------------------------------------------------------------------------------------------------

    def open_gap(self, source: SourceId, gap: Gap) -> None:
        """Notes a gap; one that is open for the place already is renewed, so a running scan does not close it."""
        key = _key(source, gap.path)
        with self._kv.write() as rows:
            old = _load(rows.get("gaps", key), Gap)
            if old is not None:
                quiet = old.quiet and gap.quiet
                reason = gap.reason if old.quiet else old.reason
                gap = Gap(gap.path, old.generation + 1, min(old.since_ms, gap.since_ms), reason, quiet)
            rows.put("gaps", key, codec.encode(gap))

    def gaps(self, source: SourceId) -> list[Gap]:
        """The open gaps of a source, the oldest first."""
        with self._kv.read() as rows:
            found = [codec.decode(raw, Gap, "a journaled gap") for _, raw in rows.items("gaps", prefix=source)]
        return sorted(found, key=lambda gap: gap.since_ms)

    def close_gap(self, rows: Writer, source: SourceId, gap: Gap) -> None:
        """Inside the transaction of a receipt: the place was scanned whole since the gap was read."""
        key = _key(source, gap.path)
        now = _load(rows.get("gaps", key), Gap)
        if now is not None and now.generation == gap.generation:
            rows.delete("gaps", key)

    # -- problems ---------------------------------------------------------------------------------------------

    def report(self, rows: Writer, source: SourceId, problem: Problem) -> None:
        """A path could not be saved; the time of the first report is kept."""
        key = _key(source, problem.path)
        old = _load(rows.get("errors", key), Problem)
        since = problem.since_ms if old is None else old.since_ms
        rows.put("errors", key, codec.encode(Problem(problem.path, problem.reason, since)))

    def resolve(self, rows: Writer, source: SourceId, path: bytes) -> None:
        """The path was saved, or is gone."""
        rows.delete("errors", _key(source, path))

    def problems(self, source: SourceId) -> Iterator[Problem]:
        """What could not be saved."""
        for _, raw in self._kv.scan("errors", prefix=source):
            yield codec.decode(raw, Problem, "a journaled problem")

    def forget(self, source: SourceId) -> None:
        """The source is no longer protected."""
        with self._kv.write() as rows:
            for table in TABLES:
                for key, _ in list(rows.items(table, prefix=source)):
                    rows.delete(table, key)


def _key(source: SourceId, path: bytes) -> bytes:
    return source + blake2b(path, digest_size=16).digest()


def _load(raw: bytes | None, kind: type[T]) -> T | None:
    return None if raw is None else codec.decode(raw, kind, "a journal row")
