"""Puts entries back into a directory: files, links, directories, special files, with all their attributes.

Rules:
- A name appears only when it is complete: data goes to a temporary name in the same directory, is counted and
  hashed, gets its attributes, and is renamed.  What is interrupted leaves nothing behind.
- Nothing in the target is followed, and nothing existing is touched but as `overwrite` says.
- Directories are private and writable while they are filled; `finish` gives them their attributes, deepest first.
- What this user or file system may not do (owner, some attribute) is a note; the data is there.

It does not fetch data, choose versions or sync to disk.
"""

from __future__ import annotations

import enum
import errno
import os
import stat
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Literal

from contbak.core.codec import decode, encode
from contbak.core.entry import BLOCK, CHARACTER, FIFO, FILE, SOCKET, Entry
from contbak.core.errors import FormatError, Partial
from contbak.recall.attributes_out import put_attributes, put_attributes_unopened
from contbak.recall.fill import Hasher, fill
from contbak.recall.target import InTheWay, Target

Overwrite = Literal["never", "if-changed", "always"]
_SPECIAL = {FIFO: stat.S_IFIFO, SOCKET: stat.S_IFSOCK, CHARACTER: stat.S_IFCHR, BLOCK: stat.S_IFBLK}
_CREATE = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_FULL = frozenset((errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO))


class Outcome(enum.Enum):
    """What became of one entry."""

    WRITTEN = "written"
    SAME = "same"
    """if-changed: size and time are those of the entry; left alone."""
    KEPT = "kept"
    """Something else is there and stays there; to be reported."""
    SKIPPED = "skipped"
    """This user or system cannot make such a file; noted."""
    NEEDS_DATA = "needs data"
    """A link that cannot be one here: write it as a file."""


class NotWritten(Partial):
    """One path could not be restored.  Attributes: path (raw bytes), reason, hopeless (the next will fail, too)."""

    def __init__(self, path: bytes, reason: str, hopeless: bool = False) -> None:
        super().__init__(f"{path.decode('utf-8', 'backslashreplace')}: {reason}")
        self.path = path
        self.reason = reason
        self.hopeless = hopeless


class TreeWriter:
    """Writes entries below the directory `target`, which is made if it is not there.

    overwrite  never: what exists stays; if-changed: files are replaced if size or mtime differ; always
    hasher     makes the hash that Content.hash was made with
    note       called with (path, text) for what could not be given back; the file itself is there
    numeric    owners by number even where their names are known here

    All paths are raw, relative to `target`, with `/` between names.  Each call raises NotWritten if the system
    refuses, and FormatError if the entry or its data cannot be right.  Close it, or use it in a `with`.
    """

    def __init__(
        self,
        target: bytes,
        overwrite: Overwrite,
        hasher: Callable[[], Hasher],
        note: Callable[[bytes, str], None],
        numeric: bool = False,
    ) -> None:
        self.target = target
        self.overwrite = overwrite
        self._hasher = hasher
        self._note = note
        self._numeric = numeric
        self._directories: dict[bytes, bytes] = {}
        with _Reported(target):
            self._target = Target(target)

    def __enter__(self) -> TreeWriter:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the target; `finish` is not implied."""
        self._target.close()

    def reach(self, path: bytes) -> None:
        """Makes the directories above `path`, if that is possible; whoever writes there will tell if it is not."""
        with suppress(InTheWay, OSError, FormatError):
            self._target.place(path)

    def lacks(self, path: bytes, entry: Entry) -> bool:
        """Whether it seems that `file` will need the data; a guess that changes nothing but the order of reading."""
        if self.overwrite == "always" or path.rpartition(b"/")[0] in self._target.made:
            return True
        try:
            st = os.lstat(os.path.join(self.target, path))
        except OSError:
            return True
        return self.overwrite == "if-changed" and not _unchanged(st, entry)

    def clear(self, path: bytes) -> bool:
        """Whether nothing can be at `path` but what others put there meanwhile: its directory was made here."""
        return self.overwrite == "never" and path.rpartition(b"/")[0] in self._target.made

    def file(self, path: bytes, entry: Entry, pieces: Iterable[bytes | memoryview], clear: bool = False) -> Outcome:
        """Writes a file from its data in order; `clear` saves the look whether something is there before.

        Raises FormatError, and leaves what was there, if the data is not what `entry.content` says.
        """

        def make(folder: int, name: bytes) -> None:
            fd = os.open(name, _CREATE, 0o600, dir_fd=folder)
            try:
                if fill(path, fd, entry, pieces, self._hasher()) != entry.size:
                    self._note(path, f"it is not of the size recorded, {entry.size}")
                put_attributes(fd, entry, self._numeric, self._noter(path))
            finally:
                os.close(fd)

        return self._put(path, entry, make, clear)

    def link(self, path: bytes, existing: bytes, entry: Entry) -> Outcome:
        """Makes `path` another name of `existing`, which was restored before from an entry with the same data.

        NEEDS_DATA if `existing` is not that file (it was kept, or has changed) or the system makes no such link.
        """
        with _Reported(path):
            try:
                from_folder, from_name = self._target.place(existing)
                st = os.lstat(from_name, dir_fd=from_folder)
            except (InTheWay, FileNotFoundError):
                return Outcome.NEEDS_DATA
        if not _unchanged(st, entry):
            return Outcome.NEEDS_DATA
        try:
            return self._put(path, entry, lambda folder, name: _link(from_folder, from_name, folder, name))
        except _NoLink:
            return Outcome.NEEDS_DATA

    def symlink(self, path: bytes, entry: Entry) -> Outcome:
        """Makes a symlink; where it points does not matter."""

        def make(folder: int, name: bytes) -> None:
            os.symlink(entry.target, name, dir_fd=folder)
            put_attributes_unopened(folder, name, entry, self._numeric, self._noter(path))

        return self._put(path, entry, make)

    def special(self, path: bytes, entry: Entry) -> Outcome:
        """Makes a FIFO, socket or device node; SKIPPED, with a note, where this user may not."""
        if entry.kind not in _SPECIAL:
            raise FormatError(f"{path!r} is no special file")
        device = os.makedev(*_checked_device(path, entry)) if entry.kind in (CHARACTER, BLOCK) else 0

        def make(folder: int, name: bytes) -> None:
            os.mknod(name, _SPECIAL[entry.kind] | 0o600, device, dir_fd=folder)
            put_attributes_unopened(folder, name, entry, self._numeric, self._noter(path))

        try:
            return self._put(path, entry, make)
        except NotWritten as error:
            if not isinstance(error.__cause__, OSError) or error.__cause__.errno != errno.EPERM:
                raise
            self._note(path, "such a file cannot be made here; a device node takes root")
            return Outcome.SKIPPED

    def directory(self, path: bytes, entry: Entry) -> Outcome:
        """Makes a directory that is private until `finish`; before or after what is in it.

        One that exists is filled as it is, and keeps its attributes if `overwrite` is "never".
        """
        with _Reported(path):
            try:
                folder, name = self._target.place(path)
                st = _lstat(folder, name)
                if st is not None and not stat.S_ISDIR(st.st_mode):
                    if self.overwrite == "never":
                        return Outcome.KEPT
                    os.unlink(name, dir_fd=folder)
                    st = None
                if st is None:
                    os.mkdir(name, 0o700, dir_fd=folder)
                    self._target.made.add(path)
                ours = st is None or path in self._directories or path in self._target.made
                if ours:  # whatever mode a default ACL gave it
                    os.fchmod(self._target.directory(path), 0o700)
            except InTheWay:
                return self._blocked(path)
        if not ours and self.overwrite == "never":
            return Outcome.SAME
        self._directories[path] = encode(entry)
        return Outcome.WRITTEN

    def finish(self) -> None:
        """Gives the directories their attributes, each after all that is in it."""
        deepest_first = sorted(self._directories, key=lambda path: path.replace(b"/", b"\0"), reverse=True)
        for path in deepest_first:
            entry = decode(self._directories.pop(path), Entry, "a directory's entry")
            with _Reported(path):
                try:
                    put_attributes(self._target.directory(path), entry, self._numeric, self._noter(path))
                except InTheWay:
                    self._blocked(path)

    def _put(self, path: bytes, entry: Entry, make: Callable[[int, bytes], None], clear: bool = False) -> Outcome:
        """Lets `make` create something under a temporary name and gives it the name of `path`, if it may.

        With `clear` only "never" is possible: it is refused in the end if something is there after all.
        """
        with _Reported(path):
            try:
                folder, name = self._target.place(path)
            except InTheWay:
                return self._blocked(path)
            st = None if clear and self.overwrite == "never" else _lstat(folder, name)
            if st is not None:
                if self.overwrite == "never":
                    return Outcome.KEPT
                if self.overwrite == "if-changed" and _unchanged(st, entry):
                    return Outcome.SAME
                if stat.S_ISDIR(st.st_mode) and not self._removed(path, folder, name):
                    return Outcome.KEPT
            return self._put_fresh(folder, name, make)

    def _put_fresh(self, folder: int, name: bytes, make: Callable[[int, bytes], None]) -> Outcome:
        fresh = self._target.fresh()
        try:
            make(folder, fresh)
            if self.overwrite == "never":
                return Outcome.WRITTEN if _link_to_free(folder, fresh, name) else Outcome.KEPT
            os.rename(fresh, name, src_dir_fd=folder, dst_dir_fd=folder)
            return Outcome.WRITTEN
        finally:  # also after a rename, which does nothing if both are one file already
            with suppress(FileNotFoundError):
                os.unlink(fresh, dir_fd=folder)

    def _removed(self, path: bytes, folder: int, name: bytes) -> bool:
        """Removes the empty directory that is in the way of `path`; False, with a note, if it is not empty."""
        self._target.forget(path)
        try:
            os.rmdir(name, dir_fd=folder)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.EBUSY):
                raise
            self._note(path, "a directory with something in it is in the way and stays")
            return False
        self._directories.pop(path, None)
        self._target.made.discard(path)
        return True

    def _blocked(self, path: bytes) -> Outcome:
        self._note(path, "something that is no directory is in its way and stays")
        return Outcome.KEPT

    def _noter(self, path: bytes) -> Callable[[str], None]:
        return lambda text: self._note(path, text)


class _NoLink(Exception):
    """The system does not make this hard link."""


class _Reported:
    """Turns what the system says no to into NotWritten, and values it cannot even be asked for into FormatError."""

    def __init__(self, path: bytes) -> None:
        self._path = path

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, OSError):
            reason = (error.strerror or str(error)).lower()
            raise NotWritten(self._path, reason, hopeless=error.errno in _FULL) from error
        if isinstance(error, (OverflowError, ValueError)):
            raise FormatError(f"{self._path!r} has attributes that no file can have: {error}") from error


def _lstat(folder: int, name: bytes) -> os.stat_result | None:
    try:
        return os.lstat(name, dir_fd=folder)
    except FileNotFoundError:
        return None


def _unchanged(st: os.stat_result, entry: Entry) -> bool:
    return stat.S_ISREG(st.st_mode) and entry.kind == FILE and (st.st_size, st.st_mtime_ns) == (entry.size, entry.mtime)


def _link(from_folder: int, from_name: bytes, folder: int, name: bytes) -> None:
    try:
        os.link(from_name, name, src_dir_fd=from_folder, dst_dir_fd=folder, follow_symlinks=False)
    except OSError as error:
        if error.errno in (errno.EXDEV, errno.EMLINK, errno.EPERM, errno.ENOTSUP, errno.ENOENT):
            raise _NoLink from None
        raise


def _link_to_free(folder: int, fresh: bytes, name: bytes) -> bool:
    """Gives `fresh` the name, too, unless it is taken by now: a link is refused then, where a rename would replace."""
    try:
        os.link(fresh, name, src_dir_fd=folder, dst_dir_fd=folder, follow_symlinks=False)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.EMLINK, errno.ENOSYS):
            raise
        if _lstat(folder, name) is not None:
            return False
        os.rename(fresh, name, src_dir_fd=folder, dst_dir_fd=folder)  # no links here: the best there is
    return True


def _checked_device(path: bytes, entry: Entry) -> tuple[int, int]:
    if entry.rdev is None or not (0 <= entry.rdev[0] < 1 << 12 and 0 <= entry.rdev[1] < 1 << 20):
        raise FormatError(f"{path!r} has no device number that exists")
    return entry.rdev
