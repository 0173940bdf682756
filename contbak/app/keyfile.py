"""The device's keys at rest: two equal files of mode 0600, so that one damaged byte costs nothing.

What is in them: what the device needs to write (never enough to read), its own signing key, and, unless it was
initialised with --write-only, the vault's root secret, in clear or under a passphrase (Argon2id).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from contbak.core import codec
from contbak.core.codec import Record
from contbak.core.crypto import OwnerKeys, Stretch, WriterKeys, digest, public_of, unwrap_secret
from contbak.core.errors import FormatError, NotInitialised, Refused, WrongKey
from contbak.core.names import ID_LEN, DeviceId, VaultId
from contbak.store.posix import replace_file

MAGIC = b"\xf4CBKKEY1"
FILES = ("vault", "vault.copy")

NONE = 0
CLEAR = 1
PASSPHRASE = 2


class KeyRecord(Record, frozen=True, array_like=True, forbid_unknown_fields=True):
    """The file's content.  `root` is nothing, the secret, or the wrapped secret, as `root_kind` says."""

    version: int
    vault: bytes
    read_public: bytes
    admin_public: bytes
    psk: bytes
    chunk_id_key: bytes
    chunker_key: bytes
    device_seed: bytes
    device_name: str
    vouch: bytes
    root_kind: int
    root: bytes
    salt: bytes
    passes: int
    memory: int


@dataclass(frozen=True, slots=True)
class Keys:
    """What this device holds."""

    record: KeyRecord

    @property
    def writer(self) -> WriterKeys:
        r = self.record
        return WriterKeys(VaultId(r.vault), r.read_public, r.admin_public, r.psk, r.chunk_id_key, r.chunker_key)

    @property
    def device_seed(self) -> bytes:
        return self.record.device_seed

    @property
    def device(self) -> DeviceId:
        return public_of(self.record.device_seed)

    @property
    def vouch(self) -> bytes:
        """The owner's word that this device belongs to the vault; it goes into every commit."""
        return self.record.vouch

    @property
    def device_name(self) -> str:
        return self.record.device_name

    @property
    def write_only(self) -> bool:
        return self.record.root_kind == NONE

    @property
    def needs_passphrase(self) -> bool:
        return self.record.root_kind == PASSPHRASE

    def root(self, passphrase: bytes | None = None) -> bytes:
        """The root secret.  Raises Refused on a write-only device, WrongKey for a wrong or missing passphrase."""
        r = self.record
        if r.root_kind == NONE:
            raise Refused(
                "this device can only write; to read, use 'contbak recover' with the recovery code on any machine"
            )
        if r.root_kind == CLEAR:
            return r.root
        if passphrase is None:
            raise WrongKey("the vault needs its passphrase: set CONTBAK_PASSWORD_FILE or CONTBAK_PASSWORD_COMMAND")
        return unwrap_secret(r.root, passphrase, Stretch(r.salt, r.passes, r.memory))

    def owner(self, passphrase: bytes | None = None) -> OwnerKeys:
        """The keys to read with; see `root` for what it raises."""
        keys = OwnerKeys.from_root(self.root(passphrase))
        if keys.writer != self.writer:
            raise WrongKey("the root secret does not fit this vault's other keys; restore the key file")
        return keys


def save(directory: Path, record: KeyRecord) -> None:
    """Writes both files, durably."""
    body = MAGIC + codec.encode(record)
    for name in FILES:
        replace_file(directory / name, body + digest(body))


def load(directory: Path) -> Keys:
    """The keys; a damaged or missing file is healed from its copy.

    Raises NotInitialised if there are none, FormatError if both files are damaged.
    """
    found: list[bytes] = []
    bad: list[str] = []
    there = 0
    for name in FILES:
        try:
            raw = (directory / name).read_bytes()
        except FileNotFoundError:
            bad.append(name)
            continue
        there += 1
        if raw.startswith(MAGIC) and digest(raw[:-ID_LEN]) == raw[-ID_LEN:]:
            found.append(raw)
        else:
            bad.append(name)
    if not there:
        raise NotInitialised("there is no vault here yet; start with 'contbak init' or 'contbak up DIR'")
    if not found:
        raise FormatError(
            f"both key files in {directory} are damaged; use 'contbak recover' with the recovery code"
        )
    for name in bad:
        replace_file(directory / name, found[0])
    return Keys(codec.decode(found[0][len(MAGIC) : -ID_LEN], KeyRecord, "the key file"))


def opens(root: bytes, keys: Keys) -> bool:
    """Whether `root` is the root secret of the vault of `keys`."""
    return OwnerKeys.from_root(root).writer == keys.writer
