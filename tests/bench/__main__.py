"""contbak beside other backup tools and beside physics, in one command.

    python -m tests.bench --sets home,small --tools contbak,restic,rustic --runs 3 --scale 0.1 \\
        --work DIR --json out.json --plot out.png
    python -m tests.bench peers --peers DIR        find or install the other tools
    python -m tests.bench report --json out.json   print the tables of a run again

Ratios are of medians of one run on one machine; docs/performance.md says how it is measured and what it means.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType
from typing import Any

from tests.bench import install, sets, table
from tests.bench.bounds import Bounds
from tests.bench.contbak_tool import Contbak
from tests.bench.measure import spread
from tests.bench.peers import VARIANTS
from tests.bench.rounds import Record, Round
from tests.bench.tool import STEPS, Tool


def say(text: str) -> None:
    """Progress, on standard error."""
    print(text, file=sys.stderr, flush=True)


def options(words: Sequence[str]) -> argparse.Namespace:
    """What was asked."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__.partition("\n")[0])
    parser.add_argument("what", nargs="?", choices=["run", "peers", "report"], default="run")
    parser.add_argument("--sets", default="home,small,disk,many", help="comma separated")
    parser.add_argument("--tools", default="", help="comma separated variants or programs; default: all that are here")
    parser.add_argument("--steps", default="", help="comma separated; default: all")
    parser.add_argument("--runs", type=int, default=3, help="rounds; medians want three")
    parser.add_argument("--scale", type=float, default=1.0, help="part of the full size")
    parser.add_argument("--work", type=Path, help="directory for everything, on the disk to be measured")
    parser.add_argument("--peers", type=Path, help="directory of other tools, looked into before PATH")
    parser.add_argument("--json", type=Path, help="raw figures")
    parser.add_argument("--plot", type=Path, help="picture, needs matplotlib")
    return parser.parse_args(words)


def chosen_tools(names: str, peers: Path | None) -> list[Tool]:
    """The bounds, contbak, and the variants that are wanted and here; says which are not."""
    wanted = [name for name in names.split(",") if name]
    known = {"contbak", *VARIANTS, *(name for variants in VARIANTS.values() for name in variants)}
    if unknown := set(wanted) - known:
        raise SystemExit(f"there is no tool {', '.join(sorted(unknown))}; there are {', '.join(sorted(known))}")
    tools: list[Tool] = [Bounds()] + ([Contbak()] if not wanted or "contbak" in wanted else [])
    for program, variants in VARIANTS.items():
        here = [name for name in variants if not wanted or name in wanted]
        path = install.find(program, peers) if here else None
        if here and path is None:
            say(f"{program} is left out: it is not on PATH{f' nor in {peers}' if peers else ''}")
        tools += [variants[name](path) for name in here if path is not None]
    return tools


def machine() -> dict[str, object]:
    """What a figure depends on."""
    cpuinfo = Path("/proc/cpuinfo").read_text()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    model = cpuinfo.partition("model name")[2].partition("\n")[0].lstrip("\t: ")
    return {
        "cpu": model, "cores": os.cpu_count(), "memory_gb": round(memory / 1e9, 1), "kernel": platform.release(),
        "python": platform.python_version(), "date": f"{datetime.now(UTC):%Y-%m-%d %H:%M}Z",
    }  # fmt: skip


def measure(asked: argparse.Namespace, tools: list[Tool], work: Path) -> list[Record]:
    """All rounds of all sets."""
    facts = facts_of(asked, tools)
    steps = frozenset(step for step in STEPS if not asked.steps or step in asked.steps.split(","))
    records: list[Record] = []
    for name in asked.sets.split(","):
        need = sets.bytes_needed(name, asked.scale, len(tools))
        if shutil.disk_usage(work).free < need:
            say(f"{name} is left out: it may need {need / 1e9:.0f} GB, and {work} has less")
            continue
        say(f"making {name}")
        data = sets.make(name, work / "sets" / name, asked.scale)
        for number in range(1, asked.runs + 1):
            records += Round(data, number, tools, work / f"round-{name}-{number}", say, steps).play()
            save(asked.json, facts, records)
        shutil.rmtree(data.top)
    return records


def facts_of(asked: argparse.Namespace, tools: list[Tool]) -> dict[str, Any]:
    """What the figures of this run depend on."""
    versions = {tool.name: tool.version() for tool in tools}
    return {"scale": asked.scale, "runs": asked.runs, "machine": machine(), "tools": versions}


def save(path: Path | None, facts: dict[str, Any], records: list[Record]) -> None:
    """Writes the raw figures so far."""
    if path:
        path.write_text(json.dumps(facts | {"records": [record.as_json() for record in records]}, indent=1))


def report(facts: dict[str, Any], records: list[Record]) -> None:
    """Prints the tables, with what they depend on."""
    figures = table.Figures(records)
    loads = sorted(record.load for record in records) or [0.0]
    print(f"scale {facts['scale']:g}, medians of {facts['runs']}, load {loads[0]:.1f} to {loads[-1]:.1f}")
    print(", ".join(f"{key} {value}" for key, value in facts["machine"].items()))
    print("; ".join(f"{tool}: {version}" for tool, version in facts["tools"].items()), "\n")
    for text in (table.main_table(figures), table.bytes_table(figures), table.all_table(figures)):
        print(text, "\n")
    print("\n".join(table.rate_lines(figures)))
    for record in records:
        if record.error:
            print(f"FAILED: {record.set} round {record.round} {record.step}: {record.tool}: {record.error}")


def main(words: Sequence[str] | None = None) -> int:
    """Runs what was asked; 1 if a step failed."""
    asked = options(sys.argv[1:] if words is None else words)
    if asked.what == "peers":
        if asked.peers is None:
            raise SystemExit("say where to: --peers DIR")
        install.install_all(asked.peers)
        return 0
    plot = importlib.import_module("tests.bench.plot") if asked.plot else None  # it wants matplotlib
    if asked.what == "report":
        if asked.json is None:
            raise SystemExit("say of what: --json FILE")
        facts = json.loads(asked.json.read_text())
        return show(facts, [Record.from_json(one) for one in facts["records"]], asked.plot, plot)
    if unknown := set(asked.sets.split(",")) - set(sets.MAKERS):
        raise SystemExit(f"there is no data set {', '.join(sorted(unknown))}; there are {', '.join(sets.MAKERS)}")
    if asked.work:
        asked.work.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix="contbak-bench-", dir=asked.work))
    spread(work)
    try:
        tools = chosen_tools(asked.tools, asked.peers)
        facts, records = facts_of(asked, tools), measure(asked, tools, work)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return show(facts, records, asked.plot, plot)


def show(facts: dict[str, Any], records: list[Record], picture: Path | None, plot: ModuleType | None) -> int:
    """Tables and picture; 1 if a step failed."""
    report(facts, records)
    if plot is not None:
        plot.draw(table.Figures(records), picture)
    return 1 if any(record.error for record in records) else 0


if __name__ == "__main__":
    sys.exit(main())
