"""What only the store in memory does."""

from __future__ import annotations

import pytest

from contbak.core.errors import StoreFull
from contbak.store.memory import MemoryStore


def test_it_can_be_full() -> None:
    store = MemoryStore(capacity=10)
    store.put_new("a", bytes(6))
    assert store.free() == 4
    with pytest.raises(StoreFull):
        store.put_new("b", bytes(5))
    assert [name for name, _ in store.list("")] == ["a"]
    store.delete("a")
    store.put_new("b", bytes(10))
    assert store.free() == 0
