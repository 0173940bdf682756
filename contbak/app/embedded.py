"""The embedded relay: a relay process of our own on a unix socket, for those who have no NAS yet.

Its lifeline is its standard input: when this process ends, however it ends, the relay reads end of file and stops.
"""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from contbak.app.home import Home
from contbak.core.errors import ContbakError, Unreachable
from contbak.core.invite import Invite, parse

_PROGRAM = (sys.executable, "-m", "relay.cli")
_READY_S = 60.0
_STOP_S = 15.0
_PROBE_S = 1.0


def create(home: Home, vault_name: str, store: str | None = None) -> Invite:
    """Makes the relay's home (if it is not there) and an invite for a new vault."""
    home.embedded_relay.mkdir(mode=0o700, parents=True, exist_ok=True)
    home.relay_socket.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not (home.embedded_relay / "config.toml").exists():
        place = ["--store", os.path.abspath(store)] if store else []
        _call(home, "init", "--socket", str(home.relay_socket), *place)
    return parse(_call(home, "invite", "--new-vault", vault_name))


def _call(home: Home, *arguments: str) -> str:
    done = subprocess.run([*_PROGRAM, *arguments], env=_environment(home), capture_output=True, text=True, check=False)
    if done.returncode:
        reason = done.stderr.strip().splitlines()[-1:] or ["it said nothing"]
        raise ContbakError(f"the embedded relay could not be set up: {reason[0]}")
    return done.stdout.strip()


def _environment(home: Home) -> dict[str, str]:
    return {**os.environ, "CONTBAK_RELAY_HOME": str(home.embedded_relay), "PYTHONUNBUFFERED": "1"}


@contextmanager
def serving(home: Home) -> Iterator[None]:
    """The embedded relay answers inside: the daemon's, or one of our own for as long as it takes."""
    if _answers(home):
        yield
        return
    log = home.state / "relay.log"
    home.state.mkdir(mode=0o700, parents=True, exist_ok=True)
    with open(log, "ab") as errors:
        process = subprocess.Popen(
            _run_command(home), stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=errors,
            env=_environment(home), start_new_session=True,
        )  # fmt: skip
    try:
        deadline = time.monotonic() + _READY_S
        while not _answers(home):
            if process.poll() is not None or time.monotonic() > deadline:
                raise Unreachable(f"the embedded relay does not start; {log} says why")
            time.sleep(0.02)
        yield
    finally:
        assert process.stdin is not None
        process.stdin.close()
        try:
            process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _answers(home: Home) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(_PROBE_S)  # a relay that hangs accepts nobody, and a full backlog blocks
        try:
            probe.connect(str(home.relay_socket))
        except OSError:
            return False
        return True


def _run_command(home: Home) -> tuple[str, ...]:
    return (*_PROGRAM, "run", "--socket", str(home.relay_socket), "--exit-with-stdin")


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
                await asyncio.wait_for(self._process.wait(), _STOP_S)
            except TimeoutError:
                self._process.kill()
                await self._process.wait()

    async def _launch(self) -> None:
        log = self._home.state / "relay.log"
        _turn(log)
        with open(log, "ab") as errors:
            self._process = await asyncio.create_subprocess_exec(
                *_run_command(self._home),
                stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.DEVNULL, stderr=errors,
                env=_environment(self._home), start_new_session=True,
            )  # fmt: skip
        await self._until_it_answers(self._process, log)

    async def _until_it_answers(self, process: asyncio.subprocess.Process, log: Path) -> None:
        deadline = asyncio.get_running_loop().time() + _READY_S
        while True:
            if _answers(self._home):
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
