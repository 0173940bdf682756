"""The records that agent and relay exchange (docs/protocol.md).  Pure data and its checks."""

from __future__ import annotations

from contbak.core import codec
from contbak.core.codec import Record
from contbak.core.crypto import SIGNATURE_LEN, is_vouched, public_of, sign, verify
from contbak.core.errors import FormatError, WrongKey
from contbak.core.names import ID_LEN, VAULT_ID_LEN, CommitId, DeviceId, VaultId

LOCAL = 0
RELAY = 1
CLOUD = 2
"""Levels of durability: in the agent's spool, on the relay's disk, with a target."""

HAVE_MAX = 65_536
"""Ids in one `have` or `locate` request."""
MISSING_MAX = 4_096
"""Ids that one refusal of a commit names."""
PUT_MAX = 4 << 20
"""Bytes of consecutive segments in one PUT."""
WHOLE_MAX = 1 << 20
"""Bytes of a pack that may be sent in one request."""
TOKEN_LEN = 32
CHALLENGE_LEN = 32


class Join(Record, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A device asks to be admitted with an invite; the vault's admin key vouches for it."""

    version: int
    token: bytes
    read_public: bytes
    admin_public: bytes
    device: bytes
    device_name: str
    vault_name: str
    vouch: bytes


class Joined(Record, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Admitted.  `relay` is the relay's Ed25519 public key, which signs its receipts."""

    relay: bytes
    vault: bytes


class Challenge(Record, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Something fresh for the device to sign."""

    nonce: bytes
    relay: bytes


class Login(Record, frozen=True, array_like=True, forbid_unknown_fields=True):
    """The device's answer to a challenge; `challenge`: 32 random bytes of its own, for the relay to sign."""

    vault: bytes
    device: bytes
    nonce: bytes
    challenge: bytes
    signature: bytes


class Head(Record, frozen=True, array_like=True, forbid_unknown_fields=True):
    """The newest commit of one device that the relay holds."""

    device: bytes
    incarnation: bytes
    sequence: int
    commit: bytes


class Session(Record, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A session was opened.

    token     goes into `Authorization: Bearer <hex>`
    expires_s seconds until the token must be renewed
    head      of the device that logged in, nil if it never committed
    heads     of the vault's other devices (for witnesses)
    packs     how many sealed packs the vault has on this relay; foreign: how many of them other devices wrote
    proof     the relay's signature over its own nonce and the device's challenge
    """

    token: bytes
    expires_s: int
    head: Head | None
    heads: tuple[Head, ...]
    packs: int
    foreign: int
    proof: bytes


class PlanState(Record, frozen=True, array_like=True, forbid_unknown_fields=True):
    """What the relay has of a pack: sealed, or a bitmap of verified segments (bit i of byte i//8, lowest first)."""

    sealed: bool
    have: bytes


class Place(Record, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Where a chunk lies: in the `ordinal`-th place of the frame at `offset` (of `length` bytes) of a pack."""

    pack: bytes
    offset: int
    length: int
    ordinal: int
    kind: int


class Listed(Record, frozen=True, array_like=True, forbid_unknown_fields=True):
    """One commit of the vault in the order in which the relay accepted them."""

    position: int
    level: int
    received_ms: int
    record: bytes


class PackInfo(Record, frozen=True, array_like=True, forbid_unknown_fields=True):
    """One sealed pack: its id, its file's length, whether it holds metadata, who wrote it (8 bytes)."""

    pack: bytes
    length: int
    metadata: bool
    writer: bytes


class DeviceInfo(Record, frozen=True, array_like=True, forbid_unknown_fields=True):
    """One device of the vault."""

    device: bytes
    name: str
    enabled: bool
    joined_ms: int


class VaultInfo(Record, frozen=True, array_like=True, forbid_unknown_fields=True):
    """What the relay knows of a vault."""

    vault: bytes
    name: str
    packs: int
    size: int
    devices: tuple[DeviceInfo, ...]
    heads: tuple[Head, ...]


class Receipt(Record, frozen=True, array_like=True, forbid_unknown_fields=True):
    """The relay's promise: the commit and all that it refers to are durable at `level`."""

    version: int
    relay: bytes
    vault: bytes
    commit: bytes
    level: int
    position: int
    time_ms: int


def sign_receipt(receipt: Receipt, relay_seed: bytes) -> bytes:
    """The bytes of a signed receipt."""
    body = codec.encode(receipt)
    return body + sign(relay_seed, "receipt", body)


def open_receipt(raw: bytes, relay: bytes, commit: CommitId) -> Receipt:
    """The receipt.  Raises FormatError unless `relay` signed it and it is for `commit`."""
    body = raw[:-SIGNATURE_LEN]
    receipt = codec.decode(body, Receipt, "a receipt")
    if receipt.relay != relay or receipt.commit != commit or receipt.version != 1:
        raise FormatError("the relay's receipt is for something else")
    if not verify(relay, "receipt", body, raw[-SIGNATURE_LEN:]):
        raise FormatError("the relay's receipt is not signed by it")
    return receipt


def check_vouch(join: Join, vault: VaultId) -> None:
    """Raises WrongKey unless the vault's admin key vouches for the joining device."""
    if not is_vouched(join.admin_public, vault, DeviceId(join.device), join.vouch):
        raise WrongKey("the vault's key does not vouch for this device")


def login_signature(device_seed: bytes, vault: VaultId, challenge: Challenge, own: bytes) -> bytes:
    """The device's signature over the relay's challenge and its `own`, bound to the relay and the vault."""
    return sign(device_seed, "login", vault + challenge.relay + challenge.nonce + own)


def check_login(login: Login, relay: bytes) -> bool:
    """Whether the login is signed by the device it names, for this relay and vault."""
    lengths = len(login.vault), len(login.device), len(login.nonce), len(login.challenge)
    if lengths != (VAULT_ID_LEN, ID_LEN, CHALLENGE_LEN, CHALLENGE_LEN):
        return False
    return verify(login.device, "login", login.vault + relay + login.nonce + login.challenge, login.signature)


def log_in(raw: bytes, device_seed: bytes, vault: VaultId, relay: bytes, own: bytes) -> Login:
    """The device's answer to the challenge in `raw`.  own: CHALLENGE_LEN fresh random bytes.

    Raises FormatError, and WrongKey unless the challenge names `relay`, which was pinned at pairing.
    """
    challenge = codec.decode(raw, Challenge, "the relay's challenge")
    if challenge.relay != relay or len(challenge.nonce) != CHALLENGE_LEN:
        raise WrongKey("this is not the relay that was paired: its key differs; nothing was sent")
    signature = login_signature(device_seed, vault, challenge, own)
    return Login(vault, public_of(device_seed), challenge.nonce, own, signature)


def open_session(raw: bytes, login: Login, relay: bytes) -> Session:
    """The session in `raw` that `login` opened.  Raises FormatError, and WrongKey as `check_session`."""
    session = codec.decode(raw, Session, "the relay's session")
    check_session(session, relay, login)
    return session


def session_proof(relay_seed: bytes, login: Login) -> bytes:
    """The relay's proof that it holds, now, the key that the agent pinned."""
    return sign(relay_seed, "session", login.nonce + login.challenge)


def check_session(session: Session, relay: bytes, login: Login) -> None:
    """Raises WrongKey unless the relay that was pinned at pairing opened the session for this very login.

    The device's own bytes are in it, so that what a relay once said cannot be said again by somebody else.
    """
    if not verify(relay, "session", login.nonce + login.challenge, session.proof):
        raise WrongKey("this is not the relay that was paired: its key differs; nothing was sent")


def bitmap(bits: list[bool]) -> bytes:
    """Bits packed eight to a byte, lowest first."""
    out = bytearray(-(-len(bits) // 8))
    for i, bit in enumerate(bits):
        if bit:
            out[i >> 3] |= 1 << (i & 7)
    return bytes(out)


def bits(raw: bytes, count: int) -> list[bool]:
    """The reverse of `bitmap`.  Raises FormatError if `raw` has another length or bits beyond `count`."""
    if len(raw) != -(-count // 8):
        raise FormatError(f"a bitmap of {count} bits must have {-(-count // 8)} bytes, not {len(raw)}")
    if int.from_bytes(raw, "little") >> count:
        raise FormatError(f"a bitmap of {count} bits has more bits set")
    return [bool(raw[i >> 3] >> (i & 7) & 1) for i in range(count)]
