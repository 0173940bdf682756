"""The embedded relay: a relay process of our own on a unix socket, for those who have no NAS yet.

Its lifeline is its standard input: when this process ends, however it ends, the relay reads end of file and stops.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
from pathlib import Path

from contbak.app.home import Home
from contbak.app.serving import PROGRAM, READY_S, STOP_S, answers, environment, run_command
from contbak.core.errors import ContbakError, Unreachable
from contbak.core.invite import Invite, parse


def create(home: Home, vault_name: str, store: str | None = None) -> Invite:
    """Makes the relay's home (if it is not there) and an invite for a new vault."""
    home.embedded_relay.mkdir(mode=0o700, parents=True, exist_ok=True)
    home.relay_socket.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not (home.embedded_relay / "config.toml").exists():
        place = ["--store", os.path.abspath(store)] if store else []
        _call(home, "init", "--socket", str(home.relay_socket), *place)
    return parse(_call(home, "invite", "--new-vault", vault_name))


def _call(home: Home, *arguments: str) -> str:
    done = subprocess.run([*PROGRAM, *arguments], env=environment(home), capture_output=True, text=True, check=False)
    if done.returncode:
        reason = done.stderr.strip().splitlines()[-1:] or ["it said nothing"]
        raise ContbakError(f"the embedded relay could not be set up: {reason[0]}")
    return done.stdout.strip()


class EmbeddedRelay:
    """Runs the relay and starts it again when it dies."""

    def __init__(self, home: Home) -> None:
        self._home = home
        self._process: asyncio.subprocess.Process | None = None
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Returns when the relay answers.  Raises Unreachable if it cannot be started."""
        await self._launch()
        self._task = asyncio.create_task(self._watch())

    async def stop(self) -> None:
        """Ends it in order."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        if self._process is not None and self._process.returncode is None:
            if self._process.stdin is not None:
                self._process.stdin.close()
            try:
                await asyncio.wait_for(self._process.wait(), STOP_S)
            except TimeoutError:
                self._process.kill()
                await self._process.wait()

    async def _launch(self) -> None:
        log = self._home.state / "relay.log"
        _turn(log)
        with open(log, "ab") as errors:
            self._process = await asyncio.create_subprocess_exec(
                *run_command(self._home),
                stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.DEVNULL, stderr=errors,
                env=environment(self._home), start_new_session=True,
            )  # fmt: skip
        await self._until_it_answers(self._process, log)

    async def _until_it_answers(self, process: asyncio.subprocess.Process, log: Path) -> None:
        deadline = asyncio.get_running_loop().time() + READY_S
        while True:
            if answers(self._home):
                return
            if process.returncode is not None or asyncio.get_running_loop().time() > deadline:
                raise Unreachable(f"the embedded relay does not start; {log} says why")
            await asyncio.sleep(0.02)

    async def _watch(self) -> None:
        pause = 0.1
        while True:
            assert self._process is not None
            await self._process.wait()
            try:
                await asyncio.sleep(pause)
                await self._launch()
                pause = 0.1
            except (Unreachable, OSError):  # no memory for a process, no space for its log: later perhaps
                pause = min(pause * 2, 30.0)


def _turn(log: Path, limit: int = 1 << 20) -> None:
    """Keeps the log small: one old file beside it."""
    try:
        if log.stat().st_size > limit:
            log.replace(log.with_suffix(".log.1"))
    except FileNotFoundError:
        pass
