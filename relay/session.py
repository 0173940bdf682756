"""Who is speaking: challenges, logins and tokens.

Rules: a challenge is good once, for one device and 60 seconds, and costs the relay no memory until it is answered
rightly; a token is good for an hour, for one device and one vault, and ends when the device is disabled.  Nothing
here outlives the process: agents log in again.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from dataclasses import dataclass
from hmac import compare_digest
from threading import Lock

from contbak.core.crypto import derive
from contbak.core.messages import CHALLENGE_LEN, TOKEN_LEN, Challenge, Login, check_login
from contbak.core.names import DeviceId, VaultId
from relay.problem import Problem, denied
from relay.registry import Registry

CHALLENGE_S = 60
TOKEN_S = 3_600
_TOKENS_MAX = 16
_TIME_LEN, _RANDOM_LEN, _MARK_LEN = 8, 8, 16


@dataclass(frozen=True, slots=True)
class Who:
    """A device that has proved its key."""

    vault: VaultId
    device: DeviceId


class Sessions:
    """The sessions of one relay.  Times are seconds of a clock that never goes back."""

    def __init__(self, registry: Registry, relay: bytes) -> None:
        self._registry = registry
        self._relay = relay
        self._secret = os.urandom(32)
        self._lock = Lock()
        self._answered: OrderedDict[bytes, float] = OrderedDict()
        self._tokens: dict[bytes, tuple[Who, float]] = {}
        self._of: dict[Who, list[bytes]] = {}

    def challenge(self, device: bytes, now: float) -> Challenge:
        """Something fresh for this device to sign."""
        head = int((now + CHALLENGE_S) * 1000).to_bytes(_TIME_LEN, "little") + os.urandom(_RANDOM_LEN)
        return Challenge(head + self._mark(head, device), self._relay)

    def login(self, login: Login, now: float) -> tuple[Who, bytes]:
        """(who it is, a fresh token).  Raises Problem."""
        head = login.nonce[: _TIME_LEN + _RANDOM_LEN]
        ends = int.from_bytes(head[:_TIME_LEN], "little") / 1000
        ours = len(login.nonce) == CHALLENGE_LEN and compare_digest(
            login.nonce[len(head) :], self._mark(head, login.device)
        )
        if not ours or now > ends:
            raise Problem(401, "token", "the challenge is not ours or has run out; ask for a new one")
        if not check_login(login, self._relay):
            raise denied("the login is not signed by the device that it names")
        who = Who(VaultId(login.vault), DeviceId(login.device))
        self._check_enabled(who)
        with self._lock:
            self._use(login.nonce, ends, now)
            return who, self._issue(who, now)

    def who(self, token: bytes, now: float) -> Who:
        """Whose token it is.  Raises Problem."""
        found = self._tokens.get(token)
        if found is None or found[1] < now:
            raise Problem(401, "token", "the token is not ours or has run out; log in again")
        self._check_enabled(found[0])
        return found[0]

    def _check_enabled(self, who: Who) -> None:
        device = self._registry.device(who.vault, who.device)
        if device is None:
            raise denied("this relay does not know the device; let it join with an invite")
        if not device.enabled:
            raise denied("the device is disabled on this relay")

    def _use(self, nonce: bytes, ends: float, now: float) -> None:
        while self._answered and next(iter(self._answered.values())) < now - CHALLENGE_S:
            self._answered.popitem(last=False)
        if nonce in self._answered:
            raise Problem(401, "token", "the challenge was answered already; ask for a new one")
        self._answered[nonce] = ends

    def _issue(self, who: Who, now: float) -> bytes:
        for old in [token for token, (_, ends) in self._tokens.items() if ends < now]:
            del self._tokens[old]
        own = [token for token in self._of.get(who, []) if token in self._tokens]
        while len(own) >= _TOKENS_MAX:
            del self._tokens[own.pop(0)]
        token = os.urandom(TOKEN_LEN)
        self._tokens[token] = (who, now + TOKEN_S)
        self._of[who] = [*own, token]
        return token

    def _mark(self, head: bytes, device: bytes) -> bytes:
        return derive("relay challenge", self._secret + head + device)[:_MARK_LEN]
