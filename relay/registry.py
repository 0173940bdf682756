"""Who may come in: vaults, devices and invites, each a small file below RELAY_HOME/registry.

Rules: the files are the truth and are looked at with each use, so what another process changes holds at once.  An
invite is kept as the hash of its token, is good for one device and until its time.  A damaged file is set aside, and
what it allowed is allowed no more: the device joins again with a new invite.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from threading import Lock
from typing import TypeVar

from contbak.core.codec import Record
from contbak.core.crypto import vault_id
from contbak.core.errors import FormatError, UsageError
from contbak.core.messages import TOKEN_LEN, Join, check_vouch
from contbak.core.names import ID_LEN, DeviceId, VaultId
from relay import records
from relay.problem import denied, malformed

_NAME_MAX = 200
_FOLDERS = ("vaults", "devices", "invites")

T = TypeVar("T")


class Vault(Record, frozen=True, array_like=True, forbid_unknown_fields=True):
    """The public keys of a vault and what its owner calls it; the same record lies in every store."""

    version: int
    read_public: bytes
    admin_public: bytes
    name: str

    @property
    def id(self) -> VaultId:
        return vault_id(self.read_public, self.admin_public)


class Device(Record, frozen=True, array_like=True, forbid_unknown_fields=True):
    """One device that may write to a vault."""

    version: int
    vault: bytes
    device: bytes
    name: str
    enabled: bool
    joined_ms: int


class Ticket(Record, frozen=True, array_like=True, forbid_unknown_fields=True):
    """What is kept of an invite.  vault: the only one it admits to, b"" for any; used_by: b"" until it is used."""

    version: int
    vault: bytes
    name: str
    expires_ms: int
    used_by: bytes
    used_for: bytes


class Registry:
    """The records of one relay."""

    def __init__(self, top: Path) -> None:
        self._top = top
        self._folder = top / "registry"
        self._lock = Lock()
        self._known: dict[Path, tuple[tuple[int, ...], Device | None]] = {}
        for folder in (self._folder, *(self._folder / name for name in _FOLDERS)):
            folder.mkdir(0o700, exist_ok=True)

    # -- vaults

    def vault(self, vault: VaultId) -> Vault | None:
        return self._read(self._folder / "vaults" / vault.hex(), Vault)

    def put_vault(self, record: Vault) -> None:
        records.write(self._folder / "vaults" / record.id.hex(), record)

    def vaults(self) -> list[Vault]:
        return list(self._all("vaults", Vault))

    # -- devices

    def device(self, vault: VaultId, device: DeviceId) -> Device | None:
        path = self._device_path(vault, device)
        try:
            state = os.stat(path)
        except OSError:
            return self._read(path, Device)
        mark = state.st_ino, state.st_size, state.st_mtime_ns, state.st_ctime_ns
        known = self._known.get(path)
        if known is None or known[0] != mark:  # asked with each request, changed hardly ever
            known = self._known[path] = mark, self._read(path, Device)
        return known[1]

    def devices(self, vault: VaultId | None = None) -> list[Device]:
        """The devices of a vault, or all, in the order in which they joined."""
        found = [d for d in self._all("devices", Device) if vault is None or d.vault == vault]
        return sorted(found, key=lambda d: (d.joined_ms, d.device))

    def find_device(self, text: str) -> Device:
        """The one device whose id begins with `text` or whose name it is.  Raises UsageError."""
        found = [d for d in self.devices() if d.name == text or (len(text) >= 4 and d.device.hex().startswith(text))]
        if len(found) != 1:
            raise UsageError(f"{len(found) or 'no'} devices match {text!r}; 'contbak-relay devices' lists them")
        return found[0]

    def set_enabled(self, device: Device, enabled: bool) -> None:
        changed = Device(1, device.vault, device.device, device.name, enabled, device.joined_ms)
        records.write(self._device_path(device.vault, device.device), changed)

    def remove_device(self, device: Device) -> None:
        """It may write no more, nor join again with the invite that it used; what it wrote stays."""
        for path in (self._folder / "invites").iterdir():
            ticket = None if path.name.startswith(".") else self._read(path, Ticket)
            if ticket is not None and ticket.used_by == device.device and ticket.used_for == device.vault:
                path.unlink()
        with suppress(FileNotFoundError):
            os.unlink(self._device_path(device.vault, device.device))

    # -- invites

    def invite(self, vault: bytes, name: str, expires_ms: int) -> bytes:
        """A fresh token that admits one device once."""
        token = os.urandom(TOKEN_LEN)
        records.write(self._ticket_path(token), Ticket(1, vault, name, expires_ms, b"", b""))
        return token

    def join(self, join: Join, now_ms: int) -> Vault:
        """Admits a device; the same join again gives the same.  Raises Problem, WrongKey."""
        fields = ((join.token, TOKEN_LEN), (join.read_public, 32), (join.admin_public, 32), (join.device, ID_LEN))
        if join.version != 1 or any(len(field) != length for field, length in fields):
            raise malformed("this is no join")
        if len(join.device_name) > _NAME_MAX or len(join.vault_name) > _NAME_MAX:
            raise malformed(f"a name is longer than {_NAME_MAX} characters")
        vault = vault_id(join.read_public, join.admin_public)
        check_vouch(join, vault)
        with self._lock:
            ticket = self._use(join.token, vault, join.device, now_ms)
            return self._admit(join, vault, ticket, now_ms)

    def _use(self, token: bytes, vault: VaultId, device: bytes, now_ms: int) -> Ticket:
        """Marks the invite as used by this device; returns it as it was before."""
        path = self._ticket_path(token)
        ticket = self._read(path, Ticket)
        if ticket is None:
            raise denied("this relay knows no such invite; ask for a new one")
        if ticket.vault and ticket.vault != vault:
            raise denied("this invite is for another vault")
        if ticket.used_by:
            if (ticket.used_by, ticket.used_for) != (device, vault):
                raise denied("this invite was used already; ask for a new one")
            return ticket
        if now_ms > ticket.expires_ms:
            raise denied("this invite has run out; ask for a new one")
        records.write(path, Ticket(1, ticket.vault, ticket.name, ticket.expires_ms, device, vault))
        return ticket

    def _admit(self, join: Join, vault: VaultId, ticket: Ticket, now_ms: int) -> Vault:
        record = self.vault(vault)
        if record is None:
            record = Vault(1, join.read_public, join.admin_public, ticket.name or join.vault_name)
            self.put_vault(record)
        known = self.device(vault, DeviceId(join.device))
        if known is None:
            path = self._device_path(vault, join.device)
            records.write(path, Device(1, vault, join.device, join.device_name, True, now_ms))
        elif not ticket.used_by and not known.enabled:
            self.set_enabled(known, True)
        return record

    # -- files

    def _device_path(self, vault: bytes, device: bytes) -> Path:
        return self._folder / "devices" / f"{vault.hex()}-{device.hex()}"

    def _ticket_path(self, token: bytes) -> Path:
        return self._folder / "invites" / hashlib.sha256(b"contbak invite" + token).hexdigest()

    def _read(self, path: Path, kind: type[T]) -> T | None:
        try:
            return records.read(path, kind)
        except FormatError as error:
            records.set_aside(path, self._top, str(error))
            return None

    def _all(self, folder: str, kind: type[T]) -> Iterator[T]:
        for path in sorted((self._folder / folder).iterdir()):
            if not path.name.startswith("."):
                record = self._read(path, kind)
                if record is not None:
                    yield record
