"""A relay as a place to read from: HTTP over pinned TLS 1.3 or a unix socket, logged in with a device's key.

Rules: nothing is sent to a relay whose certificate or key is not the pinned one.  All requests here may be
repeated: a lost connection, 429, 5xx and 507 are tried again a few times, then it is Unreachable.  A token that
has run out is renewed once.  A reply is never larger than its endpoint allows.

It uses the standard library's client: the calls block anyway, and a command line that lists a directory starts
without an event loop.
"""

from __future__ import annotations

import http.client
import secrets
import socket
import ssl
import time
from collections.abc import Iterator, Sequence
from threading import Lock
from typing import TypeVar

from contbak.core import codec
from contbak.core.crypto import public_of
from contbak.core.errors import (
    FormatError,
    NotFound,
    PeerError,
    Refused,
    Unreachable,
    UsageError,
    WrongKey,
)
from contbak.core.invite import Address, Invite
from contbak.core.messages import (
    CHALLENGE_LEN,
    HAVE_MAX,
    Join,
    Joined,
    Listed,
    PackInfo,
    Session,
    VaultInfo,
    log_in,
    open_session,
)
from contbak.core.messages import Place as Spot
from contbak.core.names import ID_LEN, VaultId
from contbak.core.problem import problem_of
from contbak.recall.place import Read

T = TypeVar("T")

CONNECT_S = 10.0
READ_S = 60.0
PAUSES_S = (0.2, 0.8, 2.0)
"""Waits before a request is tried again; after the last one it is Unreachable."""
REPLY_MAX = 256 << 20
"""Bytes of the largest reply: the places of 65,536 ids."""
LOCATE_MAX = 16_384
"""Ids that one request asks for."""
POOL_MAX = 8
"""Idle connections kept."""


class _Passing(Exception):
    """The request may succeed if it is made again."""


class _Stale(Exception):
    """The token has run out."""


class RelayPlace:
    """One vault on a relay, read with the key of a device that is admitted there.

    seed   the device's 32-byte Ed25519 seed
    Connects when first asked.  Raises Unreachable, WrongKey (not the relay that was paired), Refused (the
    device is unknown or disabled), PeerError.
    """

    def __init__(self, address: Address, vault: VaultId, seed: bytes) -> None:
        self.label = str(address)
        self.problems: list[str] = []
        self._vault = vault
        self._seed = seed
        self._wire = _Wire(address)
        self._token = ""
        self._lock = Lock()

    def vault(self) -> VaultInfo:
        info = codec.decode(self._get("/v1/vault"), VaultInfo, "the relay's reply")
        if info.vault != self._vault:
            raise PeerError("the relay answered for another vault")
        return info

    def commits(self) -> Iterator[Listed]:
        after = 0
        while page := codec.decode(self._get(f"/v1/commits?after={after}"), tuple[Listed, ...], "the relay's reply"):
            yield from page
            if page[-1].position <= after:
                raise PeerError("the relay lists its commits in a circle")
            after = page[-1].position

    def locate(self, ids: Sequence[bytes]) -> list[tuple[Spot, ...]]:
        out: list[tuple[Spot, ...]] = []
        for start in range(0, len(ids), min(LOCATE_MAX, HAVE_MAX)):
            part = ids[start : start + LOCATE_MAX]
            raw = self._call("POST", "/v1/locate", b"".join(part))
            found = codec.decode(raw, tuple[tuple[Spot, ...], ...], "the relay's reply")
            if len(found) != len(part):
                raise PeerError("the relay located another number of chunks than was asked for")
            out += found
        return out

    def read(self, pack: bytes, offset: int, length: int) -> bytes:
        if not length:
            return b""
        path = f"/v1/packs/{pack.hex()}"
        raw = self._call("GET", path, b"", {"Range": f"bytes={offset}-{offset + length - 1}"})
        if len(raw) != length:
            raise FormatError(f"pack {pack.hex()} gave {len(raw)} bytes for {length}")
        return raw

    def reader(self) -> Read:
        other = RelayPlace(self._wire.address, self._vault, self._seed)
        other._token = self._token
        return other.read

    def packs(self) -> Iterator[PackInfo]:
        after = b""
        while True:
            query = f"?after={after.hex()}" if after else ""
            page = codec.decode(self._get(f"/v1/packs{query}"), tuple[PackInfo, ...], "the relay's reply")
            if not page:
                return
            yield from page
            if len(page[-1].pack) != ID_LEN or page[-1].pack <= after:
                raise PeerError("the relay lists its packs in a circle")
            after = page[-1].pack

    def close(self) -> None:
        self._wire.close()

    def _get(self, path: str) -> bytes:
        return self._call("GET", path, b"")

    def _call(self, method: str, path: str, body: bytes, headers: dict[str, str] | None = None) -> bytes:
        """The reply to an authorised request; logs in first, or again, if need be."""
        for _ in range(2):
            token = self._log_in()
            try:
                return self._wire.call(method, path, body, {**(headers or {}), "Authorization": f"Bearer {token}"})
            except _Stale:
                self._forget(token)
        raise Refused("the relay does not accept the token that it has just given")

    def _forget(self, token: str) -> None:
        with self._lock:
            if self._token == token:
                self._token = ""

    def _log_in(self) -> str:
        """A token; a new one if there is none."""
        with self._lock:
            if not self._token:
                self._token = self._session().token.hex()
            return self._token

    def _session(self) -> Session:
        relay = self._wire.address.relay
        challenge = self._plain("/v1/challenge", public_of(self._seed))
        login = log_in(challenge, self._seed, self._vault, relay, secrets.token_bytes(CHALLENGE_LEN))
        return open_session(self._plain("/v1/session", codec.encode(login)), login, relay)

    def _plain(self, path: str, body: bytes) -> bytes:
        try:
            return self._wire.call("POST", path, body, {})
        except _Stale:
            raise Refused("the relay does not let this device in; is it admitted there?") from None


def join(invite: Invite, request: Join) -> Joined:
    """Admits a device: the relay's reply to `request`.  Raises Refused, Unreachable, WrongKey, PeerError."""
    wire = _Wire(invite.address)
    try:
        reply = codec.decode(wire.call("POST", "/v1/join", codec.encode(request), {}), Joined, "the relay's reply")
    except _Stale:
        raise Refused("the relay does not accept this invite; ask for a new one") from None
    finally:
        wire.close()
    if reply.relay != invite.address.relay:
        raise WrongKey("the relay that answered is not the one of the invite")
    return reply


class _Wire:
    """Requests to one address over a few kept connections."""

    def __init__(self, address: Address) -> None:
        self.address = address
        self._idle: list[http.client.HTTPConnection] = []
        self._lock = Lock()

    def call(self, method: str, path: str, body: bytes, headers: dict[str, str]) -> bytes:
        """The body of a 2xx reply, tried a few times.  Raises what the status means."""
        for pause in (*PAUSES_S, None):
            try:
                return self._once(method, path, body, headers)
            except _Passing as error:
                if pause is None:
                    raise Unreachable(f"{self.address} cannot be reached: {error}") from None
                time.sleep(pause)
        raise AssertionError("unreachable")

    def close(self) -> None:
        """Closes the idle connections."""
        with self._lock:
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()

    def _once(self, method: str, path: str, body: bytes, headers: dict[str, str]) -> bytes:
        connection = self._take()
        kind = {"Content-Type": "application/msgpack"} if body else {}
        try:
            connection.request(method, path, body or None, {**kind, **headers})
            reply = connection.getresponse()
            raw = reply.read(REPLY_MAX + 1)
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            self.close()  # what broke this one, a suspend or a new relay, broke the idle ones too
            raise _Passing(str(error) or type(error).__name__) from None
        except BaseException:
            connection.close()
            raise
        if len(raw) > REPLY_MAX:
            connection.close()
            raise PeerError("the relay's reply is too large")
        self._give_back(connection, reply)
        if 200 <= reply.status < 300:
            return raw
        raise _meaning(reply.status, raw)

    def _take(self) -> http.client.HTTPConnection:
        with self._lock:
            if self._idle:
                return self._idle.pop()
        return _Unix(self.address.socket) if self.address.socket else _Pinned(self.address)

    def _give_back(self, connection: http.client.HTTPConnection, reply: http.client.HTTPResponse) -> None:
        with self._lock:
            if not reply.will_close and len(self._idle) < POOL_MAX:
                self._idle.append(connection)
                return
        connection.close()


def _meaning(status: int, raw: bytes) -> Exception:
    """What a reply that is no success says."""
    problem = problem_of(status, raw)
    text = problem.detail or problem.kind
    if status == 401:
        return _Stale(text)
    if status == 403:
        return Refused(f"the relay refuses: {text}")
    if status == 404:
        return NotFound(text)
    if status == 416:
        return FormatError(f"the pack ends before that: {text}")
    if status == 429 or status >= 500:
        return _Passing(text)
    return UsageError(text) if problem.kind == "malformed" else PeerError(f"the relay says: {text}")


class _Unix(http.client.HTTPConnection):
    """A connection to a unix socket."""

    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=READ_S)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


class _Pinned(http.client.HTTPConnection):
    """A TLS 1.3 connection to the one certificate that the address pins."""

    def __init__(self, address: Address) -> None:
        super().__init__(address.host, address.port, timeout=CONNECT_S)
        self._address = address

    def connect(self) -> None:
        super().connect()
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.check_hostname = False  # the certificate itself is pinned, and it is self-made
        context.verify_mode = ssl.CERT_NONE
        tls = context.wrap_socket(self.sock)
        self.sock = tls
        if not self._address.pins(tls.getpeercert(binary_form=True)):
            self.close()
            raise WrongKey("this is not the relay that was paired: its certificate differs; nothing was sent")
        tls.settimeout(READ_S)
