"""Figures as they are measured: a line each, and a file of all of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

Figures = dict[str, dict[str, float]]
"""What was measured -> figures, their units in their names."""


def note_into(found: Figures) -> Callable[[str, dict[str, float]], None]:
    """A function that prints one line of figures and keeps it in `found`."""

    def note(name: str, figures: dict[str, float]) -> None:
        found[name] = figures
        print(f"{name}: " + ", ".join(f"{key} {value:.4g}" for key, value in figures.items()), flush=True)

    return note


def write_json(path: Path | None, found: Figures) -> None:
    """The raw figures, where they are wanted."""
    if path is not None:
        path.write_text(json.dumps(found, indent=1))
