"""What a relay knows of one vault, in tables that can be made again from its packs and records.

    ids      chunk id -> its places (n x pack number, offset, length, ordinal, kind; first copy first)
    packs    pack number -> root, length, flags, writer
    roots    root -> pack number
    writers  writer -> packs, bytes
    closed   id of a node from which everything that it leads to is there
    commits  commit id -> position, time, device, sequence, incarnation
    order    position -> commit id
    heads    device -> id of its newest commit
    meta     "position": the highest position given

Does not read packs and does not decide what may come in.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path

from contbak.core.messages import Head, PackInfo, Place
from contbak.core.names import CommitId, DeviceId, PackId
from contbak.store.kv import Kv, Reader, Writer
from relay.packfile import Contents

TABLES = ("ids", "packs", "roots", "writers", "closed", "commits", "order", "heads", "meta")
_MAP_SIZE = 32 << 30
COPIES_MAX = 32

_PLACE = struct.Struct("<IIIBB")
_KIND = _PLACE.size - 1  # where a place has it
_PACK = struct.Struct("<32sQB8s")
_NUMBER = struct.Struct(">I")
_POSITION = struct.Struct(">Q")
_TOTAL = struct.Struct("<QQ")
_COMMIT = struct.Struct("<QQ32sQ16s")
_METADATA = 1
_DAMAGED = 2


@dataclass(frozen=True, slots=True)
class CommitRow:
    """One accepted commit: its place in the order of acceptance, when that was (Unix ms), and its chain."""

    id: CommitId
    position: int
    received_ms: int
    device: DeviceId
    sequence: int
    incarnation: bytes

    @property
    def head(self) -> Head:
        return Head(self.device, self.incarnation, self.sequence, self.id)


@dataclass(frozen=True, slots=True)
class PackRow:
    """One pack; `damaged`: its tail was not whole when it was indexed."""

    root: PackId
    length: int
    metadata: bool
    damaged: bool
    writer: bytes


class Index:
    """The open index of one vault; all methods may be called from any thread."""

    def __init__(self, path: Path, on_damage: Callable[[str], None], readonly: bool = False) -> None:
        self._kv = Kv.open(path, TABLES, map_size=_MAP_SIZE, on_damage=on_damage, readonly=readonly)
        self.was_reset = self._kv.was_reset

    def close(self) -> None:
        self._kv.close()

    def quarantine(self, reason: str) -> None:
        """Sets it aside; to be opened again and filled from packs and records."""
        self._kv.quarantine(reason)

    # -- chunks

    def have(self, ids: Sequence[bytes]) -> list[bool]:
        """Which of the ids the vault has."""
        with self._kv.read() as rows:
            return [rows.has("ids", id_) for id_ in ids]

    def places(self, ids: Sequence[bytes]) -> list[tuple[Place, ...]]:
        """Where each id lies, first copy first, empty if unknown."""
        roots: dict[int, bytes] = {}
        with self._kv.read() as rows:
            return [_places(rows, rows.get("ids", id_), roots) for id_ in ids]

    def of_kind(self, kind: int) -> Iterator[tuple[bytes, Place]]:
        """Every id that has a place of this kind, with the first such place; reads the whole table."""
        for id_, raw in self._kv.scan("ids"):
            if any(_PLACE.unpack_from(raw, at)[4] == kind for at in range(0, len(raw), _PLACE.size)):
                yield from ((id_, place) for place in self.places([id_])[0][:1] if place.kind == kind)

    def absent(self, ids: Iterable[bytes]) -> tuple[list[bytes], list[bytes]]:
        """(ids that are not there, ids of nodes that are there and not known to be closed)."""
        ids = list(ids)
        with self._kv.read() as rows:
            found = rows.get_many("ids", ids)
            missing = [id_ for id_, raw in zip(ids, found, strict=True) if raw is None]
            nodes = [
                id_ for id_, raw in zip(ids, found, strict=True) if raw is not None and any(raw[_KIND :: _PLACE.size])
            ]
            return missing, [id_ for id_ in nodes if not rows.has("closed", id_)]

    # -- packs

    def add_pack(self, root: PackId, contents: Contents) -> None:
        """Adds the pack and the places of its chunks; does nothing if it is there and no better than before."""
        self.add_packs([(root, contents)])

    def add_packs(self, packs: Iterable[tuple[PackId, Contents]]) -> None:
        """Adds several at once, which is much faster."""
        with self._kv.write() as rows:
            places: list[tuple[bytes, bytes]] = []
            for root, contents in packs:
                places += _add_pack(rows, root, contents)
            places.sort(key=itemgetter(0))  # neighbours share a page; the copies of one id stay in their order
            for id_, place in places:
                known = rows.get("ids", id_) or b""
                if len(known) < COPIES_MAX * _PLACE.size:
                    rows.put("ids", id_, known + place)

    def pack(self, root: PackId) -> PackRow | None:
        with self._kv.read() as rows:
            number = rows.get("roots", root)
            return None if number is None else _pack(rows.get("packs", number))

    def packs_after(self, root: bytes, limit: int) -> list[PackInfo]:
        """At most `limit` packs in the order of their ids, from the one behind `root` on."""
        found: list[PackInfo] = []
        with self._kv.read() as rows:
            for _, number in rows.items("roots", start=root, after=True):
                row = _pack(rows.get("packs", number))
                if row is not None:
                    found.append(PackInfo(row.root, row.length, row.metadata, row.writer))
                if len(found) == limit:
                    break
        return found

    def roots(self) -> dict[PackId, int]:
        """Every pack and its file's length."""
        rows = (_pack(raw) for _, raw in self._kv.scan("packs"))
        return {row.root: row.length for row in rows if row is not None}

    def totals(self) -> dict[bytes, tuple[int, int]]:
        """(packs, bytes) of every writer."""
        with self._kv.read() as rows:
            return {writer: _TOTAL.unpack(raw) for writer, raw in rows.items("writers")}

    # -- commits

    def commit(self, commit: CommitId) -> CommitRow | None:
        with self._kv.read() as rows:
            return _commit(commit, rows.get("commits", commit))

    def add_commit(self, row: CommitRow, closed: Iterable[bytes] = ()) -> None:
        """Adds an accepted commit; it becomes its device's head if its sequence number is the highest.

        closed: nodes of which it will be remembered that everything they lead to is there.
        """
        self.add_commits([row], closed)

    def add_commits(self, commits: Iterable[CommitRow], closed: Iterable[bytes] = ()) -> None:
        """Adds several at once, which is much faster."""
        with self._kv.write() as rows:
            for row in commits:
                _add_commit(rows, row)
            for id_ in sorted(closed):
                rows.put("closed", id_, b"")

    def count_commits(self) -> int:
        with self._kv.read() as rows:
            return rows.count("commits")

    def count_packs(self) -> int:
        with self._kv.read() as rows:
            return rows.count("roots")

    def last_position(self) -> int:
        """The highest position that was given, 0 if none was."""
        with self._kv.read() as rows:
            raw = rows.get("meta", b"position")
            return 0 if raw is None else int(_POSITION.unpack(raw)[0])

    def at(self, position: int) -> CommitId | None:
        """The commit that was accepted at this position."""
        with self._kv.read() as rows:
            raw = rows.get("order", _POSITION.pack(position))
            return None if raw is None else CommitId(raw)

    def commits(self) -> set[CommitId]:
        return {CommitId(key) for key, _ in self._kv.scan("commits")}

    def commits_after(self, position: int, limit: int) -> list[CommitRow]:
        """At most `limit` commits in the order of acceptance, from the one behind `position` on."""
        found: list[CommitRow] = []
        with self._kv.read() as rows:
            for _, id_ in rows.items("order", start=_POSITION.pack(position), after=True):
                row = _commit(CommitId(id_), rows.get("commits", id_))
                if row is not None:
                    found.append(row)
                if len(found) == limit:
                    break
        return found

    def head(self, device: bytes) -> CommitRow | None:
        """The newest commit of a device."""
        with self._kv.read() as rows:
            known = rows.get("heads", device)
            return None if known is None else _commit(CommitId(known), rows.get("commits", known))

    def heads(self) -> list[CommitRow]:
        """The newest commit of every device."""
        with self._kv.read() as rows:
            found = [_commit(CommitId(id_), rows.get("commits", id_)) for _, id_ in rows.items("heads")]
        return [row for row in found if row is not None]


def _add_pack(rows: Writer, root: PackId, contents: Contents) -> Iterator[tuple[bytes, bytes]]:
    """Adds all but the places of its chunks, which it gives, with their ids."""
    known = rows.get("roots", root)
    before = None if known is None else _pack(rows.get("packs", known))
    if before is not None and (contents.sound <= (not before.damaged)):
        return
    number = rows.count("packs")  # numbers are never given twice, for no row is ever taken out
    flags = (_METADATA if contents.metadata else 0) | (0 if contents.sound else _DAMAGED)
    rows.put("packs", _NUMBER.pack(number), _PACK.pack(root, contents.length, flags, contents.writer))
    rows.put("roots", root, _NUMBER.pack(number))
    if before is None:
        packs, size = _total(rows, contents.writer)
        rows.put("writers", contents.writer, _TOTAL.pack(packs + 1, size + contents.length))
    for row in contents.rows:
        for ordinal, id_ in enumerate(row.ids):
            yield id_, _PLACE.pack(number, row.offset, row.length, ordinal, row.kind)


def _add_commit(rows: Writer, row: CommitRow) -> None:
    facts = _COMMIT.pack(row.position, row.received_ms, row.device, row.sequence, row.incarnation)
    rows.put("commits", row.id, facts)
    rows.put("order", _POSITION.pack(row.position), row.id)
    last = rows.get("meta", b"position")
    if last is None or _POSITION.unpack(last)[0] < row.position:
        rows.put("meta", b"position", _POSITION.pack(row.position))
    known = rows.get("heads", row.device)
    head = None if known is None else _commit(CommitId(known), rows.get("commits", known))
    if head is None or head.sequence < row.sequence:
        rows.put("heads", row.device, row.id)


def _places(rows: Reader, raw: bytes | None, roots: dict[int, bytes]) -> tuple[Place, ...]:
    found = []
    for at in range(0, len(raw or b""), _PLACE.size):
        number, offset, length, ordinal, kind = _PLACE.unpack_from(raw or b"", at)
        root = roots.get(number)
        if root is None:
            row = _pack(rows.get("packs", _NUMBER.pack(number)))
            if row is None:
                continue
            root = roots[number] = row.root
        found.append(Place(root, offset, length, ordinal, kind))
    return tuple(found)


def _pack(raw: bytes | None) -> PackRow | None:
    if raw is None:
        return None
    root, length, flags, writer = _PACK.unpack(raw)
    return PackRow(PackId(root), length, bool(flags & _METADATA), bool(flags & _DAMAGED), writer)


def _commit(commit: CommitId, raw: bytes | None) -> CommitRow | None:
    if raw is None:
        return None
    position, received_ms, device, sequence, incarnation = _COMMIT.unpack(raw)
    return CommitRow(commit, position, received_ms, DeviceId(device), sequence, incarnation)


def _total(rows: Writer, writer: bytes) -> tuple[int, int]:
    raw = rows.get("writers", writer)
    if raw is None:
        return 0, 0
    packs, size = _TOTAL.unpack(raw)
    return packs, size
