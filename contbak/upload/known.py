"""Which chunks need not be stored again: ids that are in a sealed pack, at the relay or in the spool.

A hint, nothing more: an id that is wrongly here is found out by the relay when a commit refers to it, taken out,
and supplied again.  Keys are the first 16 bytes of an id; two chunks of a vault that share them are not to be
expected in the age of the universe, and would be found out like any wrong hint.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from contbak.store.kv import Kv

TABLES = ("known",)
_KEY_LEN = 16


class Known:
    """The ids, and those that a worker has been told to store just now."""

    def __init__(self, kv: Kv) -> None:
        self._kv = kv
        self._claimed: set[bytes] = set()

    def missing(self, ids: Sequence[bytes]) -> list[bool]:
        """For each id, whether nobody has it and nobody was told to store it."""
        keys = [id_[:_KEY_LEN] for id_ in ids]
        with self._kv.read() as rows:
            found = rows.get_many("known", keys)
        return [value is None and key not in self._claimed for key, value in zip(keys, found, strict=True)]

    def claim(self, ids: Sequence[bytes], stored_elsewhere: Sequence[bool]) -> list[bool]:
        """For each id, whether the asker must store it: the first asker of an id that nobody has must.

        `stored_elsewhere`: what the relay says of the same ids.
        """
        wanted = []
        for id_, missing, elsewhere in zip(ids, self.missing(ids), stored_elsewhere, strict=True):
            key = id_[:_KEY_LEN]
            take = missing and not elsewhere and key not in self._claimed
            if take:
                self._claimed.add(key)
            wanted.append(take)
        return wanted

    def add(self, ids: Iterable[bytes]) -> None:
        """These are in a finished pack, or the relay has them."""
        keys = [id_[:_KEY_LEN] for id_ in ids]
        with self._kv.write() as rows:
            for key in sorted(keys):
                rows.put("known", key, b"")
        self._claimed.difference_update(keys)

    def release(self, ids: Iterable[bytes]) -> None:
        """Whoever was told to store these did not: the next asker must."""
        self._claimed.difference_update(id_[:_KEY_LEN] for id_ in ids)

    def release_all(self) -> None:
        """No worker is storing anything."""
        self._claimed.clear()

    def doubt(self, ids: Iterable[bytes]) -> None:
        """The relay does not have these after all."""
        with self._kv.write() as rows:
            for id_ in ids:
                rows.delete("known", id_[:_KEY_LEN])
        self.release(ids)

    def forget(self) -> None:
        """Nothing is known any more: another relay, or one that lost everything."""
        with self._kv.write() as rows:
            rows.clear("known")
        self._claimed.clear()
