"""Setting up a vault: what breaks off in the middle can be done again."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from contbak.app import keyfile, setup
from contbak.app.home import Home
from contbak.core.errors import Refused, StoreFull


@pytest.mark.parametrize("step", ["save_relay", "keyfile.save"])
def test_init_that_was_cut_short_can_be_done_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    def full(*_: object) -> None:
        raise StoreFull("there is no space left")

    home = Home(tmp_path / "config", tmp_path / "data", tmp_path / "state", tmp_path / "run")
    with monkeypatch.context() as small:
        small.setattr(f"contbak.app.setup.{step}", full)
        with pytest.raises(StoreFull):
            asyncio.run(setup.initialise(home, setup.Choices("here")))
    assert asyncio.run(setup.initialise(home, setup.Choices("here"))).startswith("CB1-")
    assert setup.adopted(home).embedded and keyfile.load(home.keys).device_name == "here"
    with pytest.raises(Refused):
        asyncio.run(setup.initialise(home, setup.Choices("here")))
