"""Messages: round trips, and signatures that hold for one purpose, one key and one thing only."""

from __future__ import annotations

import random
from typing import get_type_hints

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from contbak.core import codec, messages
from contbak.core.crypto import OwnerKeys, public_of, sign, vouch
from contbak.core.errors import FormatError, WrongKey
from contbak.core.messages import (
    Challenge,
    Join,
    Login,
    Receipt,
    Session,
    bitmap,
    bits,
    check_login,
    check_session,
    check_vouch,
    log_in,
    login_signature,
    open_receipt,
    open_session,
    session_proof,
    sign_receipt,
)
from contbak.core.names import CommitId, DeviceId, VaultId

OWNER = OwnerKeys.from_root(bytes(range(32)))
VAULT = OWNER.writer.vault
RELAY_SEED, DEVICE_SEED = b"r" * 32, b"d" * 32
RELAY, DEVICE = public_of(RELAY_SEED), public_of(DEVICE_SEED)
COMMIT = CommitId(b"c" * 32)
RECEIPT = Receipt(1, RELAY, VAULT, COMMIT, messages.RELAY, 7, 1_800_000_000_000)
CHALLENGE, OWN = Challenge(b"n" * 32, RELAY), b"o" * 32

RECORDS = [each for each in vars(messages).values() if isinstance(each, type) and hasattr(each, "__struct_fields__")]


def strategy(kind):
    known = {
        int: st.integers(-(2**63), 2**64 - 1),
        bytes: st.binary(max_size=40),
        str: st.text(st.characters(codec="utf-8"), max_size=20),
        bool: st.booleans(),
    }
    if kind in known:
        return known[kind]
    if getattr(kind, "__origin__", None) is tuple:
        return st.lists(strategy(kind.__args__[0]), max_size=3).map(tuple)
    if hasattr(kind, "__args__"):
        return st.none() | strategy(kind.__args__[0])
    return st.builds(kind, *(strategy(each) for each in get_type_hints(kind).values()))


@pytest.mark.parametrize("kind", [each for each in RECORDS if each is not codec.Record])
@settings(max_examples=20)
@given(data=st.data())
def test_round_trip(kind, data):
    record = data.draw(strategy(kind))
    assert codec.decode(codec.encode(record), kind, "a message") == record


# -- receipts ---------------------------------------------------------------------------------------------------


def test_receipts():
    assert open_receipt(sign_receipt(RECEIPT, RELAY_SEED), RELAY, COMMIT) == RECEIPT


def test_every_byte_of_a_receipt_counts():
    raw = sign_receipt(RECEIPT, RELAY_SEED)
    chance = random.Random(1)
    for place in range(len(raw)):
        wrong = bytearray(raw)
        wrong[place] ^= 1 << chance.randrange(8)
        for each in (bytes(wrong), raw[:place]):
            with pytest.raises(FormatError):
                open_receipt(each, RELAY, COMMIT)
    with pytest.raises(FormatError):
        open_receipt(raw + b"\0", RELAY, COMMIT)


@pytest.mark.parametrize(
    ("receipt", "seed", "relay", "commit"),
    [
        (RECEIPT, DEVICE_SEED, RELAY, COMMIT),
        (RECEIPT, RELAY_SEED, DEVICE, COMMIT),
        (RECEIPT, RELAY_SEED, RELAY, b"d" * 32),
        (replace(RECEIPT, commit=b"d" * 32), RELAY_SEED, RELAY, COMMIT),
        (replace(RECEIPT, relay=DEVICE), DEVICE_SEED, RELAY, COMMIT),
        (replace(RECEIPT, version=2), RELAY_SEED, RELAY, COMMIT),
    ],
)
def test_receipts_for_something_else(receipt, seed, relay, commit):
    with pytest.raises(FormatError, match="the relay's receipt"):
        open_receipt(sign_receipt(receipt, seed), relay, commit)


def test_a_receipt_is_signed_as_one():
    body = codec.encode(RECEIPT)
    with pytest.raises(FormatError, match="not signed"):
        open_receipt(body + sign(RELAY_SEED, "session", body), RELAY, COMMIT)


@given(st.binary(max_size=200))
def test_any_bytes_are_no_receipt(raw):
    with pytest.raises(FormatError):
        open_receipt(raw, RELAY, COMMIT)


# -- joining, logging in ----------------------------------------------------------------------------------------


def join(**fields):
    word = vouch(OWNER.admin_seed, VAULT, DEVICE)
    made = Join(1, b"t" * 32, OWNER.writer.read_public, OWNER.writer.admin_public, DEVICE, "laptop", "home", word)
    return replace(made, **fields)


def test_vouching():
    check_vouch(join(), VAULT)
    stranger = OwnerKeys.from_root(bytes(32))
    wrong = [
        join(device=RELAY),
        join(admin_public=stranger.writer.admin_public),
        join(vouch=vouch(stranger.admin_seed, VAULT, DEVICE)),
        join(vouch=vouch(OWNER.admin_seed, stranger.writer.vault, DEVICE)),
        join(vouch=sign(OWNER.admin_seed, "login", VAULT + DEVICE)),
        join(vouch=b""),
        join(device=b""),
    ]
    for each in wrong:
        with pytest.raises(WrongKey):
            check_vouch(each, VAULT)
    with pytest.raises(WrongKey):
        check_vouch(join(), stranger.writer.vault)


def login(**fields):
    made = Login(VAULT, DEVICE, CHALLENGE.nonce, OWN, login_signature(DEVICE_SEED, VAULT, CHALLENGE, OWN))
    return replace(made, **fields)


def test_logging_in():
    assert check_login(login(), RELAY)
    other = VaultId(b"v" * 16)
    for each in (
        login(vault=other),
        login(vault=VAULT[:15]),
        login(vault=VAULT + b"\0"),
        login(vault=VAULT + RELAY[:1], nonce=CHALLENGE.nonce[1:]),
        login(device=RELAY),
        login(device=DEVICE[:31]),
        login(nonce=b"m" * 32),
        login(challenge=b"m" * 32),
        login(nonce=CHALLENGE.nonce + OWN, challenge=b""),
        login(signature=b""),
        login(signature=login_signature(RELAY_SEED, VAULT, CHALLENGE, OWN)),
        login(signature=login_signature(DEVICE_SEED, other, CHALLENGE, OWN)),
        login(signature=login_signature(DEVICE_SEED, VAULT, replace(CHALLENGE, relay=DEVICE), OWN)),
        login(signature=sign(DEVICE_SEED, "commit", VAULT + RELAY + CHALLENGE.nonce + OWN)),
    ):
        assert not check_login(each, RELAY)
    assert not check_login(login(), DeviceId(bytes(32)))


def test_the_relay_proves_itself():
    session = Session(b"t" * 32, 60, None, (), 0, 0, session_proof(RELAY_SEED, login()))
    check_session(session, RELAY, login())
    for wrong, relay, asked in (
        (session, DEVICE, login()),
        (session, RELAY, login(nonce=b"m" * 32)),
        (replace(session, proof=b""), RELAY, login()),
        (replace(session, proof=session_proof(DEVICE_SEED, login())), RELAY, login()),
        (replace(session, proof=sign(RELAY_SEED, "receipt", CHALLENGE.nonce + OWN)), RELAY, login()),
        (replace(session, proof=sign(RELAY_SEED, "session", CHALLENGE.nonce)), RELAY, login()),
    ):
        with pytest.raises(WrongKey, match="not the relay"):
            check_session(wrong, relay, asked)


def test_a_recorded_session_opens_nothing_again():
    """Somebody who heard a login gives the same nonce once more; he has no key."""
    heard = log_in(codec.encode(CHALLENGE), DEVICE_SEED, VAULT, RELAY, OWN)
    session = codec.encode(Session(b"t" * 32, 60, None, (), 0, 0, session_proof(RELAY_SEED, heard)))
    assert open_session(session, heard, RELAY)
    again = log_in(codec.encode(CHALLENGE), DEVICE_SEED, VAULT, RELAY, b"p" * 32)
    with pytest.raises(WrongKey, match="not the relay"):
        open_session(session, again, RELAY)


def test_a_device_logs_in_at_the_relay_it_knows_only():
    made = log_in(codec.encode(CHALLENGE), DEVICE_SEED, VAULT, RELAY, OWN)
    assert made == login() and check_login(made, RELAY)
    for wrong in (replace(CHALLENGE, relay=DEVICE), replace(CHALLENGE, nonce=b"n" * 31)):
        with pytest.raises(WrongKey, match="nothing was sent"):
            log_in(codec.encode(wrong), DEVICE_SEED, VAULT, RELAY, OWN)
    session = Session(b"t" * 32, 60, None, (), 0, 0, session_proof(RELAY_SEED, made))
    assert open_session(codec.encode(session), made, RELAY) == session
    with pytest.raises(WrongKey, match="not the relay"):
        open_session(codec.encode(replace(session, proof=b"p" * 64)), made, RELAY)
    for read in (lambda raw: log_in(raw, DEVICE_SEED, VAULT, RELAY, OWN), lambda raw: open_session(raw, made, RELAY)):
        with pytest.raises(FormatError):
            read(b"?")


# -- bitmaps ----------------------------------------------------------------------------------------------------


@given(st.lists(st.booleans(), max_size=200))
def test_bitmaps(flags):
    raw = bitmap(flags)
    assert len(raw) == -(-len(flags) // 8)
    assert bits(raw, len(flags)) == flags


def test_the_lowest_bit_is_first():
    assert bitmap([True, False, False] + [False] * 5 + [False, True]) == b"\x01\x02"
    assert bits(b"\x05\x80", 16) == [True, False, True] + [False] * 12 + [True]


@pytest.mark.parametrize(("raw", "count"), [(b"", 1), (b"\0", 0), (b"\0", 9), (b"\0\0", 8), (b"", 2**40), (b"\x08", 3)])
def test_bitmaps_of_another_size(raw, count):
    with pytest.raises(FormatError):
        bits(raw, count)
