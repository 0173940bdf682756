"""Commit records: signed, chained, sealed; every changed, cut or lying one is refused."""

from __future__ import annotations

import random
import struct
import zlib
from contextlib import suppress
from dataclasses import replace as replaced

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from contbak.core import codec, commit, compress
from contbak.core.commit import NO_PREVIOUS, Commit, Details, Sealed, Witness, check_follows
from contbak.core.crypto import SUITES, XCHACHA, Opener, OwnerKeys, Sealer, digest, public_of, sign, vouch
from contbak.core.errors import FormatError, PeerError

OWNER = OwnerKeys.from_root(bytes(range(32)))
KEYS = OWNER.writer
OTHER = OwnerKeys.from_root(bytes(range(1, 33)))
SEED, RANDOM = b"d" * 32, b"r" * 32
DETAILS = Details("host", "home", b"/home/\xff", 10, 12, 12345, 3, 2, 1, True, "contbak 0.1.0")


def sealer(suite=XCHACHA, ephemeral=b"e" * 32):
    return Sealer(KEYS, ephemeral, suite)


def record(**fields):
    sealed = commit.seal_details(DETAILS, sealer(), RANDOM)
    values = {
        "version": 1, "vault": KEYS.vault, "device": public_of(SEED), "incarnation": b"i" * 16, "sequence": 1,
        "previous": NO_PREVIOUS, "time_ms": 1_800_000_000_000, "source": b"source 1", "base": b"b" * 32,
        "runs": (b"1" * 32, b"2" * 32), "witnesses": (Witness(b"other de", 7, b"w" * 32),),
        "vouch": vouch(OWNER.admin_seed, KEYS.vault, public_of(SEED)), "sealed": sealed,
    }  # fmt: skip
    return Commit(**(values | fields))


def signed(body, seed=SEED):
    """A record with this body, whatever it says, rightly signed."""
    raw = commit.MAGIC + struct.pack("<I", len(body)) + body
    raw += sign(seed, "commit", raw)
    return raw + struct.pack("<I", zlib.crc32(raw))


ONE = commit.encode(record(), SEED)


@given(
    sequence=st.integers(1, 2**64 - 1),
    time_ms=st.integers(-(2**63), 2**63 - 1),
    base=st.none() | st.binary(min_size=32, max_size=32),
    runs=st.lists(st.binary(min_size=32, max_size=32), max_size=64).map(tuple),
    witnesses=st.lists(
        st.builds(Witness, st.binary(min_size=8, max_size=8), st.integers(0, 2**64 - 1), st.just(b"w" * 32)), max_size=8
    ).map(tuple),
)
def test_round_trip(**fields):
    whole = record(**fields)
    made = commit.encode(whole, SEED)
    assert commit.decode(made.raw) == made
    assert made.commit == whole
    assert made.id == digest(made.raw)
    assert made.roots == (() if whole.base is None else (whole.base,)) + whole.runs
    assert (made.device, made.source, commit.vault_of(made)) == (whole.device, whole.source, whole.vault)


@pytest.mark.parametrize("suite", SUITES)
@given(host=st.text(st.characters(codec="utf-8"), max_size=400), path=st.binary(max_size=400))
def test_details(suite, host, path):
    details = replace(DETAILS, host=host, path=path)
    sealed = commit.seal_details(details, sealer(suite), RANDOM)
    assert commit.open_details(sealed, Opener(OWNER)) == details
    assert sealed.suite == suite


def test_details_hide_their_length():
    lengths = {len(commit.seal_details(replace(DETAILS, host="h" * n), sealer(), RANDOM).body) for n in range(100)}
    assert lengths == {256 + 16}


def test_equal_randomness_gives_other_nonces_for_other_details():
    """A cloned machine repeats its random numbers, and then seals something else."""
    one, two, again = (
        commit.seal_details(replace(DETAILS, host=host), sealer(), RANDOM) for host in ("one", "two", "one")
    )
    assert one.ephemeral == two.ephemeral
    assert one.nonce != two.nonce
    assert one == again


# -- damage -----------------------------------------------------------------------------------------------------


def test_every_byte_counts():
    chance = random.Random(1)
    for place in range(len(ONE.raw)):
        wrong = bytearray(ONE.raw)
        wrong[place] ^= 1 << chance.randrange(8)
        with pytest.raises(FormatError):
            commit.decode(bytes(wrong))
        if place < len(wrong) - 4:
            with pytest.raises(FormatError):
                commit.decode(bytes(wrong[:-4]) + struct.pack("<I", zlib.crc32(wrong[:-4])))


def test_every_length_but_the_right_one():
    for length in range(len(ONE.raw)):
        with pytest.raises(FormatError):
            commit.decode(ONE.raw[:length])
    with pytest.raises(FormatError):
        commit.decode(ONE.raw + b"\0")


@given(st.binary(max_size=200))
def test_any_bytes(raw):
    for each in (raw, commit.MAGIC + raw, signed(raw)):
        with suppress(FormatError):
            commit.decode(each)


@pytest.mark.parametrize("length", [0, 1, 2**16, 2**32 - 1])
def test_claimed_lengths(length):
    with pytest.raises(FormatError):
        commit.decode(commit.MAGIC + struct.pack("<I", length) + ONE.raw[12:])


# -- rules ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({"version": 2}, "update"),
        ({"vault": bytes(15)}, "wrong length"),
        ({"incarnation": b""}, "wrong length"),
        ({"previous": bytes(31)}, "wrong length"),
        ({"source": bytes(9)}, "wrong length"),
        ({"base": b""}, "wrong length"),
        ({"runs": (bytes(33),)}, "wrong length"),
        ({"witnesses": (Witness(bytes(9), 1, bytes(32)),)}, "wrong length"),
        ({"witnesses": (Witness(bytes(8), 1, bytes(31)),)}, "wrong length"),
        ({"sealed": Sealed(1, bytes(31), bytes(32), b"")}, "wrong length"),
        ({"sealed": Sealed(1, bytes(32), bytes(24), b"")}, "wrong length"),
        ({"runs": (bytes(32),) * 65}, "impossible"),
        ({"witnesses": (Witness(bytes(8), 1, bytes(32)),) * 9}, "impossible"),
        ({"sequence": 0}, "impossible"),
        ({"sequence": -1}, "impossible"),
    ],
)
def test_each_field(fields, word):
    with pytest.raises(FormatError, match=word):
        commit.encode(record(**fields), SEED)
    with pytest.raises(FormatError, match=word):
        commit.decode(signed(codec.encode(record(**fields))))


def test_a_device_that_is_no_key():
    with pytest.raises(FormatError, match="wrong length"):
        commit.decode(signed(codec.encode(record(device=bytes(31)))))
    with pytest.raises(FormatError, match="signature"):
        commit.decode(signed(codec.encode(record(device=bytes(32)))))


def test_only_the_device_signs():
    with pytest.raises(FormatError, match="signed by the device"):
        commit.encode(record(), b"x" * 32)
    with pytest.raises(FormatError, match="signature"):
        commit.decode(signed(codec.encode(record()), b"x" * 32))


def test_signed_for_another_purpose():
    raw = ONE.raw[:-68]
    raw += sign(SEED, "receipt", raw)
    with pytest.raises(FormatError, match="signature"):
        commit.decode(raw + struct.pack("<I", zlib.crc32(raw)))


def test_the_largest_record():
    def sized(length):
        return record(sealed=Sealed(1, bytes(32), bytes(32), bytes(length)))

    spare = commit.RECORD_MAX - len(commit.encode(sized(60_000), SEED).raw) + 60_000
    assert len(commit.encode(sized(spare), SEED).raw) == commit.RECORD_MAX
    with pytest.raises(FormatError):
        commit.encode(sized(spare + 1), SEED)


# -- details that lie -------------------------------------------------------------------------------------------


def sealed_as(plain, label=b"details"):
    mine = sealer()
    return Sealed(XCHACHA, mine.ephemeral_public, bytes(32), mine.seal(label, bytes(32), plain))


BODY = codec.encode(DETAILS)


@pytest.mark.parametrize(
    "plain",
    [
        b"",
        b"\0",
        b"\0\1\0\0",
        struct.pack("<BI", 0, 0),
        struct.pack("<BI", 0, len(BODY) + 1) + BODY,
        struct.pack("<BI", 0, 2**32 - 1) + BODY,
        struct.pack("<BI", 0, len(BODY) - 1) + BODY,
        struct.pack("<BI", 9, len(BODY)) + BODY,
        struct.pack("<BI", 2, len(BODY)) + BODY,
    ],
)
def test_a_device_that_lies(plain):
    assert commit.open_details(sealed_as(struct.pack("<BI", 0, len(BODY)) + BODY), Opener(OWNER)) == DETAILS
    with pytest.raises(FormatError):
        commit.open_details(sealed_as(plain), Opener(OWNER))


def test_details_that_unpack_to_much():
    method, small = compress.squeeze(bytes(commit.RECORD_MAX + 1))
    with pytest.raises(FormatError, match="impossible size"):
        commit.open_details(sealed_as(struct.pack("<BI", method, len(small)) + small), Opener(OWNER))


def test_details_of_another_vault_or_purpose():
    sealed = commit.seal_details(DETAILS, sealer(), RANDOM)
    strangers = [OTHER, replaced(OWNER, writer=replaced(KEYS, vault=OTHER.writer.vault))]
    for stranger in strangers:
        with pytest.raises(FormatError):
            commit.open_details(sealed, Opener(stranger))
    with pytest.raises(FormatError):
        commit.open_details(sealed_as(struct.pack("<BI", 0, len(BODY)) + BODY, b"header"), Opener(OWNER))
    for suite in (0, 2, 3):
        with pytest.raises(FormatError):
            commit.open_details(replace(sealed, suite=suite), Opener(OWNER))


# -- chains -----------------------------------------------------------------------------------------------------


def test_chains():
    two = commit.encode(record(sequence=2, previous=ONE.id), SEED)
    five = commit.encode(record(sequence=5, previous=two.id, incarnation=b"j" * 16), SEED)
    check_follows(ONE, None)
    check_follows(two, ONE)
    check_follows(five, two)
    for new, head in ((ONE, ONE), (two, None), (ONE, two), (five, ONE), (two, five)):
        with pytest.raises(PeerError, match="newest"):
            check_follows(new, head)
    for sequence in (1, 2, 5):
        late = commit.encode(record(sequence=sequence, previous=five.id), SEED)
        with pytest.raises(PeerError, match="rise"):
            check_follows(late, five)


def test_only_the_owner_can_add_devices():
    commit.check_vouched(ONE, KEYS.admin_public)
    for word in (vouch(OTHER.admin_seed, KEYS.vault, public_of(SEED)), vouch(OWNER.admin_seed, KEYS.vault, b"x" * 32)):
        forged = commit.encode(record(vouch=word), SEED)
        with pytest.raises(FormatError, match="vouch"):
            commit.check_vouched(forged, KEYS.admin_public)
    with pytest.raises(FormatError):
        commit.encode(record(vouch=b""), SEED)
