"""The files of a restore on their way to whoever writes them: windows, shares, names that are one file.

Rules: a directory is made before a file in it is handed out.  A file with several names is written once, under the
first of them; the others wait until it is there, and are linked to it if they are the same.  A restore of a few files
starts no process.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Callable

from contbak.core.entry import FILE, Entry
from contbak.core.errors import FormatError
from contbak.recall.chunks import Chunks
from contbak.recall.place import Lent
from contbak.recall.report import Problem, Report
from contbak.recall.share import Account, File, Filer, Share, chunks_of, shares, tally
from contbak.recall.team import Parent, Team, possible
from contbak.recall.writer import NotWritten, Outcome, TreeWriter

WINDOW_FILES = 4096
WINDOW_BYTES = 256 << 20
"""Files that are put in order together: at most so many, or of so many bytes."""
SHARE_FILES = 512
SHARE_BYTES = 4 << 20
"""A share of them."""
TEAM_MAX = 6
CHILD_CACHE = 8 << 20
"""Bytes of opened frames that a child keeps..."""
CHILD_WINDOW = 2 << 20
"""...and bytes of frames that it reads ahead: what one of them waits for, the others use."""
CHILD_THREADS = 2
LINKS_KEPT = 200_000
"""Hard-link groups whose first name is remembered."""
LATER_MAX = 10_000
"""Further names of such groups that wait for the first to be written."""

Told = Callable[[Account], None]


class Files:
    """Takes files as they are found and has them written below the target of `writer`.

    told   gets the account of every share
    Use it in a `with`: leaving by an exception interrupts what is under way.
    """

    def __init__(self, chunks: Chunks, writer: TreeWriter, told: Told) -> None:
        self.stopped = False
        """Whether an account said that nothing more can be written; what is added after it is dropped."""
        self._chunks = chunks
        self._writer = writer
        self._told = told
        self._window: list[File] = []
        self._size = 0
        self._folder = b""
        self._links: OrderedDict[bytes, File] = OrderedDict()
        self._begun: set[bytes] = set()
        self._later: list[File] = []
        self._team: Team | None = None
        self._own: Filer | None = None

    def __enter__(self) -> Files:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if self._team is not None:
            self._team.close(interrupt=kind is not None)
        if self._own is not None:
            self._own.close()

    def add(self, file: File) -> None:
        """Takes a file.  Raises what ends a restore."""
        if file.entry.link:
            if file.entry.link in self._links or file.entry.link in self._begun:
                self._later.append(file)
                if len(self._later) >= LATER_MAX or len(self._begun) >= LINKS_KEPT:
                    self.end()
                return
            self._begun.add(file.entry.link)
        folder = file.path.rpartition(b"/")[0]
        if folder != self._folder:
            self._writer.reach(file.path)
            self._folder = folder
        self._window.append(file)
        self._size += file.entry.content.length if file.entry.content is not None else 0
        if len(self._window) >= WINDOW_FILES or self._size >= WINDOW_BYTES:
            self._hand_out(False)

    def end(self) -> None:
        """Returns when everything that was added is written."""
        self._hand_out(True)
        if self._team is not None:
            self._team.drain()
        self._begun.clear()
        later, self._later = self._later, []
        for file in later:
            self._link(file)

    def _hand_out(self, last: bool) -> None:
        files, self._window, self._size = self._window, [], 0
        if not files or self.stopped:
            return
        cut = self._cut(files)
        if self._team is None and possible() and not (last and len(cut) == 1):
            self._team = Team(_size(), self._work, self._chunks.place.locate, self._take)
        for share in cut:
            if self.stopped:
                return
            if self._team is not None:
                self._team.give(share)
            else:
                self._take(share, self._mine().do(share))

    def _cut(self, files: list[File]) -> list[Share]:
        """Shares with the places of their chunks, but for files that seem to be there already."""
        lacking = (file for file in files if self._writer.lacks(file.path, file.entry))
        ids = dict.fromkeys(id_ for file in lacking for id_ in chunks_of(file.entry))
        spots = dict(zip(ids, self._chunks.place.locate(list(ids)), strict=True)) if ids else {}
        return list(shares(files, spots, SHARE_BYTES, SHARE_FILES))

    def _take(self, share: Share, account: Account) -> None:
        for number in account.there:
            file = share.files[number]
            if file.entry.link:
                self._links[file.entry.link] = file
                if len(self._links) > LINKS_KEPT:
                    self._links.popitem(last=False)
        self.stopped = self.stopped or bool(account.report.stopped)
        self._told(account)

    def _link(self, file: File) -> None:
        """One more name of a file that is there; a file of its own if that cannot be."""
        if self.stopped:
            return
        known = self._links.get(file.entry.link)
        account = Account(Report(), [])
        try:
            outcome = Outcome.NEEDS_DATA
            if known is not None and _same_file(known.entry, file.entry):
                outcome = self._writer.link(file.path, known.path, file.entry)
            if outcome is Outcome.NEEDS_DATA:
                share = Share((file,), ())
                return self._take(share, self._mine().do(share))
            tally(account.report, file.path, FILE, outcome)
        except NotWritten as error:
            account.report.add("failed", Problem(file.path, error.reason))
            account.report.stopped = error.reason if error.hopeless else ""
        except FormatError as error:
            account.report.add("failed", Problem(file.path, str(error)))
        self._take(Share((file,), ()), account)

    def _mine(self) -> Filer:
        """Does shares in this process."""
        if self._own is None:
            self._own = Filer(self._chunks, self._writer.target, self._writer.overwrite)
        return self._own

    def _work(self, parent: Parent) -> Callable[[Share], Account]:
        """What a child does with a share."""
        source = Lent(self._chunks.place.reader(), parent.locate)
        chunks = Chunks(source, self._chunks.opener, CHILD_CACHE, CHILD_THREADS, CHILD_WINDOW)
        return Filer(chunks, self._writer.target, self._writer.overwrite).do


def _size() -> int:
    """How many children: one waits for its packs while others have the processors."""
    return min(TEAM_MAX, (os.cpu_count() or 1) + 1)


def _same_file(one: Entry, other: Entry) -> bool:
    """Whether two names of one link group may be one file again: same content and same attributes."""
    return one.content == other.content and (one.mode, one.uid, one.gid, one.mtime, one.size, one.xattrs) == (
        other.mode, other.uid, other.gid, other.mtime, other.size, other.xattrs
    )  # fmt: skip
