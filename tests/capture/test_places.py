"""Rows against a plain model: full paths, renamed one by one."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from contbak.capture.places import Places

steps = st.lists(
    st.tuples(st.sampled_from(["add", "move", "detach", "forget"]), st.integers(0, 30), st.integers(0, 30)), max_size=60
)


@given(steps)
def test_agrees_with_full_paths(taken: list[tuple[str, int, int]]) -> None:
    places = Places(1)
    rows: dict[int, tuple[int, bytes] | None] = {1: None}
    fresh = 2

    def path(wd: int) -> bytes | None:
        names: list[bytes] = []
        while wd != 1:
            row = rows.get(wd)
            if row is None:
                return None
            wd = row[0]
            names.append(row[1])
        return b"/".join(reversed(names))

    def holds(above: int, wd: int) -> bool:
        while wd != above:
            row = rows.get(wd)
            if row is None:
                return False
            wd = row[0]
        return True

    for kind, first, second in taken:
        known = sorted(rows)
        parent, name = known[first % len(known)], b"n%d" % (second % 4)
        other = known[second % len(known)]
        free = places.child(parent, name) is None
        assert free == ((parent, name) not in rows.values())
        if kind == "add" and free:
            places.put(fresh, parent, name)
            rows[fresh] = (parent, name)
            fresh += 1
        elif kind == "move" and free and other != 1 and not holds(other, parent):
            places.put(other, parent, name)
            rows[other] = (parent, name)
        elif kind == "detach" and other != 1:
            places.detach(other)
            rows[other] = None
        elif kind == "forget" and other != 1:
            children = [wd for wd, row in rows.items() if row is not None and row[0] == other]
            assert sorted(places.forget(other)) == children
            del rows[other]
            for child in children:
                rows[child] = None
        assert len(places) == len(rows)
        for wd in rows:
            assert places.relative(wd) == path(wd)
            assert places.detached(wd) == (wd != 1 and rows[wd] is None)
            assert sorted(places.subtree(wd)) == [below for below in sorted(rows) if holds(wd, below)]
            row = rows[wd]
            assert row is None or places.at(wd, *row)


def test_the_step_below() -> None:
    places = Places(1)
    places.put(2, 1, b"a")
    places.put(3, 2, b"b")
    places.put(4, 3, b"c")
    assert places.step_below(4, 2) == 3
    assert places.step_below(4, 1) == 2
    assert places.step_below(2, 2) == 2
    assert places.step_below(2, 4) is None
