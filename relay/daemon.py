"""The relay as a process: lock, listening, signals, the end.

Rules: one process per RELAY_HOME; it says READY only after every vault agrees with its disk; SIGTERM and SIGINT let
requests end for ten seconds.  SIGHUP reads the settings again, for new stores.
"""

from __future__ import annotations

import asyncio
import logging
import os
import resource
import signal
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from contbak.core.errors import ConfigError, ContbakError
from relay import config as configs
from relay import lock
from relay.config import Config
from relay.identity import Identity, load, tls_context
from relay.service import Service
from relay.web import Server

END_S = 10.0
SWEEP_S = 3600.0
_FEW_FILES = 256
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Options:
    """How to run.  socket: a unix socket instead of what the settings say; wait_s: for a predecessor to end."""

    socket: str = ""
    end_with_stdin: bool = False
    wait_s: float = 10.0


def run(top: Path, options: Options) -> None:
    """Serves until told to end.  Raises ContbakError."""
    config = configs.load(top)
    identity = load(top)
    raise_nofile()
    held = lock.take(top, options.wait_s)
    try:
        asyncio.run(_serve(top, config, identity, options))
    finally:
        os.close(held)


async def _serve(top: Path, config: Config, identity: Identity, options: Options) -> None:
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    if options.end_with_stdin:
        _watch_stdin(loop, stop.set)
    service = Service(top, config, identity)
    loop.add_signal_handler(signal.SIGHUP, lambda: _reload(top, service))
    server = Server(service, END_S)
    sweeping = asyncio.create_task(_sweep(service))
    try:
        await loop.run_in_executor(None, service.start)
        listening = await _listen(top, config, identity, options, server)
        _log.info("ready: %s", ", ".join(listening))
        notify("READY=1\nSTATUS=" + ", ".join(listening))
        await stop.wait()
        notify("STOPPING=1")
    finally:
        sweeping.cancel()
        await server.close()
        service.close()
        with suppress(OSError):
            os.unlink(options.socket or config.socket)


async def _sweep(service: Service) -> None:
    """Removes what stopped arriving, again and again."""
    while True:
        await asyncio.sleep(SWEEP_S)
        try:
            await asyncio.get_running_loop().run_in_executor(None, service.sweep)
        except ContbakError as error:
            _log.warning("abandoned packs were not removed: %s", error)


def raise_nofile() -> None:
    """Lets this process open as many files as it may: each connection needs one, and so do packs and indexes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(OSError, ValueError):  # some systems cap below what they call the hard limit
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if resource.getrlimit(resource.RLIMIT_NOFILE)[0] < _FEW_FILES:
        _log.warning("this process may open only %d files at once; few connections will be served", soft)


async def _listen(top: Path, config: Config, identity: Identity, options: Options, server: Server) -> list[str]:
    """Starts to listen; returns where."""
    places = []
    path = options.socket or config.socket
    if path:
        await server.listen_unix(_unix_socket(Path(path)))
        places.append(path)
    if config.listen and not options.socket:
        host, port = configs.split_address(config.listen, "listen")
        try:
            places += await server.listen_tls(host, port, tls_context(identity, top))
        except OSError as error:
            raise ConfigError(f"listen: {config.listen}: {error.strerror}") from error
    if not places:
        raise ConfigError("neither 'listen' nor 'socket' is set, so there is nothing to serve")
    return places


def _unix_socket(path: Path) -> socket.socket:
    """A socket that only this user can open, also in the moment in which it is made."""
    path.parent.mkdir(0o700, parents=True, exist_ok=True)
    made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    before = os.umask(0o177)
    try:
        if path.is_socket():  # of a predecessor: we hold its lock
            path.unlink()
        made.bind(os.fspath(path))
    except OSError as error:
        made.close()
        raise ConfigError(f"socket: {path}: {error.strerror or error}") from error
    finally:
        os.umask(before)
    return made


def _watch_stdin(loop: asyncio.AbstractEventLoop, ended: Callable[[], object]) -> None:
    """Calls `ended` when standard input ends, so that this process ends with the one that holds the other side."""

    def wait() -> None:
        with suppress(OSError):
            while os.read(0, 4096):
                pass
        with suppress(RuntimeError):  # the loop has ended by itself
            loop.call_soon_threadsafe(ended)

    threading.Thread(target=wait, name="stdin", daemon=True).start()


def _reload(top: Path, service: Service) -> None:
    try:
        service.stores.reload(configs.load(top).stores)
    except ContbakError as error:
        _log.error("the settings were not read again: %s", error)


def notify(state: str) -> None:
    """Tells systemd, if it listens."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        channel.connect("\0" + address[1:] if address.startswith("@") else address)
        channel.send(state.encode())
