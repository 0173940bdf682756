"""The only door to lmdb, with contbak.store.kvrows: tables of rows that survive power cuts and never lie.

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

import logging
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import lmdb

from contbak.core.errors import NotFound, StoreError, UsageError
from contbak.store.kvform import DATA_FILE, SUMS, TXN, TXN_KEY, row_seed, sealed
from contbak.store.kvhome import Home
from contbak.store.kvrows import MAX_KEY, KvDamaged, Reader, Suspicion, Table, Writer, translate
from contbak.store.posix import sync_directory

__all__ = ("MAX_KEY", "Kv", "KvDamaged", "Reader", "Writer", "translate")

_MAX_READERS = 126
_SPARE_TXNS = 8
_TABLE = re.compile(r"[a-z][a-z0-9_]{0,63}")

_log = logging.getLogger(__name__)


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
        self._tables: dict[str, Table] = {}
        self._sums: Table | None = None
        self._writing = threading.Lock()
        self._writer: int | None = None
        self._suspicions = Suspicion.count
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
        trust_s: float = 0.0,
    ) -> Kv:
        """Opens the environment in the directory `path`, and makes it and its tables if they are missing.

        Examines it first, in a child process, which takes about a second for a million rows.  If it is damaged it
        is set aside, an empty one takes its place, and `on_damage` is called with the reason.  `map_size` is the
        most bytes it can ever hold.  `readonly` needs the environment and all tables to be there (NotFound), takes
        no lock and does not examine: it trusts the writer to have done so.  `trust_s`: the large tables of one that
        was closed in order and not touched since are examined again only after so many seconds; for tables whose
        rows may vanish or be old without harm.  Raises StoreError if another process writes there.
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
                reason = home.prepare(trust_s)
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
        self._tables = {raw.decode(): Table(raw, db, row_seed(raw)) for raw, db in found.items()}
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

    def _transaction(self, sums: Table) -> Iterator[Writer]:
        try:
            txn = self._env.begin(write=True)
        except lmdb.Error as error:
            raise translate(error) from error
        try:
            writer = Writer(txn, self._tables, sums)
            yield writer
            number = txn.id()
            if writer.write_sums():
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
        self._suspicions = -1
        self.close()

    def close(self) -> None:
        """Waits for the writer, then closes; open readers end with a StoreError.  May be called twice."""
        with self._writing:
            self._env.close()
            if self._suspicions == Suspicion.count:
                self._home.note_end()
            self._home.leave()

    def __enter__(self) -> Kv:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
