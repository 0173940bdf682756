"""Entries that no tree may hold: each is named, and all others are saved."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

import pytest

from contbak.app import agent as agents
from contbak.capture import scan as scans
from contbak.capture.attributes import stat_entry, with_fields
from contbak.core.entry import Entry
from tests.app.hostile import FACTS
from tests.app.test_agent import WHOLE, Place


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    monkeypatch.setattr(agents, "READER", "tests.app.hostile:Hostile")
    monkeypatch.setattr(scans, "stat_entry", _impossible)
    return Place(tmp_path)


def _impossible(path: bytes, *more: Any) -> Entry:
    """What the scan itself finds: of links and directories."""
    entry = stat_entry(path, *more)
    return with_fields(entry, mtime=1 << 70) if b"impossible" in os.path.basename(path) else entry


def test_impossible_entries_are_named_and_the_others_saved(place: Place) -> None:
    for name in FACTS:
        (place.files / os.fsdecode(name)).write_text("content")
    (place.files / "impossible symlink").symlink_to("anywhere")
    (place.files / "impossible directory").mkdir()
    (place.files / "impossible directory" / "file").write_text("out of reach")
    (place.files / "sound directory").mkdir()
    (place.files / "sound directory" / "link").symlink_to("anywhere")
    wrong = {*FACTS, b"impossible symlink", b"impossible directory"}

    async def run() -> None:
        async with place.agent() as agent:
            tally, commit = await agent.protect(place.source, WHOLE)
            assert tally.failed.keys() == wrong and tally.new == 8 and commit is not None
            assert all("cannot be kept" in reason for reason in tally.failed.values())
            found = await agent.run(lambda: list(agent.journal.problems(place.source.source_id)))
            assert {problem.path for problem in found} == wrong
            assert agent.workers.deaths == 0

    asyncio.run(run())
    assert place.said == []
