"""Entries: their places in the array are the format, and what they hold comes back."""

from __future__ import annotations

import re
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from contbak.core import entry
from contbak.core.codec import decode, encode
from contbak.core.entry import Content, Entry

FORMAT = Path(__file__).parents[2] / "docs" / "format.md"
U64 = st.integers(0, 2**64 - 1)
PAIRS = st.lists(st.tuples(st.binary(max_size=9), st.binary(max_size=9)), max_size=3).map(tuple)
CONTENTS = st.builds(
    Content, U64, st.binary(max_size=32), st.none() | st.binary(max_size=256), st.integers(0, 7),
    st.lists(st.binary(max_size=32), max_size=3).map(tuple),
)  # fmt: skip
ENTRIES = st.builds(
    Entry,
    kind=st.sampled_from(sorted(entry.KINDS)),
    mode=st.integers(0, 0o7777), uid=U64, gid=U64, user=st.text(max_size=9), group=st.text(max_size=9), size=U64,
    mtime=st.integers(-(2**63), 2**63 - 1), ctime=st.integers(-(2**63), 2**63 - 1),
    dir=st.binary(max_size=8), target=st.binary(max_size=40), rdev=st.none() | st.tuples(U64, U64), xattrs=PAIRS,
    extents=st.none() | st.lists(st.tuples(U64, U64), max_size=3).map(tuple),
    link=st.binary(max_size=8), content=st.none() | CONTENTS, flags=st.integers(0, 1),
)  # fmt: skip


@given(ENTRIES)
def test_round_trip(each):
    assert decode(encode(each), Entry, "an entry") == each


def test_the_places():
    each = Entry("f", 1, 2, 3, "u", "g", 4, 5, 6, content=Content(1, b"h", b"x", 0, ()))
    assert encode(each).hex() == "dc0011a166010203a175a167040506c400c400c090c0c40095" + "01c40168c401780090" + "00"


def test_the_document_names_the_places():
    named = re.search(r"An entry: `\[([^]]+)\]`", FORMAT.read_text(encoding="utf-8"))[1]
    assert [word.split()[0] for word in named.split(", ")] == list(Entry.__struct_fields__)


def test_the_words():
    assert "".join(sorted(entry.KINDS)) == "bcdflps"
    assert (entry.INLINE_MAX, entry.TORN) == (256, 1)
