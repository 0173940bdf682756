"""A store directory without its relay: pulled out of a NAS, copied from a cloud, mounted read-only.

    STORE/<vault>/packs/<aa>/<root>      STORE/<vault>/commits/<device>/<sequence>-<commit>
    STORE/<vault>/vault                  STORE/<vault>/order/<position>

Rules: nothing is ever written there.  What is needed to find chunks is read from the tails of the packs into a
temporary index; a pack whose tail is damaged is scanned for its frames.  Metadata packs come first, data packs
only when somebody asks for a chunk that metadata packs do not hold, so listing a huge store is quick.
Records that are lost come back from the copies in metadata packs.
"""

from __future__ import annotations

import shutil
import struct
import tempfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from threading import RLock

from contbak.core import commit, frame, pack
from contbak.core.codec import Record, decode
from contbak.core.crypto import digest, vault_id
from contbak.core.errors import FormatError, NotFound, StoreError, UsageError, WrongKey
from contbak.core.messages import RELAY, Listed, PackInfo, VaultInfo
from contbak.core.messages import Place as Spot
from contbak.core.names import ID_LEN, VAULT_ID_LEN, VaultId, from_hex
from contbak.recall.place import Read
from contbak.store.kv import Kv, Writer
from contbak.store.posix import PosixStore

_SPOT = struct.Struct("<IIHB")  # offset, length, ordinal, kind
_NUMBER = struct.Struct(">I")
_ORDER = struct.Struct("<32sQI")
_TAIL = 64 << 10
"""Bytes first read of a pack's end; most directories fit."""
_BATCH = 32
"""Packs whose rows are written to the index at once."""


class _VaultRecord(Record, frozen=True, array_like=True, forbid_unknown_fields=True):
    version: int
    read_public: bytes
    admin_public: bytes
    name: str


class DirectoryPlace:
    """One vault in a store directory.  `vault` says which, where there are several.

    Raises NotFound if the directory is no store, WrongKey if it holds other vaults only, UsageError if there are
    several and none was named.
    """

    def __init__(self, path: Path, vault: bytes | None = None) -> None:
        self.label = str(path)
        self.problems: list[str] = []
        if not path.is_dir():
            raise NotFound(f"{path} is no directory")
        self._vault = _choose(path, vault)
        self._store = PosixStore(path / self._vault.hex())
        self._lock = RLock()
        self._roots: list[bytes] = []
        self._lengths: list[int] = []
        self._pending: list[int] = []
        self._listed = False
        self._temp = Path(tempfile.mkdtemp(prefix="contbak-index-"))
        try:
            self._index = Kv.open(self._temp / "index", ["ids", "copies"])
        except BaseException:
            shutil.rmtree(self._temp, ignore_errors=True)
            raise

    def vault(self) -> VaultInfo:
        """What the directory tells of the vault: no devices and no heads, which only the records tell."""
        self._list_packs()
        return VaultInfo(self._vault, self._name(), len(self._roots), sum(self._lengths), (), ())

    def commits(self) -> Iterator[Listed]:
        """The records in the order of acceptance; those without a known place in it come last, by device and number.

        A record that is damaged or gone, and has a copy in a metadata pack, comes from there.
        """
        order = self._order()
        names = [name for name, _ in self._store.list("commits/")]
        at = len(order) + max((position for position, _ in order.values()), default=0)
        sure: list[tuple[tuple[int, int], str, bytes]] = []
        unsure: list[tuple[tuple[int, int], str, bytes]] = []
        seen: set[bytes] = set()
        for name in names:
            id_ = _commit_of(name)
            if id_ is None or id_ in seen:
                continue
            seen.add(id_)
            (sure if id_ in order else unsure).append((order.get(id_, (0, 0)), name, id_))
        copies = sorted(self._copies(seen))
        for (position, received), name, id_ in sorted(sure):
            yield Listed(position, RELAY, received, self._record(name, id_))
        for number, (_, name, id_) in enumerate(unsure):
            yield Listed(at + 1 + number, RELAY, 0, self._record(name, id_))
        for number, (_, record) in enumerate(copies):
            yield Listed(at + 1 + len(unsure) + number, RELAY, 0, record)

    def locate(self, ids: Sequence[bytes]) -> list[tuple[Spot, ...]]:
        """Reads the tails of the data packs the first time that the metadata packs do not know an id."""
        self._list_packs()
        found = self._look_up(ids)
        if self._pending and not all(found):
            self._read_tails()
            found = self._look_up(ids)
        return found

    def read(self, pack: bytes, offset: int, length: int) -> bytes:
        return self._store.get_range(_pack_name(pack), offset, length)

    def reader(self) -> Read:
        return self.read  # every call opens its file

    def packs(self) -> Iterator[PackInfo]:
        self._list_packs()
        for root, length in zip(self._roots, self._lengths, strict=True):
            writer, metadata = bytes(8), False
            with suppress(FormatError, StoreError):
                writer, metadata = self._kind(root)
            yield PackInfo(root, length, metadata, writer)

    def close(self) -> None:
        """Removes the temporary index."""
        self._index.close()
        shutil.rmtree(self._temp, ignore_errors=True)

    def _tell(self, problem: str) -> None:
        if problem not in self.problems:
            self.problems.append(problem)

    # -- packs --------------------------------------------------------------------------------------------------

    def _list_packs(self) -> None:
        """Lists the packs once, and reads the tails of all that are not surely data packs."""
        with self._lock:
            if self._listed:
                return
            first: list[int] = []
            for name, length in self._store.list("packs/"):
                try:
                    root = from_hex(name.rpartition("/")[2], ID_LEN, "a pack's name")
                except FormatError:
                    self._tell(f"{self.label}: {name} is no pack and was passed over")
                    continue
                self._roots.append(root)
                self._lengths.append(length)
                metadata = True
                with suppress(FormatError, StoreError):
                    metadata = self._kind(root)[1]
                (first if metadata else self._pending).append(len(self._roots) - 1)
            self._index_packs(first)
            self._listed = True

    def _read_tails(self) -> None:
        with self._lock:
            pending, self._pending = self._pending, []
            self._index_packs(pending)

    def _kind(self, root: bytes) -> tuple[bytes, bool]:
        """(writer, whether the first frame is no data), from the head of the pack."""
        head = self.read(root, 0, pack.HEADER_LEN + frame.FIXED_LEN)
        vault, writer = pack.parse_header(head)
        if vault != self._vault or head[pack.HEADER_LEN :][: len(frame.MAGIC)] != frame.MAGIC:
            raise FormatError("no frame of this vault")
        return writer, head[pack.HEADER_LEN + len(frame.MAGIC) + 2] != frame.DATA

    def _index_packs(self, numbers: Sequence[int]) -> None:
        for start in range(0, len(numbers), _BATCH):
            with self._index.write() as writer:
                for number in numbers[start : start + _BATCH]:
                    self._index_rows(writer, number, self._rows(number))

    def _index_rows(self, writer: Writer, number: int, rows: Sequence[pack.Row]) -> None:
        suffix = _NUMBER.pack(number)
        for row in rows:
            for ordinal, id_ in enumerate(row.ids):
                table = "copies" if row.kind == frame.COMMIT else "ids"
                writer.put(table, id_ + suffix, _SPOT.pack(row.offset, row.length, ordinal, row.kind))

    def _rows(self, number: int) -> Sequence[pack.Row]:
        root, length = self._roots[number], self._lengths[number]
        try:
            return self._directory(root, length)
        except (FormatError, StoreError) as error:
            reason = str(error)
        try:
            rows = pack.scan(self._store.get(_pack_name(root)))
        except StoreError as error:
            self._tell(f"pack {root.hex()} cannot be read: {error}")
            return ()
        self._tell(f"pack {root.hex()}: {reason}; {len(rows)} frames were found by searching it")
        return rows

    def _directory(self, root: bytes, length: int) -> list[pack.Row]:
        """The rows from the pack's tail.  Raises FormatError."""
        base = max(0, length - _TAIL)
        tail = self.read(root, base, length - base)
        plan_len = pack.plan_length(tail[-pack.TRAILER_LEN :])
        plan = pack.parse_plan(tail[-plan_len:])
        if plan.root != root or plan.file_len != length:
            raise FormatError("its name or its length is not that of its trailer")
        if plan.directory_offset < base:
            base, tail = plan.directory_offset, self.read(root, plan.directory_offset, length - plan.directory_offset)
        start = plan.directory_offset - base
        return pack.parse_directory(tail[start : start + plan.directory_len])

    def _look_up(self, ids: Sequence[bytes]) -> list[tuple[Spot, ...]]:
        out = []
        with self._index.read() as reader:
            for id_ in ids:
                rows = reader.items("ids", prefix=id_)
                out.append(tuple(self._spot(key, value) for key, value in rows))
        return out

    def _spot(self, key: bytes, value: bytes) -> Spot:
        offset, length, ordinal, kind = _SPOT.unpack(value)
        return Spot(self._roots[_NUMBER.unpack(key[ID_LEN:])[0]], offset, length, ordinal, kind)

    # -- records ------------------------------------------------------------------------------------------------

    def _name(self) -> str:
        with suppress(FormatError, StoreError):
            return _vault_record(self._store.get("vault"), self._vault).name
        self._tell(f"{self.label}: the vault's own record is damaged; its name is unknown")
        return ""

    def _order(self) -> dict[bytes, tuple[int, int]]:
        """Commit id to (position, received in ms), as far as it is readable."""
        out: dict[bytes, tuple[int, int]] = {}
        for name, _ in self._store.list("order/"):
            try:
                raw = self._store.get(name)
                id_, received, crc = _ORDER.unpack(raw)
                if zlib.crc32(raw[:-4]) != crc:
                    raise FormatError("damaged")
                out[id_] = (int(name.rpartition("/")[2], 16), received)
            except (struct.error, ValueError, FormatError, StoreError):
                self._tell(f"{self.label}: {name} is damaged; when that commit was received is unknown")
        return out

    def _record(self, name: str, id_: bytes) -> bytes:
        """The bytes of a record's file, or of its copy in a pack if the file is damaged."""
        raw = b""
        with suppress(StoreError):
            raw = self._store.get(name)
        if digest(raw) == id_:
            return raw
        self._list_packs()
        for record in self._copy(id_):
            self._tell(f"commit {id_.hex()}: its record is damaged and came from a copy")
            return record
        return raw

    def _copies(self, seen: set[bytes]) -> Iterator[tuple[tuple[bytes, int], bytes]]:
        """((device, sequence), record) of every commit that is only in packs."""
        self._list_packs()
        done = set(seen)
        for key, _ in self._index.scan("copies"):
            id_ = key[:ID_LEN]
            if id_ in done:
                continue
            for record in self._copy(id_):
                with suppress(FormatError):
                    one = commit.decode(record)
                    done.add(id_)
                    self._tell(f"commit {id_.hex()}: its record was lost and came from a copy")
                    yield (one.device, one.commit.sequence), record
                    break

    def _copy(self, id_: bytes) -> Iterator[bytes]:
        with self._index.read() as reader:
            spots = [self._spot(key, value) for key, value in reader.items("copies", prefix=id_)]
        for spot in spots:
            with suppress(FormatError, StoreError):
                raw = self.read(spot.pack, spot.offset, spot.length)
                header = frame.parse_header(raw)
                yield frame.decode_commit(header, raw[len(header.raw) :])


def is_store(path: Path) -> bool:
    """Whether the directory looks like a store."""
    return path.is_dir() and bool((path / "contbak-store").is_file() or _vaults(path))


def _vaults(path: Path) -> list[bytes]:
    out = []
    for child in sorted(path.iterdir()):
        with suppress(FormatError):
            vault = from_hex(child.name, VAULT_ID_LEN, "a vault")
            if child.is_dir():
                out.append(vault)
    return out


def _choose(path: Path, vault: bytes | None) -> VaultId:
    try:
        found = _vaults(path)
    except OSError as error:
        raise StoreError(f"{path} cannot be read: {error.strerror}") from None
    if vault is not None:
        if vault in found:
            return VaultId(vault)
        if found:
            raise WrongKey(f"{path} holds no vault that this key opens")
    if not found:
        raise NotFound(f"{path} is no store: there is no vault in it")
    if len(found) > 1:
        raise UsageError(f"{path} holds {len(found)} vaults; say which one")
    return VaultId(found[0])


def _vault_record(raw: bytes, vault: bytes) -> _VaultRecord:
    if len(raw) < ID_LEN or digest(raw[:-ID_LEN]) != raw[-ID_LEN:]:
        raise FormatError("the vault's record is damaged")
    record = decode(raw[:-ID_LEN], _VaultRecord, "the vault's record")
    if vault_id(record.read_public, record.admin_public) != vault:
        raise FormatError("the vault's record is for another vault")
    return record


def _pack_name(root: bytes) -> str:
    text = root.hex()
    return f"packs/{text[:2]}/{text}"


def _commit_of(name: str) -> bytes | None:
    """The commit id that a record's name ends with."""
    try:
        return from_hex(name.rpartition("-")[2], ID_LEN, "a commit")
    except FormatError:
        return None
