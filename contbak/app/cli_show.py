"""How the command line shows things: sizes, ages, tables, progress.  Click and rich stay in cli modules."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Any

import click


def size_of(count: float) -> str:
    """Bytes for people: 1.4 GiB."""
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if abs(count) < 1024 or unit == "TiB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    raise AssertionError("unreachable")


def age_of(seconds: float) -> str:
    """A length of time for people: 3 min."""
    for limit, divisor, unit in ((120, 1, "s"), (7200, 60, "min"), (172_800, 3600, "h")):
        if seconds < limit:
            return f"{seconds / divisor:.0f} {unit}"
    return f"{seconds / 86_400:.0f} days"


def time_of(ms: int) -> str:
    """A moment in local time, to the second."""
    return datetime.fromtimestamp(ms / 1000).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def iso_of(ms: int) -> str:
    """A moment for machines: UTC, ISO 8601, milliseconds."""
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(ms // 1000)) + f".{ms % 1000:03d}Z"


def say(text: str) -> None:
    """One line for a person, on standard error."""
    click.echo(text, err=True)


def document(value: Any) -> None:
    """One JSON document or line on standard output."""
    click.echo(json.dumps(value, ensure_ascii=False))


def table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    """Columns on standard output; numbers are the caller's strings."""
    widths = [max(len(cell) for cell in column) for column in zip(head, *rows, strict=True)]
    for row in (head, *rows):
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


class Line:
    """One line of progress that is written over; silent unless standard error is a terminal."""

    def __init__(self, quiet: bool) -> None:
        self._on = not quiet and sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
        self._last = 0.0
        self._shown = False

    def show(self, text: str) -> None:
        """Shows `text`, at most ten times a second."""
        now = time.monotonic()
        if self._on and now - self._last >= 0.1:
            self._last = now
            self._shown = True
            width = os.get_terminal_size(sys.stderr.fileno()).columns
            click.echo(f"\r\x1b[K{text[: width - 1]}", nl=False, err=True)

    def clear(self) -> None:
        """Removes it."""
        if self._shown:
            self._shown = False
            click.echo("\r\x1b[K", nl=False, err=True)


@contextmanager
def progress(quiet: bool) -> Iterator[Line]:
    """A progress line that is gone afterwards."""
    line = Line(quiet)
    try:
        yield line
    finally:
        line.clear()
