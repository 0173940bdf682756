#!/usr/bin/env python3
"""Measures the main job from outside: python -m tests.bench.main_job [--files N] [--large] [--json FILE]

    latency   seconds from close() of a 1 MiB file to its receipt, settle 0.5 s, embedded relay
    one file  CPU seconds and bytes of one commit of one small file in a tree of N files (agent, workers and relay)
    insert    bytes sent after one byte is inserted in front of a 256 MiB file
    memory    peak anonymous memory of agent and workers for the first backup of N files; with --large also of
              1,000,000 files and of one 50 GiB sparse file

Physical bounds in the same run: a copy and fsync of the same 1 MiB, and `find` with stat over the same tree.
Nothing is judged here; docs/performance.md says what the figures mean.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import psutil

from contbak.app.client import Daemon
from tests.system.world import World

MIB = 1 << 20


class Processes:
    """The processes of one world: the agent with its workers, and the embedded relay."""

    def __init__(self, root: int) -> None:
        self.root = root

    def all(self) -> list[psutil.Process]:
        top = psutil.Process(self.root)
        return [top, *top.children(recursive=True)]

    def cpu_s(self) -> float:
        """CPU seconds of all of them so far."""
        return sum(sum(process.cpu_times()[:2]) for process in self.all())

    def anonymous_mib(self, relay: bool = False) -> float:
        """Anonymous memory now, MiB; `relay`: of the relay instead of the agent and its workers."""
        total = 0.0
        for process in self.all():
            try:
                if any("relay.cli" in word for word in process.cmdline()) != relay:
                    continue
                for line in Path(f"/proc/{process.pid}/status").read_text().splitlines():
                    if line.startswith("RssAnon"):
                        total += int(line.split()[1]) / 1024
            except (psutil.Error, OSError):
                continue
        return total


class Peak(threading.Thread):
    """Samples the memory of a process tree until told to stop."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self.processes = Processes(pid)
        self.over = threading.Event()
        self.agent = self.relay = 0.0

    def run(self) -> None:
        while not self.over.wait(0.1):
            try:
                self.agent = max(self.agent, self.processes.anonymous_mib())
                self.relay = max(self.relay, self.processes.anonymous_mib(relay=True))
            except psutil.Error:
                return


def last_snapshot(daemon: Daemon) -> str:
    found = daemon.status()["sources"][0]["last_snapshot"]
    return found["id"] if found else ""


def until_new(daemon: Daemon, before: str) -> str:
    while (now := last_snapshot(daemon)) == before:
        time.sleep(0.01)
    return now


def latency(world: World, source: Path, daemon: Daemon, times: int = 15) -> dict[str, float]:
    took, bound = [], []
    for number in range(times):
        data = os.urandom(MIB)
        before = last_snapshot(daemon)
        path = source / f"latency-{number}"
        with open(path, "wb") as file:
            file.write(data)
        started = time.monotonic()
        until_new(daemon, before)
        took.append(time.monotonic() - started)
        started = time.monotonic()
        with open(world.top / "bound", "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        bound.append(time.monotonic() - started)
    return {
        "close_to_receipt_median_s": statistics.median(took), "close_to_receipt_max_s": max(took),
        "write_and_fsync_median_s": statistics.median(bound),
    }  # fmt: skip


def one_file(world: World, source: Path, daemon: Daemon, times: int = 10) -> dict[str, float]:
    assert world.daemon is not None
    processes = Processes(world.daemon.pid)
    cpu, sent, own = [], [], []
    victims = random.Random(1).sample([p for p in source.rglob("f*") if p.is_file()], times)
    for victim in victims:
        before, cpu_before = last_snapshot(daemon), processes.cpu_s()
        sent_before = store_bytes(world)
        data = os.urandom(2000)
        victim.write_bytes(data)
        until_new(daemon, before)
        cpu.append(processes.cpu_s() - cpu_before)
        sent.append(store_bytes(world) - sent_before)
        own.append(len(data))
    return {"cpu_median_s": statistics.median(cpu), "stored_beyond_data_median": statistics.median(sent) - own[0]}


def store_bytes(world: World) -> int:
    top = world.home / "data" / "relay" / "store"
    return sum(path.stat().st_size for path in top.rglob("*") if path.is_file())


def make_tree(source: Path, files: int) -> None:
    """`files` small text files, 50 in a directory."""
    for number in range(0, files, 50):
        folder = source / f"d{number // 5000}" / f"e{number // 50}"
        folder.mkdir(parents=True)
        for each in range(min(50, files - number)):
            (folder / f"f{number + each}").write_bytes(b"file %d\n" % (number + each) * (each % 20 + 1))


def first_backup(world: World) -> dict[str, float]:
    started = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-m", "contbak.app.cli", "backup", "--quiet"], env=world.env, cwd=world.top
    )
    peak = Peak(process.pid)
    peak.start()
    assert process.wait() == 0
    peak.over.set()
    return {
        "seconds": time.monotonic() - started, "agent_and_workers_peak_mib": peak.agent, "relay_peak_mib": peak.relay,
    }  # fmt: skip


def insert(top: Path) -> dict[str, float]:
    world, source = fresh(top / "insert")
    chance = random.Random(2)
    data = b"".join(chance.randbytes(MIB) for _ in range(256))
    (source / "file").write_bytes(data)
    first = world.summary()
    (source / "file").write_bytes(b"!" + data)
    second = world.summary()
    return {"first_sent": first["bytes_sent"], "second_sent": second["bytes_sent"]}


def fresh(top: Path) -> tuple[World, Path]:
    source = top / "source"
    source.mkdir(parents=True)
    world = World(top, CONTBAK_SETTLE_S="0.5")
    world.init()
    world.run("add", str(source))
    return world, source


def main() -> None:
    options = argparse.ArgumentParser()
    options.add_argument("--files", type=int, default=200_000)
    options.add_argument("--large", action="store_true")
    options.add_argument("--json")
    asked = options.parse_args()
    top = Path(tempfile.mkdtemp(prefix="contbak-bench-"))
    result: dict[str, dict[str, float]] = {}

    def note(name: str, figures: dict[str, float]) -> None:
        result[name] = figures
        print(name, json.dumps({key: round(value, 4) for key, value in figures.items()}), flush=True)

    try:
        note("insert", insert(top))
        world, source = fresh(top / "tree")
        make_tree(source, asked.files)
        note(f"first backup of {asked.files} files", first_backup(world))
        started = time.monotonic()
        subprocess.run(["find", str(source), "-printf", "%s %T@ %m\n"], stdout=subprocess.DEVNULL, check=True)
        note("find with stat", {"seconds": time.monotonic() - started})
        note("nothing changed", {"seconds": world.summary()["seconds"]})
        world.start()
        daemon = Daemon(world.places.socket)
        world.run("backup", "--quiet")
        note("one file", one_file(world, source, daemon))
        note("latency", latency(world, source, daemon))
        assert world.daemon is not None
        note("daemon at rest", {"agent_and_workers_mib": Processes(world.daemon.pid).anonymous_mib()})
        world.stop()
        if asked.large:
            world, source = fresh(top / "million")
            make_tree(source, 1_000_000)
            note("first backup of 1000000 files", first_backup(world))
            shutil.rmtree(top / "million")
            world, source = fresh(top / "sparse")
            with open(source / "sparse", "wb") as file:
                file.truncate(50 << 30)
                for number in range(200):
                    file.seek(number * 250 * MIB)
                    file.write(os.urandom(MIB))
            note("first backup of a sparse 50 GiB file", first_backup(world))
    finally:
        shutil.rmtree(top, ignore_errors=True)
    if asked.json:
        Path(asked.json).write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
