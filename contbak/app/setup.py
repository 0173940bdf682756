"""From nothing to a vault: make keys, pair with a relay, write what the agent needs; and the way back in with the
recovery code.
"""

from __future__ import annotations

import asyncio
import os
import socket
from dataclasses import dataclass
from pathlib import Path

from contbak.app import embedded, keyfile
from contbak.app.config import RelayFile, load_relay, save_relay
from contbak.app.home import Home
from contbak.core import invite as invites
from contbak.core import recovery
from contbak.core.crypto import NONCE_LEN, SALT_LEN, XCHACHA, OwnerKeys, Stretch, public_of, vouch, wrap_secret
from contbak.core.errors import NotInitialised, Refused, UsageError, WrongKey
from contbak.core.invite import Address, Invite
from contbak.core.names import VaultId
from contbak.recall.directory import DirectoryPlace
from contbak.recall.opening import admit
from contbak.store.posix import replace_file


@dataclass(frozen=True, slots=True)
class Choices:
    """What `init` was told.  `invite` or `store` or neither (embedded relay in its default place)."""

    name: str
    invite: str | None = None
    store: str | None = None
    write_only: bool = False
    passphrase: bytes | None = None
    recovery_file: str | None = None


def host_name(wanted: str = "") -> str:
    """What the device is called."""
    return wanted or socket.gethostname() or "device"


async def initialise(home: Home, choices: Choices) -> str:
    """A new vault; returns the recovery code.  Raises Refused if there is one already."""
    if any((home.keys / name).exists() for name in keyfile.FILES):
        raise Refused(f"there is a vault in {home.keys} already; to begin anew, move that directory away")
    home.make()
    root = os.urandom(32)
    code = recovery.encode(root)
    owner = OwnerKeys.from_root(root)
    seed = os.urandom(32)
    if choices.recovery_file:
        _write_code(Path(choices.recovery_file), code)
    if choices.invite is not None:
        relay = await _pair(invites.parse(choices.invite), owner, seed, choices.name)
    else:
        relay = await _pair_embedded(home, owner, seed, choices)
    kept = b"" if choices.write_only else root
    save_relay(home, relay)
    keyfile.save(home.keys, _record(owner, seed, choices.name, kept, choices.passphrase))  # last: from here it is done
    return code


async def recover(home: Home, place: str, code: str, name: str, adopt: bool) -> None:
    """Opens an existing vault on this machine from a relay's invite or a store directory.

    Raises WrongKey if the code fits no vault there, Refused if another vault is set up here.
    """
    root = recovery.decode(code)
    owner = OwnerKeys.from_root(root)
    is_invite = place.startswith((f"{invites.SCHEME}://", f"{invites.SOCKET_SCHEME}://"))
    invite = invites.parse(place) if is_invite else None
    if invite is None and not os.path.isdir(place):
        raise UsageError(f"{place} is neither an invite of a relay nor a directory")
    known = _known_keys(home, owner.writer.vault)
    relay_before = load_relay(home) if known is not None else None
    if relay_before is not None and relay_before.embedded:
        raise Refused("this machine's own vault is here; nothing needs to be recovered")
    home.make()
    seed = os.urandom(32) if known is None else known.device_seed
    if invite is not None:
        relay = await _pair(invite, owner, seed, name)
        relay = _with_read_only(relay, not adopt)
    else:
        relay = await asyncio.to_thread(_from_directory, place, owner)
        if adopt:
            raise UsageError(
                "a bare store directory cannot be written to; start a relay on it ('contbak-relay init --store DIR') "
                "and recover from its invite"
            )
    if known is None or known.write_only:  # else the root is here already, perhaps under a passphrase
        keyfile.save(home.keys, _record(owner, seed, name, root, None))
    save_relay(home, relay)


def adopted(home: Home) -> RelayFile:
    """The relay to write to.  Raises NotInitialised, Refused on a machine that may only read."""
    relay = load_relay(home)
    if relay is None:
        raise NotInitialised("there is no vault here yet; start with 'contbak init' or 'contbak up DIR'")
    if relay.read_only or relay.directory:
        raise Refused("this machine was set up to read only; 'contbak recover --adopt' makes it a device of the vault")
    return relay


def _with_read_only(relay: RelayFile, read_only: bool) -> RelayFile:
    return RelayFile(
        relay=relay.relay, host=relay.host, port=relay.port, cert=relay.cert, socket=relay.socket, read_only=read_only
    )


def _known_keys(home: Home, vault: VaultId) -> keyfile.Keys | None:
    """The keys if this machine belongs to the vault already.  Raises Refused if it belongs to another."""
    try:
        keys = keyfile.load(home.keys)
    except NotInitialised:
        return None
    if keys.writer.vault != vault:
        raise Refused(f"another vault is set up in {home.keys}; set CONTBAK_HOME to an empty directory")
    return keys


def _from_directory(place: str, owner: OwnerKeys) -> RelayFile:
    if not os.path.isdir(os.path.join(place, owner.writer.vault.hex())):
        raise WrongKey(f"no vault in {place} belongs to this recovery code")
    DirectoryPlace(Path(place), owner.writer.vault).close()
    return RelayFile(directory=os.path.abspath(place), read_only=True)


async def _pair_embedded(home: Home, owner: OwnerKeys, seed: bytes, choices: Choices) -> RelayFile:
    invite = await asyncio.to_thread(embedded.create, home, choices.name, choices.store)
    relay = embedded.EmbeddedRelay(home)
    await relay.start()
    try:
        here = Invite(Address(invite.address.relay, socket=str(home.relay_socket)), invite.token, invite.vault)
        await asyncio.to_thread(admit, here, owner, seed, choices.name, choices.name)
    finally:
        await relay.stop()
    return RelayFile(relay=invite.address.relay.hex(), embedded=True)


async def _pair(invite: Invite, owner: OwnerKeys, seed: bytes, name: str) -> RelayFile:
    if invite.vault and invite.vault != owner.writer.vault:
        raise WrongKey("this invite is for another vault; ask for one with 'contbak-relay invite --new-vault NAME'")
    await asyncio.to_thread(admit, invite, owner, seed, name, name)
    at = invite.address
    return RelayFile(relay=at.relay.hex(), host=at.host, port=at.port, cert=at.cert.hex(), socket=at.socket)


def _record(owner: OwnerKeys, seed: bytes, name: str, root: bytes, passphrase: bytes | None) -> keyfile.KeyRecord:
    keys, stretch, kind = owner.writer, Stretch(os.urandom(SALT_LEN)), keyfile.CLEAR if root else keyfile.NONE
    if root and passphrase:
        kind, root = keyfile.PASSPHRASE, wrap_secret(root, passphrase, stretch, os.urandom(NONCE_LEN[XCHACHA]))
    return keyfile.KeyRecord(
        1, keys.vault, keys.read_public, keys.admin_public, keys.psk, keys.chunk_id_key, keys.chunker_key,
        seed, name, vouch(owner.admin_seed, keys.vault, public_of(seed)), kind, root,
        stretch.salt, stretch.passes, stretch.memory,
    )  # fmt: skip


def _write_code(path: Path, code: str) -> None:
    if path.exists():
        raise Refused(f"{path} exists; name a new file for the recovery code")
    replace_file(path, (code + "\n").encode())
