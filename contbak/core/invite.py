"""Invites: one line that pins a relay's keys and admits one device once.

    contbak://HOST:PORT/TOKEN?relay=HEX&cert=HEX[&vault=HEX]

TOKEN is 32 random bytes, `relay` the relay's Ed25519 public key, `cert` the SHA-256 of its TLS certificate,
all in lower-case hex.  The embedded relay listens on a unix socket instead: contbak+unix:///PATH?relay=HEX.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from urllib.parse import parse_qs, quote, unquote, urlencode, urlsplit

from contbak.core.errors import FormatError, UsageError
from contbak.core.messages import TOKEN_LEN
from contbak.core.names import ID_LEN, VAULT_ID_LEN, from_hex

PORT = 7443
SCHEME = "contbak"
SOCKET_SCHEME = "contbak+unix"


@dataclass(frozen=True, slots=True)
class Address:
    """Where a relay is and how to know it.  `socket` set: a unix socket, no TLS; else host, port and cert."""

    relay: bytes
    host: str = ""
    port: int = PORT
    cert: bytes = b""
    socket: str = ""

    def pins(self, certificate: bytes | None) -> bool:
        """Whether `certificate` (DER) is the one that the relay showed at pairing."""
        return certificate is not None and hashlib.sha256(certificate).digest() == self.cert

    def __str__(self) -> str:
        """What a user sees: no token, no keys."""
        if self.socket:
            return f"{SOCKET_SCHEME}://{quote(self.socket, errors='surrogateescape')}"
        return f"{SCHEME}://{_bracketed(self.host)}:{self.port}"


@dataclass(frozen=True, slots=True)
class Invite:
    """An address with a token.  `vault`: the one vault that may use it, b"" for a new one."""

    address: Address
    token: bytes
    vault: bytes = b""

    def line(self) -> str:
        """The line to hand over."""
        query = {"relay": self.address.relay.hex()}
        if self.address.cert:
            query["cert"] = self.address.cert.hex()
        if self.vault:
            query["vault"] = self.vault.hex()
        if self.address.socket:
            query["token"] = self.token.hex()
            return f"{self.address}?{urlencode(query)}"
        return f"{self.address}/{self.token.hex()}?{urlencode(query)}"


def parse(line: str) -> Invite:
    """The invite that `line` spells.  Raises UsageError in one sentence for anything else."""
    try:
        parts = urlsplit(line.strip())
        query = {key: values[0] for key, values in parse_qs(parts.query, strict_parsing=True).items()}
        relay = from_hex(query["relay"], ID_LEN, "relay")
        vault = from_hex(query["vault"], VAULT_ID_LEN, "vault") if "vault" in query else b""
        if parts.scheme == SOCKET_SCHEME and parts.path and not parts.netloc:
            address = Address(relay, socket=unquote(parts.path, errors="surrogateescape"))
            return Invite(address, from_hex(query["token"], TOKEN_LEN, "token"), vault)
        if parts.scheme == SCHEME and parts.hostname and parts.port != 0:
            address = Address(relay, parts.hostname, parts.port or PORT, from_hex(query["cert"], ID_LEN, "cert"))
            return Invite(address, from_hex(parts.path.removeprefix("/"), TOKEN_LEN, "token"), vault)
    except (ValueError, KeyError, FormatError):
        pass
    raise UsageError("this is no invite; ask the relay for one with 'contbak-relay invite' and paste the whole line")


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host
