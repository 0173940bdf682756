"""The codec: round trips, one encoding for one record, and nothing but FormatError for other bytes."""

from __future__ import annotations

import resource
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contbak.core.codec import Record, decode, encode
from contbak.core.errors import FormatError


class Part(Record, frozen=True, array_like=True, forbid_unknown_fields=True):
    name: bytes
    size: int | None


class Whole(Record, frozen=True, array_like=True, forbid_unknown_fields=True):
    version: int
    title: str
    good: bool
    parts: tuple[Part, ...] = ()


PARTS = st.builds(Part, st.binary(max_size=300), st.none() | st.integers(-(2**63), 2**64 - 1))
WHOLES = st.builds(
    Whole, st.integers(0, 300), st.text(st.characters(codec="utf-8")), st.booleans(), st.lists(PARTS).map(tuple)
)
SAMPLE = Whole(1, "title", True, (Part(b"a", 1), Part(b"\xff" * 40, None), Part(b"", 2**64 - 1)))


@given(WHOLES)
def test_round_trip(record):
    raw = encode(record)
    assert decode(raw, Whole, "a record") == record
    assert decode(memoryview(raw), Whole, "a record") == record


def test_the_bytes():
    assert encode(SAMPLE).hex() == "9401a57469746c65c39392c401610192c428" + "ff" * 40 + "c092c400cfffffffffffffffff"


def test_every_truncation_and_addition():
    raw = encode(SAMPLE)
    for length in range(len(raw)):
        with pytest.raises(FormatError, match="a record"):
            decode(raw[:length], Whole, "a record")
    with pytest.raises(FormatError):
        decode(raw + b"\0", Whole, "a record")


@given(st.data())
def test_one_encoding_each(data):
    """Every changed byte gives another record or an error."""
    raw = bytearray(encode(data.draw(WHOLES)))
    raw[data.draw(st.integers(0, len(raw) - 1))] ^= data.draw(st.integers(1, 255))
    with suppress(FormatError):
        assert encode(decode(bytes(raw), Whole, "a record")) == raw


@pytest.mark.parametrize(
    "raw",
    [
        "930101c3",  # an integer for text
        "93cc01a161c3",  # 1 in two bytes
        "93d90161c3",
        "9301d90161c3",  # short text with a long length
        "9401a161c3dc0000",  # an array with a long length
        "9301a161c3",  # a default that is not written
        "9501a161c39000",  # a field too many
        "9301a1ffc3",  # text that is no UTF-8
        "9301a161c0",  # nil for a boolean
        "8101a161",  # a map
        "93cb3ff0000000000000a161c3",  # a float
        "93d80100000000000000000000000000000000a161c3",  # an extension
        "c1",
        "",
    ],
)
def test_other_bytes(raw):
    with pytest.raises(FormatError, match="a record"):
        decode(bytes.fromhex(raw), Whole, "a record")


@given(st.binary(max_size=80))
def test_any_bytes(raw):
    with suppress(FormatError):
        assert encode(decode(raw, Whole, "a record")) == raw


def test_claimed_lengths_are_not_allocated():
    """Two gigabytes more would not be had here."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    with open("/proc/self/statm", encoding="ascii") as file:
        used = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + (1 << 30), hard))
    try:
        for claim in ("dd7fffffff", "ddffffffff"):  # an array
            with pytest.raises(FormatError):
                decode(bytes.fromhex("9401a161c3" + claim + "92c40161" * 3), Whole, "a record")
        for claim in ("9301dbffffffff61", "9401a161c39192c6ffffffff61"):  # text, bytes
            with pytest.raises(FormatError):
                decode(bytes.fromhex(claim), Whole, "a record")
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def test_arrays_without_end():
    for depth in (100, 100_000):
        with pytest.raises(FormatError):
            decode(b"\x91" * depth, object, "nested arrays")


def test_what_cannot_be_encoded():
    for field in (Part(b"", 2**64), Part(b"", -(2**63) - 1)):
        with pytest.raises(FormatError):
            encode(field)
    with pytest.raises(FormatError):
        encode(Whole(1, "\udcff", True))
