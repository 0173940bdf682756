"""What a relay says of itself, read from its files, so that it can be said with the relay running or not."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from contbak.core.names import VaultId
from relay.config import Config
from relay.lock import running
from relay.registry import Registry
from relay.service import read_damage
from relay.stores import Stores

Row = dict[str, object]


def devices(top: Path, config: Config) -> list[Row]:
    """Every device with its vault and its last snapshot (None: it has none)."""
    stores = Stores(config.stores, config.reserve_bytes)
    rows: list[Row] = []
    for device in Registry(top).devices():
        rows.append(
            {
                "id": device.device.hex(),
                "name": device.name,
                "vault": device.vault.hex(),
                "enabled": device.enabled,
                "joined_ms": device.joined_ms,
                "last_snapshot": _newest(stores, VaultId(device.vault), device.device),
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
        newest = f"{str(last['id'])[:12]} of {last['time']}" if isinstance(last, dict) else "none yet"
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


def _newest(stores: Stores, vault: VaultId, device: bytes) -> Row | None:
    """The device's last snapshot and when it came in, by the names and times of the record files."""
    listed = stores.objects(f"{vault.hex()}/commits/{device.hex()}/")
    name, _, store = max(listed, default=("", 0, None), key=lambda row: row[0])
    if store is None:
        return None
    received = datetime.fromtimestamp(store.path_of(name).stat().st_mtime, UTC)
    return {"id": name.rpartition("-")[2], "time": received.isoformat(timespec="seconds")}
