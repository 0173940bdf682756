"""One connection to a relay: pinned TLS 1.3 or a unix socket, and HTTP over it, one exchange after the other.

Rules: nothing is sent before the certificate is the pinned one.  All calls but `abort` block and are made by one
thread at a time; `abort` may come from any and ends them.  A connection on which an exchange failed is not used again.

It does not connect and does not choose what is sent: upload/line does.
"""

from __future__ import annotations

import select
import socket
import ssl
import time
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from http.client import HTTPConnection
from threading import Lock
from typing import Protocol, TypeAlias

from contbak.core.errors import PeerError, WrongKey
from contbak.core.invite import Address
from contbak.upload.answers import ANSWER_MAX

CONNECT_S = 10.0
"""Seconds until a connection stands, and again until its handshake is done."""
READ_S = 60.0
"""Seconds without a byte to or from the relay until a request counts as failed.  A seal syncs 32 MiB, mostly in 1 s."""
_IDLE_S = 25.0  # relays close connections that nobody uses for 30 s
_SLICE = 128 << 10  # given to the socket at once: each gets READ_S, so a slow line is no broken one
_TYPE = "application/msgpack"


class Pieces(Protocol):
    """A body that is read while it is sent.  A piece is good until the next is asked for."""

    def __len__(self) -> int:
        """Bytes of all pieces."""

    def pieces(self) -> Iterator[memoryview]:
        """From the beginning, at each call."""


Body: TypeAlias = bytes | Pieces


class Wire:
    """A connection over `sock`, which is connected and ours from now on."""

    def __init__(self, address: Address, sock: socket.socket) -> None:
        self.used = False
        """Whether an exchange was made."""
        self.reusable = True
        """Whether another can be made."""
        self._address = address
        self._sock = sock
        self._http: HTTPConnection | None = None
        self._since = time.monotonic()
        self._lock = Lock()
        self._busy = False
        self._aborted = False

    def fresh(self) -> bool:
        """Whether it can be used again: the relay has not closed it and is not about to."""
        if time.monotonic() - self._since > _IDLE_S:
            return False
        poll = select.poll()
        poll.register(self._sock, select.POLLIN)
        return not poll.poll(0)  # what comes unasked is the end

    def exchange(self, method: str, path: str, body: Body, token: bytes) -> tuple[int, bytes]:
        """(status, body) of the answer.

        Raises OSError, HTTPException, WrongKey, PeerError, and what the body raises.
        """
        with self._lock:
            if self._aborted:
                raise ConnectionAbortedError("the connection was closed")
            self._busy, self.reusable = True, False
        try:
            return self._exchange(method, path, body, token)
        finally:
            with self._lock:
                self._busy = False
                if self._aborted:
                    self._sock.close()

    def abort(self) -> None:
        """Closes the connection, and so ends an exchange that is under way."""
        with self._lock:
            self._aborted, self.reusable = True, False
            with suppress(OSError):
                socket.socket.shutdown(self._sock, socket.SHUT_RDWR)  # not that of TLS, which others are using
            if not self._busy:
                self._sock.close()

    def _exchange(self, method: str, path: str, body: Body, token: bytes) -> tuple[int, bytes]:
        http = self._http or self._ready()
        http.putrequest(method, path, skip_accept_encoding=True)
        http.putheader("Content-Type", _TYPE)
        http.putheader("Content-Length", str(len(body)))
        if token:
            http.putheader("Authorization", f"Bearer {token.hex()}")
        if isinstance(body, bytes):
            http.endheaders(body)
        else:
            http.endheaders()
            with suppress(ConnectionError):  # a refusal may come before the end: it is the answer
                for piece in body.pieces():
                    for at in range(0, len(piece), _SLICE):
                        self._sock.sendall(piece[at : at + _SLICE])
        answer = http.getresponse()
        raw = answer.read(ANSWER_MAX + 1)
        if len(raw) > ANSWER_MAX:
            raise PeerError("the relay's answer is too long")
        self._since, self.used = time.monotonic(), True
        self.reusable = not answer.will_close
        return answer.status, raw

    def _ready(self) -> HTTPConnection:
        """HTTP over the socket, with TLS in between unless it is a local one."""
        if not self._address.socket:
            self._shake_hands()
        self._sock.settimeout(READ_S)
        self._http = HTTPConnection("relay")
        self._http.sock = self._sock
        return self._http

    def _shake_hands(self) -> None:
        self._sock.settimeout(CONNECT_S)
        tls = _context().wrap_socket(self._sock, do_handshake_on_connect=False)
        with self._lock:
            self._sock = tls
            if self._aborted:
                raise ConnectionAbortedError("the connection was closed")
        tls.do_handshake()
        if not self._address.pins(tls.getpeercert(binary_form=True)):
            raise WrongKey("the relay shows another certificate than the one that was paired")


@cache
def _context() -> ssl.SSLContext:
    """TLS 1.3 with anyone: no authority vouches for a relay, its pin does."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context
