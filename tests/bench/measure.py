"""What a command cost: wall clock, CPU of every process that worked for it, peak memory.

CPU is that of the command and all its descendants (`wait4`, with orphans adopted and waited for) plus what servers that
run beside it (a relay, a daemon) used from its start until they are idle again.  Memory is the highest sum of RssAnon
over the process tree, sampled every 50 ms; so page cache and mapped files do not count, and a copied-on-write page of
a forked worker counts in each process that has it.  Linux only.  Judges nothing.
"""

from __future__ import annotations

import ctypes
import os
import resource
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

SAMPLE_S = 0.05
_IDLE_S = 0.3
_PATIENCE_S = 30.0
_TICK = os.sysconf("SC_CLK_TCK")
_PR_SET_CHILD_SUBREAPER = 36


class CommandFailed(Exception):
    """A measured command ended with another code than 0; the text is the end of what it said."""


@dataclass(frozen=True)
class Usage:
    """Seconds and MiB.  `server_*`: the part of the processes beside; not in the others."""

    wall_s: float
    user_s: float
    sys_s: float
    peak_mib: float
    server_cpu_s: float = 0.0
    server_peak_mib: float = 0.0

    @property
    def cpu_s(self) -> float:
        """Of everything that worked."""
        return self.user_s + self.sys_s + self.server_cpu_s


@dataclass
class Command:
    """What to run, in which environment (added to a bare one) and directory, beside which servers (process ids)."""

    words: Sequence[str]
    env: Mapping[str, str] = field(default_factory=dict)
    cwd: Path | None = None
    beside: Sequence[int] = ()


def environment(more: Mapping[str, str]) -> dict[str, str]:
    """The few variables that every command sees, and `more`."""
    kept = ("PATH", "LANG", "LC_ALL", "TZ", "HOME", "TMPDIR")
    return {name: os.environ[name] for name in kept if name in os.environ} | dict(more)


def run(command: Command) -> Usage:
    """Runs it to its end.  Raises CommandFailed."""
    adopt_orphans()
    before, strangers = cpu_of(command.beside), _children()
    log = os.memfd_create("output")
    started = time.monotonic()
    process = subprocess.Popen(
        [*command.words], env=environment(command.env), cwd=command.cwd, stdin=subprocess.DEVNULL, stdout=log,
        stderr=log,
    )  # fmt: skip
    own, server = Peak([process.pid]), Peak(command.beside)
    with own, server:
        _, status, used = os.wait4(process.pid, 0)
        wall = time.monotonic() - started
    process.returncode = code = os.waitstatus_to_exitcode(status)
    left = _reap(strangers)
    said = os.pread(log, 1 << 20, max(0, os.fstat(log).st_size - 2000)).decode(errors="replace")
    os.close(log)
    if code:
        raise CommandFailed(f"{' '.join(command.words)}: exit {code}: {said.strip()[-500:]}")
    server_cpu = idle_cpu(command.beside) - before if command.beside else 0.0
    return Usage(wall, used.ru_utime + left[0], used.ru_stime + left[1], own.mib, server_cpu, server.mib)


def adopt_orphans() -> None:
    """Descendants whose parents end without waiting for them become children of this process (`prctl`)."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def _children() -> set[int]:
    """The processes that this one is the parent of."""
    found: set[int] = set()
    for task in os.listdir("/proc/self/task"):
        with suppress(OSError):
            found.update(map(int, Path(f"/proc/self/task/{task}/children").read_bytes().split()))
    return found


def _reap(strangers: set[int]) -> tuple[float, float]:
    """User and system seconds of the orphans that became children of this process; waits until they have ended."""
    user = system = 0.0
    deadline = time.monotonic() + _PATIENCE_S
    while (left := _children() - strangers) and time.monotonic() < deadline:
        for pid in left:
            with suppress(ChildProcessError):
                found, _, used = os.wait4(pid, os.WNOHANG)
                if found:
                    user, system = user + used.ru_utime, system + used.ru_stime
        time.sleep(0.01)
    return user, system


def descendants(roots: Sequence[int]) -> Iterator[int]:
    """`roots` and everything below them that lives now."""
    todo = list(roots)
    while todo:
        pid = todo.pop()
        yield pid
        with suppress(OSError):
            for thread in os.listdir(f"/proc/{pid}/task"):
                with suppress(OSError):
                    todo += map(int, Path(f"/proc/{pid}/task/{thread}/children").read_bytes().split())


def cpu_of(roots: Sequence[int]) -> float:
    """CPU seconds so far of `roots`, of what lives below them and of their children that have ended."""
    total = 0
    for pid in descendants(roots):
        with suppress(OSError):
            fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
            total += sum(map(int, fields[11:15]))
    return total / _TICK


def idle_cpu(roots: Sequence[int]) -> float:
    """CPU seconds of `roots` as soon as they have done nothing for a while; what they finish late is counted, too."""
    deadline = time.monotonic() + _PATIENCE_S
    last = cpu_of(roots)
    while time.monotonic() < deadline:
        time.sleep(_IDLE_S)
        now = cpu_of(roots)
        if now - last < 0.02:
            return now
        last = now
    return last


def anonymous_mib(pids: Sequence[int]) -> float:
    """RssAnon of the processes that live now, MiB."""
    total = 0
    for pid in pids:
        with suppress(OSError):
            found = Path(f"/proc/{pid}/status").read_bytes().partition(b"RssAnon:")[2].split(None, 1)
            total += int(found[0]) if found else 0
    return total / 1024


class Peak:
    """Samples the anonymous memory of process trees while inside."""

    def __init__(self, roots: Sequence[int]) -> None:
        self.mib = 0.0
        self._roots = roots
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def _sample(self) -> None:
        while True:
            self.mib = max(self.mib, anonymous_mib(list(descendants(self._roots))))
            if self._over.wait(SAMPLE_S):
                return

    def __enter__(self) -> Peak:
        if self._roots:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        if self._roots:
            self._thread.join()


def in_process(work: Callable[[], object]) -> Usage:
    """What a call inside this process cost (memory: not known)."""
    before, started = resource.getrusage(resource.RUSAGE_SELF), time.monotonic()
    work()
    wall, after = time.monotonic() - started, resource.getrusage(resource.RUSAGE_SELF)
    return Usage(wall, after.ru_utime - before.ru_utime, after.ru_stime - before.ru_stime, 0.0)


def warm(top: Path) -> None:
    """Brings everything below `top` into the page cache, and what waits to be written onto the disk."""
    subprocess.run(["sh", "-c", 'tar cf - -C "$1" . | cat >/dev/null', "sh", str(top)], check=False, stderr=-3)
    subprocess.run(["sync", "-f", str(top)], check=False)


def spread(top: Path) -> None:
    """Asks ext4 to keep directories that will be made in `top` far from each other.

    Where many files were removed in the last minutes, ext4 takes ten times as long to make new ones; a tool must not
    pay for what was tidied up after another.  Of no effect on other file systems.
    """
    with suppress(OSError):
        subprocess.run(["chattr", "+T", str(top)], check=False, stderr=subprocess.DEVNULL)


def bytes_below(top: Path) -> int:
    """Sum of the sizes of all files below `top`."""
    return sum(os.lstat(os.path.join(folder, name)).st_size for folder, _, names in os.walk(top) for name in names)


def disk_bytes_below(top: Path) -> int:
    """What the files below `top` occupy (for files with holes, as those of LMDB)."""
    return sum(
        os.lstat(os.path.join(folder, name)).st_blocks * 512 for folder, _, names in os.walk(top) for name in names
    )
