"""core.recovery: what is encoded is read back through every forgiven disguise, and no small mistake passes."""

import itertools
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contbak.core import recovery
from contbak.core.errors import WrongKey

ROOTS = st.binary(min_size=32, max_size=32)
PLACES = st.integers(0, 59)
KNOWN = bytes(range(32))
KNOWN_CODE = "CB1-000G4-0R40M-30E20-9185G-R38E1-W8124-GK2GA-HC5RR-34D1P-70X3R-FPE2D-6BA9W"


def body(code: str) -> str:
    return code.removeprefix("CB1-").replace("-", "")


def test_the_format_does_not_change():
    assert recovery.encode(KNOWN) == KNOWN_CODE
    assert recovery.decode(KNOWN_CODE) == KNOWN


@given(ROOTS)
def test_round_trip_and_shape(root):
    code = recovery.encode(root)
    assert re.fullmatch(r"CB1(-[0-9A-HJKMNP-TV-Z]{5}){12}", code)
    assert recovery.decode(code) == root


@given(ROOTS, st.randoms(use_true_random=False))
def test_reading_forgives_how_people_write(root, dice):
    disguises = {"0": "0Oo", "1": "1IiLl", "-": ["", "-", " ", "\u2013", "\u2212", "\u00a0", " - ", "\n", "\ufeff"]}
    text = "".join(dice.choice(disguises.get(mark, [mark, mark.lower()])) for mark in recovery.encode(root))
    assert recovery.decode(f" {text}\r\n") == root


@given(ROOTS)
def test_the_prefix_may_be_left_out(root):
    assert recovery.decode(body(recovery.encode(root))) == root


def test_a_code_whose_own_symbols_begin_like_the_prefix_needs_no_prefix():
    number = int.from_bytes(b"\xff" * 32, "big") & ~(0x7FFF << 241) | (12 << 10 | 11 << 5 | 1) << 241
    root = number.to_bytes(32, "big")
    assert body(recovery.encode(root)).startswith("CB1")
    assert recovery.decode(recovery.encode(root)) == recovery.decode(body(recovery.encode(root))) == root


@given(ROOTS, PLACES, st.sampled_from(recovery.ALPHABET))
def test_any_wrong_character_is_found_and_its_group_named(root, place, symbol):
    code = body(recovery.encode(root))
    wrong = code[:place] + symbol + code[place + 1 :]
    if wrong == code:
        return
    with pytest.raises(WrongKey, match=rf"look at group {place // 5 + 1}$"):
        recovery.decode(wrong)


def test_every_single_mistake_and_every_swap_in_one_code():
    code = body(KNOWN_CODE)
    wrong = {code[:at] + symbol + code[at + 1 :] for at in range(60) for symbol in recovery.ALPHABET}
    for one, two in itertools.combinations(range(60), 2):
        swapped = list(code)
        swapped[one], swapped[two] = swapped[two], swapped[one]
        wrong.add("".join(swapped))
    wrong.discard(code)
    assert len(wrong) > 3000
    assert not [text for text in wrong if recovery._root(text) is not None]


@given(ROOTS, st.integers(0, 58))
def test_a_swap_of_neighbours_names_the_group(root, place):
    code = body(recovery.encode(root))
    if code[place] == code[place + 1]:
        return
    wrong = code[:place] + code[place + 1] + code[place] + code[place + 2 :]
    with pytest.raises(WrongKey, match=rf"look at group {place // 5 + 1}$"):
        recovery.decode(wrong)


@given(ROOTS, st.permutations(range(12)))
def test_groups_in_another_order_are_refused(root, order):
    groups = recovery.encode(root).split("-")[1:]
    shuffled = [groups[place] for place in order]
    if shuffled != groups:
        with pytest.raises(WrongKey):
            recovery.decode("-".join(["CB1", *shuffled]))


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("", "60 characters after CB1, and this has 0"),
        ("CB1", "this has 0"),
        ("hello world", "this has 10"),
        (KNOWN_CODE[:-1], r"this has 59 \(look at group 12\)"),
        (KNOWN_CODE.replace("CB1-", "CB1-Z"), r"this has 61 \(look at group 1\)"),
        (KNOWN_CODE.replace("-", "")[:-1], "this has 59$"),
        (KNOWN_CODE.replace("CB1", "CB2"), "begin with CB1"),
        (KNOWN_CODE[:-1] + "U", "group 12 .* no code contains"),
        ("CB1-Ü" + KNOWN_CODE[5:], "group 1 .* no code contains"),
        ("CB1" + "Z" * 60, "more than one character"),
    ],
)
def test_what_is_said_about_a_bad_code(text, hint):
    with pytest.raises(WrongKey, match=hint) as caught:
        recovery.decode(text)
    assert caught.value.exit_code == 12
    assert not any(group in str(caught.value) for group in KNOWN_CODE.split("-")[1:])


@given(st.text(max_size=100))
def test_any_other_text_is_refused_politely(text):
    with pytest.raises(WrongKey):
        recovery.decode(text)


def test_a_secret_of_another_length_is_a_mistake_of_the_caller():
    with pytest.raises(ValueError, match="32 bytes"):
        recovery.encode(bytes(31))
