"""Makes a vault's index agree with the packs and records that are on disk, which are the truth.

Rules: what the index lacks is added from the tails of packs; an index that claims what is not there is set aside
and made again.  A file that cannot be read is set aside with its reason, never deleted; a record that was lost so
comes back from the copy in a metadata pack.  Works without keys and may be broken off anywhere.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from contbak.core import commit as commits
from contbak.core import frame
from contbak.core.commit import Signed
from contbak.core.errors import AlreadyExists, FormatError, NotFound, StoreError
from contbak.core.messages import Place
from contbak.core.names import ID_LEN, CommitId, PackId, VaultId, from_hex
from contbak.store.posix import PosixStore
from relay.closure import Closure
from relay.index import CommitRow, Index
from relay.intake import commit_name, order_name, order_note, parse_order
from relay.packfile import PackFile
from relay.records import set_aside
from relay.stores import Stores, pack_name

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class Findings:
    """What was found and done."""

    packs_added: int = 0
    commits_added: int = 0
    rebuilt: bool = False
    damage: list[str] = field(default_factory=list)
    healed: int = 0


@dataclass(frozen=True, slots=True)
class _OnDisk:
    name: str
    length: int
    store: PosixStore


class Reconciler:
    """One pass over one vault.  open_index: opens the vault's index, which is empty if it was set aside."""

    def __init__(self, vault: VaultId, stores: Stores, open_index: Callable[[], Index]) -> None:
        self._vault = vault
        self._stores = stores
        self._open_index = open_index
        self.findings = Findings()

    def run(self) -> Index:
        """The open index, which agrees with what is on disk.  Raises StoreError."""
        packs = dict(self._packs())
        records = dict(self._records())
        index = self._open_index()
        try:
            index = self._without_ghosts(index, packs, records)
            fresh = self.findings.rebuilt or index.was_reset
            self._add_packs(index, packs)
            self._add_commits(index, records)
            if fresh or self.findings.damage:
                self._revive_commits(index)
        except BaseException:
            index.close()
            raise
        return index

    def _without_ghosts(self, index: Index, packs: dict[PackId, _OnDisk], records: dict[CommitId, _OnDisk]) -> Index:
        ghosts = [root for root, length in index.roots().items() if root not in packs or packs[root].length != length]
        lost = [id_ for id_ in index.commits() if id_ not in records]
        if not ghosts and not lost:
            return index
        if self._stores.complete():
            for root in ghosts:
                self._damage(f"pack {root.hex()} is gone or has changed its length")
            for id_ in lost:
                self._damage(f"the record of commit {id_.hex()} is gone")
        else:
            _log.warning("%d packs and %d records are on a store that is not there", len(ghosts), len(lost))
        index.quarantine(f"it names {len(ghosts)} packs and {len(lost)} records that are not on disk")
        self.findings.rebuilt = True
        return self._open_index()

    # -- packs

    def _packs(self) -> Iterator[tuple[PackId, _OnDisk]]:
        for name, length, store in self._stores.objects(f"{self._vault.hex()}/packs/"):
            root = _hex_or_none(name.rpartition("/")[2])
            if root is None or pack_name(self._vault, PackId(root)) != name:
                self._damage(f"{store.root}/{name} is no pack and was left alone")
            else:
                yield PackId(root), _OnDisk(name, length, store)

    def _add_packs(self, index: Index, packs: dict[PackId, _OnDisk]) -> None:
        known = index.roots()
        for root, place in packs.items():
            if root in known:
                continue
            path = place.store.path_of(place.name)
            try:
                with PackFile(path) as file:
                    contents = file.contents()
                if contents.vault not in (None, self._vault):
                    raise FormatError("the pack names another vault")
            except FormatError as error:
                self._set_aside(path, place.store, str(error))
                continue
            if not contents.sound:
                self._damage(f"pack {root.hex()} is damaged; {len(contents.rows)} of its frames are whole")
            index.add_pack(root, contents)
            self.findings.packs_added += 1

    # -- commits

    def _records(self) -> Iterator[tuple[CommitId, _OnDisk]]:
        for name, length, store in self._stores.objects(f"{self._vault.hex()}/commits/"):
            id_ = _hex_or_none(name.rpartition("-")[2])
            if id_ is None:
                self._damage(f"{store.root}/{name} is no commit record and was left alone")
            else:
                yield CommitId(id_), _OnDisk(name, length, store)

    def _add_commits(self, index: Index, records: dict[CommitId, _OnDisk]) -> None:
        known = index.commits()
        wanted = {id_: place for id_, place in records.items() if id_ not in known}
        if not wanted:
            return
        order = self._order()
        found = []
        for id_, place in wanted.items():
            path = place.store.path_of(place.name)
            try:
                signed = self._decode(id_, place)
            except (FormatError, NotFound) as error:
                self._set_aside(path, place.store, str(error))
                continue
            position, received_ms = order.get(id_, (0, int(path.stat().st_mtime * 1000)))
            found.append((position or 1 << 62, received_ms, signed.commit.sequence, signed))
        last = max([position for position, _ in order.values()], default=0)
        last = max(last, index.last_position())
        for position, received_ms, _, signed in sorted(found, key=lambda row: row[:3]):
            if position == 1 << 62:
                position = last = last + 1
                self._put(order_name(self._vault, position), order_note(signed.id, received_ms))
            index.add_commit(_row(signed, position, received_ms))
            self.findings.commits_added += 1

    def _decode(self, id_: CommitId, place: _OnDisk) -> Signed:
        signed = commits.decode(place.store.get(place.name))
        if signed.id != id_ or signed.commit.vault != self._vault:
            raise FormatError("the record is not the one that its name says")
        if commit_name(self._vault, signed.device, signed.commit.sequence, id_) != place.name:
            raise FormatError("the record lies in the wrong place")
        return signed

    def _order(self) -> dict[CommitId, tuple[int, int]]:
        found: dict[CommitId, tuple[int, int]] = {}
        for name, _, store in self._stores.objects(f"{self._vault.hex()}/order/"):
            try:
                position = int.from_bytes(from_hex(name.rpartition("/")[2], 8, "a position"), "big")
                commit, received_ms = parse_order(store.get(name))
            except FormatError as error:
                self._set_aside(store.path_of(name), store, str(error))
                continue
            found.setdefault(commit, (position, received_ms))
        return found

    def _revive_commits(self, index: Index) -> None:
        """Records of which only the copy in a metadata pack is left, oldest first."""
        known = index.commits()
        found: dict[CommitId, tuple[int, Signed]] = {}
        for id_, place in index.of_kind(frame.COMMIT):
            if id_ in known or id_ in found:
                continue
            path = self._stores.path_of(pack_name(self._vault, PackId(place.pack)))
            try:
                with PackFile(path) as file:
                    header = file.header(place.offset)
                    body = file.read(place.offset + len(header.raw), header.length - len(header.raw))
                signed = commits.decode(frame.decode_commit(header, body))
                if signed.commit.vault == self._vault and not self._lacks(index, signed):
                    found[CommitId(id_)] = int(path.stat().st_mtime * 1000), signed
            except (FormatError, NotFound):
                continue
        for received_ms, signed in sorted(found.values(), key=lambda row: (row[1].commit.sequence, row[0])):
            position = index.last_position() + 1
            name = commit_name(self._vault, signed.device, signed.commit.sequence, signed.id)
            self._put(name, signed.raw)
            self._put(order_name(self._vault, position), order_note(signed.id, received_ms))
            index.add_commit(_row(signed, position, received_ms))
            self.findings.commits_added += 1
            self.findings.healed += 1

    def _lacks(self, index: Index, signed: Signed) -> bool:
        def header(place: Place) -> frame.Header:
            with PackFile(self._stores.path_of(pack_name(self._vault, PackId(place.pack)))) as file:
                return file.header(place.offset)

        return bool(Closure(index, header).missing(signed.roots))

    def _put(self, name: str, data: bytes) -> None:
        try:
            self._stores.put_new(name, data)
        except AlreadyExists:
            if self._stores.get(name) != data:
                raise StoreError(f"{name} is there with other content") from None

    # -- damage

    def _set_aside(self, path: Path, store: PosixStore, reason: str) -> None:
        moved = set_aside(path, store.root, reason)
        self._damage(f"{path} was set aside as {moved}: {reason}")

    def _damage(self, sentence: str) -> None:
        _log.warning("%s", sentence)
        self.findings.damage.append(sentence)


def _row(signed: Signed, position: int, received_ms: int) -> CommitRow:
    commit = signed.commit
    return CommitRow(signed.id, position, received_ms, signed.device, commit.sequence, commit.incarnation)


def _hex_or_none(text: str) -> bytes | None:
    try:
        return from_hex(text, ID_LEN, "a name")
    except FormatError:
        return None
