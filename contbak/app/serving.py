"""An embedded relay for as long as a command takes: the daemon's, or a process of our own.

Its lifeline is its standard input: when this process ends, however it ends, the relay reads end of file and stops.
Without an event loop, so that commands which only read start quickly; app/embedded.py keeps one for the daemon.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from contbak.app.home import Home
from contbak.core.errors import Unreachable

PROGRAM = (sys.executable, "-m", "relay.cli")
READY_S = 60.0
STOP_S = 15.0
_PROBE_S = 1.0


def environment(home: Home) -> dict[str, str]:
    """What the relay's process finds in its environment."""
    return {**os.environ, "CONTBAK_RELAY_HOME": str(home.embedded_relay), "PYTHONUNBUFFERED": "1"}


@contextmanager
def serving(home: Home) -> Iterator[None]:
    """The embedded relay answers inside: the daemon's, or one of our own for as long as it takes."""
    if answers(home):
        yield
        return
    log = home.state / "relay.log"
    home.state.mkdir(mode=0o700, parents=True, exist_ok=True)
    with open(log, "ab") as errors:
        process = subprocess.Popen(
            run_command(home), stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=errors,
            env=environment(home), start_new_session=True,
        )  # fmt: skip
    try:
        deadline = time.monotonic() + READY_S
        while not answers(home):
            if process.poll() is not None or time.monotonic() > deadline:
                raise Unreachable(f"the embedded relay does not start; {log} says why")
            time.sleep(0.02)
        yield
    finally:
        assert process.stdin is not None
        process.stdin.close()
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def answers(home: Home) -> bool:
    """Whether a relay accepts connections on the socket."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(_PROBE_S)  # a relay that hangs accepts nobody, and a full backlog blocks
        try:
            probe.connect(str(home.relay_socket))
        except OSError:
            return False
        return True


def run_command(home: Home) -> tuple[str, ...]:
    """How the relay is started."""
    return (*PROGRAM, "run", "--socket", str(home.relay_socket), "--exit-with-stdin")
