"""The ledger: one pending commit from its birth to its receipt, whatever happens in between."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from contbak.core.errors import NotFound
from contbak.core.names import SourceId
from contbak.core.node import Node
from contbak.store.kv import Kv
from contbak.upload.chain import TABLES, Chain, Ledger, Pending, SourceState

ONE, TWO = SourceId(b"source-1"), SourceId(b"source-2")
ID = bytes(range(32))
OLD = Chain(b"incarnat", 4, ID, b"record", 2)
USED = Chain(b"incarnat", 5, ID, b"record", 2)
AFTER = SourceState(ID, (ID,), 3, 1, 2, 5, True, ID, 9)
PENDING = Pending(ONE, b"signed", (ID,), AFTER, (b"o" * 32,), 7)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kv]:
    with Kv.open(tmp_path_factory.mktemp("kv"), TABLES) as opened:
        yield opened


@pytest.fixture
def kv(shared: Kv) -> Kv:
    with shared.write() as rows:
        for table in TABLES:
            rows.clear(table)
    return shared


def test_nothing_is_known_at_first(kv: Kv) -> None:
    ledger = Ledger(kv)
    assert ledger.chain() is None and ledger.pending() is None and ledger.state(ONE) == SourceState()
    with pytest.raises(NotFound):
        ledger.node(ID)


def test_the_life_of_a_commit(kv: Kv) -> None:
    ledger = Ledger(kv)
    ledger.save_chain(OLD)
    ledger.keep_nodes([(b"o" * 32, Node((), b"old")), (b"n" * 32, Node((ID,), b"new"))])
    ledger.begin(PENDING, USED)
    assert ledger.pending() == PENDING and ledger.chain() == USED and ledger.state(ONE) == SourceState()
    done = ledger.note_receipt(PENDING, b"receipt")
    assert ledger.pending() == done and done.receipt == b"receipt" and done.record == PENDING.record
    assert ledger.state(ONE) == SourceState() and ledger.node(b"o" * 32).payload == b"old"
    end = Chain(b"incarnat", 5, b"c" * 32, b"signed", 3)
    for _ in range(2):  # it may be repeated
        with kv.write() as rows:
            ledger.acknowledge(rows, done, end)
        assert ledger.pending() is None and ledger.chain() == end and ledger.state(ONE) == AFTER
    assert ledger.node(b"n" * 32) == Node((ID,), b"new")
    with pytest.raises(NotFound):
        ledger.node(b"o" * 32)


def test_an_acknowledgement_that_fails_leaves_the_commit_pending(kv: Kv) -> None:
    ledger = Ledger(kv)
    ledger.begin(PENDING, USED)
    with pytest.raises(ZeroDivisionError), kv.write() as rows:
        ledger.acknowledge(rows, PENDING, OLD)
        raise ZeroDivisionError
    assert ledger.pending() == PENDING and ledger.chain() == USED and ledger.state(ONE) == SourceState()


def test_a_withdrawn_commit_leaves_its_number_used(kv: Kv) -> None:
    ledger = Ledger(kv)
    ledger.keep_nodes([(b"o" * 32, Node((), b"still in use"))])
    ledger.begin(PENDING, USED)
    ledger.withdraw(USED)
    assert ledger.pending() is None and ledger.chain() == USED
    assert ledger.node(b"o" * 32).payload == b"still in use"


def test_forgetting(kv: Kv) -> None:
    ledger = Ledger(kv)
    for source in (ONE, TWO):
        with kv.write() as rows:
            ledger.acknowledge(rows, Pending(source, b"", (), AFTER, (), 0), OLD)
    ledger.forget_source(ONE)
    assert ledger.state(ONE) == SourceState() and ledger.state(TWO) == AFTER
    ledger.keep_nodes([(ID, Node((), b"x"))])
    ledger.forget_trees()
    assert ledger.state(TWO) == SourceState() and ledger.chain() == OLD
    with pytest.raises(NotFound):
        ledger.node(ID)


@settings(max_examples=50, deadline=None, suppress_health_check=list(HealthCheck))
@given(refs=st.lists(st.binary(min_size=32, max_size=32), max_size=9), payload=st.binary(max_size=2000))
def test_nodes_come_back_as_they_were(kv: Kv, refs: list[bytes], payload: bytes) -> None:
    ledger = Ledger(kv)
    for node in (Node(tuple(refs), payload), Node(tuple(refs), payload * 50)):
        ledger.keep_nodes([(ID, node)])
        assert ledger.node(ID) == node


STEPS = """
import os, signal, sys
from pathlib import Path
from contbak.store.kv import Kv
from contbak.upload.chain import TABLES, Chain, Ledger
sys.path.insert(0, {root!r})
from tests.upload.test_chain import OLD, PENDING, USED
kv = Kv.open(Path({path!r}), TABLES)
ledger = Ledger(kv)
def acknowledge():
    with kv.write() as rows:
        ledger.acknowledge(rows, PENDING, OLD)
steps = [lambda: ledger.save_chain(OLD), lambda: ledger.begin(PENDING, USED),
         lambda: ledger.note_receipt(PENDING, b"yes"), acknowledge]
for step in steps[:{count}]:
    step()
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_killed_after_each_step(tmp_path: Path, count: int) -> None:
    root = str(Path(__file__).parents[2])
    code = STEPS.format(path=str(tmp_path / "kv"), count=count, root=root)
    ended = subprocess.run([sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": root}, check=False)
    assert ended.returncode == -signal.SIGKILL
    with Kv.open(tmp_path / "kv", TABLES) as kv:
        ledger = Ledger(kv)
        pending = ledger.pending()
        assert ledger.chain() == (OLD if count in (1, 4) else USED)
        assert (pending is not None) == (count in (2, 3))
        assert pending is None or pending.receipt == (b"yes" if count == 3 else b"")
        assert ledger.state(ONE) == (AFTER if count == 4 else SourceState())
