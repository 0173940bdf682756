"""Keys, ids, seals and signatures: right ones fit, and each wrong one is refused."""

from __future__ import annotations

from dataclasses import astuple, replace

import pytest
from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st

from contbak.core import crypto
from contbak.core.crypto import (
    AEGIS,
    NONCE_LEN,
    SUITES,
    TAG_LEN,
    XCHACHA,
    Hasher,
    Opener,
    OwnerKeys,
    Sealer,
    Stretch,
    commit_id,
    derive,
    digest,
    is_vouched,
    public_of,
    sign,
    unwrap_secret,
    vault_id,
    verify,
    vouch,
    wrap_secret,
)
from contbak.core.errors import FormatError, WrongKey

OWNER = OwnerKeys.from_root(bytes(range(32)))
OTHER = OwnerKeys.from_root(bytes(range(1, 33)))
SEED, RANDOM, EPHEMERAL = b"s" * 32, b"r" * 32, b"e" * 32
QUICK = Stretch(b"salt" * 4, 1, 8192)
BYTES = st.binary(max_size=200)


def sealer(suite=XCHACHA, owner=OWNER):
    return Sealer(owner.writer, EPHEMERAL, suite)


# -- keys and ids -----------------------------------------------------------------------------------------------


def test_keys_follow_from_the_root():
    assert OwnerKeys.from_root(bytes(range(32))) == OWNER
    for mine, other in zip(astuple(OWNER.writer), astuple(OTHER.writer), strict=True):
        assert mine != other
    secrets = [*astuple(OWNER.writer), OWNER.read_secret, OWNER.admin_seed]
    assert len(set(secrets)) == len(secrets)
    assert [len(each) for each in secrets] == [16, 32, 32, 32, 32, 32, 32, 32]
    assert OWNER.writer.vault == vault_id(OWNER.writer.read_public, OWNER.writer.admin_public)


@pytest.mark.parametrize("length", [0, 31, 33])
def test_a_root_is_32_bytes(length):
    with pytest.raises(WrongKey):
        OwnerKeys.from_root(bytes(length))


def test_one_key_for_one_purpose():
    assert derive("psk", SEED) == blake3(SEED, derive_key_context="contbak 2026-11 psk").digest()
    assert derive("psk", SEED) != derive("chunk id", SEED)


@given(st.lists(BYTES, max_size=5))
def test_hashes(parts):
    hasher = Hasher()
    for part in parts:
        hasher.update(memoryview(part))
    assert hasher.digest() == digest(b"".join(parts)) == blake3(b"".join(parts)).digest()


@given(BYTES)
def test_data_ids(data):
    assert OWNER.writer.data_id(data) == OWNER.writer.data_id(memoryview(data))
    assert OWNER.writer.data_id(data) != OTHER.writer.data_id(data)
    assert OWNER.writer.data_id(data) not in (OWNER.writer.node_id((), data), digest(data))
    assert OWNER.writer.data_id(data) != OWNER.writer.data_id(data + b"\0")


def test_node_ids_cover_references_and_payload():
    refs = b"a" * 32, b"b" * 32
    ids = [
        OWNER.writer.node_id(refs, b"payload"),
        OWNER.writer.node_id(refs, b"payloae"),
        OWNER.writer.node_id(refs[:1], b"payload"),
        OWNER.writer.node_id(refs[::-1], b"payload"),
        OWNER.writer.node_id(refs[:1], refs[1] + b"payload"),
        OWNER.writer.node_id((), refs[0] + refs[1] + b"payload"),
    ]
    assert len(set(ids)) == len(ids)


def test_split_is_even_and_secret():
    numbers = [OWNER.writer.split(b"%d" % n) for n in range(2000)]
    assert all(0 <= number < 2**64 for number in numbers)
    assert 900 < sum(number < 2**63 for number in numbers) < 1100
    assert numbers[0] != OTHER.writer.split(b"0")
    assert numbers[0] == int.from_bytes(blake3(b"0", key=OWNER.writer.chunker_key).digest()[:8], "little")


def test_commit_ids():
    assert commit_id(b"record") == digest(b"record")


# -- signing ----------------------------------------------------------------------------------------------------


@given(BYTES)
def test_signatures(message):
    signature = sign(SEED, "commit", message)
    assert len(signature) == crypto.SIGNATURE_LEN
    public = public_of(SEED)
    assert verify(public, "commit", message, signature)
    assert not verify(public, "receipt", message, signature)
    assert not verify(public, "commi", b"t" + message, signature)
    assert not verify(public_of(b"t" * 32), "commit", message, signature)
    assert not verify(public, "commit", message + b"\0", signature)


def test_every_byte_of_a_signature_counts():
    signature = sign(SEED, "commit", b"message")
    for place in range(len(signature)):
        wrong = bytearray(signature)
        wrong[place] ^= 1
        assert not verify(public_of(SEED), "commit", b"message", bytes(wrong))


def test_vouching():
    device = public_of(SEED)
    word = vouch(OWNER.admin_seed, OWNER.writer.vault, device)
    admin = OWNER.writer.admin_public
    assert is_vouched(admin, OWNER.writer.vault, device, word)
    assert not is_vouched(OTHER.writer.admin_public, OWNER.writer.vault, device, word)
    assert not is_vouched(admin, OTHER.writer.vault, device, word)
    assert not is_vouched(admin, OWNER.writer.vault, public_of(b"t" * 32), word)
    for wrong in (b"", word[:-1], vouch(SEED, OWNER.writer.vault, device), sign(OWNER.admin_seed, "commit", device)):
        assert not is_vouched(admin, OWNER.writer.vault, device, wrong)


@pytest.mark.parametrize("public", [b"", bytes(31), bytes(32), bytes(33), b"\xff" * 32])
def test_keys_that_are_none(public):
    assert not verify(public, "commit", b"message", sign(SEED, "commit", b"message"))


@pytest.mark.parametrize("length", [0, 63, 65])
def test_signatures_of_another_length(length):
    assert not verify(public_of(SEED), "commit", b"message", sign(SEED, "commit", b"message").ljust(65)[:length])


# -- sealing ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suite", SUITES)
@given(plain=BYTES, header=BYTES)
def test_seal_and_open(suite, plain, header):
    mine = sealer(suite)
    nonce = mine.nonce(RANDOM, header)
    body = mine.seal(header, nonce, plain)
    assert len(nonce) == 32
    assert nonce[NONCE_LEN[suite] :] == bytes(32 - NONCE_LEN[suite])
    assert len(body) == len(plain) + TAG_LEN[suite]
    assert Opener(OWNER).open(suite, mine.ephemeral_public, header, nonce, body) == plain


@pytest.mark.parametrize("suite", SUITES)
def test_whatever_is_changed_does_not_open(suite):
    mine = sealer(suite)
    nonce = mine.nonce(RANDOM, b"table")
    body = mine.seal(b"header", nonce, b"plain text")
    right = {
        "suite": suite,
        "ephemeral_public": mine.ephemeral_public,
        "header": b"header",
        "nonce": nonce,
        "body": body,
    }
    assert Opener(OWNER).open(**right) == b"plain text"

    def changed(name, place):
        value = bytearray(right[name])
        value[place] ^= 1
        return {**right, name: bytes(value)}

    wrong = [changed(name, n) for name in ("header", "body") for n in range(len(right[name]))]
    wrong += [changed("nonce", n) for n in range(NONCE_LEN[suite])]
    wrong += [changed("ephemeral_public", n) for n in range(32)]
    wrong += [{**right, "body": body[:n]} for n in range(len(body))]
    wrong += [{**right, "nonce": nonce[:n]} for n in range(NONCE_LEN[suite])]
    wrong += [{**right, "ephemeral_public": key} for key in (b"", bytes(31), bytes(33), bytes(32))]
    wrong += [{**right, "suite": each} for each in (0, 3, 255, SUITES[2 - suite])]
    for each in wrong:
        with pytest.raises(FormatError):
            Opener(OWNER).open(**each)


@pytest.mark.parametrize("suite", SUITES)
def test_other_keys_do_not_open(suite):
    mine = sealer(suite)
    nonce = mine.nonce(RANDOM, b"table")
    body = mine.seal(b"header", nonce, b"plain text")
    keys = OWNER.writer
    strangers = [
        OTHER,
        replace(OWNER, read_secret=OTHER.read_secret),
        replace(OWNER, writer=replace(keys, psk=OTHER.writer.psk)),
        replace(OWNER, writer=replace(keys, read_public=OTHER.writer.read_public)),
        replace(OWNER, writer=replace(keys, vault=OTHER.writer.vault)),
    ]
    for stranger in strangers:
        with pytest.raises(FormatError, match="another vault"):
            Opener(stranger).open(suite, mine.ephemeral_public, b"header", nonce, body)


def test_the_key_is_new_with_every_pack():
    other = Sealer(OWNER.writer, b"f" * 32, XCHACHA)
    assert other.ephemeral_public != sealer().ephemeral_public
    assert other.seal(b"", bytes(32), b"plain") != sealer().seal(b"", bytes(32), b"plain")


@pytest.mark.parametrize("suite", SUITES)
def test_equal_randomness_gives_other_nonces_for_other_content(suite):
    mine = sealer(suite)
    assert mine.nonce(RANDOM, b"table") == mine.nonce(RANDOM, b"table")
    assert len({mine.nonce(RANDOM, b"table"), mine.nonce(RANDOM, b"tablf"), mine.nonce(b"q" * 32, b"table")}) == 3
    assert Sealer(OWNER.writer, b"f" * 32, suite).nonce(RANDOM, b"table") != mine.nonce(RANDOM, b"table")


@pytest.mark.parametrize("suite", [0, 3, 255])
def test_unknown_suites(suite):
    with pytest.raises(FormatError):
        sealer(suite)


def test_the_opener_keeps_some_keys():
    opener = Opener(OWNER, keep=2)
    assert opener.writer == OWNER.writer
    for _ in range(2):
        for secret in (b"1" * 32, b"2" * 32, b"3" * 32):
            mine = Sealer(OWNER.writer, secret, AEGIS)
            body = mine.seal(b"header", bytes(32), secret)
            assert opener.open(AEGIS, mine.ephemeral_public, b"header", bytes(32), body) == secret
            assert opener.open(AEGIS, mine.ephemeral_public, b"header", bytes(32), body) == secret


def test_the_opener_forgets_the_key_that_was_not_used_for_longest():
    opener = Opener(OWNER, keep=2)
    packs = {name: Sealer(OWNER.writer, name * 32, AEGIS) for name in (b"1", b"2", b"3")}

    def use(name):
        body = packs[name].seal(b"header", bytes(32), name)
        assert opener.open(AEGIS, packs[name].ephemeral_public, b"header", bytes(32), body) == name

    for name in (b"1", b"2", b"1", b"3"):
        use(name)
    assert list(opener._cache) == [packs[b"1"].ephemeral_public, packs[b"3"].ephemeral_public]


# -- passphrases ------------------------------------------------------------------------------------------------


def test_passphrases():
    wrapped = wrap_secret(SEED, b"correct horse", QUICK, b"n" * 24)
    assert unwrap_secret(wrapped, b"correct horse", QUICK) == SEED
    assert SEED not in wrapped
    for phrase, stretch in (
        (b"correct horsf", QUICK),
        (b"", QUICK),
        (b"correct horse", replace(QUICK, salt=b"pepp" * 4)),
        (b"correct horse", replace(QUICK, passes=2)),
        (b"correct horse", replace(QUICK, memory=16384)),
        (b"correct horse", replace(QUICK, salt=b"short")),
        (b"correct horse", replace(QUICK, passes=0)),
        (b"correct horse", replace(QUICK, memory=1)),
        (b"correct horse", replace(QUICK, memory=2**60)),
        (b"correct horse", replace(QUICK, passes=-1)),
    ):
        with pytest.raises(WrongKey):
            unwrap_secret(wrapped, phrase, stretch)


def test_every_byte_of_a_wrapped_secret_counts():
    wrapped = wrap_secret(SEED, b"correct horse", QUICK, b"n" * 24)
    for place in range(len(wrapped)):
        wrong = bytearray(wrapped)
        wrong[place] ^= 1
        for each in (bytes(wrong), wrapped[:place]):
            with pytest.raises(WrongKey):
                unwrap_secret(each, b"correct horse", QUICK)
