"""The TCP door: accepts connections and leads them through TLS to the endpoints.

Rules: a handshake has ten seconds; there is a limit to open connections.  Beyond it the oldest that asks for nothing
(still in its handshake, or between requests) makes room, so that those who open many and say nothing lock nobody
out; if all are at work the new one is refused.  Knows no HTTP.
"""

from __future__ import annotations

import asyncio
import logging
import resource
import socket
import ssl
from collections.abc import Callable, Collection
from contextlib import suppress
from typing import Any

HANDSHAKE_S = 10.0
CONNECTIONS_MAX = 1_000
_OTHER_FILES = 128
"""Files that are kept for packs, indexes and the rest."""
_FAREWELL_S = 2.0  # for the other side to close too
_LEAST = 16
_PAUSE_S = 0.5  # when the machine has no file for a connection

_log = logging.getLogger(__name__)


def connections_max() -> int:
    """How many connections may be open: CONNECTIONS_MAX, fewer if this process may open only few files."""
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if files == resource.RLIM_INFINITY:
        return CONNECTIONS_MAX
    return min(CONNECTIONS_MAX, max(_LEAST, files - _OTHER_FILES))


class Door:
    """Listening sockets.  make: the protocol of a new connection; busy: those on which a request is under way."""

    def __init__(
        self, make: Callable[[], asyncio.Protocol], busy: Collection[object], context: ssl.SSLContext
    ) -> None:
        self._make = make
        self._busy = busy
        self._context = context
        self._limit = connections_max()
        self._open: dict[socket.socket, asyncio.Protocol] = {}  # oldest first
        self._listening: list[socket.socket] = []
        self._accepting: list[asyncio.Task[None]] = []
        self._entering: set[asyncio.Task[None]] = set()

    async def open(self, host: str, port: int, backlog: int) -> list[Any]:
        """Listens (port 0: a free one); returns the addresses.  Raises OSError."""
        loop = asyncio.get_running_loop()
        bound = await loop.create_server(self._make, host or None, port, reuse_address=True, start_serving=False)
        try:
            self._listening = [sock.dup() for sock in bound.sockets]
        finally:
            bound.close()
        for sock in self._listening:
            sock.setblocking(False)
            sock.listen(backlog)
            self._accepting.append(asyncio.create_task(self._accept(sock)))
        return [sock.getsockname() for sock in self._listening]

    async def close(self) -> None:
        """Accepts nobody any more; established connections go on."""
        tasks = [*self._accepting, *self._entering]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for sock in self._listening:
            sock.close()

    async def _accept(self, listening: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                sock, _ = await loop.sock_accept(listening)
            except ConnectionError:  # gone before it was accepted
                continue
            except OSError as error:
                _log.warning("a connection could not be accepted: %s", error.strerror)
                self._make_room()
                await asyncio.sleep(_PAUSE_S)
                continue
            self._forget_closed()
            if len(self._open) >= self._limit and not self._make_room():
                sock.close()
                continue
            protocol = self._make()
            self._open[sock] = protocol
            task = asyncio.create_task(self._enter(sock, protocol))
            self._entering.add(task)
            task.add_done_callback(self._entering.discard)

    async def _enter(self, sock: socket.socket, protocol: asyncio.Protocol) -> None:
        try:
            await asyncio.get_running_loop().connect_accepted_socket(
                lambda: protocol, sock, ssl=self._context,
                ssl_handshake_timeout=HANDSHAKE_S, ssl_shutdown_timeout=_FAREWELL_S,
            )  # fmt: skip
        except (OSError, ssl.SSLError):  # whoever speaks no TLS to us is not worth a line in the log
            self._open.pop(sock, None)
            sock.close()
        except asyncio.CancelledError:
            sock.close()
            raise

    def _forget_closed(self) -> None:
        self._open = {sock: protocol for sock, protocol in self._open.items() if sock.fileno() >= 0}

    def _make_room(self) -> bool:
        """Ends the oldest connection without a request; returns whether there was one."""
        for sock, protocol in self._open.items():
            if protocol not in self._busy:
                del self._open[sock]
                with suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)  # its transport sees the end and closes it
                return True
        return False
