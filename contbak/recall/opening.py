"""Opening a vault for reading by what a person has: an invite, an address of a paired relay, a store directory.

It does not know where keys are kept: they are arguments.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from contbak.core.crypto import Opener, OwnerKeys, public_of, vouch
from contbak.core.errors import NotFound, UsageError
from contbak.core.invite import SCHEME, SOCKET_SCHEME, Address, Invite, parse
from contbak.core.messages import Join
from contbak.recall.chunks import Chunks
from contbak.recall.directory import DirectoryPlace, is_store
from contbak.recall.frames import CACHE
from contbak.recall.place import Place
from contbak.recall.remote import RelayPlace, join
from contbak.recall.snapshots import History

_URL = re.compile(r"([a-z][a-z0-9+.-]*)://")


@dataclass(slots=True)
class Vault:
    """An open vault: its place, its chunks, its history.  Use it in a `with`, or close it."""

    place: Place
    chunks: Chunks
    history: History

    def __enter__(self) -> Vault:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends threads and connections, removes temporary files."""
        self.chunks.close()
        self.place.close()

    @property
    def problems(self) -> list[str]:
        """All damage noticed so far, one sentence each."""
        return [*self.place.problems, *self.history.problems]


def open_vault(place: Place, keys: OwnerKeys, cache: int = CACHE) -> Vault:
    """Reads the history of the vault at `place`, which is closed if that fails.

    cache: bytes of opened frames to keep.  Raises WrongKey, Unreachable.
    """
    chunks = Chunks(place, Opener(keys), cache)
    try:
        return Vault(place, chunks, History(place, chunks))
    except BaseException:
        chunks.close()
        place.close()
        raise


def open_relay(address: Address, keys: OwnerKeys, seed: bytes) -> RelayPlace:
    """A relay that the device of that seed is paired with."""
    return RelayPlace(address, keys.writer.vault, seed)


def open_directory(path: Path, keys: OwnerKeys) -> DirectoryPlace:
    """A store directory without its relay.  Raises NotFound, WrongKey, StoreError."""
    return DirectoryPlace(path, keys.writer.vault)


def open_text(text: str, keys: OwnerKeys, seed: bytes, device_name: str) -> tuple[Place, Address | None]:
    """The place that `text` names: an invite (uses it up: the device of `seed` joins), or a store directory.

    Also the relay's address, to keep with the seed: the invite is good once, the pairing for ever.
    Raises UsageError for a text that names no place, NotFound, WrongKey, Refused, Unreachable.
    """
    scheme = _URL.match(text.strip())
    if scheme is None:
        return _directory(Path(text).expanduser(), keys), None
    if scheme[1] == "file":
        return _directory(Path(text.strip()[len("file://") :]), keys), None
    if scheme[1] not in (SCHEME, SOCKET_SCHEME):
        raise UsageError(f"{scheme[1]}:// cannot be opened directly yet; give an invite of a relay, or a directory")
    invite = parse(text)
    admit(invite, keys, seed, device_name)
    return open_relay(invite.address, keys, seed), invite.address


def admit(invite: Invite, keys: OwnerKeys, seed: bytes, device_name: str, vault_name: str = "") -> None:
    """Makes the device of `seed` one of the vault's devices at the invite's relay.

    Raises UsageError if the invite is for another vault, else as `remote.join`.
    """
    vault, device = keys.writer.vault, public_of(seed)
    if invite.vault and invite.vault != vault:
        raise UsageError("this invite is for another vault than the recovery code; ask for one with '--vault'")
    word = vouch(keys.admin_seed, vault, device)
    writer = keys.writer
    request = Join(1, invite.token, writer.read_public, writer.admin_public, device, device_name, vault_name, word)
    join(invite, request)


def _directory(path: Path, keys: OwnerKeys) -> DirectoryPlace:
    if not is_store(path):
        raise NotFound(f"{path} is no store directory; it should hold a file 'contbak-store'")
    return open_directory(path, keys)
