"""What a relay says of itself, read from its files, so that it can be said with the relay running or not."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from contbak.core.errors import FormatError, NotFound
from contbak.core.names import VaultId
from relay.config import Config
from relay.intake import parse_order
from relay.lock import running
from relay.registry import Registry
from relay.service import read_damage
from relay.stores import Stores

Row = dict[str, object]


def devices(top: Path, config: Config) -> list[Row]:
    """Every device with its vault and its last snapshot (None: it has none)."""
    registry = Registry(top)
    stores = Stores(config.stores, config.reserve_bytes)
    received = {vault.id: _received(stores, vault.id) for vault in registry.vaults()}
    rows: list[Row] = []
    for device in registry.devices():
        newest = _newest(stores, VaultId(device.vault), device.device)
        last = None
        if newest is not None:
            last = {"id": newest, "received_ms": received.get(VaultId(device.vault), {}).get(newest)}
        rows.append(
            {
                "id": device.device.hex(),
                "name": device.name,
                "vault": device.vault.hex(),
                "enabled": device.enabled,
                "joined_ms": device.joined_ms,
                "last_snapshot": last,
            }
        )
    return rows


def status(top: Path, config: Config) -> Row:
    """The document of `status --json`."""
    damage = read_damage(top)
    spaces = Stores(config.stores, config.reserve_bytes).spaces()
    return {
        "running": running(top),
        "devices": devices(top, config),
        "vaults": [{"id": vault.id.hex(), "name": vault.name} for vault in Registry(top).vaults()],
        "stores": [{"path": s.path, "free_bytes": s.free, "problem": s.problem or None} for s in spaces],
        "targets": [],
        "damage": {"found": damage.found, "healed": damage.healed, "open": damage.open},
    }


def text(found: Row) -> str:
    """The same for a person."""
    pid = found["running"]
    lines = ["not running" if pid is None else f"running, process {pid}"]
    for row in _rows(found["stores"]):
        state = row["problem"] or f"{int(str(row['free_bytes'])) >> 20} MiB free"
        lines.append(f"store   {row['path']}: {state}")
    for row in _rows(found["vaults"]):
        lines.append(f"vault   {row['id']}  {row['name']}")
    for row in _rows(found["devices"]):
        last = row["last_snapshot"]
        newest = str(last["id"])[:12] if isinstance(last, dict) else "none yet"
        lines.append(
            f"device  {str(row['id'])[:12]}  {row['name']}  last snapshot: {newest}"
            + ("" if row["enabled"] else "  DISABLED")
        )
    damage = found["damage"]
    if isinstance(damage, dict) and damage["found"]:
        lines.append(f"damage  {damage['found']} found, {damage['healed']} healed, {damage['open']} open")
    return "\n".join(lines)


def _rows(value: object) -> list[Row]:
    return value if isinstance(value, list) else []


def _newest(stores: Stores, vault: VaultId, device: bytes) -> str | None:
    names = [name.rpartition("/")[2] for name, _, _ in stores.objects(f"{vault.hex()}/commits/{device.hex()}/")]
    return max(names).partition("-")[2] if names else None


def _received(stores: Stores, vault: VaultId) -> dict[str, int]:
    found = {}
    for name, _, store in stores.objects(f"{vault.hex()}/order/"):
        with suppress(FormatError, NotFound):
            commit, received_ms = parse_order(store.get(name))
            found[commit.hex()] = received_ms
    return found
