"""Known ids: a hint that must not say yes to what was doubted."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from contbak.store.kv import Kv
from contbak.upload.known import TABLES, Known

IDS = [bytes((number,)) * 32 for number in range(5)]


@pytest.fixture
def kv(tmp_path: Path) -> Iterator[Kv]:
    with Kv.open(tmp_path / "kv", TABLES) as opened:
        yield opened


def test_noted_is_known_before_and_after_it_is_written(kv: Kv) -> None:
    known = Known(kv)
    known.note(IDS[:2])
    assert known.have(IDS) == [True, True, False, False, False]
    assert Known(kv).have(IDS) == [False] * 5  # a hint that is lost costs work, no data
    known.flush()
    known.flush()
    assert Known(kv).have([IDS[1], IDS[4], IDS[1]]) == [True, False, True]
    assert known.have([]) == []


def test_doubted_is_known_no_more(kv: Kv) -> None:
    known = Known(kv)
    known.note(IDS[:2])
    known.flush()
    known.note(IDS[2:4])
    known.doubt([IDS[0], IDS[2], IDS[4]])
    known.flush()
    for look in (known, Known(kv)):
        assert look.have(IDS) == [False, True, False, True, False]
    known.note([IDS[0]])
    known.flush()
    assert Known(kv).have([IDS[0]]) == [True]


def test_forget(kv: Kv) -> None:
    known = Known(kv)
    known.note(IDS[:1])
    known.flush()
    known.note(IDS[1:2])
    known.forget()
    known.flush()
    assert known.have(IDS) == [False] * 5 == Known(kv).have(IDS)
