"""Which chunks need not be stored again: ids that are in a finished pack, at the relay or in the spool.

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
    """The ids."""

    def __init__(self, kv: Kv) -> None:
        self._kv = kv
        self._noted: set[bytes] = set()

    def have(self, ids: Sequence[bytes]) -> list[bool]:
        """For each id, whether it is known."""
        keys = [id_[:_KEY_LEN] for id_ in ids]
        with self._kv.read() as rows:
            found = rows.get_many("known", keys)
        noted = self._noted
        return [value is not None or key in noted for key, value in zip(keys, found, strict=True)]

    def note(self, ids: Iterable[bytes]) -> None:
        """These are in a finished pack, or the relay has them; kept in memory until `flush`.  Does not block."""
        self._noted.update(id_[:_KEY_LEN] for id_ in ids)

    def flush(self) -> None:
        """Writes what was noted, in one transaction."""
        noted = list(self._noted)
        if noted:
            with self._kv.write() as rows:
                for key in sorted(noted):
                    rows.put("known", key, b"")
            self._noted.difference_update(noted)

    def doubt(self, ids: Iterable[bytes]) -> None:
        """The relay does not have these after all."""
        keys = {id_[:_KEY_LEN] for id_ in ids}
        self._noted -= keys
        with self._kv.write() as rows:
            for key in keys:
                rows.delete("known", key)

    def forget(self) -> None:
        """Nothing is known any more: another relay, or one that lost everything."""
        with self._kv.write() as rows:
            rows.clear("known")
        self._noted.clear()
