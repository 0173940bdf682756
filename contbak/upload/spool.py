"""The spool: sealed packs in a directory, until the relay's receipt for them is here.

A file is a whole pack (body and plan) under the hex of its root, so its name says what its bytes must be.

Rules: a pack is written under a temporary name and renamed; it is synced only when asked, because what a power cut
takes from the spool comes again from the sources.  Nothing here is trusted because it is there: `check` and `clear`
compare hashes, and a damaged pack is dropped with a reason.  Several processes may write to one spool; one of them,
the owner, clears it at start.

It does not decide when a pack may go (the app does, with a receipt in hand) and cannot read what packs hold.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from contbak.core import pack
from contbak.core.crypto import digest
from contbak.core.errors import ContbakError, FormatError, NotFound
from contbak.core.names import ID_LEN, PackId, from_hex
from contbak.core.pack import Plan
from contbak.store.posix import sync_directory, sync_file, translated

SUFFIX = ".pack"
_TEMP_PREFIX = ".tmp-"
_READ = 1 << 20
_numbers = itertools.count()


class PackFile:
    """One pack that is being written.  Leaving the context without `finish` removes it."""

    def __init__(self, spool: Spool, path: Path) -> None:
        self._spool = spool
        self._path = path
        try:
            self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise translated(error, f"the spool {spool.dir}") from error
        self._done = False

    def append(self, pieces: Iterable[bytes | memoryview]) -> None:
        """Writes `pieces` at the end.  Raises StoreFull, StoreError."""
        try:
            for piece in pieces:
                rest = memoryview(piece)
                while rest:
                    rest = rest[os.write(self._fd, rest) :]
        except OSError as error:
            raise translated(error, f"the spool {self._spool.dir}") from error

    def finish(self, plan: Plan, sync: bool = False) -> PackId:
        """Gives the file its name; its bytes must be those of `plan`.  `sync`: make it durable.  Raises StoreError."""
        try:
            if sync:
                sync_file(self._fd)
            os.rename(self._path, self._spool.path_of(plan.root))
            if sync:
                sync_directory(self._spool.dir)
        except OSError as error:
            raise translated(error, f"the spool {self._spool.dir}") from error
        self._done = True
        self.close()
        return plan.root

    def close(self) -> None:
        """Ends the writing; an unfinished file is removed."""
        if self._fd < 0:
            return
        fd, self._fd = self._fd, -1
        os.close(fd)
        if not self._done:
            with suppress(OSError):
                self._path.unlink(missing_ok=True)

    def __enter__(self) -> PackFile:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


class Spool:
    """The packs in `directory` (made if it is missing, mode 0700).  `budget`: bytes that it should not exceed."""

    def __init__(self, directory: Path, budget: int) -> None:
        self.dir = directory
        self.budget = budget
        try:
            directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise translated(error, f"the spool {directory}") from error

    def path_of(self, root: PackId) -> Path:
        """Where the pack `root` is or would be."""
        if len(root) != ID_LEN:
            raise FormatError(f"a pack's id must be {ID_LEN} bytes, not {len(root)}")
        return self.dir / (root.hex() + SUFFIX)

    def writer(self) -> PackFile:
        """A new pack, to be used in a `with` block or closed.  Raises StoreError."""
        return PackFile(self, self.dir / f"{_TEMP_PREFIX}{os.getpid()}-{next(_numbers)}")

    def packs(self) -> list[PackId]:
        """The finished packs, oldest first."""
        found = []
        for item in self._scan():
            root = _root_of(item.name)
            if root is not None:
                with suppress(OSError):  # removed meanwhile
                    found.append((item.stat().st_mtime_ns, root))
        return [root for _, root in sorted(found)]

    def plan(self, root: PackId) -> Plan:
        """The plan at the end of the pack's file.  Raises NotFound, or FormatError if it is damaged or cut short."""
        with _Opened(self, root) as file:
            size = file.size()
            if size < pack.TRAILER_LEN:
                raise FormatError("a spooled pack is cut short")
            length = pack.plan_length(file.read(size - pack.TRAILER_LEN, pack.TRAILER_LEN))
            if length > min(size, pack.PLAN_MAX):
                raise FormatError("a spooled pack is cut short")
            plan = pack.parse_plan(file.read(size - length, length))
            if plan.root != root or plan.file_len != size:
                raise FormatError("a spooled pack is not the one its name says")
            return plan

    def read(self, root: PackId, offset: int, length: int) -> bytes:
        """`length` bytes from `offset`.  Raises NotFound, StoreError, or FormatError if the file ends before."""
        with _Opened(self, root) as file:
            return file.read(offset, length)

    def check(self, root: PackId) -> None:
        """Reads the whole pack.  Raises FormatError unless every byte is what its name says; NotFound."""
        plan = self.plan(root)
        with _Opened(self, root) as file:
            for index, wanted in enumerate(plan.hashes):
                if digest(file.read(*plan.span(index))) != wanted:
                    raise FormatError(f"segment {index} of a spooled pack is damaged")

    def remove(self, root: PackId) -> None:
        """Removes the pack; fine if it is gone already.  Raises StoreError."""
        try:
            self.path_of(root).unlink(missing_ok=True)
        except OSError as error:
            raise translated(error, f"the spool {self.dir}") from error

    def clear(self) -> list[tuple[PackId, str]]:
        """At start, before anyone writes: removes unfinished files and drops damaged packs, as (root, reason).

        Reads everything.  What a dropped pack held is read from the sources again, since no receipt names it.
        """
        self.sweep()
        dropped = []
        for root in self.packs():
            try:
                self.check(root)
            except NotFound:
                continue
            except ContbakError as error:
                self.remove(root)
                dropped.append((root, str(error)))
        return dropped

    def sweep(self, pid: int | None = None) -> None:
        """Removes the unfinished files of the process `pid`, which is dead; of all processes if None."""
        prefix = _TEMP_PREFIX if pid is None else f"{_TEMP_PREFIX}{pid}-"
        for item in self._scan():
            if item.name.startswith(prefix):
                with suppress(OSError):
                    os.unlink(item.path)

    def sync(self, roots: Iterable[PackId]) -> None:
        """Makes these packs durable on this machine.  Raises NotFound, StoreError."""
        for root in roots:
            with _Opened(self, root) as file:
                sync_file(file.fd)
        sync_directory(self.dir)

    def size(self) -> int:
        """Bytes of all files, unfinished ones too.  Looks at each file: not for inner loops."""
        total = 0
        for item in self._scan():
            with suppress(OSError):
                total += item.stat().st_size
        return total

    @property
    def over_budget(self) -> bool:
        """Whether the finished packs take more than the budget.

        Unfinished ones do not count: whoever waits for room could not finish them, and nothing would ever go.
        """
        total = 0
        for item in self._scan():
            if item.name.endswith(SUFFIX):
                with suppress(OSError):
                    total += item.stat().st_size
        return total > self.budget

    def _scan(self) -> list[os.DirEntry[str]]:
        try:
            with os.scandir(self.dir) as found:
                return list(found)
        except OSError as error:
            raise translated(error, f"the spool {self.dir}") from error


class _Opened:
    """A pack's file, open for reading."""

    def __init__(self, spool: Spool, root: PackId) -> None:
        try:
            self.fd = os.open(spool.path_of(root), os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            raise NotFound(f"the spool has no pack {root.hex()}") from None
        except OSError as error:
            raise translated(error, f"the spool {spool.dir}") from error

    def size(self) -> int:
        return os.fstat(self.fd).st_size

    def read(self, offset: int, length: int) -> bytes:
        parts = []
        while length > 0:
            try:
                part = os.pread(self.fd, min(length, _READ), offset)
            except OSError as error:
                raise translated(error, "a spooled pack") from error
            if not part:
                raise FormatError("a spooled pack is cut short")
            parts.append(part)
            offset += len(part)
            length -= len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def __enter__(self) -> _Opened:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        os.close(self.fd)


def _root_of(name: str) -> PackId | None:
    if not name.endswith(SUFFIX):
        return None
    try:
        return PackId(from_hex(name.removesuffix(SUFFIX), ID_LEN, "a pack's name"))
    except FormatError:
        return None
