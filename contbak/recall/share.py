"""One share of a restore: some files of which it is known where their chunks lie, and whoever writes them.

Rules: what is asked for is written whole and verified, or it is in the account with the reason.  The chunks of a
share are read together, in as few reads as there are stretches of packs; a file so large that it is a share of its
own streams through a window instead.  An account counts each file of its share once.

It does not walk trees, make directories or link names: recall/restore.py does.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence

from contbak.core.codec import Record
from contbak.core.crypto import Hasher
from contbak.core.entry import DIRECTORY, FILE, Content, Entry
from contbak.core.errors import FormatError, NotFound
from contbak.core.messages import Place as Spot
from contbak.recall import content
from contbak.recall.chunks import Chunks
from contbak.recall.content import ChunkLost
from contbak.recall.report import Damage, Problem, Report
from contbak.recall.writer import NotWritten, Outcome, Overwrite, TreeWriter

LARGE = 8 << 20
"""Bytes of content from which on a file streams."""


class File(Record, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A regular file to write: its path in the target, and its entry; `clear`: nothing was there just now."""

    path: bytes
    entry: Entry
    clear: bool = False


class Share(Record, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Files, and the places of their chunks (id, copies); an id that is missing is looked up when it is wanted."""

    files: tuple[File, ...]
    spots: tuple[tuple[bytes, tuple[Spot, ...]], ...]

    @property
    def pack(self) -> bytes:
        """The pack that is read first; b"" if that is not known."""
        return self.spots[0][1][0].pack if self.spots and self.spots[0][1] else b""

    @property
    def large(self) -> bool:
        """Whether it is one file that streams."""
        return len(self.files) == 1 and streams(self.files[0].entry)


class Account(Record, array_like=True, forbid_unknown_fields=True):
    """What became of a share.

    there   which files (by number) are there now as their entries say
    read    bytes read from the place
    """

    report: Report
    there: list[int]
    read: int = 0


def streams(entry: Entry) -> bool:
    """Whether the file is a share of its own."""
    return entry.content is not None and (entry.content.level > 0 or entry.content.length > LARGE)


class Filer:
    """Writes the files of shares below `target`.  Close it, or use it in a `with`.

    Raises NotWritten if the target cannot be used at all.
    """

    def __init__(self, chunks: Chunks, target: bytes, overwrite: Overwrite) -> None:
        self._chunks = chunks
        self._target = target
        self._report = Report()
        self._writer = TreeWriter(target, overwrite, Hasher, self._note)

    def __enter__(self) -> Filer:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Lets go of the target."""
        self._writer.close()

    def do(self, share: Share) -> Account:
        """Writes a share.  What is hopeless ends it, with `stopped` in the report.  Raises Unreachable."""
        self._report = report = Report()
        account = Account(report, [])
        before = self._chunks.read_bytes
        data = {} if share.large else self._chunks.gather([id_ for id_, _ in share.spots], dict(share.spots))
        for number, file in enumerate(share.files):
            try:
                outcome = self._file(file, data)
            except NotWritten as error:
                report.add("failed", Problem(file.path, error.reason))
                if error.hopeless:
                    report.stopped = error.reason
                    break
            except (FormatError, NotFound) as error:
                report.add("failed", Problem(file.path, str(error)))
            else:
                tally(report, file.path, FILE, outcome)
                if outcome in (Outcome.WRITTEN, Outcome.SAME):
                    account.there.append(number)
        account.read = self._chunks.read_bytes - before
        return account

    def _file(self, file: File, data: dict[bytes, bytes]) -> Outcome:
        what = file.entry.content
        if what is None:
            raise FormatError("a file without content")
        try:
            outcome = self._writer.file(file.path, file.entry, self._pieces(what, data), file.clear)
        except ChunkLost as error:
            return self._damaged(file, error)
        if outcome is Outcome.WRITTEN:
            self._report.written += what.length
        return outcome

    def _pieces(self, what: Content, data: dict[bytes, bytes]) -> Iterable[bytes]:
        """The data of a file: what has been gathered, or else as it comes."""
        if what.inline is not None:
            return (what.inline,)
        if not what.level:
            found = [data[id_] for id_ in what.chunks if id_ in data]
            if len(found) == len(what.chunks):
                return found
        return content.whole(self._chunks, what)

    def _damaged(self, file: File, why: ChunkLost) -> Outcome:
        """Writes what is left of a file, with holes, if nothing stands in its place."""
        left = content.remains(self._chunks, file.entry, time.time_ns())
        if left.entry.content is None or not left.entry.content.length:
            raise FormatError(f"all of its data is lost: {why}")
        with TreeWriter(self._target, "never", Hasher, self._note) as writer:
            outcome = writer.file(file.path, left.entry, left.data)
        if outcome is not Outcome.WRITTEN:
            raise FormatError(f"it is damaged ({why}), and what is there was kept")
        self._report.written += left.entry.content.length
        self._report.add("damaged", Damage(file.path, tuple(left.lost)))
        return Outcome.SKIPPED

    def _note(self, path: bytes, text: str) -> None:
        self._report.add("notes", Problem(path, text))


def tally(report: Report, path: bytes, kind: str, outcome: Outcome) -> None:
    """Counts what became of an entry."""
    if outcome is Outcome.KEPT:
        report.add("kept", path)
    elif outcome is Outcome.SAME and kind != DIRECTORY:
        report.same += 1
    elif outcome is Outcome.WRITTEN and kind == DIRECTORY:
        report.directories += 1
    elif outcome is Outcome.WRITTEN and kind == FILE:
        report.restored += 1
    elif outcome is Outcome.WRITTEN:
        report.others += 1


def shares(files: Sequence[File], spots: dict[bytes, tuple[Spot, ...]], size: int, count: int) -> Iterator[Share]:
    """`files` in the order in which their first chunks lie in packs, cut into shares of about so many bytes or files.

    Files whose first chunks are in one frame stay together up to twice that.
    """
    keyed = sorted(((_first(file, spots), number) for number, file in enumerate(files)))
    share: list[File] = []
    weight, last = 0, (b"", 0)
    for key, number in keyed:
        file = files[number]
        over = weight >= size or len(share) >= count
        far_over = weight >= 2 * size or len(share) >= 2 * count
        if share and (streams(file.entry) or far_over or (over and key != last)):
            yield _share(share, spots)
            share, weight = [], 0
        share.append(file)
        weight += file.entry.content.length if file.entry.content is not None else 0
        last = key
        if streams(file.entry):
            yield _share(share, spots)
            share, weight = [], 0
    if share:
        yield _share(share, spots)


def _first(file: File, spots: dict[bytes, tuple[Spot, ...]]) -> tuple[bytes, int]:
    """Where the first chunk of a file lies."""
    for id_ in chunks_of(file.entry)[:1]:
        for spot in spots.get(id_, ())[:1]:
            return spot.pack, spot.offset
    return b"", 0


def _share(files: Sequence[File], spots: dict[bytes, tuple[Spot, ...]]) -> Share:
    ids = dict.fromkeys(id_ for file in files for id_ in chunks_of(file.entry))
    return Share(tuple(files), tuple((id_, spots[id_]) for id_ in ids if id_ in spots))


def chunks_of(entry: Entry) -> tuple[bytes, ...]:
    """The data chunks of a file that does not stream."""
    return () if entry.content is None or streams(entry) else entry.content.chunks
