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

    def have(self, ids: Sequence[bytes]) -> list[bool]:
        """For each id, whether it is known."""
        with self._kv.read() as rows:
            return [value is not None for value in rows.get_many("known", [id_[:_KEY_LEN] for id_ in ids])]

    def add(self, ids: Iterable[bytes]) -> None:
        """These are in a finished pack, or the relay has them."""
        with self._kv.write() as rows:
            for key in sorted(id_[:_KEY_LEN] for id_ in ids):
                rows.put("known", key, b"")

    def doubt(self, ids: Iterable[bytes]) -> None:
        """The relay does not have these after all."""
        with self._kv.write() as rows:
            for id_ in ids:
                rows.delete("known", id_[:_KEY_LEN])

    def forget(self) -> None:
        """Nothing is known any more: another relay, or one that lost everything."""
        with self._kv.write() as rows:
            rows.clear("known")
