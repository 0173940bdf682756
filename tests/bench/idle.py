"""What a daemon costs that has nothing to do: python -m tests.bench.idle [--directories 20000] [--seconds 60]

A real daemon watches a tree whose first backup is done, beside a relay of its own; then nothing happens.  Prints CPU
percent of one core and wake-ups per second, RssAnon and Rss of the daemon with its workers, and of the relay.
Asked: at most 0.1 % and 80 MB.
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
import time
from contextlib import suppress
from pathlib import Path

from tests.bench.contbak_tool import Contbak
from tests.bench.measure import descendants
from tests.bench.notes import Figures, note_into, write_json
from tests.bench.tool import Place


def make(top: Path, directories: int, files: int) -> None:
    """`directories` directories with `files` small files each, a hundred in a directory."""
    for number in range(directories):
        folder = top / f"d{number // 100}" / f"e{number}"
        folder.mkdir(parents=True)
        for each in range(files):
            (folder / f"f{each}").write_bytes(b"%d\n" % each)


def of_status(pids: list[int], *fields: str) -> float:
    """The sum of some fields of /proc/PID/status over all threads (counts) or processes (KiB)."""
    total = 0
    for pid in pids:
        with suppress(OSError):
            per_thread = fields[0].endswith("switches")
            tasks = [f"/proc/{pid}/task/{task}" for task in os.listdir(f"/proc/{pid}/task")]
            for place in tasks if per_thread else [f"/proc/{pid}"]:
                for line in Path(place, "status").read_text().splitlines():
                    name, _, rest = line.partition(":")
                    total += int(rest.split()[0]) if name in fields else 0
    return total


def cpu_s(pids: list[int]) -> float:
    """CPU seconds of the threads that live now, from the scheduler: finer than the ticks of /proc/PID/stat."""
    total = 0
    for pid in pids:
        with suppress(OSError):
            for task in os.listdir(f"/proc/{pid}/task"):
                total += int(Path(f"/proc/{pid}/task/{task}/schedstat").read_bytes().split()[0])
    return total / 1e9


def at_rest(roots: dict[str, int], seconds: float) -> Figures:
    """What process trees use while nothing happens."""
    pids = {name: list(descendants([root])) for name, root in roots.items()}
    switches = ("voluntary_ctxt_switches", "nonvoluntary_ctxt_switches")
    before = {name: (cpu_s(pids[name]), of_status(pids[name], *switches)) for name in roots}
    started = time.monotonic()
    time.sleep(seconds)
    took = time.monotonic() - started
    return {
        name: {
            "processes": len(pids[name]), "cpu_percent": 100 * (cpu_s(pids[name]) - before[name][0]) / took,
            "wakeups_per_s": (of_status(pids[name], *switches) - before[name][1]) / took,
            "anonymous_mib": of_status(pids[name], "RssAnon") / 1024, "rss_mib": of_status(pids[name], "VmRSS") / 1024,
        } for name in roots
    }  # fmt: skip


def main() -> None:
    """Measures and prints."""
    options = argparse.ArgumentParser(prog="python -m tests.bench.idle")
    options.add_argument("--directories", type=int, default=20_000)
    options.add_argument("--files", type=int, default=1, help="in each directory")
    options.add_argument("--seconds", type=float, default=60.0)
    options.add_argument("--work", type=Path)
    options.add_argument("--json", type=Path)
    asked = options.parse_args()
    top = Path(tempfile.mkdtemp(prefix="contbak-idle-", dir=asked.work))
    found: Figures = {}
    note = note_into(found)
    tool = Contbak()
    try:
        make(top / "source", asked.directories, asked.files)
        tool.prepare(Place(top / "contbak", top / "source"))
        first = tool.backup()
        note("first backup", {"seconds": first.wall_s, "cpu_s": first.cpu_s, "peak_mib": first.peak_mib})
        with tool.daemon() as pid:
            for name, figures in at_rest({"daemon": pid, "relay": tool.relay_pid}, asked.seconds).items():
                note(f"{name} at rest", figures)
    finally:
        tool.close()
        shutil.rmtree(top, ignore_errors=True)
    write_json(asked.json, found)


if __name__ == "__main__":
    main()
