"""This device's chain of commits as far as the agent knows it, the state of each source, and the nodes of its trees.

    chain   "head" -> Chain; "pending" -> Pending
    states  source -> SourceState
    nodes   node id -> the node, for the trees that the states name: a commit rewrites only what it touches

At most one commit is pending: signed, durable here, and not yet acknowledged.  It is sent again and again, byte for
byte, until the relay says yes (`acknowledge`) or it can never be accepted (`withdraw`).
"""

from __future__ import annotations

from collections.abc import Iterable

from contbak.core import codec, compress
from contbak.core.codec import Record
from contbak.core.commit import NO_PREVIOUS
from contbak.core.errors import NotFound
from contbak.core.names import ChunkId, SourceId
from contbak.core.node import Node
from contbak.store.kv import Kv, Writer

TABLES = ("chain", "states", "nodes")
_NODE_MAX = 16 << 20


class Chain(Record, frozen=True, array_like=True, forbid_unknown_fields=True):
    """The end of the chain.

    sequence   the highest number that was ever signed in this incarnation
    head       id of the newest acknowledged commit; record: its bytes, b"" if only the relay has it
    packs      how many packs this state knows to be sealed at the relay
    """

    incarnation: bytes
    sequence: int
    head: bytes = NO_PREVIOUS
    record: bytes = b""
    packs: int = 0


class SourceState(Record, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A source as of its newest acknowledged commit.

    run_rows  rows in the runs on top of the base
    complete  whether a whole scan stood behind it
    """

    base: bytes | None = None
    runs: tuple[bytes, ...] = ()
    run_rows: int = 0
    files: int = 0
    entries: int = 0
    size: int = 0
    complete: bool = False
    commit: bytes = b""
    time_ms: int = 0


class Pending(Record, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A commit that awaits its receipt.

    needs     ids of packs that must be sealed first
    after     the source's state once it is acknowledged
    obsolete  nodes that the new state no longer uses
    receipt   the relay's receipt, b"" before it came
    since_ms  when the oldest change in it was made
    """

    source: bytes
    record: bytes
    needs: tuple[bytes, ...]
    after: SourceState
    obsolete: tuple[bytes, ...]
    since_ms: int
    receipt: bytes = b""


class Ledger:
    """Chain, states and nodes in one environment."""

    def __init__(self, kv: Kv) -> None:
        self._kv = kv

    # -- the chain --------------------------------------------------------------------------------------------

    def chain(self) -> Chain | None:
        """None: this agent has no state (first run, or it was lost)."""
        raw = self._get("chain", b"head")
        return None if raw is None else codec.decode(raw, Chain, "the chain's state")

    def save_chain(self, chain: Chain) -> None:
        """Durable on return."""
        with self._kv.write() as rows:
            rows.put("chain", b"head", codec.encode(chain))

    def state(self, source: SourceId) -> SourceState:
        """The source's newest acknowledged state; an empty one if there is none."""
        raw = self._get("states", source)
        return SourceState() if raw is None else codec.decode(raw, SourceState, "a source's state")

    def forget_source(self, source: SourceId) -> None:
        """Its trees are not extended any more; the history at the relay stays."""
        with self._kv.write() as rows:
            rows.delete("states", source)

    # -- the pending commit -----------------------------------------------------------------------------------

    def pending(self) -> Pending | None:
        """The commit that awaits its receipt."""
        raw = self._get("chain", b"pending")
        return None if raw is None else codec.decode(raw, Pending, "the pending commit")

    def begin(self, pending: Pending, chain: Chain) -> None:
        """From now on this commit is owed: durable on return, together with the sequence number it used."""
        with self._kv.write() as rows:
            rows.put("chain", b"pending", codec.encode(pending))
            rows.put("chain", b"head", codec.encode(chain))

    def note_receipt(self, pending: Pending, receipt: bytes) -> Pending:
        """The relay acknowledged it: what follows is only tidying up, and may be repeated."""
        done = Pending(
            pending.source, pending.record, pending.needs, pending.after, pending.obsolete, pending.since_ms, receipt
        )
        with self._kv.write() as rows:
            rows.put("chain", b"pending", codec.encode(done))
        return done

    def acknowledge(self, rows: Writer, pending: Pending, chain: Chain) -> None:
        """Inside the last transaction of an acknowledged commit."""
        rows.put("states", pending.source, codec.encode(pending.after))
        rows.put("chain", b"head", codec.encode(chain))
        rows.delete("chain", b"pending")
        for id_ in pending.obsolete:
            rows.delete("nodes", id_)

    def withdraw(self, chain: Chain) -> None:
        """The pending commit can never be accepted; its sequence number is not used again."""
        with self._kv.write() as rows:
            rows.delete("chain", b"pending")
            rows.put("chain", b"head", codec.encode(chain))

    # -- nodes ------------------------------------------------------------------------------------------------

    def node(self, id_: bytes) -> Node:
        """A node of a current tree.  Raises NotFound."""
        raw = self._get("nodes", id_)
        if raw is None:
            raise NotFound(f"node {id_.hex()} is not in the agent's state")
        refs_len = int.from_bytes(raw[1:5], "little")
        refs = tuple(raw[at : at + 32] for at in range(5, 5 + refs_len, 32))
        return Node(refs, compress.unsqueeze(raw[0], raw[5 + refs_len :], _NODE_MAX))

    def keep_nodes(self, nodes: Iterable[tuple[ChunkId | bytes, Node]]) -> None:
        """Keeps nodes of a tree in the making."""
        with self._kv.write() as rows:
            for id_, node in nodes:
                method, payload = compress.squeeze(node.payload)
                refs = b"".join(node.refs)
                rows.put("nodes", id_, bytes((method,)) + len(refs).to_bytes(4, "little") + refs + payload)

    def forget_trees(self) -> None:
        """Drops all states and nodes: every source will be written anew."""
        with self._kv.write() as rows:
            rows.clear("states")
            rows.clear("nodes")

    def _get(self, table: str, key: bytes) -> bytes | None:
        with self._kv.read() as rows:
            return rows.get(table, key)
