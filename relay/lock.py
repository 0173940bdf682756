"""One relay per RELAY_HOME: a lock that ends with its process, and the process id beside it."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from pathlib import Path

from contbak.core.errors import Refused, StoreError
from contbak.store.posix import lock_file


def take(top: Path, wait_s: float) -> int:
    """A descriptor that holds the lock; waits so long for a predecessor to end.  Raises Refused."""
    ends = time.monotonic() + wait_s
    while True:
        try:
            fd = lock_file(_path(top))
            break
        except StoreError:
            if time.monotonic() >= ends:
                raise Refused(f"another relay runs at {top}; end it first") from None
            time.sleep(0.1)
    os.ftruncate(fd, 0)
    os.pwrite(fd, str(os.getpid()).encode(), 0)
    return fd


def running(top: Path) -> int | None:
    """The process id of the relay that runs at `top`, None if none does."""
    path = _path(top)
    if not path.exists():
        return None
    try:
        os.close(lock_file(path))
    except StoreError:
        with suppress(OSError, ValueError):
            return int(path.read_text())
    return None


def _path(top: Path) -> Path:
    return top / "lock"
