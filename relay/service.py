"""The relay put together: identity, registry, stores and one intake for each vault.

Rules: a vault is reconciled with what is on disk before anyone sees it; a damaged index is set aside and made again
while the relay runs.  Knows no network: `web` speaks to it, and all calls may block.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path
from threading import Lock
from typing import TypeVar

from contbak.core.codec import Record
from contbak.core.errors import AlreadyExists, FormatError
from contbak.core.messages import (
    Challenge,
    DeviceInfo,
    Join,
    Joined,
    Login,
    Session,
    VaultInfo,
    session_proof,
)
from contbak.core.names import VaultId
from contbak.store.kv import KvDamaged
from relay import arrivals, records
from relay.config import Config
from relay.identity import Identity
from relay.index import Index
from relay.intake import Intake, writer_of
from relay.problem import denied
from relay.reconcile import Findings, Reconciler
from relay.registry import Registry, Vault
from relay.session import TOKEN_S, Sessions, Who
from relay.stores import Stores

T = TypeVar("T")

_log = logging.getLogger(__name__)


class Damage(Record, frozen=True, array_like=True, forbid_unknown_fields=True):
    """How much damage this relay has ever found and healed, and how much stands open since the last look."""

    version: int
    found: int
    healed: int
    open: int


def read_damage(top: Path) -> Damage:
    """The counters of the relay at `top`."""
    try:
        return records.read(top / "damage", Damage) or Damage(1, 0, 0, 0)
    except FormatError:
        return Damage(1, 0, 0, 0)


def index_path(top: Path, vault: VaultId) -> Path:
    return top / "index" / vault.hex()


class Service:
    """One relay.  top: RELAY_HOME."""

    def __init__(self, top: Path, config: Config, identity: Identity) -> None:
        self.identity = identity
        self.registry = Registry(top)
        self.stores = Stores(config.stores, config.reserve_bytes)
        self.sessions = Sessions(self.registry, identity.public)
        self._top = top
        self._lock = Lock()
        self._intakes: dict[VaultId, Intake] = {}

    def start(self) -> None:
        """Opens every vault.  Raises StoreError."""
        (self._top / "index").mkdir(0o700, exist_ok=True)
        self.sweep()
        for vault in sorted({v.id for v in self.registry.vaults()} | self.stores.vaults()):
            self._learn_vault(vault)
            self._opened(vault)

    def close(self) -> None:
        with self._lock:
            for intake in self._intakes.values():
                intake.close()
            self._intakes.clear()

    def sweep(self) -> None:
        """Removes what stopped arriving long ago.  Raises StoreError."""
        arrivals.sweep(self.stores, time.time())

    def use(self, vault: VaultId, verb: Callable[[Intake], T]) -> T:
        """Does `verb` with the vault; an index that turns out damaged is made again and the verb repeated."""
        intake = self._intakes.get(vault) or self._opened(vault)
        try:
            return verb(intake)
        except KvDamaged as error:
            return verb(self._opened(vault, intake, str(error)))

    def _opened(self, vault: VaultId, broken: Intake | None = None, reason: str = "") -> Intake:
        """The open vault, reconciled with its disk, and not `broken`, whose index is set aside for `reason`."""
        with self._lock:
            found = self._intakes.get(vault)
            if found is not None and found is not broken:
                return found
            if found is not None:
                _log.error("the index of vault %s is damaged and is made again: %s", vault.hex(), reason)
                found.index.quarantine(reason)
                found.close()
            record = self.registry.vault(vault)
            if record is None:
                raise denied("this relay keeps no such vault")
            reconciler = Reconciler(vault, self.stores, lambda: self._open_index(vault), record.admin_public)
            index = reconciler.run()
            self._count(reconciler.findings)
            made = Intake(record, self.stores, index, self.identity.seed, _now_ms)
            self._intakes[vault] = made
            return made

    # -- the verbs that need no session

    def join(self, join: Join) -> Joined:
        """Admits a device.  Raises Problem, WrongKey."""
        vault = self.registry.join(join, _now_ms())
        self._write_vault(vault)
        self._opened(vault.id)
        return Joined(self.identity.public, vault.id)

    def challenge(self, device: bytes) -> Challenge:
        return self.sessions.challenge(device, time.monotonic())

    def login(self, login: Login) -> Session:
        """Opens a session.  Raises Problem."""
        who, token = self.sessions.login(login, time.monotonic())
        heads, totals = self.use(who.vault, lambda intake: (intake.index.heads(), intake.index.totals()))
        packs = sum(count for count, _ in totals.values())
        return Session(
            token=token,
            expires_s=TOKEN_S,
            head=next((row.head for row in heads if row.device == who.device), None),
            heads=tuple(row.head for row in heads if row.device != who.device),
            packs=packs,
            foreign=packs - totals.get(writer_of(who.device), (0, 0))[0],
            proof=session_proof(self.identity.seed, login),
        )

    def who(self, token: bytes) -> Who:
        """Whose token it is.  Raises Problem."""
        return self.sessions.who(token, time.monotonic())

    def vault_info(self, vault: VaultId) -> VaultInfo:
        """What is known of a vault."""
        record = self.registry.vault(vault)
        if record is None:
            raise denied("this relay does not know the vault")
        heads, by_writer = self.use(vault, lambda intake: (intake.index.heads(), intake.index.totals()))
        totals = by_writer.values()
        return VaultInfo(
            vault=vault,
            name=record.name,
            packs=sum(packs for packs, _ in totals),
            size=sum(size for _, size in totals),
            devices=tuple(
                DeviceInfo(d.device, d.name, d.enabled, d.joined_ms) for d in self.registry.devices(vault)
            ),
            heads=tuple(row.head for row in heads),
        )

    # -- vaults

    def _open_index(self, vault: VaultId) -> Index:
        def on_damage(reason: str) -> None:
            _log.warning("the index of vault %s was set aside and is made again: %s", vault.hex(), reason)

        return Index(index_path(self._top, vault), on_damage)

    def _count(self, findings: Findings) -> None:
        if not findings.damage and not findings.healed:
            return
        before = read_damage(self._top)
        found, healed = findings.damage, findings.healed
        after = Damage(1, before.found + found, before.healed + healed, before.open + max(0, found - healed))
        records.write(self._top / "damage", after)

    def _write_vault(self, record: Vault) -> None:
        """The vault's keys in every store, so that each can be read without this relay."""
        for store in self.stores.all():
            name = f"{record.id.hex()}/vault"
            try:
                store.put_new(name, records.dump(record))
            except AlreadyExists:
                continue

    def _learn_vault(self, vault: VaultId) -> None:
        """Makes registry and stores agree on a vault's keys; heals a damaged copy from another."""
        record = self.registry.vault(vault)
        for store in self.stores.all():
            path = store.path_of(f"{vault.hex()}/vault")
            try:
                stored = records.read(path, Vault)
                if stored is not None and stored.id != vault:
                    raise FormatError("the record is of another vault")
            except FormatError as error:
                records.set_aside(path, store.root, str(error))
                stored = None
            if record is None and stored is not None:
                record = stored
                self.registry.put_vault(record)
        if record is not None:
            self._write_vault(record)


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


