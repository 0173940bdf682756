"""Puts files back: from a moment of the history into a directory, as `cp -a PATH DIR/` would.

Rules: every chunk and every whole file is verified; a file appears under its name only when it is complete.
What exists is kept unless told otherwise.  What is damaged stops nothing: a file with lost chunks comes back with
holes in their place, if its name is free, and is listed with the ranges; a part of the tree that cannot be read
is listed.  Nothing is ever silently wrong.

Reading is ahead of writing: while one batch of files is written the chunks of the next are fetched.
"""

from __future__ import annotations

import os
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from typing import BinaryIO, NamedTuple

from contbak.core.crypto import Hasher
from contbak.core.entry import DIRECTORY, FILE, SYMLINK, Content, Entry
from contbak.core.errors import ContbakError, FormatError, NotFound, Partial
from contbak.core.tree import KeyRange
from contbak.core.view import BARE_TOP, View
from contbak.recall import content
from contbak.recall.chunks import Chunks, Piece
from contbak.recall.content import ChunkLost
from contbak.recall.report import Damage, Problem, Report
from contbak.recall.snapshots import Located
from contbak.recall.writer import NotWritten, Outcome, Overwrite, TreeWriter

BATCH_FILES = 512
BATCH_BYTES = 8 << 20
"""A batch of files that are fetched together ends at so many files, or bytes."""
LINKS_KEPT = 200_000
"""Hard-link groups whose first name is remembered."""
_ZEROS = bytes(1 << 20)


class Wanted(NamedTuple):
    """What to restore: the thing at `path` of a snapshot, under the relative path `name` of the target.

    roots as Snapshot.roots; name b"" puts what is in a directory straight into the target.
    """

    roots: tuple[bytes | None, ...]
    path: bytes
    name: bytes


Progress = Callable[[Report], None]
"""Called after each entry; `restored`, `written` and the counts tell how far it is."""


def wanted(places: Iterable[Located], in_place: bool = False) -> list[Wanted]:
    """What `restore` takes for paths that were located.

    By basename, as `cp` does; those that share one go to DEVICE/whole/path instead.  With `in_place` by the
    absolute path on the device, for the target b"/".
    """
    found = list(dict.fromkeys(places))
    if in_place:
        return [Wanted(at.snapshot.roots, at.path, at.absolute.lstrip(b"/")) for at in found]
    times = Counter(_basename(at) for at in found)
    return [
        Wanted(at.snapshot.roots, at.path, _basename(at) if times[_basename(at)] == 1 else _full_name(at))
        for at in found
    ]


def _basename(at: Located) -> bytes:
    return at.absolute.rpartition(b"/")[2]


def _full_name(at: Located) -> bytes:
    device = os.fsencode(at.snapshot.device_name.replace("/", "_").replace("\0", "_"))
    if device in (b"", b".", b".."):
        device = at.snapshot.device.hex().encode()
    return device + b"/" + at.absolute.lstrip(b"/")


def restore(
    chunks: Chunks,
    what: Iterable[Wanted],
    target: bytes,
    overwrite: Overwrite = "never",
    progress: Progress | None = None,
) -> Report:
    """Restores `what` below the directory `target`, which is made if it is not there.

    Raises Unreachable if the place is gone on the way (what is written is complete; call again to go on), and
    NotWritten if the target cannot be used at all.
    """
    run = _Restore(chunks, target, overwrite, progress)
    with run.writer:
        try:
            for one in what:
                run.one(one)
        except _Stop as stop:
            run.report.stopped = str(stop)
        finally:
            run.finish()
    return run.report


def dump(chunks: Chunks, view: View, path: bytes, out: BinaryIO) -> int:
    """Writes the content of one file to `out`, holes as zeros; returns how many bytes.

    Raises NotFound, Partial if it is no file, and FormatError for lost or wrong data (what came before is out).
    """
    found = view.resolve(path)
    if found is None:
        raise NotFound(f"{_shown(path)} was not there at that moment")
    entry = found[0]
    if entry.kind != FILE or entry.content is None:
        raise Partial(f"{_shown(path)} is no regular file")
    hasher, at, room = Hasher(), 0, 0
    extents = iter(((0, entry.content.length),) if entry.extents is None else entry.extents)
    for piece in content.whole(chunks, entry.content):
        hasher.update(piece)
        left = memoryview(piece)
        while left:
            if not room:
                start, room = next(extents, (at, len(left)))
                _zeros(out, start - at)
                at = start
            out.write(left[:room])
            done = min(room, len(left))
            at, room, left = at + done, room - done, left[done:]
    if hasher.digest() != entry.content.hash:
        raise FormatError(f"the data of {_shown(path)} is not what its entry says")
    _zeros(out, entry.size - at)
    return max(at, entry.size)


class _Stop(Exception):
    """Nothing more can be written."""


@dataclass(slots=True)
class _Job:
    """One entry and the path in the target.  `pieces`: its chunks, if they were asked for ahead."""

    path: bytes
    entry: Entry
    pieces: Iterator[Piece] | None = None


class _Restore:
    """One run."""

    def __init__(self, chunks: Chunks, target: bytes, overwrite: Overwrite, progress: Progress | None) -> None:
        self.report = Report()
        self.writer = TreeWriter(target, overwrite, Hasher, self._note)
        self._chunks = chunks
        self._target = target
        self._overwrite = overwrite
        self._progress = progress
        self._links: OrderedDict[bytes, tuple[bytes, Entry]] = OrderedDict()
        self._lost_nodes: set[tuple[bytes, bytes]] = set()
        self._walking = b""
        self._merging = False

    def one(self, wanted: Wanted) -> None:
        """Restores one thing and all that is in it."""
        now: list[_Job] = []
        for batch in _batches(self._jobs(wanted)):
            self._ask(batch)
            self._batch(now)
            now = batch
        self._batch(now)

    def finish(self) -> None:
        """Gives the directories their attributes."""
        try:
            self.writer.finish()
        except NotWritten as error:
            self._fail(error.path, error.reason)
        except FormatError as error:
            self._fail(self._target, str(error))

    # -- reading ahead ------------------------------------------------------------------------------------------

    def _jobs(self, wanted: Wanted) -> Iterator[_Job]:
        """The thing itself and what is beneath, directories first."""
        self._walking = wanted.name
        view = View(wanted.roots, self._chunks.node, self._lost)
        entry = self._top(view, wanted)
        if entry is None:
            return
        if wanted.name:
            yield _Job(wanted.name, entry)
        if entry.kind == DIRECTORY:
            for path, below in view.walk(entry.dir, wanted.name):
                self._walking = path
                yield _Job(path, below)

    def _top(self, view: View, wanted: Wanted) -> Entry | None:
        """The entry of what is wanted; None, and a failure, if there is none."""
        self._merging = True  # the first look into a view reads its runs
        try:
            found = view.resolve(wanted.path)
        except (FormatError, NotFound) as error:
            self._fail(wanted.name, f"the tree is lost on the way to it: {error}")
            return None if wanted.path else BARE_TOP  # of a whole source the rest may be there
        finally:
            self._merging = False
        if found is None:
            self._fail(wanted.name, "it was not there at that moment")
            return None
        return found[0]

    def _ask(self, batch: Sequence[_Job]) -> None:
        """Asks for the chunks of a batch, but for files that seem to be there already."""
        jobs = [job for job in batch if job.entry.content is not None and self._seems_needed(job)]
        if len(jobs) == 1 and jobs[0].entry.content is not None and jobs[0].entry.content.level:
            with suppress(ChunkLost):  # it will be met again when the file is written
                jobs[0].pieces = self._chunks.fetch(content.ids(self._chunks, jobs[0].entry.content))
            return
        counts = [(job, len(job.entry.content.chunks)) for job in jobs if job.entry.content is not None]
        shared = self._chunks.fetch(id_ for job, _ in counts for id_ in _chunks_of(job.entry))
        for job, count in counts:
            job.pieces = islice(shared, count)

    def _seems_needed(self, job: _Job) -> bool:
        if self._overwrite == "always":
            return True
        try:
            st = os.lstat(os.path.join(self._target, job.path))
        except OSError:
            return True
        return self._overwrite == "if-changed" and (st.st_size, st.st_mtime_ns) != (job.entry.size, job.entry.mtime)

    def _lost(self, id_: bytes, keys: KeyRange, error: ContbakError) -> None:
        """Part of a tree cannot be read."""
        near = self._walking
        if (id_, near) in self._lost_nodes:
            return
        self._lost_nodes.add((id_, near))
        first, last = (_shown(key[1]) if key is not None and key[1] else "..." for key in keys)
        what = "recent changes are lost, so some of it may be older" if self._merging else "part of the tree is lost"
        self._fail(near, f"{what}: names from {first!r} to {last!r} here: {error}")

    # -- writing ------------------------------------------------------------------------------------------------

    def _batch(self, jobs: Iterable[_Job]) -> None:
        for job in jobs:
            try:
                self._count(job, self._put(job))
            except NotWritten as error:
                self._fail(job.path, error.reason)
                if error.hopeless:
                    raise _Stop(error.reason) from None
            except (FormatError, NotFound) as error:
                self._fail(job.path, str(error))
            finally:
                if job.pieces is not None:
                    deque(job.pieces, 0)  # the next job's chunks come after those that were not wanted
            if self._progress is not None:
                self._progress(self.report)

    def _put(self, job: _Job) -> Outcome:
        if job.entry.kind == DIRECTORY:
            return self.writer.directory(job.path, job.entry)
        if job.entry.kind == SYMLINK:
            return self.writer.symlink(job.path, job.entry)
        if job.entry.kind != FILE:
            return self.writer.special(job.path, job.entry)
        if job.entry.link:
            return self._linked(job)
        return self._file(job)

    def _linked(self, job: _Job) -> Outcome:
        """A file with several names: the first is written, the others are linked to it if they are the same."""
        known = self._links.get(job.entry.link)
        if known is not None and _same_file(known[1], job.entry):
            outcome = self.writer.link(job.path, known[0], job.entry)
            if outcome is not Outcome.NEEDS_DATA:
                return outcome
        outcome = self._file(job)
        if outcome in (Outcome.WRITTEN, Outcome.SAME):
            self._links[job.entry.link] = (job.path, job.entry)
            if len(self._links) > LINKS_KEPT:
                self._links.popitem(last=False)
        return outcome

    def _file(self, job: _Job) -> Outcome:
        entry = job.entry
        if entry.content is None:
            raise FormatError("a file without content")
        written = _Counted(self._data(job, entry.content))
        try:
            outcome = self.writer.file(job.path, entry, written)
        except ChunkLost as error:
            return self._damaged(job, error)
        self.report.written += written.bytes
        return outcome

    def _data(self, job: _Job, what: Content) -> Iterator[bytes]:
        if job.pieces is None:
            return content.whole(self._chunks, what)
        return content.data(what, job.pieces)

    def _damaged(self, job: _Job, why: ChunkLost) -> Outcome:
        """Writes what is left of a file, with holes, if nothing stands in its place."""
        left = content.remains(self._chunks, job.entry, time.time_ns())
        if left.entry.content is None or not left.entry.content.length:
            raise FormatError(f"all of its data is lost: {why}")
        with TreeWriter(self._target, "never", Hasher, self._note) as writer:
            outcome = writer.file(job.path, left.entry, left.data)
        if outcome is not Outcome.WRITTEN:
            raise FormatError(f"it is damaged ({why}), and what is there was kept")
        self.report.written += left.entry.content.length
        self.report.add("damaged", Damage(job.path, tuple(left.lost)))
        return Outcome.SKIPPED

    # -- reporting ----------------------------------------------------------------------------------------------

    def _count(self, job: _Job, outcome: Outcome) -> None:
        report = self.report
        if outcome is Outcome.KEPT:
            report.add("kept", job.path)
        elif outcome is Outcome.SAME and job.entry.kind != DIRECTORY:
            report.same += 1
        elif outcome is Outcome.WRITTEN and job.entry.kind == DIRECTORY:
            report.directories += 1
        elif outcome is Outcome.WRITTEN and job.entry.kind == FILE:
            report.restored += 1
        elif outcome is Outcome.WRITTEN:
            report.others += 1

    def _note(self, path: bytes, text: str) -> None:
        self.report.add("notes", Problem(path, text))

    def _fail(self, path: bytes, reason: str) -> None:
        self.report.add("failed", Problem(path, reason))


class _Counted:
    """Pieces on their way to a file, counted."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self.bytes = 0
        self._pieces = pieces

    def __iter__(self) -> Iterator[bytes]:
        for piece in self._pieces:
            self.bytes += len(piece)
            yield piece


def _batches(jobs: Iterable[_Job]) -> Iterator[list[_Job]]:
    """Jobs in order, together up to BATCH_FILES and BATCH_BYTES; a file with list nodes stands alone."""
    batch: list[_Job] = []
    size = 0
    for job in jobs:
        length = job.entry.content.length if job.entry.content is not None else 0
        alone = job.entry.content is not None and job.entry.content.level > 0
        if batch and (alone or len(batch) == BATCH_FILES or size + length > BATCH_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(job)
        size += length
        if alone:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _chunks_of(entry: Entry) -> tuple[bytes, ...]:
    return entry.content.chunks if entry.content is not None else ()


def _same_file(one: Entry, other: Entry) -> bool:
    """Whether two names of one link group may be one file again: same content and same attributes."""
    return one.content == other.content and (one.mode, one.uid, one.gid, one.mtime, one.size, one.xattrs) == (
        other.mode, other.uid, other.gid, other.mtime, other.size, other.xattrs
    )  # fmt: skip


def _zeros(out: BinaryIO, count: int) -> None:
    while count > 0:
        out.write(_ZEROS[: min(count, len(_ZEROS))])
        count -= len(_ZEROS)


def _shown(path: bytes) -> str:
    return path.decode("utf-8", "backslashreplace")
