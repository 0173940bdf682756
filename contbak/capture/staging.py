"""What the next commit of a source will change: collected in memory, put on disk before the commit is.

Tables (all keys begin with the 8 bytes of the source):
    staged    directory id, name   -> a change, of those that memory has no room for
    placed    directory id         -> where these have it (as in `directories` of contbak.capture.whereabouts)
    promised  number               -> some of the changes that a commit holds: what is clean once it is acknowledged

A change is the packed proof (contbak.capture.proof) behind its length, and the encoded entry; where the name is gone
it is GONE.  Rules: what is collected leaves no trace when it is dropped, or when the process ends; `keep` makes it
durable, without the entries, so that whoever comes after a crash can go through what was promised.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import groupby, islice
from operator import itemgetter

from contbak.core import codec
from contbak.core.names import DIR_ID_LEN, SOURCE_ID_LEN, SourceId
from contbak.store.kv import Kv, Reader

TABLES = ("staged", "placed", "promised")
GONE = b"\0"
ROOM = 120_000
"""Changes that are held in memory, some 350 bytes each: a commit's worth."""
BLOCK = 256
"""Changes in a row of `promised`."""

Change = tuple[bytes, bytes, bytes]
"""(directory id, name, change)"""
Promise = tuple[bytes, tuple[tuple[bytes, bytes], ...]]
"""(directory id, ((name, packed proof or nothing if it is gone), ...))"""


class Staging:
    """The changes of one source; one thread uses it at a time."""

    def __init__(self, kv: Kv, source: SourceId) -> None:
        self._kv = kv
        self._source = source
        self._changes: dict[bytes, dict[bytes, bytes]] = {}
        self._places: dict[bytes, bytes] = {}
        self._number = 0
        self._spilled: bool | None = None
        self.changed = False
        """Whether something was put since the last `keep`."""

    # -- collecting -------------------------------------------------------------------------------------------

    def put(self, dir_id: bytes, name: bytes, change: bytes) -> None:
        """Takes the place of an earlier change of this name."""
        names = self._changes.get(dir_id)
        if names is None:
            names = self._changes[dir_id] = {}
        names[name] = change
        self.changed = True
        self._number += 1
        if self._number >= ROOM:
            self.spill()

    def place(self, directory: bytes, place: bytes) -> None:
        """Where a directory among the changes is."""
        self._places[directory] = place

    def spill(self) -> None:
        """Moves what is in memory to disk."""
        if not self._number:
            return
        source = self._source
        with self._kv.write() as rows:
            for dir_id, names in sorted(self._changes.items()):
                rows.put_many("staged", [(source + dir_id + name, names[name]) for name in sorted(names)])
            rows.put_many("placed", [(source + directory, place) for directory, place in sorted(self._places.items())])
        self._forget()
        self._spilled = True

    def drop(self) -> None:
        """Forgets everything, also what was promised."""
        for table in TABLES:
            drop(self._kv, table, self._source)
        self._forget()
        self._spilled = self.changed = False

    # -- looking up -------------------------------------------------------------------------------------------

    def find(self, rows: Reader, dir_id: bytes, name: bytes) -> bytes | None:
        """The change of a name."""
        names = self._changes.get(dir_id)
        found = names.get(name) if names is not None else None
        if found is None and self._is_spilled(rows):
            found = rows.get("staged", self._source + dir_id + name)
        return found

    def within(self, rows: Reader, dir_id: bytes) -> dict[bytes, bytes]:
        """The changes in a directory by name; not to be altered."""
        fresh = self._changes.get(dir_id, {})
        return rows.within("staged", self._source + dir_id) | fresh if self._is_spilled(rows) else fresh

    def place_of(self, rows: Reader, directory: bytes) -> bytes | None:
        """Where a directory among the changes is."""
        place = self._places.get(directory)
        if place is None and self._is_spilled(rows):
            place = rows.get("placed", self._source + directory)
        return place

    def empty(self) -> bool:
        """Whether there are no changes."""
        if self._number:
            return False
        with self._kv.read() as rows:
            return not self._is_spilled(rows)

    def all(self) -> Iterator[Change]:
        """All changes, sorted by directory id and name."""
        with self._kv.read() as rows:
            spilled = self._is_spilled(rows)
        return self._all_on_disk() if spilled else self._all_in_memory()

    # -- promises ---------------------------------------------------------------------------------------------

    def keep(self) -> None:
        """All that was put is durable on return, for `promised`, in the place of what was promised before."""
        drop(self._kv, "promised", self._source)
        changes, number = self.all(), 0
        while part := list(islice(changes, BLOCK * BLOCK)):
            with self._kv.write() as rows:
                blocks = [
                    (self._source + (number + at).to_bytes(4, "big"), _block(part[at : at + BLOCK]))
                    for at in range(0, len(part), BLOCK)
                ]
                rows.put_many("promised", blocks)
            number += len(part)
        self.changed = False

    def promised(self, rows: Reader, limit: int) -> Iterator[tuple[bytes, tuple[Promise, ...]]]:
        """(key, promises) of up to `limit` blocks; whoever has fulfilled one deletes it."""
        for key, raw in islice(rows.items("promised", prefix=self._source), limit):
            yield key, codec.decode(raw, tuple[Promise, ...], "a block of promises")

    # -- within -----------------------------------------------------------------------------------------------

    def _is_spilled(self, rows: Reader) -> bool:
        if self._spilled is None:
            self._spilled = any(True for _ in rows.items("staged", prefix=self._source))
        return self._spilled

    def _all_in_memory(self) -> Iterator[Change]:
        for dir_id, names in sorted(self._changes.items()):
            for name in sorted(names):
                yield dir_id, name, names[name]

    def _all_on_disk(self) -> Iterator[Change]:
        self.spill()
        at = SOURCE_ID_LEN + DIR_ID_LEN
        for key, change in self._kv.scan("staged", prefix=self._source):
            yield key[SOURCE_ID_LEN:at], key[at:], change

    def _forget(self) -> None:
        self._changes = {}
        self._places = {}
        self._number = 0


def joined(packed: bytes, entry: bytes) -> bytes:
    """A change to a packed proof and an encoded entry."""
    return bytes((len(packed),)) + packed + entry


def proof_in(change: bytes) -> bytes:
    """The packed proof of a change, b"" if the name is gone."""
    return change[1 : 1 + change[0]]


def entry_in(change: bytes) -> bytes:
    """The encoded entry of a change, b"" if the name is gone."""
    return change[1 + change[0] :]


def drop(kv: Kv, table: str, source: SourceId, batch: int = 10_000) -> None:
    """Deletes the rows of a source from a table, in several transactions."""
    while True:
        with kv.write() as rows:
            keys = [key for key, _ in islice(rows.items(table, prefix=source), batch)]
            for key in keys:
                rows.delete(table, key)
        if len(keys) < batch:
            return


def _block(changes: Iterable[Change]) -> bytes:
    return codec.encode(
        [
            (dir_id, [(name, proof_in(change)) for _, name, change in same])
            for dir_id, same in groupby(changes, key=itemgetter(0))
        ]
    )
