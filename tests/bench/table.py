"""Medians, ratios and verdicts, as text.

A figure is the median over the rounds.  "best" is the other tool with the lowest median of that very figure, so time
and CPU may name different tools.  A target that names several tools or bounds gives several lines.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from tests.bench.rounds import Record
from tests.bench.targets import ALONE, BOUND, BYTES, GROWTH, TARGETS, WALL, Target
from tests.bench.tool import AGAIN, CHANGED, CHECK, FIRST, STEPS, VERIFY, WATCHED

OURS = "contbak"
BOUNDS = "bound"
SAME = {WATCHED: AGAIN, CHECK: VERIFY}
"""Steps of contbak alone, and the step of the others that they are compared with."""
_METRICS: dict[str, Callable[[Record], float]] = {
    "wall": lambda record: record.usage.wall_s if record.usage else 0.0,
    "cpu": lambda record: record.usage.cpu_s if record.usage else 0.0,
    "peak": lambda record: record.usage.peak_mib if record.usage else 0.0,
    "relay peak": lambda record: record.usage.server_peak_mib if record.usage else 0.0,
    "bytes": lambda record: record.bytes / 1e6,
    "indexes": lambda record: record.indexes / 1e6,
}


@dataclass(frozen=True)
class Best:
    """The lowest median of the other tools."""

    tool: str
    value: float


class Figures:
    """All medians of a run."""

    def __init__(self, records: Iterable[Record]) -> None:
        self.records = [record for record in records if record.usage is not None]
        self.sets = list(dict.fromkeys(record.set for record in self.records))

    def tools(self) -> list[str]:
        """The names of all tools that measured something."""
        return list(dict.fromkeys(record.tool for record in self.records))

    def values(self, set: str, step: str, tool: str, metric: str) -> list[float]:
        """One figure of every round; `growth` is in MB from the step before to this one."""
        if metric == GROWTH:
            before = self.values(set, AGAIN, tool, BYTES) or self.values(set, FIRST, tool, BYTES)
            return [now - then for now, then in zip(self.values(set, step, tool, BYTES), before, strict=False)]
        found = [r for r in self.records if (r.set, r.step, r.tool) == (set, step, tool)]
        return [_METRICS[metric](record) for record in found]

    def median(self, set: str, step: str, tool: str, metric: str) -> float | None:
        """None where nothing was measured."""
        values = self.values(set, step, tool, metric)
        return statistics.median(values) if values else None

    def best(self, set: str, step: str, metric: str, only: str = "") -> Best | None:
        """Of the others, or of `only` one."""
        names = [only] if only else [name for name in self.tools() if not name.startswith((OURS, BOUNDS))]
        step = SAME.get(step, step)
        found = [(value, name) for name in names if (value := self.median(set, step, name, metric)) is not None]
        return Best(min(found)[1], min(found)[0]) if found else None

    def judged(self, target: Target) -> tuple[float, float, str] | None:
        """(our figure, what it is divided by or 1, verdict), None where one of both was not measured."""
        ours = self.median(target.set, target.step, OURS, target.metric)
        if target.against == ALONE:
            other: float | None = 1.0
        elif target.against == BOUND:
            other = self.median(target.set, target.step, BOUNDS, target.metric)
        else:
            best = self.best(target.set, target.step, target.metric, target.tool)
            other = best.value if best else None
        if ours is None or not other:
            return None
        return ours, other, "met" if ours <= target.limit * other else "missed"


def main_table(figures: Figures) -> str:
    """One line for each set and step, as markdown."""
    rows = []
    for name in figures.sets:
        for step in STEPS:
            wall = figures.median(name, step, OURS, "wall")
            if wall is None:
                continue
            bound = figures.median(name, SAME.get(step, step), BOUNDS, "wall")
            asked = [target for target in TARGETS if (target.set, target.step, target.metric) == (name, step, WALL)]
            rows.append([
                name, step, f"{wall:.2f}", *_against(wall, figures.best(name, step, "wall"), "{:.2f}"),
                f"{bound:.2f}" if bound is not None else "-",
                f"{figures.median(name, step, OURS, 'cpu') or 0:.2f}",
                *_against(figures.median(name, step, OURS, "cpu") or 0, figures.best(name, step, "cpu"), "{:.2f}"),
                _peak(figures, name, step), _against(1, figures.best(name, step, "peak"), "{:.0f}")[0],
                _verdicts(figures, asked),
            ])  # fmt: skip
    head = ["set", "step", "s", "best other, s", "ratio", "bound, s", "CPU s", "best other, CPU s", "ratio",
            "MiB agent + relay", "best other, MiB", "asked of the time"]  # fmt: skip
    return markdown(head, rows)


def bytes_table(figures: Figures) -> str:
    """What is stored after the first backup, and by how much it grew with the change."""
    rows = []
    for name in figures.sets:
        for step, metric in ((FIRST, BYTES), (CHANGED, GROWTH)):
            ours = figures.median(name, step, OURS, metric)
            if ours is None:
                continue
            asked = [target for target in TARGETS if (target.set, target.step, target.metric) == (name, step, metric)]
            others = {tool: figures.median(name, step, tool, metric) for tool in figures.tools()}
            rows.append([
                name, "stored" if metric == BYTES else "grown by", f"{ours:.1f}",
                f"{figures.median(name, step, OURS, 'indexes') or 0:.1f}",
                *_against(ours, figures.best(name, step, metric), "{:.1f}"),
                ", ".join(f"{tool} {value:.1f}" for tool, value in others.items() if value and tool != OURS),
                _verdicts(figures, asked),
            ])  # fmt: skip
    head = ["set", "", "MB", "indexes, MB", "best other, MB", "ratio", "all others", "asked"]
    return markdown(head, rows)


def all_table(figures: Figures) -> str:
    """Every tool at every step: medians, and the range of the time."""
    rows = []
    for name in figures.sets:
        for step in STEPS:
            for tool in figures.tools():
                walls = figures.values(name, step, tool, "wall")
                if walls:
                    shown = [
                        f"{figures.median(name, step, tool, metric) or 0:.2f}" for metric in ("wall", "cpu", "peak")
                    ]
                    rows.append([name, step, tool, *shown, f"{min(walls):.2f} to {max(walls):.2f}", str(len(walls))])
    return markdown(["set", "step", "tool", "s", "CPU s", "MiB", "s, from to", "n"], rows)


def rate_lines(figures: Figures) -> list[str]:
    """How fast a verify reads."""
    lines = []
    for name in figures.sets:
        for step in (VERIFY, CHECK):
            wall, size = figures.median(name, step, OURS, "wall"), figures.median(name, CHANGED, OURS, BYTES)
            if wall and size:
                lines.append(f"{name}: {step} reads {size / 1000 / wall:.2f} GB/s of packs")
    return lines


def _against(ours: float, best: Best | None, form: str) -> list[str]:
    if best is None:
        return ["-", "-"]
    return [f"{form.format(best.value)} {best.tool}", f"{ours / best.value:.2f}" if best.value else "-"]


def _peak(figures: Figures, name: str, step: str) -> str:
    own, relay = (figures.median(name, step, OURS, metric) or 0 for metric in ("peak", "relay peak"))
    return f"{own:.0f} + {relay:.0f}"


def _verdicts(figures: Figures, targets: Sequence[Target]) -> str:
    said = []
    for target in targets:
        judged = figures.judged(target)
        said.append(f"{target}: {judged[2] if judged else 'not measured'}")
    return "; ".join(said)


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table whose columns are aligned."""
    widths = [max(len(row[place]) for row in [head, *rows]) for place in range(len(head))]
    lines = [head, ["-" * width for width in widths], *rows]
    return "\n".join(
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in lines
    )
