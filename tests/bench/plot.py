"""Pictures of the figures: bars for a run of the benchmark, lines for how cost grows."""

from __future__ import annotations

from pathlib import Path

import matplotlib
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from tests.bench.notes import Figures as Growth
from tests.bench.table import BOUNDS, OURS, SAME, Figures
from tests.bench.tool import STEPS

matplotlib.use("Agg")


def draw(figures: Figures, path: Path) -> None:
    """A row for each set, a panel for each step, bars of seconds and CPU seconds of every tool, contbak first."""
    steps = [step for step in STEPS if any(record.step == step for record in figures.records)]
    size = (3.2 * len(steps), 2.8 * len(figures.sets))
    grid, axes = plt.subplots(len(figures.sets), len(steps), figsize=size, squeeze=False)
    for row, name in zip(axes, figures.sets, strict=True):
        for panel, step in zip(row, steps, strict=True):
            _bars(panel, figures, name, step)
    axes[0][0].legend(fontsize=7)
    grid.tight_layout()
    grid.savefig(path, dpi=110)
    plt.close(grid)


def _bars(panel: Axes, figures: Figures, name: str, step: str) -> None:
    where = {tool: step if tool == OURS else SAME.get(step, step) for tool in figures.tools()}
    tools = [tool for tool in where if figures.values(name, where[tool], tool, "wall")]
    tools.sort(key=lambda tool: (tool != OURS, tool == BOUNDS))
    for shift, metric in ((-0.2, "wall"), (0.2, "cpu")):
        heights = [figures.median(name, where[tool], tool, metric) or 0 for tool in tools]
        panel.bar([place + shift for place in range(len(tools))], heights, 0.4, label=f"{metric}, s")
    panel.set_xticks(range(len(tools)), tools, rotation=60, ha="right", fontsize=7)
    panel.set_title(f"{name}: {step}", fontsize=8)
    panel.tick_params(axis="y", labelsize=7)


def draw_growth(found: Growth, path: Path) -> None:
    """CPU seconds and peak memory over the size, both axes logarithmic; keys are "unit size step"."""
    grid, axes = plt.subplots(2, 2, figsize=(9, 7), squeeze=False)
    for row, unit in zip(axes, ("files", "MB"), strict=True):
        lines: dict[str, list[tuple[int, dict[str, float]]]] = {}
        for name, figures in found.items():
            kind, size, step = name.split(" ", 2)
            if kind == unit:
                lines.setdefault(step, []).append((int(size), figures))
        for panel, metric in zip(row, ("cpu_s", "peak_mib"), strict=True):
            for step, points in lines.items():
                panel.plot([size for size, _ in points], [one[metric] for _, one in points], "o-", label=step)
            panel.set(xscale="log", yscale="log" if metric == "cpu_s" else "linear", xlabel=unit, ylabel=metric)
            panel.set_ylim(bottom=0 if metric == "peak_mib" else None)
            panel.legend(fontsize=7)
    grid.tight_layout()
    grid.savefig(path, dpi=120)
    plt.close(grid)
