"""Puts files back: from a moment of the history into a directory, as `cp -a PATH DIR/` would.

Rules: every chunk and every whole file is verified; a file appears under its name only when it is complete.
What exists is kept unless told otherwise.  What is damaged stops nothing: a file with lost chunks comes back with
holes in their place, if its name is free, and is listed with the ranges; a part of the tree that cannot be read
is listed.  Nothing is ever silently wrong.

This process walks the tree and makes what is no file; recall/files.py has the files written.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import BinaryIO, NamedTuple

from contbak.core.crypto import Hasher
from contbak.core.entry import DIRECTORY, FILE, SYMLINK, Entry
from contbak.core.errors import ContbakError, FormatError, NotFound, Partial
from contbak.core.tree import KeyRange
from contbak.core.view import BARE_TOP, View
from contbak.recall import content
from contbak.recall.chunks import Chunks
from contbak.recall.files import Files
from contbak.recall.report import Problem, Report
from contbak.recall.share import Account, File, tally
from contbak.recall.snapshots import Located
from contbak.recall.writer import NotWritten, Overwrite, TreeWriter

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
            with run.files:
                for one in what:
                    run.one(one)
                run.files.end()
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


class _Restore:
    """One run: the walk through the trees, and all that is no file."""

    def __init__(self, chunks: Chunks, target: bytes, overwrite: Overwrite, progress: Progress | None) -> None:
        self.report = Report()
        self.writer = TreeWriter(target, overwrite, Hasher, self._note)
        self.files = Files(chunks, self.writer, self._told)
        self._chunks = chunks
        self._target = target
        self._progress = progress
        self._lost_nodes: set[tuple[bytes, bytes]] = set()
        self._walking = b""
        self._merging = False

    def one(self, wanted: Wanted) -> None:
        """Restores one thing and all that is in it."""
        for path, entry in self._entries(wanted):
            if self.files.stopped:
                return
            if entry.kind == FILE:
                self.files.add(File(path, entry, self.writer.clear(path)))
            else:
                self._make(path, entry)

    def finish(self) -> None:
        """Gives the directories their attributes."""
        try:
            self.writer.finish()
        except NotWritten as error:
            self._fail(error.path, error.reason)
        except FormatError as error:
            self._fail(self._target, str(error))

    def _entries(self, wanted: Wanted) -> Iterator[tuple[bytes, Entry]]:
        """The thing itself and what is beneath, directories first."""
        self._walking = wanted.name
        view = View(wanted.roots, self._chunks.node, self._lost)
        entry = self._top(view, wanted)
        if entry is None:
            return
        if wanted.name:
            yield wanted.name, entry
        if entry.kind == DIRECTORY:
            for path, below in view.walk(entry.dir, wanted.name):
                self._walking = path
                yield path, below

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

    def _make(self, path: bytes, entry: Entry) -> None:
        """Makes what is no file."""
        try:
            if entry.kind == DIRECTORY:
                outcome = self.writer.directory(path, entry)
            elif entry.kind == SYMLINK:
                outcome = self.writer.symlink(path, entry)
            else:
                outcome = self.writer.special(path, entry)
            tally(self.report, path, entry.kind, outcome)
        except NotWritten as error:
            self._fail(path, error.reason)
            if error.hopeless:
                self.report.stopped = error.reason
                self.files.stopped = True
        except FormatError as error:
            self._fail(path, str(error))

    # -- reporting ----------------------------------------------------------------------------------------------

    def _told(self, account: Account) -> None:
        """Takes the account of a share."""
        self.report.merge(account.report)
        if self._progress is not None:
            self._progress(self.report)

    def _lost(self, id_: bytes, keys: KeyRange, error: ContbakError) -> None:
        """Part of a tree cannot be read."""
        near = self._walking
        if (id_, near) in self._lost_nodes:
            return
        self._lost_nodes.add((id_, near))
        first, last = (_shown(key[1]) if key is not None and key[1] else "..." for key in keys)
        what = "recent changes are lost, so some of it may be older" if self._merging else "part of the tree is lost"
        self._fail(near, f"{what}: names from {first!r} to {last!r} here: {error}")

    def _note(self, path: bytes, text: str) -> None:
        self.report.add("notes", Problem(path, text))

    def _fail(self, path: bytes, reason: str) -> None:
        self.report.add("failed", Problem(path, reason))


def _zeros(out: BinaryIO, count: int) -> None:
    while count > 0:
        out.write(_ZEROS[: min(count, len(_ZEROS))])
        count -= len(_ZEROS)


def _shown(path: bytes) -> str:
    return path.decode("utf-8", "backslashreplace")
