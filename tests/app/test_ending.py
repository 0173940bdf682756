"""A task that is told to end just when it has something to do ends all the same."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from types import SimpleNamespace
from typing import Any

import pytest

from contbak.app.lookout import Lookout
from contbak.app.rounds import Rounds
from contbak.core.debounce import Debouncer
from contbak.upload.uplink import Uplink

Made = tuple[Coroutine[Any, Any, None], asyncio.Event]


def settling() -> Made:
    lookout = Lookout(SimpleNamespace(), lambda: None)  # type: ignore[arg-type]
    lookout._debouncers["source"] = Debouncer(60.0, 60.0)
    lookout._debouncers["source"].receive(b"path", time.monotonic())
    return lookout.settle(), lookout._stirred


def working() -> Made:
    async def resume() -> None:
        pass

    wake = asyncio.Event()
    lookout: Any = SimpleNamespace(sources={})
    rounds = Rounds(SimpleNamespace(resume=resume), lookout, wake, print)  # type: ignore[arg-type]
    rounds._asleep["source"] = time.monotonic() + 60
    return rounds.work(), wake


def sleeping() -> Made:
    uplink: Any = SimpleNamespace(_stir=asyncio.Event())

    async def for_ever() -> None:
        while True:
            await Uplink._sleep(uplink, 60.0)

    return for_ever(), uplink._stir


@pytest.mark.parametrize("steps", range(5))
@pytest.mark.parametrize("make", [settling, working, sleeping])
def test_an_event_does_not_swallow_the_end(make: Callable[[], Made], steps: int) -> None:
    async def go() -> None:
        work, event = make()
        task = asyncio.create_task(work)
        for _ in range(10):
            await asyncio.sleep(0)
        event.set()
        for _ in range(steps):
            await asyncio.sleep(0)
        task.cancel()
        done, _ = await asyncio.wait({task}, timeout=1)
        task.cancel()
        assert done

    asyncio.run(go())
