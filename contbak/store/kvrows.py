"""Rows of lmdb tables within one transaction: reading them, writing them, and telling damage from data.

Half of the door to lmdb; contbak.store.kv is the other half and has the rules.  Knows transactions and not the
environment, its directory or its lock.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from zlib import crc32

import lmdb

from contbak.core.errors import ContbakError, StoreError, StoreFull, UsageError
from contbak.store.kvform import CRC_LEN, ROW_SUM, SEALED, TXN, TXN_KEY, fingerprint, sealed

MAX_KEY = 511
"""Bytes of the longest key; the shortest has one."""

_STEP = 1_000


class Suspicion:
    """How often this process saw what a sound environment does not do; what is open then is not closed as sound."""

    count = 0


class KvDamaged(StoreError):
    """The environment returned what was never written, or ended.  Quarantine it and open it again."""

    def __init__(self, reason: str) -> None:
        Suspicion.count += 1
        super().__init__(reason)


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
    Suspicion.count += 1
    return StoreError(f"the index cannot be used: {error}")


@dataclass(frozen=True, slots=True)
class Table:
    """An open table; `seed`: where the CRC of its rows starts."""

    name: bytes
    db: lmdb._Database
    seed: int


class Reader:
    """One moment of the tables.  A table that was not named at open is a KeyError."""

    def __init__(self, txn: lmdb.Transaction[bytes], tables: dict[str, Table]) -> None:
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

    def next_key(self, table: str, after: bytes) -> bytes | None:
        """The first key that comes after `after`, b"" for the first of all.  Raises KvDamaged."""
        found = self.batch(self._tables[table], after, b"", True, 1)
        return found[0][0] if found else None

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

    def batch(self, place: Table, start: bytes, prefix: bytes, after: bool, limit: int) -> list[tuple[bytes, bytes]]:
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

    def _raw(self, place: Table, key: bytes) -> bytes | None:
        try:
            raw = self._txn.get(key, None, place.db)
        except lmdb.Error as error:
            raise translate(error) from error
        if raw is not None and crc32(raw, crc32(key, place.seed)) != SEALED:
            raise _damaged(place)
        return raw


class Writer(Reader):
    """The one write transaction.  What it puts it can also read."""

    def __init__(self, txn: lmdb.Transaction[bytes], tables: dict[str, Table], sums: Table) -> None:
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

    def _sum(self, place: Table) -> tuple[int, int]:
        known = self._sums.get(place.name)
        if known is None:
            raw = self._raw(self._sums_table, place.name)
            count, total = ROW_SUM.unpack(raw[:-CRC_LEN]) if raw is not None else (0, 0)
            known = int(count), int(total)
        return known

    def write_sums(self) -> bool:
        """Writes what the rows add up to; returns whether anything has changed.  Ends every transaction."""
        if not self._sums:
            return False
        rows = {name: ROW_SUM.pack(count, total) for name, (count, total) in self._sums.items()}
        rows[TXN_KEY] = TXN.pack(self._txn.id())
        for name, value in rows.items():
            self._txn.put(name, sealed(value, name, self._sums_table.seed), db=self._sums_table.db)
        return True


def _damaged(place: Table) -> KvDamaged:
    return KvDamaged(f"the index is damaged: a row of {place.name.decode()} has a wrong checksum")
