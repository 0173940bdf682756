"""One round after the other: every tool does a step before any does the next, so that drift hits all alike.

Before each measured step source and repository are in the page cache and nothing waits to be written.  The order of the
tools turns from step to step.  What a restore wrote is compared with the source, outside the clock; a step that fails
is a record with an error, and the other tools go on.
"""

from __future__ import annotations

import filecmp
import os
import secrets
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from tests.bench.measure import CommandFailed, Usage, spread, warm
from tests.bench.sets import DataSet
from tests.bench.tool import AGAIN, CHANGED, CHECK, FIRST, ONE, RESTORE, VERIFY, WATCHED, Place, Tool

Say = Callable[[str], None]
_SAMPLE_ABOVE = 50_000
_SAMPLE_EVERY = 20


@dataclass
class Record:
    """One step of one tool in one round.  `bytes`: what its repository had then; `indexes`: beside it."""

    set: str
    round: int
    tool: str
    step: str
    usage: Usage | None
    load: float
    bytes: int = 0
    indexes: int = 0
    error: str = ""

    def as_json(self) -> dict[str, object]:
        """For the file of raw figures."""
        found = asdict(self) | {"cpu_s": self.usage.cpu_s if self.usage else None}
        return {key: value for key, value in found.items() if value not in ("", None)}

    @classmethod
    def from_json(cls, found: dict[str, Any]) -> Record:
        """What `as_json` wrote."""
        known = {key: found[key] for key in cls.__dataclass_fields__ if key in found}
        return cls(**(known | {"usage": Usage(**found["usage"]) if "usage" in found else None}))


@dataclass
class Round:
    """Everything that is measured between two changes of a data set."""

    data: DataSet
    number: int
    tools: Sequence[Tool]
    top: Path
    say: Say
    steps: frozenset[str]
    records: list[Record] = field(default_factory=list)
    _out: set[str] = field(default_factory=set)

    def play(self) -> list[Record]:
        """Runs it; directories are gone afterwards."""
        self.data.rewind()
        self.top.mkdir()
        spread(self.top)
        try:
            for tool in self.tools:
                self._guarded(
                    tool, "prepare", partial(tool.prepare, Place(self.top / self._fresh(tool.name), self.data.top))
                )
            self._all(FIRST, lambda tool: tool.backup())
            self._all(AGAIN, lambda tool: tool.backup())
            self._all(WATCHED, lambda tool: tool.watched())
            if CHANGED in self.steps:
                self.data.change(self.number)
            self._all(CHANGED, lambda tool: tool.backup())
            self._all(RESTORE, self._restore)
            self._all(ONE, self._one)
            self._all(VERIFY, lambda tool: tool.verify())
            self._all(CHECK, lambda tool: tool.check())
        finally:
            for tool in self.tools:
                tool.close()
            shutil.rmtree(self.top, ignore_errors=True)
        return self.records

    def _all(self, step: str, work: Callable[[Tool], Usage | None]) -> None:
        if step not in self.steps:
            return
        turn = (self.number + len(self.records)) % len(self.tools)
        for tool in [*self.tools[turn:], *self.tools[:turn]]:
            if tool.name not in self._out and self._has(tool, step):
                warm(self.data.top)
                warm(tool.place.repository)
                self._guarded(tool, step, partial(work, tool))

    @staticmethod
    def _has(tool: Tool, step: str) -> bool:
        """Whether a step is worth preparing for: some belong to few tools."""
        method = {WATCHED: "watched", CHECK: "check"}.get(step)
        return method is None or getattr(type(tool), method) is not getattr(Tool, method)

    def _guarded(self, tool: Tool, step: str, work: Callable[[], Usage | None]) -> None:
        load = os.getloadavg()[0]
        try:
            usage, error = work(), ""
        except (CommandFailed, OSError, RuntimeError, AssertionError) as failure:
            usage, error = None, f"{type(failure).__name__}: {failure}"
            if step in ("prepare", FIRST):
                self._out.add(tool.name)
        if usage is None and not error:
            return
        record = Record(self.data.name, self.number, tool.name, step, usage, load, error=error)
        if step in (FIRST, AGAIN, CHANGED) and not error:
            record.bytes, record.indexes = tool.stored(), tool.indexes()
        self.records.append(record)
        self.say(described(record))

    def _restore(self, tool: Tool) -> Usage:
        target = self._empty(tool, RESTORE)
        usage = tool.restore(target)
        compare(self.data.top, tool.restored(target))
        return usage

    def _one(self, tool: Tool) -> Usage:
        target, path = self._empty(tool, ONE), self.data.one()
        usage = tool.one(path, target)
        found = [found for found in target.rglob(path.name) if found.is_file()]
        if len(found) != 1 or not filecmp.cmp(path, found[0], shallow=False):
            raise CommandFailed(f"{tool.name} did not restore {path.name} as it is")
        return usage

    @staticmethod
    def _fresh(name: str) -> str:
        """A name that no earlier round had: ext4 chooses the place of a directory by it."""
        return f"{name}, {secrets.token_hex(4)}"

    def _empty(self, tool: Tool, step: str) -> Path:
        """A new directory; what is in it stays until the round is over (see `spread`)."""
        target = self.top / "restored" / self._fresh(f"{tool.name}, {step}")
        if not target.parent.exists():
            target.parent.mkdir()
            spread(target.parent)
        target.mkdir()
        return target


def described(record: Record) -> str:
    """One line about a step."""
    head = f"{record.set} round {record.round} {record.step}: {record.tool}"
    used = record.usage
    if used is None:
        return f"{head} FAILED: {record.error}"
    return (
        f"{head} {used.wall_s:.2f} s, {used.cpu_s:.2f} CPU s"
        + (f" (servers {used.server_cpu_s:.2f})" if used.server_cpu_s else "")
        + f", {used.peak_mib:.0f} MiB"
        + (f" + {used.server_peak_mib:.0f}" if used.server_peak_mib else "")
        + (f", stored {record.bytes / 1e6:.1f} MB" if record.bytes else "")
        + f", load {record.load:.1f}"
    )


def compare(source: Path, restored: Path) -> None:
    """Raises CommandFailed unless both trees have the same names and contents (of many files: a sample)."""
    names = _names(source)
    if names != _names(restored):
        raise CommandFailed(f"{restored} has other names than {source}")
    every = _SAMPLE_EVERY if len(names) > _SAMPLE_ABOVE else 1
    for name in sorted(names)[::every]:
        one, other = source / name, restored / name
        if one.is_file() and not filecmp.cmp(one, other, shallow=False):
            raise CommandFailed(f"{other} is not what {one} is")
    filecmp.clear_cache()


def _names(top: Path) -> set[str]:
    return {
        os.path.relpath(os.path.join(folder, name), top)
        for folder, folders, names in os.walk(top) for name in folders + names
    }  # fmt: skip
