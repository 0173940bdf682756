"""The tables of the agent's state, each named by the module that owns it."""

from __future__ import annotations

from contbak.capture import journal as journals
from contbak.capture import proofs as proof_tables
from contbak.upload import chain as chains
from contbak.upload import known as knowns

TABLES = (*journals.TABLES, *proof_tables.TABLES, *chains.TABLES, *knowns.TABLES)

TRUST_S = 7 * 86400.0
"""How long the large ones are not examined again if the environment was closed in order: decision 0010."""
