"""Where the agent keeps things.

CONTBAK_HOME=DIR puts everything under DIR; otherwise the XDG directories (platformdirs) are used.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from platformdirs import PlatformDirs

from contbak.core.errors import Refused

_SOCKET_MAX = 100  # bytes; the kernel's sockaddr_un holds 108 on Linux and 104 on macOS
_LOCK_S = 15.0


@dataclass(frozen=True, slots=True)
class Home:
    """The directories of one agent."""

    config: Path
    data: Path
    state: Path
    run: Path

    @property
    def settings_file(self) -> Path:
        return self.config / "contbak.toml"

    @property
    def sources(self) -> Path:
        return self.config / "sources"

    @property
    def relay_file(self) -> Path:
        return self.config / "relay.toml"

    @property
    def keys(self) -> Path:
        return self.data / "keys"

    @property
    def embedded_relay(self) -> Path:
        return self.data / "relay"

    @property
    def journal(self) -> Path:
        return self.state / "journal"

    @property
    def spool(self) -> Path:
        return self.state / "spool"

    @property
    def scratch(self) -> Path:
        return self.state / "scratch"

    @property
    def lock(self) -> Path:
        return self.data / "lock"

    @property
    def socket(self) -> Path:
        """The daemon's control socket."""
        return _short(self.run / "agent.sock")

    @property
    def relay_socket(self) -> Path:
        """The embedded relay's socket."""
        return _short(self.run / "relay.sock")

    def own_places(self) -> list[bytes]:
        """Absolute paths that are never backed up, because backing them up would never end."""
        return [os.fsencode(os.path.realpath(place)) for place in (self.state, self.embedded_relay, self.run)]

    def make(self) -> None:
        """Makes the directories, for this user only."""
        for place in (self.config, self.sources, self.data, self.keys, self.state, self.scratch, self.run):
            place.mkdir(mode=0o700, parents=True, exist_ok=True)


def find_home() -> Home:
    """The agent's home as the environment says."""
    explicit = os.environ.get("CONTBAK_HOME")
    if explicit:
        top = Path(explicit).expanduser().absolute()
        return Home(top / "config", top / "data", top / "state", top / "run")
    dirs = PlatformDirs("contbak", appauthor=False)
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    run = Path(runtime) / "contbak" if runtime else Path(dirs.user_state_dir) / "run"
    return Home(Path(dirs.user_config_dir), Path(dirs.user_data_dir), Path(dirs.user_state_dir), run)


@contextlib.contextmanager
def locked(home: Home, patience_s: float = _LOCK_S) -> Iterator[None]:
    """Only one process works on the agent's state.  Raises Refused.

    Waits for up to `patience_s`, because a `status` may be looking at the state just now.
    """
    home.make()
    with open(home.lock, "w") as lock:
        deadline = time.monotonic() + patience_s
        while not _taken(lock.fileno()):
            if time.monotonic() >= deadline:
                raise Refused("contbak is at work here already; see 'contbak status'")
            time.sleep(0.05)
        yield


def _taken(lock: int) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _short(path: Path) -> Path:
    """`path`, or one that a socket address can hold: derived from it, in a directory of this user only."""
    if len(os.fsencode(path)) <= _SOCKET_MAX:
        return path
    digest = hashlib.blake2b(os.fsencode(path.parent), digest_size=6).hexdigest()
    place = Path(tempfile.gettempdir()) / f"contbak-{os.getuid()}-{digest}"
    place.mkdir(mode=0o700, exist_ok=True)
    st = place.lstat()
    if st.st_uid != os.getuid() or st.st_mode & 0o077:
        raise Refused(f"{place} belongs to somebody else or is open to others; remove it")
    return place / path.name
