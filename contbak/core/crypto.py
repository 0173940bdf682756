"""Keys, ids, sealing and signing: the only door to libsodium and BLAKE3.

Everything is derived from one root secret S of 32 bytes with BLAKE3 in derive_key mode, one context string per
purpose (docs/format.md, "Keys").  Nonces, ephemeral secrets and randomness are arguments: nothing here is random.

Who holds what: an owner holds S; a device that may only write holds WriterKeys and its own signing key; a relay
holds public keys alone.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import nacl.bindings as sodium
import nacl.exceptions
import nacl.signing
from blake3 import blake3

from contbak.core.errors import FormatError, WrongKey
from contbak.core.names import VAULT_ID_LEN, ChunkId, CommitId, DeviceId, VaultId

XCHACHA = 1
"""Suite 1: XChaCha20-Poly1305, fast on every processor."""
AEGIS = 2
"""Suite 2: AEGIS-256, eight times as fast where the processor has AES."""
SUITES = (XCHACHA, AEGIS)
TAG_LEN = {XCHACHA: 16, AEGIS: 32}
NONCE_LEN = {XCHACHA: 24, AEGIS: 32}

SECRET_LEN = 32
SIGNATURE_LEN = 64

_C = "contbak 2026-11 "  # BLAKE3 asks for context strings that are unique to the application


def derive(purpose: str, key: bytes) -> bytes:
    """32 bytes for `purpose` from `key`: BLAKE3 derive_key."""
    return blake3(key, derive_key_context=_C + purpose).digest()


def digest(data: bytes | memoryview) -> bytes:
    """The plain BLAKE3 of `data`, 32 bytes."""
    return blake3(data).digest()


class Hasher:
    """BLAKE3 of what is fed piece by piece."""

    def __init__(self) -> None:
        self._state = blake3()

    def update(self, data: bytes | memoryview) -> None:
        self._state.update(data)

    def digest(self) -> bytes:
        return self._state.digest()


@dataclass(frozen=True, slots=True)
class WriterKeys:
    """What a device needs to write to a vault.  Reading takes the read secret too."""

    vault: VaultId
    read_public: bytes
    admin_public: bytes
    psk: bytes
    chunk_id_key: bytes
    chunker_key: bytes

    def data_id(self, data: bytes | memoryview) -> ChunkId:
        """The chunk id of file content."""
        return ChunkId(blake3(data, key=self.chunk_id_key).digest())

    def node_id(self, refs: Sequence[bytes], payload: bytes) -> ChunkId:
        """The chunk id of a node: it covers what the node points to and what it says."""
        state = blake3(key=derive("node id", self.chunk_id_key))
        state.update(len(refs).to_bytes(4, "little") + b"".join(refs))
        state.update(payload)
        return ChunkId(state.digest())

    def split(self, key: bytes) -> int:
        """64 secret bits of an entry's key, which decide where the leaves of a tree end."""
        return int.from_bytes(blake3(key, key=self.chunker_key).digest(8), "little")


@dataclass(frozen=True, slots=True)
class OwnerKeys:
    """What the owner derives from the root secret."""

    writer: WriterKeys
    read_secret: bytes
    admin_seed: bytes

    @staticmethod
    def from_root(root: bytes) -> OwnerKeys:
        """All keys of the vault whose root secret is `root` (32 bytes)."""
        if len(root) != SECRET_LEN:
            raise WrongKey("a root secret is 32 bytes")
        read_secret = derive("read secret x25519", root)
        read_public = sodium.crypto_scalarmult_base(read_secret)
        admin_seed = derive("admin seed ed25519", root)
        admin_public = public_of(admin_seed)
        writer = WriterKeys(
            vault=vault_id(read_public, admin_public),
            read_public=read_public,
            admin_public=admin_public,
            psk=derive("psk", root),
            chunk_id_key=derive("chunk id", root),
            chunker_key=derive("chunker", root),
        )
        return OwnerKeys(writer, read_secret, admin_seed)


def vault_id(read_public: bytes, admin_public: bytes) -> VaultId:
    """The name of the vault with these public keys: nobody can claim it with others."""
    return VaultId(derive("vault id", read_public + admin_public)[:VAULT_ID_LEN])


# -- signing ----------------------------------------------------------------------------------------------------


def public_of(seed: bytes) -> DeviceId:
    """The Ed25519 public key of a 32-byte seed."""
    return DeviceId(bytes(nacl.signing.SigningKey(seed).verify_key))


def sign(seed: bytes, purpose: str, message: bytes) -> bytes:
    """A 64-byte Ed25519 signature over `message`, valid for `purpose` only."""
    return nacl.signing.SigningKey(seed).sign(_C.encode() + purpose.encode() + b"\0" + message).signature


def verify(public: bytes, purpose: str, message: bytes, signature: bytes) -> bool:
    """Whether `signature` is that of `public` over `message` for `purpose`."""
    try:
        nacl.signing.VerifyKey(public).verify(_C.encode() + purpose.encode() + b"\0" + message, signature)
    except (nacl.exceptions.CryptoError, ValueError, TypeError):
        return False
    return True


def vouch(admin_seed: bytes, vault: VaultId, device: DeviceId) -> bytes:
    """The owner's word (64 bytes) that `device` belongs to the vault."""
    return sign(admin_seed, "enroll", vault + device)


def is_vouched(admin_public: bytes, vault: VaultId, device: DeviceId, word: bytes) -> bool:
    """Whether `word` is what `vouch` gives for this device."""
    return verify(admin_public, "enroll", vault + device, word)


def commit_id(record: bytes) -> CommitId:
    """The id of a commit record."""
    return CommitId(digest(record))


# -- sealing ----------------------------------------------------------------------------------------------------


class Sealer:
    """Seals the frames of one pack; made with a fresh ephemeral secret and dropped with the pack.

    Afterwards nobody but the owner can open them, this device included.
    """

    def __init__(self, keys: WriterKeys, ephemeral_secret: bytes, suite: int) -> None:
        if suite not in SUITES:
            raise FormatError(f"unknown cipher suite {suite}")
        self.suite = suite
        self.ephemeral_public = sodium.crypto_scalarmult_base(ephemeral_secret)
        shared = sodium.crypto_scalarmult(ephemeral_secret, keys.read_public)
        pack_key = _pack_key(shared, self.ephemeral_public, keys.read_public, keys.psk)
        self._key = derive("frame encryption", pack_key)
        self._nonce_key = derive("frame nonce", pack_key)
        self._vault = keys.vault

    def nonce(self, random: bytes, table: bytes) -> bytes:
        """A 32-byte nonce field from 32 fresh random bytes and the header's table.

        Both go in, so that a cloned machine that repeats its random numbers still never uses a nonce for two
        contents.
        """
        nonce = blake3(random + table, key=self._nonce_key).digest()
        return nonce[: NONCE_LEN[self.suite]].ljust(32, b"\0")

    def seal(self, header: bytes, nonce: bytes, plain: bytes) -> bytes:
        """`plain` sealed and bound to the vault and to `header`; longer by TAG_LEN[suite]."""
        return _ENCRYPT[self.suite](plain, self._vault + header, nonce[: NONCE_LEN[self.suite]], self._key)


class Opener:
    """Opens the frames of a vault.  Needs the read secret; keeps the keys of the packs used last."""

    def __init__(self, keys: OwnerKeys, keep: int = 1024) -> None:
        self._keys = keys
        self._keep = keep
        self._cache: OrderedDict[bytes, bytes] = OrderedDict()

    @property
    def writer(self) -> WriterKeys:
        return self._keys.writer

    def open(self, suite: int, ephemeral_public: bytes, header: bytes, nonce: bytes, body: bytes) -> bytes:
        """The plaintext.  Raises FormatError if anything was changed or it was sealed for another vault."""
        if suite not in SUITES:
            raise FormatError(f"unknown cipher suite {suite}")
        try:
            key = self._key(ephemeral_public)
            return _DECRYPT[suite](body, self._keys.writer.vault + header, nonce[: NONCE_LEN[suite]], key)
        except (nacl.exceptions.CryptoError, ValueError, TypeError):
            raise FormatError("a frame does not open: it is damaged or was sealed for another vault") from None

    def _key(self, ephemeral_public: bytes) -> bytes:
        found = self._cache.get(ephemeral_public)
        if found is None:
            keys = self._keys
            shared = sodium.crypto_scalarmult(keys.read_secret, ephemeral_public)
            pack_key = _pack_key(shared, ephemeral_public, keys.writer.read_public, keys.writer.psk)
            found = self._cache[ephemeral_public] = derive("frame encryption", pack_key)
            if len(self._cache) > self._keep:
                self._cache.popitem(last=False)
        else:
            self._cache.move_to_end(ephemeral_public)
        return found


def _pack_key(shared: bytes, ephemeral_public: bytes, read_public: bytes, psk: bytes) -> bytes:
    return derive("pack key", shared + psk + ephemeral_public + read_public)


_ENCRYPT = {
    XCHACHA: sodium.crypto_aead_xchacha20poly1305_ietf_encrypt,
    AEGIS: sodium.crypto_aead_aegis256_encrypt,
}
_DECRYPT = {
    XCHACHA: sodium.crypto_aead_xchacha20poly1305_ietf_decrypt,
    AEGIS: sodium.crypto_aead_aegis256_decrypt,
}

# -- passphrases ------------------------------------------------------------------------------------------------

SALT_LEN = 16


@dataclass(frozen=True, slots=True)
class Stretch:
    """How a passphrase becomes a key: Argon2id with `passes` over `memory` bytes."""

    salt: bytes
    passes: int = 3
    memory: int = 256 << 20


def wrap_secret(secret: bytes, passphrase: bytes, stretch: Stretch, nonce: bytes) -> bytes:
    """`secret` under a passphrase, XChaCha20-Poly1305; nonce: 24 fresh random bytes."""
    key = _stretched(passphrase, stretch)
    return nonce + sodium.crypto_aead_xchacha20poly1305_ietf_encrypt(secret, stretch.salt, nonce, key)


def unwrap_secret(wrapped: bytes, passphrase: bytes, stretch: Stretch) -> bytes:
    """The secret.  Raises WrongKey for another passphrase or damaged bytes."""
    nonce_len = NONCE_LEN[XCHACHA]
    try:
        return sodium.crypto_aead_xchacha20poly1305_ietf_decrypt(
            wrapped[nonce_len:], stretch.salt, wrapped[:nonce_len], _stretched(passphrase, stretch)
        )
    except (nacl.exceptions.CryptoError, ValueError, TypeError):
        raise WrongKey("the passphrase does not fit; try again or use the recovery code") from None


def _stretched(passphrase: bytes, stretch: Stretch) -> bytes:
    return sodium.crypto_pwhash_alg(
        SECRET_LEN, passphrase, stretch.salt, stretch.passes, stretch.memory, sodium.crypto_pwhash_ALG_ARGON2ID13
    )
