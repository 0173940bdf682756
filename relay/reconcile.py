"""Makes a vault's index agree with the packs and records that are on disk, which are the truth.

Rules: what the index lacks is added from the tails of packs; an index that claims what is not there is set aside
and made again.  A file that cannot be read is set aside with its reason, never deleted; a record that was lost so
comes back from the copy in a metadata pack.  Works without keys and may be broken off anywhere.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from contbak.core import commit as commits
from contbak.core import frame
from contbak.core.commit import Signed
from contbak.core.errors import AlreadyExists, FormatError, NotFound, StoreError
from contbak.core.messages import Place
from contbak.core.names import ID_LEN, CommitId, PackId, VaultId, from_hex
from contbak.store.posix import PosixStore, sync_directory
from relay.closure import Closure
from relay.index import CommitRow, Index
from relay.intake import commit_name, order_name, order_note, parse_order
from relay.packfile import Contents, PackFile
from relay.records import set_aside
from relay.stores import Stores, pack_name

_CHUNKS_AT_ONCE = 100_000
_COMMITS_AT_ONCE = 1_000

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class Findings:
    """What was found and done."""

    packs_added: int = 0
    commits_added: int = 0
    rebuilt: bool = False
    damage: int = 0
    healed: int = 0


@dataclass(frozen=True, slots=True)
class _OnDisk:
    name: str
    length: int
    store: PosixStore


class Reconciler:
    """One pass over one vault.  open_index: opens the vault's index, which is empty if it was set aside;
    admin_public: the key of the vault's owner, who vouches for its devices."""

    def __init__(self, vault: VaultId, stores: Stores, open_index: Callable[[], Index], admin_public: bytes) -> None:
        self._vault = vault
        self._admin_public = admin_public
        self._stores = stores
        self._open_index = open_index
        self._synced: set[Path] = set()
        self.findings = Findings()

    def run(self) -> Index:
        """The open index, which agrees with what is on disk.  Raises StoreError."""
        index = self._open_index()
        try:
            packs, records = self._new_packs(index), self._new_records(index)
            if packs is None or records is None:
                index.quarantine("it names packs or records that are not on disk")
                self.findings.rebuilt = True
                index = self._open_index()
                packs, records = self._new_packs(index) or [], self._new_records(index) or []
            self._add_packs(index, packs)
            self._add_commits(index, records)
            if self.findings.rebuilt or index.was_reset or self.findings.damage:
                self._revive_commits(index)
        except BaseException:
            index.close()
            raise
        return index

    def _ghosts(self, what: str, count: int) -> bool:
        """Notes that the index names `count` things that are not on disk; returns whether it does."""
        if count > 0 and self._stores.complete():
            self._damage(f"{count} {what} of vault {self._vault.hex()} are gone or have changed", count)
        elif count > 0:
            _log.warning("%d %s are on a store that is not there", count, what)
        return count > 0

    # -- packs

    def _new_packs(self, index: Index) -> list[tuple[PackId, _OnDisk]] | None:
        """The packs that the index lacks; None if it names others that are not there as it says."""
        new, known = [], 0
        for root, place in self._packs():
            row = index.pack(root)
            if row is None:
                new.append((root, place))
            elif row.length == place.length:
                known += 1
        return None if self._ghosts("packs", index.count_packs() - known) else new

    def _packs(self) -> Iterator[tuple[PackId, _OnDisk]]:
        seen: set[PackId] = set()
        for name, length, store in self._stores.objects(f"{self._vault.hex()}/packs/"):
            root = PackId(_hex_or_none(name.rpartition("/")[2]) or b"")
            if not root or pack_name(self._vault, root) != name:
                self._strange(f"{store.root}/{name} is no pack and was left alone")
            elif root not in seen:
                seen.add(root)
                yield root, _OnDisk(name, length, store)

    def _add_packs(self, index: Index, packs: list[tuple[PackId, _OnDisk]]) -> None:
        batch: list[tuple[PackId, Contents]] = []
        chunks = 0
        for root, place in packs:
            contents = self._contents(root, place)
            if contents is None:
                continue
            batch.append((root, contents))
            chunks += sum(len(row.ids) for row in contents.rows)
            self._sync(place.store.path_of(place.name).parent)
            if chunks >= _CHUNKS_AT_ONCE:
                index.add_packs(batch)
                batch, chunks = [], 0
            self.findings.packs_added += 1
        if batch:
            index.add_packs(batch)

    def _contents(self, root: PackId, place: _OnDisk) -> Contents | None:
        path = place.store.path_of(place.name)
        try:
            with PackFile(path) as file:
                contents = file.contents()
            if contents.vault not in (None, self._vault):
                raise FormatError("the pack names another vault")
        except FormatError as error:
            self._set_aside(path, place.store, str(error))
            return None
        if not contents.sound:
            self._damage(f"pack {root.hex()} is damaged; {len(contents.rows)} of its frames are whole")
        return contents

    # -- commits

    def _new_records(self, index: Index) -> list[tuple[CommitId, _OnDisk]] | None:
        """The records that the index lacks; None if it names others that are not there."""
        new, known = [], 0
        for name, length, store in self._stores.objects(f"{self._vault.hex()}/commits/"):
            id_ = CommitId(_hex_or_none(name.rpartition("-")[2]) or b"")
            if not id_:
                self._strange(f"{store.root}/{name} is no commit record and was left alone")
            elif index.commit(id_) is None:
                new.append((id_, _OnDisk(name, length, store)))
            else:
                known += 1
        return None if self._ghosts("commit records", index.count_commits() - known) else new

    def _add_commits(self, index: Index, records: list[tuple[CommitId, _OnDisk]]) -> None:
        if not records:
            return
        order = self._order()
        last = max([index.last_position(), *(position for position, _ in order.values())])
        noted: dict[int, CommitRow] = {}
        unnoted = []
        for id_, place in records:
            path = place.store.path_of(place.name)
            try:
                signed = self._decode(id_, place)
            except (FormatError, NotFound) as error:
                self._set_aside(path, place.store, str(error))
                continue
            position, received_ms = order.get(id_, (0, int(path.stat().st_mtime * 1000)))
            row = _row(signed, position, received_ms)
            # A store that was away comes back with positions that were given again meanwhile.
            if position and position not in noted and index.at(position) is None:
                noted[position] = row
            else:
                unnoted.append(row)
            self._sync(path.parent)
        for row in sorted(unnoted, key=lambda row: (row.received_ms, row.sequence)):
            last += 1
            self._put(order_name(self._vault, last), order_note(row.id, row.received_ms))
            noted[last] = replace(row, position=last)
        rows = list(noted.values())
        for start in range(0, len(rows), _COMMITS_AT_ONCE):
            index.add_commits(rows[start : start + _COMMITS_AT_ONCE])
        self.findings.commits_added += len(rows)

    def _decode(self, id_: CommitId, place: _OnDisk) -> Signed:
        signed = commits.decode(place.store.get(place.name))
        if signed.id != id_ or signed.commit.vault != self._vault:
            raise FormatError("the record is not the one that its name says")
        if commit_name(self._vault, signed.device, signed.commit.sequence, id_) != place.name:
            raise FormatError("the record lies in the wrong place")
        return signed

    def _order(self) -> dict[CommitId, tuple[int, int]]:
        """(position, received_ms) of each commit that has a note; of several notes, the last position that it got."""
        found: dict[CommitId, tuple[int, int]] = {}
        for name, _, store in self._stores.objects(f"{self._vault.hex()}/order/"):
            try:
                position = int.from_bytes(from_hex(name.rpartition("/")[2], 8, "a position"), "big")
                commit, received_ms = parse_order(store.get(name))
            except FormatError as error:
                self._set_aside(store.path_of(name), store, str(error))
                continue
            found[commit] = max(found.get(commit, (0, 0)), (position, received_ms))
        return found

    def _revive_commits(self, index: Index) -> None:
        """Records of which only the copy in a metadata pack is left, oldest first."""
        found: dict[CommitId, tuple[int, Signed]] = {}
        for id_, place in index.of_kind(frame.COMMIT):
            if index.commit(CommitId(id_)) is not None:
                continue
            path = self._stores.path_of(pack_name(self._vault, PackId(place.pack)))
            try:
                with PackFile(path) as file:
                    header = file.header(place.offset)
                    body = file.read(place.offset + len(header.raw), header.length - len(header.raw))
                signed = commits.decode(frame.decode_commit(header, body))
                if self._is_ours(signed, place) and not self._lacks(index, signed):
                    found[signed.id] = int(path.stat().st_mtime * 1000), signed
            except (FormatError, NotFound):
                continue
        if not found:
            return
        # The notes of lost records may still be there, and their positions stay theirs.
        last = max([index.last_position(), *(position for position, _ in self._order().values())])
        for received_ms, signed in sorted(found.values(), key=lambda row: (row[1].commit.sequence, row[0])):
            name = commit_name(self._vault, signed.device, signed.commit.sequence, signed.id)
            self._put(name, signed.raw)
            last += 1
            self._put(order_name(self._vault, last), order_note(signed.id, received_ms))
            index.add_commit(_row(signed, last, received_ms))
            self.findings.commits_added += 1
            self.findings.healed += 1

    def _is_ours(self, signed: Signed, place: Place) -> bool:
        """Whether the record may enter the history: a pack may hold what no commit request ever showed."""
        try:
            commits.check_vouched(signed, self._admin_public)
            if signed.commit.vault != self._vault:
                raise FormatError("the record is of another vault")
        except FormatError as error:
            self._strange(f"the copy of a commit record in pack {place.pack.hex()} was left alone: {error}")
            return False
        return True

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

    def _sync(self, folder: Path) -> None:
        """Whoever made the files in it may have been killed before their names were durable: the index must not
        promise them before."""
        if folder not in self._synced:
            sync_directory(folder)
            self._synced.add(folder)

    # -- damage

    def _set_aside(self, path: Path, store: PosixStore, reason: str) -> None:
        moved = set_aside(path, store.root, reason)
        self._damage(f"{path} was set aside as {moved}: {reason}")

    def _damage(self, sentence: str, count: int = 1) -> None:
        _log.warning("%s", sentence)
        self.findings.damage += count

    def _strange(self, sentence: str) -> None:
        _log.warning("%s", sentence)


def _row(signed: Signed, position: int, received_ms: int) -> CommitRow:
    commit = signed.commit
    return CommitRow(signed.id, position, received_ms, signed.device, commit.sequence, commit.incarnation)


def _hex_or_none(text: str) -> bytes | None:
    try:
        return from_hex(text, ID_LEN, "a name")
    except FormatError:
        return None
