"""Names: hex and back, and nothing else gets through."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contbak.core import names
from contbak.core.errors import FormatError
from contbak.core.names import checked, from_hex


@given(st.binary(max_size=40))
def test_round_trip(raw):
    assert from_hex(raw.hex(), len(raw), "a name") == raw
    assert checked(raw, len(raw), "a name") == raw


@pytest.mark.parametrize(
    "text",
    [
        "",
        "0",
        "abc",
        "ABCD",
        "abcg",
        "ab cd",
        "a bcd",
        " bcd",
        "ab\n0",
        "abcde",
        "abcdef",
        "+abc",
        "0xab",
        "ab  ",
        "\uff41\uff42\uff43\uff44",
        "\u0661\u0662\u0663\u0664",
    ],
)
def test_other_text(text):
    with pytest.raises(FormatError, match="a pack id must be 4 lower-case hex digits"):
        from_hex(text, 2, "a pack id")


@given(st.text(min_size=4, max_size=4))
def test_any_text(text):
    try:
        assert from_hex(text, 2, "x").hex() == text
    except FormatError:
        assert not all(each in "0123456789abcdef" for each in text)


def test_wrong_length():
    for raw in (b"", b"abc", b"abcde"):
        with pytest.raises(FormatError, match=f"a key must be 4 bytes, not {len(raw)}"):
            checked(raw, 4, "a key")


def test_lengths():
    lengths = names.VAULT_ID_LEN, names.SOURCE_ID_LEN, names.DIR_ID_LEN, names.ID_LEN
    assert lengths == (16, 8, 8, 32)
    assert bytes(8) == names.TOP_DIR
