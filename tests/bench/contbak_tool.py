"""contbak as a user runs it: an agent in a home of its own, and a relay on loopback over TLS with its store.

Both are real processes made from the checkout this file is in.  The CPU time of the relay (and of the daemon where one
runs) counts; its memory is noted apart.  The one setting that differs from the default is the workers' niceness: 0, as
the peers have none.
"""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from tests.bench.measure import Command, Usage, bytes_below, disk_bytes_below, environment, idle_cpu, run
from tests.bench.tool import Place, Tool

ROOT = Path(__file__).resolve().parents[2]
AGENT = (sys.executable, "-m", "contbak.app.cli")
RELAY = (sys.executable, "-m", "relay.cli")
_PATIENCE_S = 600.0


class Relay:
    """A relay in `top`, as a process, listening with TLS on loopback."""

    def __init__(self, top: Path) -> None:
        self.top = top
        self.store = top / "store"
        self.port = _free_port()
        self.env = {"CONTBAK_RELAY_HOME": str(top / "home"), "PYTHONPATH": str(ROOT)}
        top.mkdir(parents=True)
        self.command("init", "--store", str(self.store), "--listen", f"127.0.0.1:{self.port}")
        self.process: subprocess.Popen[bytes] | None = None

    def command(self, *words: str) -> str:
        """Standard output of `contbak-relay words...`."""
        done = subprocess.run([*RELAY, *words], env=environment(self.env), capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"contbak-relay {' '.join(words)}: {done.stderr.strip()}")
        return done.stdout.strip()

    def start(self) -> int:
        """Starts it; its process id, once it accepts connections."""
        with open(self.top / "log", "ab") as log:
            self.process = subprocess.Popen(
                [*RELAY, "run"], env=environment(self.env), stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        _until(lambda: _answers(self.port), self.process)
        return self.process.pid

    def invite(self) -> str:
        """One line that admits a device."""
        return self.command("invite", "--host", "127.0.0.1")

    def stop(self) -> None:
        """Ends it in order."""
        if self.process is not None:
            self.process.send_signal(signal.SIGTERM)
            self.process.wait(60)
            self.process = None


class Contbak(Tool):
    """Agent, relay and store in one directory."""

    def __init__(self, name: str = "contbak") -> None:
        self.name = name
        self.relay: Relay | None = None

    def version(self) -> str:
        described = subprocess.run(
            ["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True, check=False
        )
        said = subprocess.run(
            [*AGENT, "--version"], env=environment({"PYTHONPATH": str(ROOT)}), capture_output=True, text=True,
            check=True,
        )  # fmt: skip
        return f"{said.stdout.split()[-1]} {described.stdout.strip()}".strip()

    def prepare(self, place: Place) -> None:
        self.place = place
        self.relay = Relay(place.repository)
        self.relay_pid = self.relay.start()
        self.env = {
            "CONTBAK_HOME": str(place.top / "agent"), "PYTHONPATH": str(ROOT), "HOME": str(place.top),
            "CONTBAK_NICE": "0",
        }  # fmt: skip
        self.call("init", "--relay", self.relay.invite())
        self.call("add", str(place.source))

    def call(self, *words: str, beside: Sequence[int] = ()) -> Usage:
        """One measured command of the agent, with the relay."""
        return run(Command([*AGENT, *words], self.env, self.place.top, [self.relay_pid, *beside]))

    def backup(self) -> Usage:
        return self.call("backup", "--quiet")

    def watched(self) -> Usage:
        with self.daemon() as pid:
            return self.call("backup", "--quiet", beside=[pid])

    def daemon(self) -> Daemon:
        """The daemon, from its first scan's end to its end: `with tool.daemon() as pid`."""
        return Daemon(self)

    def status(self) -> dict[str, object]:
        """What `contbak status --json` says."""
        done = subprocess.run([*AGENT, "status", "--json"], env=environment(self.env), capture_output=True, check=True)
        found: dict[str, object] = json.loads(done.stdout)
        return found

    def restore(self, target: Path) -> Usage:
        return self.call("restore", str(self.place.source), "--to", str(target))

    def restored(self, target: Path) -> Path:
        return target / self.place.source.name

    def one(self, path: Path, target: Path) -> Usage:
        return self.call("restore", str(path), "--to", str(target))

    def verify(self) -> Usage:
        assert self.relay is not None
        return run(Command([*RELAY, "verify"], self.relay.env, self.place.top, [self.relay_pid]))

    def check(self) -> Usage:
        return self.call("check", "--read-data")

    def stored(self) -> int:
        assert self.relay is not None
        return bytes_below(self.relay.store)

    def indexes(self) -> int:
        assert self.relay is not None
        return disk_bytes_below(self.relay.top / "home") + disk_bytes_below(self.place.top / "agent")

    def close(self) -> None:
        if self.relay is not None:
            self.relay.stop()
            self.relay = None


class Daemon:
    """`contbak run`, entered when its first scan is done and nothing is owed."""

    def __init__(self, tool: Contbak) -> None:
        self.tool = tool

    def __enter__(self) -> int:
        with open(self.tool.place.top / "daemon.log", "ab") as log:
            self.process = subprocess.Popen(
                [*AGENT, "run"], env=environment(self.tool.env), cwd=self.tool.place.top, stdin=subprocess.DEVNULL,
                stdout=log, stderr=log,
            )  # fmt: skip
        _until(self._at_rest, self.process)
        idle_cpu([self.process.pid])
        return self.process.pid

    def _at_rest(self) -> bool:
        status = self.tool.status()
        assert isinstance(status["sources"], list) and isinstance(status["daemon"], dict)
        return bool(status["daemon"]["running"]) and all(
            source["last_snapshot"] and not source["gaps"] and not source["pending_changes"]
            for source in status["sources"]
        )

    def __exit__(self, *_: object) -> None:
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(120)


def _until(true: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + _PATIENCE_S
    while not true():
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"{process.args!r} does not get ready; its log says why")
        time.sleep(0.1)


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def _answers(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 5).close()
    except OSError:
        return False
    return True
