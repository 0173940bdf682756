"""The directory of an lmdb environment: its lock, its examination, its tip and end, and how a damaged one is set aside.

Rules: everything here happens before lmdb opens the file, or after it has closed it.  The directory is never
removed while it may hold something: a damaged one is renamed to `<path>.damaged-<n>` with the reason in it, and the
last KEPT of these stay.  The lock is a file beside the directory, so that it outlives the renaming.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

from contbak.core.errors import StoreError
from contbak.store.kvform import DAMAGED, DATA_FILE, END_FILE, NEVER_BORN, SOUND, TIP_FILE, End, build_tip
from contbak.store.posix import lock_file, replace_file, sync_directory, translated

KEPT = 3
"""Damaged directories that stay."""

LARGE = 10_000
"""Rows of a table that is not examined again soon where that may be trusted."""

_DEFECT_FILE = "damaged"
_REASON_FILE = "reason"
_PACKAGE_ROOT = Path(__file__).parents[2]
_STOPPED = {getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGHUP", "SIGKILL") if hasattr(signal, name)}
_MIN_SECONDS = 120
_SLOWEST = 1 << 20  # bytes/s of a disk that is still taken for a working one


class Home:
    """The directory at `path`.  Between `enter` and `leave` it belongs to this process."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock: int | None = None
        self._tip: int | None = None
        self._examined_s = 0.0

    def enter(self) -> None:
        """Takes the lock; raises StoreError if another has it."""
        try:
            self._lock = lock_file(self.path.with_name(self.path.name + ".lock"))
        except StoreError as error:
            if error.__cause__ is None:
                raise StoreError(f"{self.path} is in use by another process") from None
            raise

    def leave(self) -> None:
        """Gives the lock and the tip back; may be called twice."""
        for fd in (self._tip, self._lock):
            if fd is not None:
                os.close(fd)
        self._tip = self._lock = None

    def prepare(self, trust_s: float = 0.0) -> str | None:
        """Leaves at `path` a sound environment or an empty directory; `trust_s` as for Kv.open.

        Returns why the one that was there was set aside; None if it is sound, if there was none, or if its making
        had been cut short before it was handed to anyone.  Raises StoreError if that cannot be found out now.
        """
        try:
            end = self._take_end()
            now = time.time()
            trusted = end is not None and 0 <= now - end < trust_s
            self._examined_s = end if end is not None and trusted else now
            reason = self._defect(LARGE if trusted else None)
            if reason is not None:
                self._set_aside(reason)
            if not self.path.exists():
                self.path.mkdir(0o700)
                sync_directory(self.path.parent)
        except OSError as error:
            raise translated(error, str(self.path)) from error
        return reason

    def mark(self, reason: str) -> None:
        """Has the next `prepare` set the environment aside."""
        replace_file(self.path / _DEFECT_FILE, reason.encode())

    def set_tip(self, txn: int) -> None:
        """Notes that the transaction has been told.  Durable the first time, later only against a crash of contbak:
        after a power cut an older tip misses damage, which is better than a sync more for each transaction."""
        if self._tip is None:
            replace_file(self.path / TIP_FILE, build_tip(txn))
            self._tip = os.open(self.path / TIP_FILE, os.O_WRONLY | getattr(os, "O_BINARY", 0))
            return
        with suppress(OSError):  # the transaction is durable, whatever becomes of its note
            os.lseek(self._tip, 0, os.SEEK_SET)
            os.write(self._tip, build_tip(txn))

    def note_end(self) -> None:
        """Notes how the data file is left: after lmdb has closed it, and only if all went as it should."""
        if self._lock is None:
            return
        with suppress(OSError, StoreError):  # without the note all of it is examined
            st = (self.path / DATA_FILE).stat()
            end = End(st.st_size, st.st_mtime_ns, st.st_ctime_ns, st.st_ino, self._examined_s)
            replace_file(self.path / END_FILE, end.build())

    def _take_end(self) -> float | None:
        """When the data file was examined, if it is as it was left then.  What was noted is over with this."""
        note = self.path / END_FILE
        try:
            end = End.parse(note.read_bytes())
            note.unlink()
            sync_directory(self.path)  # else a crash could leave it there for a file that was written on
            st = (self.path / DATA_FILE).stat()
        except FileNotFoundError:
            return None
        if end != End(st.st_size, st.st_mtime_ns, st.st_ctime_ns, st.st_ino, end.examined_s if end else 0.0):
            return None
        return end.examined_s

    def _defect(self, rows: int | None) -> str | None:
        """What is wrong with the environment; one whose making was cut short is undone instead."""
        was_told = (self.path / TIP_FILE).exists()
        with suppress(FileNotFoundError):
            return (self.path / _DEFECT_FILE).read_bytes().decode(errors="replace")
        if not (self.path / DATA_FILE).exists():
            return "its file is missing" if was_told else None
        code, text = examine_in_child(self.path, rows)
        if code == NEVER_BORN and not was_told:
            (self.path / DATA_FILE).unlink()
            return None
        return None if code == SOUND else text

    def _set_aside(self, reason: str) -> None:
        with suppress(StoreError):  # the renaming matters more than the note
            replace_file(self.path / _REASON_FILE, reason.encode() + b"\n")
        stem = self.path.name + ".damaged-"
        found = [path.name.removeprefix(stem) for path in self.path.parent.glob(stem + "*")]
        numbers = sorted(int(name) for name in found if name.isdigit())
        self.path.rename(self.path.with_name(f"{stem}{numbers[-1] + 1 if numbers else 1}"))
        sync_directory(self.path.parent)
        for number in numbers[: len(numbers) + 1 - KEPT]:
            shutil.rmtree(self.path.with_name(f"{stem}{number}"), ignore_errors=True)


def examine_in_child(path: Path, rows: int | None = None) -> tuple[int, str]:
    """The exit code and the words of kvcheck; DAMAGED also if it died of what it read or did not come to an end.

    `rows`: only tables up to so many of them are examined.

    Raises StoreError if it could not be run, or was stopped by someone.
    """
    limit = max(_MIN_SECONDS, (path / DATA_FILE).stat().st_size // _SLOWEST)
    command = [sys.executable, "-P", "-m", "contbak.store.kvcheck", os.fspath(path)]
    command += [] if rows is None else [str(rows)]
    environ = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, [str(_PACKAGE_ROOT), *sys.path]))}
    try:
        done = subprocess.run(command, env=environ, stdin=subprocess.DEVNULL, capture_output=True, timeout=limit)
    except subprocess.TimeoutExpired:
        return DAMAGED, f"the examination did not end within {limit} s"
    except OSError as error:
        raise translated(error, "the examination of the index could not be started") from error
    if done.returncode in (SOUND, DAMAGED, NEVER_BORN):
        return done.returncode, done.stdout.decode(errors="replace").strip()
    if done.returncode < 0 and -done.returncode not in _STOPPED:
        return DAMAGED, f"the examination died of signal {-done.returncode}"
    last_words = done.stderr.decode(errors="replace").strip().splitlines()[-1:]
    raise StoreError(f"{path} could not be examined (exit code {done.returncode}): {' '.join(last_words)}")
