"""Commit records: the signed, hash-chained history of a device (docs/format.md, "Commit record").

Each device has its own chain, so writers never meet.  A record names the state of one source by the roots of
its trees; everything that a relay needs is clear, everything that only the owner may know is sealed.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass

from contbak.core import codec, compress
from contbak.core.codec import Record
from contbak.core.crypto import SIGNATURE_LEN, Opener, Sealer, commit_id, is_vouched, public_of, sign, verify
from contbak.core.errors import FormatError, PeerError
from contbak.core.frame import padme
from contbak.core.names import ID_LEN, SOURCE_ID_LEN, VAULT_ID_LEN, ChunkId, CommitId, DeviceId, SourceId, VaultId

MAGIC = b"\xf3CBKCMT1"
RECORD_MAX = 64 << 10
RUNS_MAX = 64
WITNESSES_MAX = 8
INCARNATION_LEN = 16
NO_PREVIOUS = CommitId(bytes(ID_LEN))
_LEN = struct.Struct("<I")
_PURPOSE = "commit"


class Witness(Record, frozen=True, array_like=True, forbid_unknown_fields=True):
    """The newest commit of another device that this one has seen: a relay cannot quietly roll it back."""

    device: bytes
    sequence: int
    commit: bytes


class Sealed(Record, frozen=True, array_like=True, forbid_unknown_fields=True):
    """What the relay may not read: suite, ephemeral key, nonce field, ciphertext of Details."""

    suite: int
    ephemeral: bytes
    nonce: bytes
    body: bytes


class Commit(Record, frozen=True, array_like=True, forbid_unknown_fields=True):
    """The clear part.

    sequence    1, 2, 3... within (device, incarnation); strictly rising along the chain, gaps allowed
    incarnation 16 random bytes, new after the device's state was lost, restored or cloned
    previous    id of the device's previous record, NO_PREVIOUS for its first
    time_ms     the device's clock; informational
    base        root of the base tree, nil if the source is empty
    runs        roots of the runs on top of it, oldest first
    vouch       the vault's admin key's word that the device belongs to it (crypto.vouch): without the owner nobody,
                not even a relay, can add to the history
    """

    version: int
    vault: bytes
    device: bytes
    incarnation: bytes
    sequence: int
    previous: bytes
    time_ms: int
    source: bytes
    base: bytes | None
    runs: tuple[bytes, ...]
    witnesses: tuple[Witness, ...]
    vouch: bytes
    sealed: Sealed

    @property
    def roots(self) -> tuple[bytes, ...]:
        return self.runs if self.base is None else (self.base, *self.runs)


class Details(Record, frozen=True, array_like=True, forbid_unknown_fields=True):
    """What only the owner reads.

    path      where the source lies on the device, raw bytes
    files     regular files in the source at that moment; entries: names of any kind
    size      bytes of their content
    new, changed, gone   entries that this commit added, replaced, removed
    complete  whether a whole scan stood behind the source's state (False while a first backup is under way)
    """

    host: str
    source_name: str
    path: bytes
    files: int
    entries: int
    size: int
    new: int
    changed: int
    gone: int
    complete: bool
    program: str


@dataclass(frozen=True, slots=True)
class Signed:
    """A commit with the exact bytes that were signed."""

    commit: Commit
    raw: bytes
    id: CommitId

    @property
    def device(self) -> DeviceId:
        return DeviceId(self.commit.device)

    @property
    def roots(self) -> tuple[ChunkId, ...]:
        return tuple(ChunkId(root) for root in self.commit.roots)

    @property
    def source(self) -> SourceId:
        return SourceId(self.commit.source)


def seal_details(details: Details, sealer: Sealer, random: bytes) -> Sealed:
    """`details` compressed, padded and sealed; `sealer` fresh for each record, `random` 32 fresh bytes."""
    method, payload = compress.squeeze(codec.encode(details))
    plain = bytes((method,)) + _LEN.pack(len(payload)) + payload
    nonce = sealer.nonce(random, b"details" + plain)  # a clone that repeats its random numbers says something else
    plain = plain.ljust(max(256, padme(len(plain))), b"\0")
    return Sealed(sealer.suite, sealer.ephemeral_public, nonce, sealer.seal(b"details", nonce, plain))


def open_details(sealed: Sealed, opener: Opener) -> Details:
    """The details.  Raises FormatError if they do not open."""
    plain = opener.open(sealed.suite, sealed.ephemeral, b"details", sealed.nonce, sealed.body)
    if len(plain) < 5 or (end := 5 + _LEN.unpack_from(plain, 1)[0]) > len(plain):
        raise FormatError("commit details are cut short")
    return codec.decode(compress.unsqueeze(plain[0], plain[5:end], RECORD_MAX), Details, "commit details")


def encode(commit: Commit, device_seed: bytes) -> Signed:
    """Signs `commit` with the device's 32-byte seed.  Raises FormatError if the record would be too large."""
    if public_of(device_seed) != commit.device:
        raise FormatError("a commit must be signed by the device it names")
    body = codec.encode(commit)
    signed = MAGIC + _LEN.pack(len(body)) + body
    raw = signed + sign(device_seed, _PURPOSE, signed)
    raw += _LEN.pack(zlib.crc32(raw))
    return decode(raw)


def decode(raw: bytes) -> Signed:
    """The commit that `raw` is; checksum, signature and every length verified.  Raises FormatError."""
    start = len(MAGIC) + _LEN.size
    if not start + SIGNATURE_LEN + _LEN.size <= len(raw) <= RECORD_MAX or not raw.startswith(MAGIC):
        raise FormatError("this is no commit record")
    body_len = _LEN.unpack_from(raw, len(MAGIC))[0]
    if len(raw) != start + body_len + SIGNATURE_LEN + _LEN.size:
        raise FormatError("a commit record has the wrong length")
    if _LEN.unpack_from(raw, len(raw) - _LEN.size)[0] != zlib.crc32(raw[: -_LEN.size]):
        raise FormatError("a commit record is damaged")
    commit = codec.decode(raw[start : start + body_len], Commit, "a commit record")
    _check(commit)
    signed = raw[: start + body_len]
    if not verify(commit.device, _PURPOSE, signed, raw[start + body_len : -_LEN.size]):
        raise FormatError("a commit record's signature is wrong")
    return Signed(commit, raw, commit_id(raw))


def check_vouched(signed: Signed, admin_public: bytes) -> None:
    """Raises FormatError unless the owner of the vault vouches for the device that signed."""
    if not is_vouched(admin_public, vault_of(signed), signed.device, signed.commit.vouch):
        raise FormatError("a commit record is of a device that the vault's owner does not vouch for")


def check_follows(new: Signed, head: Signed | None) -> None:
    """Raises PeerError unless `new` continues the chain that ends in `head` (None: no chain yet)."""
    previous = NO_PREVIOUS if head is None else head.id
    if new.commit.previous != previous:
        raise PeerError("the commit does not continue the device's newest one")
    if head is not None and new.commit.sequence <= head.commit.sequence:
        raise PeerError("the commit's sequence number does not rise")


def _check(commit: Commit) -> None:
    if commit.version != 1:
        raise FormatError(f"commit version {commit.version} is newer than this program; update it")
    lengths = [
        (commit.vault, VAULT_ID_LEN),
        (commit.device, ID_LEN),
        (commit.incarnation, INCARNATION_LEN),
        (commit.previous, ID_LEN),
        (commit.source, SOURCE_ID_LEN),
        (commit.vouch, SIGNATURE_LEN),
        *((root, ID_LEN) for root in commit.roots),
        *((w.device, 8) for w in commit.witnesses),
        *((w.commit, ID_LEN) for w in commit.witnesses),
        (commit.sealed.ephemeral, ID_LEN),
        (commit.sealed.nonce, 32),
    ]
    if any(len(field) != length for field, length in lengths):
        raise FormatError("a commit record has a field of the wrong length")
    if len(commit.runs) > RUNS_MAX or len(commit.witnesses) > WITNESSES_MAX or commit.sequence < 1:
        raise FormatError("a commit record claims impossible numbers")


def vault_of(signed: Signed) -> VaultId:
    return VaultId(signed.commit.vault)
