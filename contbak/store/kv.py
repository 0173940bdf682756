"""The only door to lmdb: tables of rows that survive power cuts and never lie.

Rules:
  - lmdb has no checksums, so it is a cache of what packs, records and sources can give again: a damaged environment
    is set aside and an empty one takes its place.  `kvform` says how damage shows, `kvcheck` looks for it at open.
  - One process writes (a lock beside the directory), any number read.  One Kv per environment in a process; a Kv
    does not survive a fork.
  - A commit is durable when `write` is left.  `sync=False` and `writemap` are never used: both lose or garble data.
  - Keep transactions short: a reader keeps old pages alive, and a process suspended within one may read nonsense.
  - Everything handed out is a copy.

Does not know what the rows mean, does not grow the map, and does not rebuild what it lost: `was_reset` tells.
"""

from __future__ import annotations

import errno
import logging
import re
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from zlib import crc32

import lmdb

from contbak.core.errors import ContbakError, NotFound, StoreError, StoreFull, UsageError
from contbak.store.kvform import CRC_LEN, DATA_FILE, ROW_SUM, SEALED, SUMS, TXN, TXN_KEY, fingerprint, row_seed, sealed
from contbak.store.kvhome import Home
from contbak.store.posix import sync_directory

MAX_KEY = 511
"""Bytes of the longest key; the shortest has one."""

_MAX_READERS = 126
_SPARE_TXNS = 8
_STEP = 1_000
_TABLE = re.compile(r"[a-z][a-z0-9_]{0,63}")

_log = logging.getLogger(__name__)


class KvDamaged(StoreError):
    """The environment returned what was never written, or ended.  Quarantine it and open it again."""


def translate(error: lmdb.Error) -> ContbakError:
    """The error of contbak that says what `error` says."""
    if isinstance(error, lmdb.MapFullError):
        return StoreFull("the index has reached its largest size")
    if isinstance(error, lmdb.DiskError) or getattr(error, "code", 0) in (errno.ENOSPC, errno.EDQUOT):
        return StoreFull("there is no space left for the index")
    if isinstance(error, lmdb.BadValsizeError):
        return UsageError(f"a key has 1 to {MAX_KEY} bytes")
    damage = (lmdb.CorruptedError, lmdb.PageNotFoundError, lmdb.InvalidError, lmdb.VersionMismatchError)
    if isinstance(error, (*damage, lmdb.PanicError)):  # after a panic lmdb refuses all until it is opened anew
        return KvDamaged(f"the index is damaged: {error}")
    return StoreError(f"the index cannot be used: {error}")


@dataclass(frozen=True, slots=True)
class _Table:
    name: bytes
    db: lmdb._Database
    seed: int


class Reader:
    """One moment of the tables.  A table that was not named at open is a KeyError."""

    def __init__(self, txn: lmdb.Transaction[bytes], tables: dict[str, _Table]) -> None:
        self._txn = txn
        self._tables = tables

    def get(self, table: str, key: bytes) -> bytes | None:
        """The value, or None.  Raises KvDamaged."""
        place = self._tables[table]
        raw = self._raw(place, key)
        return None if raw is None else raw[:-CRC_LEN]

    def has(self, table: str, key: bytes) -> bool:
        """Whether there is such a row.  Raises KvDamaged."""
        return self._raw(self._tables[table], key) is not None

    def get_many(self, table: str, keys: Iterable[bytes]) -> list[bytes | None]:
        """The values in the order of the keys, None for each that is absent.  Raises KvDamaged."""
        return [self.get(table, key) for key in keys]

    def any(self, table: str, prefix: bytes) -> bool:
        """Whether there is a row whose key begins with `prefix`.  Raises KvDamaged."""
        return bool(self.batch(self._tables[table], b"", prefix, False, 1))

    def within(self, table: str, prefix: bytes) -> dict[bytes, bytes]:
        """The rows whose keys begin with `prefix`, all of them, by the rest of the key.  Raises KvDamaged."""
        place, cut, found = self._tables[table], len(prefix), {}
        seed = crc32(prefix, place.seed)
        try:
            with self._txn.cursor(place.db) as cursor:
                begun = cursor.set_range(prefix) if prefix else cursor.first()
                for key, raw in cursor.iternext() if begun else ():
                    if not key.startswith(prefix):
                        break
                    rest = key[cut:]
                    if crc32(raw, crc32(rest, seed)) != SEALED:
                        raise _damaged(place)
                    found[rest] = raw[:-CRC_LEN]
        except lmdb.Error as error:
            raise translate(error) from error
        return found

    def count(self, table: str) -> int:
        """How many rows there are."""
        try:
            return self._txn.stat(self._tables[table].db)["entries"]
        except lmdb.Error as error:
            raise translate(error) from error

    def items(
        self, table: str, start: bytes = b"", prefix: bytes = b"", after: bool = False
    ) -> Iterator[tuple[bytes, bytes]]:
        """The rows in the order of their keys, whose keys begin with `prefix` and are not below `start`.

        `after` leaves out the row of `start` itself.  Rows put or deleted meanwhile, ahead of the iterator, may be
        seen or not.  Raises KvDamaged.
        """
        place = self._tables[table]
        while True:
            rows = self.batch(place, start, prefix, after, _STEP)
            yield from rows
            if len(rows) < _STEP:
                return
            start, after = rows[-1][0], True

    def batch(self, place: _Table, start: bytes, prefix: bytes, after: bool, limit: int) -> list[tuple[bytes, bytes]]:
        """At most `limit` rows; fewer only if there are no more."""
        rows: list[tuple[bytes, bytes]] = []
        seed = place.seed
        try:
            with self._txn.cursor(place.db) as cursor:
                begin = max(start, prefix)
                found = cursor.set_range(begin) if begin else cursor.first()
                if found and after and cursor.key() == start:
                    found = cursor.next()
                for key, raw in islice(cursor.iternext(), limit if found else 0):
                    if not key.startswith(prefix):
                        break
                    if crc32(raw, crc32(key, seed)) != SEALED:
                        raise _damaged(place)
                    rows.append((key, raw[:-CRC_LEN]))
        except lmdb.Error as error:
            raise translate(error) from error
        return rows

    def _raw(self, place: _Table, key: bytes) -> bytes | None:
        try:
            raw = self._txn.get(key, None, place.db)
        except lmdb.Error as error:
            raise translate(error) from error
        if raw is not None and crc32(raw, crc32(key, place.seed)) != SEALED:
            raise _damaged(place)
        return raw


class Writer(Reader):
    """The one write transaction.  What it puts it can also read."""

    def __init__(self, txn: lmdb.Transaction[bytes], tables: dict[str, _Table], sums: _Table) -> None:
        super().__init__(txn, tables)
        self._sums_table = sums
        self._sums: dict[bytes, tuple[int, int]] = {}

    def put(self, table: str, key: bytes, value: bytes) -> None:
        """Makes `value` the value of `key`, 1 to MAX_KEY bytes long.  Raises UsageError, StoreFull, KvDamaged."""
        place = self._tables[table]
        new = sealed(value, key, place.seed)
        count, total = self._sum(place)
        try:
            if self._txn.put(key, new, overwrite=False, db=place.db):
                self._sums[place.name] = count + 1, total ^ fingerprint(new)
                return
            old = self._raw(place, key)
            if old is None or old == new:
                return
            self._txn.put(key, new, db=place.db)
        except lmdb.Error as error:
            raise translate(error) from error
        self._sums[place.name] = count, total ^ fingerprint(old) ^ fingerprint(new)

    def put_many(self, table: str, rows: Iterable[tuple[bytes, bytes]]) -> None:
        """As `put` of each, and quickest for new keys in their order."""
        place = self._tables[table]
        seed, db, put = place.seed, place.db, self._txn.put
        count, total = self._sum(place)
        try:
            for key, value in rows:
                crc = crc32(value, crc32(key, seed))
                if put(key, value + crc.to_bytes(CRC_LEN, "little"), True, False, False, db):
                    count += 1
                    total ^= crc * crc  # kvform.fingerprint
                else:
                    self._sums[place.name] = count, total
                    self.put(table, key, value)
                    count, total = self._sum(place)
        except lmdb.Error as error:
            raise translate(error) from error
        finally:
            self._sums[place.name] = count, total

    def delete(self, table: str, key: bytes) -> bool:
        """Removes the row; returns whether there was one.  Raises StoreFull, KvDamaged."""
        place = self._tables[table]
        old = self._raw(place, key)
        if old is None:
            return False
        count, total = self._sum(place)
        try:
            self._txn.delete(key, db=place.db)
        except lmdb.Error as error:
            raise translate(error) from error
        self._sums[place.name] = count - 1, total ^ fingerprint(old)
        return True

    def clear(self, table: str) -> None:
        """Removes all rows of the table."""
        place = self._tables[table]
        if not self.count(table):
            return
        try:
            self._txn.drop(place.db, delete=False)
        except lmdb.Error as error:
            raise translate(error) from error
        self._sums[place.name] = 0, 0

    def _sum(self, place: _Table) -> tuple[int, int]:
        known = self._sums.get(place.name)
        if known is None:
            raw = self._raw(self._sums_table, place.name)
            count, total = ROW_SUM.unpack(raw[:-CRC_LEN]) if raw is not None else (0, 0)
            known = int(count), int(total)
        return known

    def _write_sums(self) -> bool:
        """Writes what the rows add up to; returns whether anything has changed.  Ends every transaction."""
        if not self._sums:
            return False
        rows = {name: ROW_SUM.pack(count, total) for name, (count, total) in self._sums.items()}
        rows[TXN_KEY] = TXN.pack(self._txn.id())
        for name, value in rows.items():
            self._txn.put(name, sealed(value, name, self._sums_table.seed), db=self._sums_table.db)
        return True


def _damaged(place: _Table) -> KvDamaged:
    return KvDamaged(f"the index is damaged: a row of {place.name.decode()} has a wrong checksum")


def _log_damage(reason: str) -> None:
    _log.warning("the index was damaged, was set aside and starts empty: %s", reason)


class Kv:
    """An open environment; made by `open`.  All methods may be called from any thread."""

    def __init__(self, home: Home, map_size: int, readonly: bool) -> None:
        self.path = home.path
        self.was_reset = False
        """Whether what was there was damaged, so that all tables are empty now."""
        self._home = home
        self._readonly = readonly
        self._tables: dict[str, _Table] = {}
        self._sums: _Table | None = None
        self._writing = threading.Lock()
        self._writer: int | None = None
        self._env = lmdb.Environment(
            str(home.path),
            map_size=map_size,
            readonly=readonly,
            create=not readonly,
            mode=0o600,
            readahead=False,
            max_readers=_MAX_READERS,
            max_dbs=128,
            max_spare_txns=_SPARE_TXNS,
        )

    @classmethod
    def open(
        cls,
        path: Path,
        tables: Sequence[str],
        *,
        map_size: int = 64 << 30,
        on_damage: Callable[[str], None] = _log_damage,
        readonly: bool = False,
    ) -> Kv:
        """Opens the environment in the directory `path`, and makes it and its tables if they are missing.

        Examines it first, in a child process, which takes about a second for a million rows.  If it is damaged it
        is set aside, an empty one takes its place, and `on_damage` is called with the reason.  `map_size` is the
        most bytes it can ever hold.  `readonly` needs the environment and all tables to be there (NotFound), takes
        no lock and does not examine: it trusts the writer to have done so.  Raises StoreError if another process
        writes there.
        """
        if not all(_TABLE.fullmatch(name) for name in tables):
            raise UsageError("the name of a table is lower-case letters, digits and _")
        home = Home(path)
        reason = None
        if readonly:
            if not (path / DATA_FILE).is_file():
                raise NotFound(f"there is no index at {path}")
        else:
            home.enter()
        try:
            if not readonly:
                reason = home.prepare()
            kv = cls._opened(home, tables, map_size, readonly)
        except BaseException:
            home.leave()
            raise
        if reason is not None:
            kv.was_reset = True
            on_damage(reason)
        return kv

    @classmethod
    def _opened(cls, home: Home, tables: Sequence[str], map_size: int, readonly: bool) -> Kv:
        try:
            kv = cls(home, map_size, readonly)
            try:
                kv._open_tables(tables)
            except BaseException:
                kv._env.close()
                raise
        except lmdb.NotFoundError as error:
            raise NotFound(f"the index at {home.path} lacks a table") from error
        except lmdb.Error as error:
            raise translate(error) from error
        return kv

    def _open_tables(self, names: Sequence[str]) -> None:
        raws = [SUMS, *(name.encode() for name in names)]
        if self._readonly:  # here not within a transaction: the handles would end with it
            found = {raw: self._env.open_db(raw, create=False) for raw in raws}
        else:
            found = self._make_tables(raws)
        self._tables = {raw.decode(): _Table(raw, db, row_seed(raw)) for raw, db in found.items()}
        self._sums = self._tables.pop(SUMS.decode())

    def _make_tables(self, raws: Sequence[bytes]) -> dict[bytes, lmdb._Database]:
        """Opens the tables; makes those that are missing, in one transaction that bears its number."""
        self._env.reader_check()
        with self._env.begin(write=True) as txn:
            before = txn.stat()["entries"]
            found = {raw: self._env.open_db(raw, txn=txn) for raw in raws}
            if txn.stat()["entries"] != before:
                txn.put(TXN_KEY, sealed(TXN.pack(txn.id()), TXN_KEY, row_seed(SUMS)), db=found[SUMS])
        sync_directory(self.path)
        self._home.set_tip(self._env.info()["last_txnid"])
        return found

    @contextmanager
    def read(self) -> Iterator[Reader]:
        """A view of one moment, in which nothing changes.  Leave it soon."""
        try:
            txn = self._env.begin()
        except lmdb.Error as error:
            raise translate(error) from error
        try:
            yield Reader(txn, self._tables)
        finally:
            txn.abort()

    @contextmanager
    def write(self) -> Iterator[Writer]:
        """The write transaction: waits for that of another thread, is durable on exit, and undone by an exception.

        Raises StoreError within `write` of the same thread, or if this is readonly; StoreFull.
        """
        if self._readonly or self._sums is None:
            raise StoreError(f"{self.path} is open for reading only")
        if self._writer == threading.get_ident():
            raise StoreError("there is a write transaction in this thread already")
        with self._writing:
            self._writer = threading.get_ident()
            try:
                yield from self._transaction(self._sums)
            finally:
                self._writer = None

    def _transaction(self, sums: _Table) -> Iterator[Writer]:
        try:
            txn = self._env.begin(write=True)
        except lmdb.Error as error:
            raise translate(error) from error
        try:
            writer = Writer(txn, self._tables, sums)
            yield writer
            number = txn.id()
            if writer._write_sums():
                txn.commit()
                self._home.set_tip(number)
        except lmdb.Error as error:
            raise translate(error) from error
        finally:
            txn.abort()

    def scan(self, table: str, prefix: bytes = b"", batch: int = 10_000) -> Iterator[tuple[bytes, bytes]]:
        """The rows whose keys begin with `prefix`, in order, in bounded memory.

        A new view for every `batch` rows: a row that others put or delete meanwhile may be seen or not.  Raises
        KvDamaged.
        """
        place = self._tables[table]
        start, after = b"", False
        while True:
            with self.read() as reader:
                rows = reader.batch(place, start, prefix, after, batch)
            yield from rows
            if len(rows) < batch:
                return
            start, after = rows[-1][0], True

    def quarantine(self, reason: str) -> None:
        """Closes the environment; the next open sets it aside and starts empty, with this reason."""
        if not self._readonly:
            self._home.mark(reason)
        self.close()

    def close(self) -> None:
        """Waits for the writer, then closes; open readers end with a StoreError.  May be called twice."""
        with self._writing:
            self._env.close()
            self._home.leave()

    def __enter__(self) -> Kv:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
