"""Real processes in an empty home: a small world for tests from outside."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from contbak.app.home import Home

ROOT = Path(__file__).resolve().parents[2]
PATIENCE_S = 120.0


class Failed(Exception):
    """A command ended with another code than expected."""


class World:
    """One machine's contbak: a home, commands, a daemon."""

    def __init__(self, top: Path, **settings: str) -> None:
        self.top = top
        self.home = top / "home"
        self.home.mkdir(parents=True, exist_ok=True)
        self.places = Home(self.home / "config", self.home / "data", self.home / "state", self.home / "run")
        keep = ("PATH", "LANG", "LC_ALL", "TZ", "VIRTUAL_ENV", "HYPOTHESIS_PROFILE")
        self.env = {name: os.environ[name] for name in keep if name in os.environ}
        self.env |= {
            "HOME": str(top), "CONTBAK_HOME": str(self.home), "PYTHONPATH": str(ROOT), "CONTBAK_SETTLE_S": "0.2",
            "CONTBAK_NICE": "0",
        } | settings  # fmt: skip
        self.daemon: subprocess.Popen[bytes] | None = None
        self.log = top / "daemon.log"
        self.prefix: tuple[str, ...] = ()
        """Put before each command."""

    # -- commands -------------------------------------------------------------------------------------------------

    def run(self, *words: str, code: int | None = 0, data: bytes = b"", program: str = "contbak") -> str:
        """Standard output of `contbak words...`, as text; standard error is in `self.err`."""
        return self.raw(*words, code=code, data=data, program=program).decode(errors="surrogateescape")

    def raw(self, *words: str, code: int | None = 0, data: bytes = b"", program: str = "contbak") -> bytes:
        """Standard output, as it is."""
        module = {"contbak": "contbak.app.cli", "contbak-relay": "relay.cli"}[program]
        done = subprocess.run(
            [*self.prefix, sys.executable, "-m", module, *words], env=self.env, input=data, capture_output=True,
            cwd=self.top, timeout=600, check=False,
        )  # fmt: skip
        self.err = done.stderr.decode(errors="replace")
        assert "Traceback" not in self.err, self.err
        if code is not None and done.returncode != code:
            raise Failed(f"{' '.join(words)}: exit {done.returncode}, wanted {code}\n{self.err}\n{done.stdout!r}")
        return done.stdout

    def json(self, *words: str) -> Any:
        """The document that a command with --json prints."""
        return json.loads(self.run(*words, "--json"))

    def lines(self, *words: str, code: int | None = 0) -> list[Any]:
        """The JSON lines of a command."""
        return [json.loads(line) for line in self.run(*words, "--json", code=code).splitlines()]

    def summary(self, *words: str) -> Any:
        """The summary of a backup."""
        return self.lines("backup", *words)[-1]

    def init(self, *words: str) -> str:
        """Sets up a vault; returns the recovery code."""
        out = self.run("init", *words)
        return next(line.strip() for line in out.splitlines() if line.strip().startswith("CB1-"))

    # -- the daemon -----------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Starts the daemon and waits until it answers."""
        with open(self.log, "ab") as log:
            self.daemon = subprocess.Popen(
                [*self.prefix, sys.executable, "-m", "contbak.app.cli", "run"], env=self.env, cwd=self.top,
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        self.until(self.answers)

    def answers(self) -> bool:
        """Whether the daemon can be asked things."""
        assert self.daemon is None or self.daemon.poll() is None, "the daemon ended: " + self.log.read_text()
        with socket.socket(socket.AF_UNIX) as probe:
            return probe.connect_ex(str(self.places.socket)) == 0

    def stop(self) -> None:
        """Ends the daemon in order."""
        if self.daemon is not None:
            self.daemon.send_signal(signal.SIGTERM)
            assert self.daemon.wait(60) == 0, self.log.read_text()
            self.daemon = None

    def kill_daemon(self) -> None:
        """kill -9 of the daemon process alone: its workers and its relay must end by themselves."""
        assert self.daemon is not None
        self.daemon.kill()
        self.daemon.wait()
        self.daemon = None

    def relay_pid(self) -> int | None:
        """The embedded relay's process."""
        wanted = str(self.places.relay_socket).encode()
        for entry in os.listdir("/proc"):
            with contextlib.suppress(OSError, ValueError):
                words = Path("/proc", entry, "cmdline").read_bytes().split(b"\0")
                if int(entry) and b"relay.cli" in words and wanted in words:
                    return int(entry)
        return None

    # -- waiting --------------------------------------------------------------------------------------------------

    def until(self, true: Callable[[], bool], patience_s: float = PATIENCE_S) -> None:
        """Waits for something that cannot be awaited from outside."""
        deadline = time.monotonic() + patience_s
        while not true():
            assert time.monotonic() < deadline, self.log.read_text() if self.log.exists() else "it took too long"
            time.sleep(0.05)

    def snapshots(self) -> list[Any]:
        """The history."""
        found: list[Any] = self.json("snapshots")
        return found

    def last_id(self) -> str | None:
        """The id of the newest acknowledged snapshot of the first source; asks the daemon."""
        last = self.json("status")["sources"][0]["last_snapshot"]
        return None if last is None else str(last["id"])

    def safe(self) -> bool:
        """Whether the running daemon says that everything is durable at the relay."""
        return all(
            source["oldest_unprotected_s"]["relay"] == 0 and not source["pending_changes"]
            and not source["gaps"] and source["last_snapshot"]
            for source in self.json("status")["sources"]
        )  # fmt: skip

    def settle(self) -> None:
        """Waits until every change so far is in an acknowledged snapshot: asks for a backup of everything."""
        self.run("backup", "--quiet")


@contextlib.contextmanager
def running(world: World) -> Iterator[World]:
    """The daemon runs inside."""
    world.start()
    try:
        yield world
    finally:
        if world.daemon is not None:
            world.stop()


class Relay:
    """A relay of its own on a loopback port, over TLS."""

    def __init__(self, top: Path, port: int = 0) -> None:
        self.world = World(top)
        self.world.env["CONTBAK_RELAY_HOME"] = str(top / "relay")
        self.store = top / "store"
        self.process: subprocess.Popen[bytes] | None = None
        self.port = port or free_port()
        self.run("init", "--store", str(self.store), "--listen", f"127.0.0.1:{self.port}")

    def run(self, *words: str, code: int | None = 0) -> str:
        """Standard output of a contbak-relay command."""
        return self.world.run(*words, code=code, program="contbak-relay")

    def invite(self, *words: str) -> str:
        """One invite."""
        return self.run("invite", "--host", "127.0.0.1", *words).strip()

    def start(self) -> None:
        """Starts it and waits until it accepts connections."""
        with open(self.world.top / "relay.log", "ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "relay.cli", "run"], env=self.world.env, cwd=self.world.top,
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        self.world.until(lambda: port_answers(self.port))

    def stop(self) -> None:
        """Ends it in order."""
        if self.process is not None:
            self.process.send_signal(signal.SIGTERM)
            assert self.process.wait(60) == 0
            self.process = None

    def kill(self) -> None:
        """kill -9."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()
        self.process = None

    def __enter__(self) -> Relay:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def free_port() -> int:
    """A TCP port that nobody listens on now."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def port_answers(port: int) -> bool:
    """Whether something accepts connections there."""
    try:
        socket.create_connection(("127.0.0.1", port), 5).close()
    except OSError:
        return False
    return True
