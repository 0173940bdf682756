"""A store in a directory, and the few ways in which contbak makes bytes on a disk durable.

Rules: bytes are written under a temporary name in the directory where they will stay, synced, and only then given
their name; the directory is synced before anyone is told.  A failed sync is never tried again on the same file (the
kernel may have dropped the pages and would report success): it is raised, and the file is thrown away.

Does not detect silent damage; whoever reads verifies.  Hard links make creation exclusive; on a file system without
them it is exclusive only among the threads of one process.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
import shutil
import sys
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from threading import Lock

from contbak.core.errors import AlreadyExists, ContbakError, FormatError, NotFound, StoreError, StoreFull
from contbak.store.base import Data, Store, check_name, check_range, is_name, locate, parts_of

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

TEMP_PREFIX = ".tmp-"
"""How the names of unfinished files begin; what is left of them after a crash may be removed."""

_FULL = {errno.ENOSPC, errno.EDQUOT}
_ABSENT = {errno.ENOENT, errno.ENOTDIR, errno.EISDIR}
_NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EACCES}
_NO_SYNC = {errno.EINVAL, errno.ENOTSUP, errno.ENOTTY}
_FILE_MODE = 0o600
_DIRECTORY_MODE = 0o700
_BINARY = getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)
_TEMP = re.compile(re.escape(TEMP_PREFIX) + r"[0-9a-f]{16}")


def translated(error: OSError, what: str) -> ContbakError:
    """The error of contbak that says what `error` says; `what` names the thing at hand."""
    if error.errno in _FULL:
        return StoreFull(f"{what}: there is no space left")
    return StoreError(f"{what}: {error.strerror or error}")


def sync_file(fd: int) -> None:
    """Makes the bytes of an open file durable, on macOS also past the cache of the disk.  Raises StoreError."""
    try:
        if sys.platform == "darwin":
            try:
                fcntl.fcntl(fd, fcntl.F_FULLFSYNC)
                return
            except OSError as error:
                if error.errno not in _NO_SYNC:  # network file systems know only fsync
                    raise
        os.fsync(fd)
    except OSError as error:
        raise translated(error, "a file could not be synced") from error


def sync_directory(path: Path) -> None:
    """Makes the names in the directory durable.  Raises StoreError.  Does nothing where directories have no sync."""
    if sys.platform == "win32":
        return
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
    except OSError as error:
        if error.errno not in _NO_SYNC:
            raise translated(error, f"the directory {path} could not be synced") from error


def replace_file(path: Path, data: bytes, mode: int = _FILE_MODE) -> None:
    """Makes `data` the content of `path`, which is whole at every moment; durable on return.

    For small files that hold state.  Raises StoreError, StoreFull; then the old content is still there.
    """
    temp = path.with_name(_temp_name())
    try:
        _write_synced(temp, (data,), mode)
        os.replace(temp, path)
    except OSError as error:
        raise translated(error, str(path)) from error
    finally:
        with suppress(OSError):
            os.unlink(temp)
    sync_directory(path.parent)


def lock_file(path: Path) -> int:
    """A descriptor that holds the lock of `path` until it is closed or the process ends.

    Makes the file if there is none; it is never removed.  Raises StoreError if the lock is held.
    """
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | _BINARY, _FILE_MODE)
    except OSError as error:
        raise translated(error, str(path)) from error
    try:
        if sys.platform == "win32":
            msvcrt.locking(fd, msvcrt.LK_NBLCK, 1)
        else:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(fd)
        if error.errno in (errno.EAGAIN, errno.EACCES, errno.EDEADLK):
            raise StoreError(f"{path} is in use by another process") from None
        raise translated(error, str(path)) from error
    return fd


def _temp_name() -> str:
    return TEMP_PREFIX + secrets.token_hex(8)


def _write_synced(path: Path, parts: Iterable[bytes | memoryview], mode: int) -> None:
    """A new file of these bytes, synced; what was written of it stays behind after an error."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _BINARY, mode)
    try:
        for part in parts:
            left = memoryview(part).cast("B")
            while left:
                left = left[os.write(fd, left) :]
        sync_file(fd)
    finally:
        os.close(fd)


class PosixStore(Store):
    """The objects are files below `root`; a name is a path.

    `root` is made if only it is missing.  Should it vanish later (an unmounted disk), every call is a StoreError:
    it is never made again and never taken for an empty store.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._known: set[Path] = {root}  # directories whose own names are durable
        self._writing: set[Path] = set()
        self._lock = Lock()
        try:
            root.mkdir(_DIRECTORY_MODE)
        except FileExistsError:
            self._check_root()
        except OSError as error:
            raise translated(error, str(root)) from error
        sync_directory(root.parent)

    def put_new(self, name: str, data: Data) -> None:
        path = self.path_of(name)
        self._refuse_existing(name, path)
        temp = path.with_name(_temp_name())
        self._writing.add(temp)
        try:
            self._make_parents(path.parent)
            _write_synced(temp, parts_of(data), _FILE_MODE)
            self._link(name, temp, path)
        except OSError as error:
            raise translated(error, name) from error
        finally:
            with suppress(OSError):
                os.unlink(temp)
            self._writing.discard(temp)

    def adopt(self, name: str, path: Path) -> None:
        """Makes the finished, synced file at `path` the object `name`, without a copy; durable on return.

        `path` must be on the same file system and is gone afterwards.  Raises as `put_new`; then the file is still
        at `path`.  A crash in between may leave both names: AlreadyExists then says that the object is whole.
        """
        target = self.path_of(name)
        self._refuse_existing(name, target)
        try:
            self._make_parents(target.parent)
            self._link(name, path, target)
            with suppress(FileNotFoundError):
                os.unlink(path)
        except OSError as error:
            raise translated(error, name) from error
        sync_directory(path.parent)

    def get(self, name: str) -> bytes:
        return self._read(name, None)

    def get_range(self, name: str, offset: int, length: int) -> bytes:
        check_range(offset, length)
        return self._read(name, (offset, length))

    def size(self, name: str) -> int:
        path = self.path_of(name)
        try:
            if path.is_file():
                return path.stat().st_size
        except OSError as error:
            raise self._unreadable(name, error) from None
        raise self._unreadable(name, FileNotFoundError(errno.ENOENT, "no such file"))

    def list(self, prefix: str) -> Iterator[tuple[str, int]]:
        self._check_root()
        folder = prefix.rpartition("/")[0]
        if folder and not is_name(folder):
            return iter(())
        return self._walk(folder + "/" if folder else "", prefix)

    def delete(self, name: str) -> None:
        path = self.path_of(name)
        try:
            os.unlink(path)
        except OSError as error:
            raise self._unreadable(name, error) from None
        sync_directory(path.parent)

    def free(self) -> int | None:
        try:
            return shutil.disk_usage(self.root).free
        except OSError as error:
            raise translated(error, str(self.root)) from error

    def path_of(self, name: str) -> Path:
        """Where the object is or would be.  For reading; never write there."""
        return self.root / check_name(name)

    def sweep(self) -> int:
        """Removes what unfinished writes of earlier processes left; returns how many files that were.

        Only for a time when no other process writes here; writes of this process are left alone.
        """
        self._check_root()
        gone = 0
        for folder, _, files in os.walk(self.root):
            for temp in (Path(folder, file) for file in files if _TEMP.fullmatch(file)):
                if temp not in self._writing:
                    with suppress(OSError):
                        os.unlink(temp)
                        gone += 1
        return gone

    def _check_root(self) -> None:
        if not self.root.is_dir():
            raise StoreError(f"{self.root} is not there; is its disk mounted?")

    def _unreadable(self, name: str, error: OSError) -> ContbakError:
        if error.errno in _ABSENT or (error.errno == errno.EPERM and self.path_of(name).is_dir()):
            self._check_root()
            return NotFound(f"there is no {name}")
        return translated(error, name)

    def _refuse_existing(self, name: str, path: Path) -> None:
        if path.is_file():
            sync_directory(path.parent)  # whoever made it may not have come that far
            raise AlreadyExists(f"{name} is already there")
        if path.exists():
            raise StoreError(f"{name} cannot be made: there is a folder of that name")

    def _make_parents(self, folder: Path) -> None:
        """Makes the folders down to `folder` that are missing, durably; never the root."""
        if folder == self.root:
            self._check_root()
            return
        if folder in self._known and folder.is_dir():
            return
        self._make_parents(folder.parent)
        with suppress(FileExistsError):
            folder.mkdir(_DIRECTORY_MODE)
        sync_directory(folder.parent)  # also if another made it: its sync may still be to come
        self._known.add(folder)

    def _link(self, name: str, source: Path, target: Path) -> None:
        """Gives the file a second name, if that is free, and makes that durable; leaves no name behind on failure."""
        try:
            os.link(source, target, follow_symlinks=False)
        except FileExistsError:
            self._refuse_existing(name, target)
            raise
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            self._rename_new(name, source, target)
        try:
            sync_directory(target.parent)
        except StoreError:
            with suppress(OSError):  # else the next put would take it for a durable object
                os.replace(target, source)  # does nothing if both are names of one file
                os.unlink(target)
            raise

    def _rename_new(self, name: str, source: Path, target: Path) -> None:
        with self._lock:
            self._refuse_existing(name, target)
            os.rename(source, target)

    def _read(self, name: str, span: tuple[int, int] | None) -> bytes:
        path = self.path_of(name)
        try:
            with open(path, "rb", buffering=0) as file:
                size = os.fstat(file.fileno()).st_size
                start, count = (0, size) if span is None else locate(name, *span, size)
                file.seek(start)
                data = _read_exactly(file.fileno(), count)
        except OSError as error:
            raise self._unreadable(name, error) from None
        if len(data) != count:
            raise FormatError(f"{name} became shorter while it was read")
        return data

    def _walk(self, folder: str, prefix: str) -> Iterator[tuple[str, int]]:
        """The objects of a folder ("" or ending in a slash) in the order of their full names."""
        for path in _sorted_entries(self.root / folder, folder):
            if not (path.startswith(prefix) or prefix.startswith(path)):
                continue
            if path.endswith("/"):
                yield from self._walk(path, prefix)
            elif path.startswith(prefix):
                with suppress(FileNotFoundError):
                    yield path, os.stat(self.root / path).st_size


def _read_exactly(fd: int, count: int) -> bytes:
    """`count` bytes, fewer only at the end of the file."""
    first = os.read(fd, count)
    if len(first) == count:
        return first
    parts = [first]
    while parts[-1] and (left := count - sum(map(len, parts))):
        parts.append(os.read(fd, left))
    return b"".join(parts)


def _sorted_entries(directory: Path, folder: str) -> list[str]:
    """The full names below, folders with a slash at the end so that they sort where their objects belong."""
    try:
        with os.scandir(directory) as entries:
            found = [
                folder + entry.name + ("/" if entry.is_dir(follow_symlinks=False) else "")
                for entry in entries
                if is_name(entry.name) and not entry.is_symlink()
            ]
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise translated(error, str(directory)) from error
    return sorted(found)
