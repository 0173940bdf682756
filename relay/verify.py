"""Reads everything that a relay keeps and compares it with what its index says; needs no keys.

Rules: never changes anything, so it can run beside the relay; every difference is one sentence.  What it cannot say
without keys (whether a chunk is what its id says) is for `contbak check`.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field
from pathlib import Path

from contbak.core import commit as commits
from contbak.core.errors import ContbakError, FormatError, NotFound, Refused
from contbak.core.messages import Place
from contbak.core.names import ID_LEN, PackId, VaultId, from_hex
from relay.config import Config
from relay.identity import Identity
from relay.index import COPIES_MAX, Index
from relay.intake import commit_name
from relay.lock import running
from relay.packfile import Contents, PackFile
from relay.registry import Registry
from relay.service import Service, index_path
from relay.stores import Stores


@dataclass(slots=True)
class Report:
    """What was read and what was wrong."""

    packs: int = 0
    commits: int = 0
    bytes: int = 0
    damage: list[str] = field(default_factory=list)

    def as_json(self) -> dict[str, object]:
        return {"packs": self.packs, "commits": self.commits, "bytes": self.bytes, "damage": self.damage}

    def text(self) -> str:
        """For a person."""
        found = f"{self.packs} packs and {self.commits} commits read, {self.bytes >> 20} MiB"
        return "\n".join([*self.damage, f"{found}: " + (f"{len(self.damage)} damaged" if self.damage else "all good")])


def rebuild(top: Path, config: Config, identity: Identity) -> None:
    """Makes every index again.  Raises Refused while the relay runs."""
    if running(top) is not None:
        raise Refused("the relay is running; stop it first")
    shutil.rmtree(top / "index", ignore_errors=True)
    service = Service(top, config, identity)
    try:
        service.start()
    finally:
        service.close()


def verify(top: Path, config: Config) -> Report:
    """Reads and hashes every pack and record of every vault."""
    report = Report()
    stores = Stores(config.stores, config.reserve_bytes)
    for space in stores.spaces():
        if space.problem:
            report.damage.append(f"store {space.path}: {space.problem}")
    for vault in sorted({v.id for v in Registry(top).vaults()} | stores.vaults()):
        _verify_vault(top, stores, vault, report)
    return report


def _verify_vault(top: Path, stores: Stores, vault: VaultId, report: Report) -> None:
    try:
        index: Index | None = Index(index_path(top, vault), report.damage.append, readonly=True)
    except NotFound:
        index = None
        report.damage.append(f"vault {vault.hex()} has no index; 'contbak-relay rebuild-index' makes it again")
    try:
        _verify_packs(stores, vault, index, report)
        _verify_commits(stores, vault, index, report)
    finally:
        if index is not None:
            index.close()


def _verify_packs(stores: Stores, vault: VaultId, index: Index | None, report: Report) -> None:
    unseen = set() if index is None else set(index.roots())
    for name, length, store in stores.objects(f"{vault.hex()}/packs/"):
        report.packs += 1
        report.bytes += length
        path = store.path_of(name)
        try:
            root = PackId(from_hex(path.name, ID_LEN, "a pack's name"))
            unseen.discard(root)
            contents = _verify_pack(path, vault)
            if index is not None:
                _compare(index, root, contents)
        except ContbakError as error:
            report.damage.append(f"{path}: {error}")
    report.damage.extend(f"pack {root.hex()} is in the index and not on disk" for root in sorted(unseen))


def _verify_pack(path: Path, vault: VaultId) -> Contents:
    with PackFile(path) as file:
        plan = file.plan()
        if plan.root.hex() != path.name:
            raise FormatError("it is another pack than its name says")
        damaged = list(file.check_segments(plan))
        if damaged:
            raise FormatError(f"{len(damaged)} of {len(plan.hashes)} segments are damaged, the first is {damaged[0]}")
        contents = file.contents()
        if contents.vault != vault:
            raise FormatError("it is a pack of another vault")
        return contents


def _compare(index: Index, root: PackId, contents: Contents) -> None:
    """Raises FormatError unless the index knows the pack as it is."""
    row = index.pack(root)
    if row is None:
        raise FormatError("it is not in the index")
    if (row.length, row.metadata, row.writer) != (contents.length, contents.metadata, contents.writer):
        raise FormatError("the index describes it wrongly")
    for frame_row in contents.rows:
        for ordinal, places in enumerate(index.places(frame_row.ids)):
            place = Place(root, frame_row.offset, frame_row.length, ordinal, frame_row.kind)
            if place not in places and len(places) < COPIES_MAX:
                raise FormatError(f"the index lacks chunk {frame_row.ids[ordinal].hex()} of it")


def _verify_commits(stores: Stores, vault: VaultId, index: Index | None, report: Report) -> None:
    unseen = set() if index is None else index.commits()
    for name, length, store in stores.objects(f"{vault.hex()}/commits/"):
        report.commits += 1
        report.bytes += length
        try:
            signed = commits.decode(store.get(name))
            unseen.discard(signed.id)
            if commit_name(vault, signed.device, signed.commit.sequence, signed.id) != name:
                raise FormatError("the record is not the one that its name says")
            if index is not None and index.commit(signed.id) is None:
                raise FormatError("it is not in the index")
        except ContbakError as error:
            report.damage.append(f"{store.root}/{name}: {error}")
    report.damage.extend(f"commit {id_.hex()} is in the index and not on disk" for id_ in sorted(unseen))
