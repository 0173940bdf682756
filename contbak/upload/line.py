"""HTTP to one relay, over pinned TLS 1.3 or a unix socket, a thread for each request under way.

Rules: the relay proves itself twice, by the pinned certificate (or the socket's place) and by its signature over the
challenge; before that nothing is sent.  Bodies are sent as they are read, answers are read whole, up to a limit.  A
relay out of reach is Unreachable, an answer that is no success a Problem (upload/answers).

It uses the standard library's blocking client: a body goes from its buffer through TLS to the socket in one call,
without the copies and wake-ups of an event loop, and an agent starts without a web framework.

It does not wait, try again or know what is sent: upload/uplink does.
"""

from __future__ import annotations

import asyncio
import secrets
import socket
import ssl
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from http.client import HTTPException
from typing import Any, TypeVar

from contbak.core import codec
from contbak.core.crypto import public_of
from contbak.core.errors import Unreachable
from contbak.core.invite import Address
from contbak.core.messages import CHALLENGE_LEN, Session, log_in, open_session
from contbak.core.names import VaultId
from contbak.core.problem import Problem, problem_of
from contbak.core.transfer import WINDOW_MAX
from contbak.upload.answers import expect
from contbak.upload.wire import CONNECT_S, Body, Wire

_IDLE_MAX = WINDOW_MAX
_THREADS = WINDOW_MAX + 8  # transfers, and beside them questions and logins

T = TypeVar("T")


class Line:
    """HTTP to one relay: connections, login, and answers as bytes or Problem.  Raises Unreachable, WrongKey.

    For one event loop.
    """

    def __init__(self, address: Address) -> None:
        self.address = address
        self.bytes_sent = 0
        self._threads: ThreadPoolExecutor | None = None
        self._connecting: set[asyncio.Task[socket.socket]] = set()
        self._open: set[Wire] = set()
        self._idle: list[Wire] = []

    async def request(self, method: str, path: str, body: Body, token: bytes = b"") -> bytes | Problem:
        """One exchange.  `path` starts with "/v1/".  Raises Unreachable if there is no whole answer, and whatever
        reading the body raises.
        """
        while True:
            self.bytes_sent += len(body)
            wire = await self._wire()
            used = wire.used
            try:
                status, raw = await self._run(wire, partial(wire.exchange, method, path, body, token))
            except (OSError, HTTPException) as error:
                closed_while_idle = used and wire in self._open and isinstance(error, ConnectionError | ssl.SSLError)
                if not closed_while_idle:
                    raise self._away(error) from None
            else:
                return raw if status < 300 else problem_of(status, raw)
            finally:
                self._put_back(wire)

    async def login(self, vault: VaultId, seed: bytes) -> Session:
        """Opens a session for the device of `seed`, with a relay that proves itself.

        Raises Unreachable, WrongKey, PeerError.
        """
        challenge = expect(await self.request("POST", "/v1/challenge", public_of(seed)))
        login = log_in(challenge, seed, vault, self.address.relay, secrets.token_bytes(CHALLENGE_LEN))
        session = expect(await self.request("POST", "/v1/session", codec.encode(login)))
        return open_session(session, login, self.address.relay)

    async def close(self) -> None:
        """Closes all connections, those in use too; the next request opens new ones."""
        for task in self._connecting:
            task.cancel()
        for wire in [*self._open]:
            self._drop(wire)
        threads, self._threads = self._threads, None
        if threads is not None:
            threads.shutdown(wait=False)

    async def _run(self, wire: Wire, work: Callable[[], T]) -> T:
        """Does `work` in a thread; whoever does not wait for it any more breaks its connection."""
        if self._threads is None:
            self._threads = ThreadPoolExecutor(_THREADS, "line")
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, work)
        except asyncio.CancelledError:
            self._drop(wire)
            raise

    async def _wire(self) -> Wire:
        """A connection that nobody uses."""
        while self._idle:
            wire = self._idle.pop()
            if wire.fresh():
                return wire
            self._drop(wire)
        wire = Wire(self.address, await self._connected())
        self._open.add(wire)
        return wire

    def _put_back(self, wire: Wire) -> None:
        if wire in self._open and wire.reusable and len(self._idle) < _IDLE_MAX:
            self._idle.append(wire)
        else:
            self._drop(wire)

    def _drop(self, wire: Wire) -> None:
        self._open.discard(wire)
        if wire in self._idle:
            self._idle.remove(wire)
        wire.abort()

    async def _connected(self) -> socket.socket:
        """A socket to the relay."""
        task = asyncio.ensure_future(_unix(self.address) if self.address.socket else _tcp(self.address))
        self._connecting.add(task)
        try:
            return await task
        except (OSError, TimeoutError) as error:
            raise self._away(error) from None
        except asyncio.CancelledError:
            current = asyncio.current_task()
            if current is None or current.cancelling():
                raise
            raise Unreachable(f"{self.address} cannot be reached: the connection was closed") from None
        finally:
            self._connecting.discard(task)

    def _away(self, error: BaseException) -> Unreachable:
        said = " ".join(str(error).split()) or type(error).__name__  # some have no text
        return Unreachable(f"{self.address} cannot be reached: {said}")


async def _unix(address: Address) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    return await _to(sock, address.socket)


async def _tcp(address: Address) -> socket.socket:
    """The first of the host's addresses that answers.  Raises OSError, TimeoutError."""
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
    last: Exception = OSError("the name has no address")
    for family, kind, protocol, _, place in found:
        try:
            sock = await _to(socket.socket(family, kind, protocol), place)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return sock
        except (OSError, TimeoutError) as error:
            last = error
    raise last


async def _to(sock: socket.socket, place: Any) -> socket.socket:
    sock.setblocking(False)
    try:
        async with asyncio.timeout(CONNECT_S):
            await asyncio.get_running_loop().sock_connect(sock, place)
    except BaseException:
        sock.close()
        raise
    return sock
