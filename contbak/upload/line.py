"""HTTP to one relay, over pinned TLS 1.3 or a unix socket.  The agent's door to aiohttp on the way out.

Rules: the relay proves itself twice, by the pinned certificate (or the socket's place) and by its signature over the
challenge; before that nothing is sent.  Bodies are bytes and answers are read whole, up to a limit.  A relay out of
reach is Unreachable, an answer that is no success a Problem (upload/answers).

It does not wait, try again or know what is sent: upload/uplink does.
"""

from __future__ import annotations

import asyncio
import secrets
import ssl

import aiohttp

from contbak.core import codec
from contbak.core.crypto import public_of
from contbak.core.errors import PeerError, Unreachable, WrongKey
from contbak.core.invite import Address
from contbak.core.messages import CHALLENGE_LEN, Session, log_in, open_session
from contbak.core.names import VaultId
from contbak.core.problem import Problem, problem_of
from contbak.upload.answers import ANSWER_MAX, expect

CONNECT_S = 10.0
READ_S = 60.0
"""Seconds without a byte from the relay until a request counts as failed.  A seal syncs 32 MiB, mostly in 1 s."""
_TYPE = {"Content-Type": "application/msgpack"}


class Line:
    """HTTP to one relay: connections, login, and answers as bytes or Problem.  Raises Unreachable, WrongKey."""

    def __init__(self, address: Address) -> None:
        self.address = address
        self.bytes_sent = 0
        self._http: aiohttp.ClientSession | None = None

    async def request(self, method: str, path: str, body: bytes, token: bytes = b"") -> bytes | Problem:
        """One exchange.  `path` starts with "/v1/".  Raises Unreachable if there is no whole answer."""
        headers = dict(_TYPE)
        if token:
            headers["Authorization"] = f"Bearer {token.hex()}"
        self.bytes_sent += len(body)
        try:
            async with self._session().request(
                method, self._base + path, data=body, headers=headers, allow_redirects=False
            ) as response:
                raw = await _whole(response)
                return raw if response.status < 300 else problem_of(response.status, raw)
        except aiohttp.ClientConnectorCertificateError:
            raise WrongKey("the relay shows another certificate than the one that was paired") from None
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise Unreachable(f"{self.address} cannot be reached: {_said(error)}") from None
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            # `close` while a name was looked up: aiohttp cancels the lookup, and who waits for it sees only that
            raise Unreachable(f"{self.address} cannot be reached: the connection was closed") from None

    async def login(self, vault: VaultId, seed: bytes) -> Session:
        """Opens a session for the device of `seed`, with a relay that proves itself.

        Raises Unreachable, WrongKey, PeerError.
        """
        challenge = expect(await self.request("POST", "/v1/challenge", public_of(seed)))
        login = log_in(challenge, seed, vault, self.address.relay, secrets.token_bytes(CHALLENGE_LEN))
        session = expect(await self.request("POST", "/v1/session", codec.encode(login)))
        return open_session(session, login, self.address.relay)

    async def close(self) -> None:
        """Closes all connections; the next request opens new ones."""
        http, self._http = self._http, None
        if http is not None:
            await http.close()

    @property
    def _base(self) -> str:
        if self.address.socket:
            return "http://relay"
        host = f"[{self.address.host}]" if ":" in self.address.host else self.address.host
        return f"https://{host}:{self.address.port}"

    def _session(self) -> aiohttp.ClientSession:
        if self._http is None:
            timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S, sock_read=READ_S)
            connector: aiohttp.BaseConnector
            if self.address.socket:
                connector = aiohttp.UnixConnector(self.address.socket, limit=0)
            else:
                connector = aiohttp.TCPConnector(ssl=_pinned(self.address), limit=0)
            self._http = aiohttp.ClientSession(connector=connector, timeout=timeout, trust_env=False)
        return self._http


async def _whole(response: aiohttp.ClientResponse) -> bytes:
    raw = bytearray()
    async for part in response.content.iter_any():
        raw += part
        if len(raw) > ANSWER_MAX:
            raise PeerError("the relay's answer is too long")
    return bytes(raw)


def _pinned(address: Address) -> ssl.SSLContext:
    """TLS 1.3 with the one server whose certificate `address` pins, checked before anything is sent."""

    class Pinned(ssl.SSLObject):
        def do_handshake(self) -> None:
            super().do_handshake()
            if not address.pins(self.getpeercert(binary_form=True)):
                raise ssl.SSLCertVerificationError("another certificate than the pinned one")

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE  # no authority vouches for it: the pin does
    context.sslobject_class = Pinned
    return context


def _said(error: BaseException) -> str:
    """The error in one line; some have no text."""
    return " ".join(str(error).split()) or type(error).__name__
