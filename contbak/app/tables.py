"""The tables of the agent's state, each named by the module that owns it, and whose rows are in them."""

from __future__ import annotations

from contbak.capture import journal as journals
from contbak.capture import proofs as proof_tables
from contbak.core.names import SOURCE_ID_LEN, SourceId
from contbak.store.kv import MAX_KEY, Kv
from contbak.upload import chain as chains
from contbak.upload import known as knowns

TABLES = (*journals.TABLES, *proof_tables.TABLES, *chains.TABLES, *knowns.TABLES)
_OF_SOURCES = (*journals.TABLES, *proof_tables.TABLES, "states")
"""Those whose keys begin with the id of a source."""

TRUST_S = 7 * 86400.0
"""How long the large ones are not examined again if the environment was closed in order: decision 0010."""


def sources_in(kv: Kv) -> set[SourceId]:
    """The sources that have rows."""
    found: set[SourceId] = set()
    with kv.read() as rows:
        for table in _OF_SOURCES:
            key = rows.next_key(table, b"")
            while key is not None:
                source = key[:SOURCE_ID_LEN]
                found.add(SourceId(source))
                key = rows.next_key(table, source.ljust(MAX_KEY, b"\xff"))
    return found
