"""Invites: the line and back, and one sentence for anything else."""

from __future__ import annotations

import hashlib
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contbak.core.errors import UsageError
from contbak.core.invite import PORT, Address, Invite, parse

RELAY, CERT, TOKEN, VAULT = b"r" * 32, b"c" * 32, b"t" * 32, b"v" * 16
LINE = f"contbak://relay.example:7443/{TOKEN.hex()}?relay={RELAY.hex()}&cert={CERT.hex()}"
SOCKET = f"contbak+unix:///run/contbak/relay.sock?relay={RELAY.hex()}&token={TOKEN.hex()}"
KEYS = st.binary(min_size=32, max_size=32)
VAULTS = st.just(b"") | st.binary(min_size=16, max_size=16)
HOSTS = st.one_of(
    st.from_regex(r"[a-z0-9]([a-z0-9-]{0,20}[a-z0-9])?(\.[a-z0-9]{1,9}){0,3}", fullmatch=True),
    st.ip_addresses(v=4).map(str),
    st.ip_addresses(v=6).map(str),
)


@given(HOSTS, st.integers(1, 65535), KEYS, KEYS, KEYS, VAULTS)
def test_round_trip(host, port, relay, cert, token, vault):
    invite = Invite(Address(relay, host, port, cert), token, vault)
    assert parse(invite.line()) == invite
    assert parse(f"  {invite.line()}\n") == invite


@given(st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=60), KEYS, KEYS, VAULTS)
def test_sockets(path, relay, token, vault):
    invite = Invite(Address(relay, socket="/" + path), token, vault)
    assert parse(invite.line()) == invite


def test_a_socket_whose_path_is_no_text():
    invite = Invite(Address(RELAY, socket="/run/caf\udce9/relay.sock"), TOKEN)
    assert parse(invite.line()) == invite


def test_the_lines():
    assert Invite(Address(RELAY, "relay.example", PORT, CERT), TOKEN).line() == LINE
    assert Invite(Address(RELAY, socket="/run/contbak/relay.sock"), TOKEN).line() == SOCKET
    assert Invite(Address(RELAY, "relay.example", PORT, CERT), TOKEN, VAULT).line() == f"{LINE}&vault={VAULT.hex()}"
    assert parse(LINE.replace(":7443", "")) == parse(LINE)
    assert parse(LINE.replace("relay.example", "RELAY.example")) == parse(LINE)


def test_what_a_user_sees():
    assert str(parse(LINE).address) == "contbak://relay.example:7443"
    assert str(Address(RELAY, "fe80::1%eth0", 1, CERT)) == "contbak://[fe80::1%eth0]:1"
    assert str(Address(RELAY, socket="/run/a b")) == "contbak+unix:///run/a%20b"
    assert parse(Invite(Address(RELAY, "fe80::1%eth0", 1, CERT), TOKEN).line()).address.host == "fe80::1%eth0"


@pytest.mark.parametrize(
    "line",
    [
        "",
        "hello",
        "contbak://",
        "https" + LINE.removeprefix("contbak"),
        LINE.replace("relay.example", ""),
        LINE.replace(":7443", ":port"),
        LINE.replace(":7443", ":65536"),
        LINE.replace(":7443", ":0"),
        LINE.replace(":7443", ":-1"),
        LINE.replace("relay.example", "[fe80::1"),
        LINE.replace("relay.example", "\uff0f\u2100"),
        LINE.replace(TOKEN.hex(), ""),
        LINE.replace(TOKEN.hex(), TOKEN.hex()[2:]),
        LINE.replace(TOKEN.hex(), TOKEN.hex() + "/"),
        LINE.replace(RELAY.hex(), RELAY.hex()[:-1]),
        LINE.replace(RELAY.hex(), "z" * 64),
        LINE.replace(CERT.hex(), CERT.hex().upper() + "00"),
        LINE.replace("relay=", "relai="),
        LINE.replace("cert=", "cart="),
        LINE + "&vault=00",
        LINE + "&vault",
        LINE[: LINE.index("?")],
        SOCKET.replace("/run/contbak/relay.sock", ""),
        SOCKET.replace("///", "//"),
        SOCKET.replace("token=", "tokin="),
    ],
)
def test_other_lines(line):
    with pytest.raises(UsageError, match="contbak-relay invite"):
        parse(line)


@given(st.text(max_size=80))
def test_any_text(text):
    for line in (text, "contbak://" + text, LINE + text, LINE[:60] + text, "contbak+unix:///" + text):
        with suppress(UsageError):
            assert isinstance(parse(line), Invite)


def test_every_truncation():
    for length in range(len(LINE)):
        with pytest.raises(UsageError):
            parse(LINE[:length])


def test_an_address_pins_one_certificate():
    address = Address(RELAY, "relay.example", cert=hashlib.sha256(b"der").digest())
    assert address.pins(b"der")
    assert not address.pins(b"des") and not address.pins(b"") and not address.pins(None)
    assert not Address(RELAY, "relay.example").pins(b"")
