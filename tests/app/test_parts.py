"""The small parts of the app: places, settings, keys, names, the control socket, lost chunks."""

import asyncio
import base64
import json
import os
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contbak.app import config, keyfile
from contbak.app.client import Daemon, DaemonError
from contbak.app.config import RelayFile, Settings, Source
from contbak.app.control import Control, Verbs
from contbak.app.home import Home, find_home, locked
from contbak.app.lost import paths_of
from contbak.app.names import shown, text_of
from contbak.core.crypto import NONCE_LEN, SALT_LEN, XCHACHA, OwnerKeys, Stretch, wrap_secret
from contbak.core.errors import (
    ConfigError,
    FormatError,
    NotFound,
    NotInitialised,
    Refused,
    Unreachable,
    UsageError,
    WrongKey,
)
from contbak.upload.chain import SourceState

PATHS = st.binary(min_size=1, max_size=60).filter(lambda path: b"\0" not in path).map(lambda path: b"/" + path)
ROOT = bytes(range(32))
SEED = bytes(range(32, 64))


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("CONTBAK_HOME", str(tmp_path / "home"))
    found = find_home()
    found.make()
    return found


# -- home --------------------------------------------------------------------------------------------------------


def test_everything_is_under_the_home_and_closed(home, tmp_path):
    for place in (home.config, home.data, home.state, home.run, home.spool, home.embedded_relay, home.socket):
        assert tmp_path / "home" in place.parents
    for place in (home.config, home.data, home.state, home.run, home.keys):
        assert place.stat().st_mode & 0o077 == 0


def test_without_a_home_the_xdg_places(tmp_path, monkeypatch):
    monkeypatch.delenv("CONTBAK_HOME", raising=False)
    for name in ("CONFIG", "DATA", "STATE"):
        monkeypatch.setenv(f"XDG_{name}_HOME", str(tmp_path / name))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "run"))
    found = find_home()
    assert found == Home(*(tmp_path / name / "contbak" for name in ("CONFIG", "DATA", "STATE", "run")))


def test_a_long_home_still_has_sockets(tmp_path):
    home = Home(*(tmp_path / ("x" * 90) / part for part in ("config", "data", "state", "run")))
    assert len(os.fsencode(home.socket)) <= 100 and len(os.fsencode(home.relay_socket)) <= 100
    assert home.socket != home.relay_socket and home.socket.parent == home.relay_socket.parent
    place = home.socket.parent
    assert place.stat().st_mode & 0o777 == 0o700
    try:
        place.chmod(0o755)
        with pytest.raises(Refused):
            _ = home.socket
    finally:
        place.rmdir()


def test_one_process_at_a_time(home):
    with locked(home):
        with pytest.raises(Refused), locked(home, 0.0):
            pass
        waits = threading.Thread(target=lambda: locked(home, 30.0).__enter__())
        waits.start()
    waits.join(30)
    assert not waits.is_alive(), "who waits gets the lock when it is free"


# -- config ------------------------------------------------------------------------------------------------------


@given(PATHS)
def test_paths_of_any_bytes_go_through_a_file(path):
    source = Source("00" * 8, "name", config._escape(path))
    raw = config.msgspec.toml.encode(source)
    assert config.msgspec.toml.decode(raw, type=Source).top == path


def test_sources_go_through_files(home, tmp_path):
    odd = os.fsencode(tmp_path) + b"/odd \xff\\x41 \xc3\xa9"
    os.mkdir(odd)
    made = config.new_source(home, os.fsdecode(odd), None, ["*.o", "!keep.o"], "high")
    config.save_source(home, made)
    other = config.new_source(home, str(tmp_path), "low", [], "low")
    config.save_source(home, other)
    assert [source.top for source in config.load_sources(home)] == [odd, os.fsencode(tmp_path)]
    with pytest.raises(UsageError, match="already"):
        config.new_source(home, os.fsdecode(odd), "again", [], "normal")
    with pytest.raises(UsageError, match="already"):
        config.new_source(home, str(home.data), "low", [], "low")
    config.remove_source(home, made.name)
    with pytest.raises(UsageError):
        config.remove_source(home, made.name)
    assert config.load_sources(home) == [other]


def test_names_of_sources_are_free_and_fit_a_file(home, tmp_path):
    taken = []
    for number, name in enumerate(("photos", "photos", "...", "-", "ünï", "a b/..", "\n")):
        folder = tmp_path / str(number) / name
        folder.mkdir(parents=True, exist_ok=True)
        made = config.new_source(home, str(folder), None, [], "normal")
        config.save_source(home, made)
        taken.append(made.name)
    assert len(set(taken)) == len(taken) and taken[:2] == ["photos", "photos-2"]
    assert len(config.load_sources(home)) == len(taken)


@pytest.mark.parametrize(
    "text", ["unheard = 1", "settle_s = 'x'", "workers = 1.5", "settle_s = -1", "nice = 20", "[", "\xff"]
)
def test_bad_settings_are_named(home, text):
    home.settings_file.write_bytes(text.encode("latin-1"))
    with pytest.raises(ConfigError) as raised:
        config.load_settings(home)
    key = text.partition(" ")[0]
    assert "contbak.toml" in str(raised.value) or key in str(raised.value)


def test_the_environment_beats_the_file(home, monkeypatch):
    home.settings_file.write_text("settle_s = 5\nnice = 3\nname = 'file'\n")
    monkeypatch.setenv("CONTBAK_SETTLE_S", "0.5")
    monkeypatch.setenv("CONTBAK_NAME", "7")
    assert config.load_settings(home) == Settings(settle_s=0.5, nice=3, name="7")
    for bad in ("soon", "", "nan", "inf", "-1", "1e99"):
        monkeypatch.setenv("CONTBAK_SETTLE_S", bad)
        with pytest.raises(ConfigError, match=r"(?i)settle_s"):
            config.load_settings(home)


def test_relay_files(home):
    assert config.load_relay(home) is None
    relay = RelayFile(relay="ab" * 32, host="nas", port=7443, cert="cd" * 32)
    config.save_relay(home, relay)
    assert config.load_relay(home) == relay
    assert str(relay.address(home)) == "contbak://nas:7443"
    assert RelayFile(relay="ab" * 32, embedded=True).address(home).socket == str(home.relay_socket)
    with pytest.raises(ConfigError, match=r"relay\.toml"):
        RelayFile(relay="xy").address(home)


# -- keys --------------------------------------------------------------------------------------------------------


def record(kind=keyfile.CLEAR, root=ROOT, stretch=None):
    writer = OwnerKeys.from_root(ROOT).writer
    stretch = stretch or Stretch(bytes(SALT_LEN))
    return keyfile.KeyRecord(
        1, writer.vault, writer.read_public, writer.admin_public, writer.psk, writer.chunk_id_key, writer.chunker_key,
        SEED, "device", b"", kind, root, stretch.salt, stretch.passes, stretch.memory,
    )  # fmt: skip


def test_every_flipped_bit_of_a_key_file_is_healed(tmp_path):
    keyfile.save(tmp_path, record())
    good = (tmp_path / "vault").read_bytes()
    for at in range(0, len(good), 7):
        raw = bytearray(good)
        raw[at] ^= 1 << (at % 8)
        name = keyfile.FILES[at % 2]
        (tmp_path / name).write_bytes(raw)
        assert keyfile.load(tmp_path).owner() == OwnerKeys.from_root(ROOT)
        assert (tmp_path / name).read_bytes() == good
    for name in keyfile.FILES:
        assert (tmp_path / name).stat().st_mode & 0o777 == 0o600
        (tmp_path / name).write_bytes(good[:-1])
    with pytest.raises(FormatError, match="recover"):
        keyfile.load(tmp_path)


def test_no_keys(tmp_path):
    with pytest.raises(NotInitialised):
        keyfile.load(tmp_path)


def test_what_the_root_needs(tmp_path):
    keyfile.save(tmp_path, record(keyfile.NONE, b""))
    keys = keyfile.load(tmp_path)
    assert keys.write_only and ROOT not in (tmp_path / "vault").read_bytes()
    with pytest.raises(Refused):
        keys.root()
    stretch = Stretch(os.urandom(SALT_LEN), 1, 8 << 20)
    wrapped = wrap_secret(ROOT, b"open sesame", stretch, os.urandom(NONCE_LEN[XCHACHA]))
    keyfile.save(tmp_path, record(keyfile.PASSPHRASE, wrapped, stretch))
    keys = keyfile.load(tmp_path)
    assert keys.needs_passphrase and keys.root(b"open sesame") == ROOT
    for wrong in (None, b"", b"open"):
        with pytest.raises(WrongKey):
            keys.root(wrong)
    assert keyfile.opens(ROOT, keys) and not keyfile.opens(SEED, keys)
    with pytest.raises(WrongKey):
        keyfile.Keys(record(keyfile.CLEAR, SEED)).owner()


# -- names -------------------------------------------------------------------------------------------------------


@given(st.binary(max_size=40))
def test_no_name_moves_the_cursor(path):
    text = text_of(path)
    assert not any(ord(c) < 32 or 127 <= ord(c) < 160 for c in text)
    text.encode()


@given(st.binary(max_size=40))
def test_json_holds_every_name(path):
    found = json.loads(json.dumps(shown(path)))
    assert path == (base64.b64decode(found["path_b64"]) if "path_b64" in found else found["path"].encode())


# -- the control socket ------------------------------------------------------------------------------------------


class Asked:
    """What a daemon was asked; answers like one."""

    def __init__(self, error=None):
        self.words, self.error = [], error

    async def status(self):
        return {"daemon": {"running": True}}

    async def backup(self, paths, wait):
        self.words.append((paths, wait))
        yield {"message_type": "status"}
        if self.error:
            raise self.error
        yield {"message_type": "summary", "failed": 0}

    async def reload(self):
        self.words.append("reload")
        if self.error:
            raise self.error

    def stop(self):
        self.words.append("stop")


def serve(tmp_path, asked, use):
    """What `use(client)` returns while a control socket answers."""
    path = tmp_path / "agent.sock"

    async def main():
        control = Control(path, Verbs(asked.status, asked.backup, asked.reload, asked.stop))
        await control.start()
        assert path.stat().st_mode & 0o777 == 0o600
        try:
            return await asyncio.to_thread(use, Daemon(path))
        finally:
            await control.stop()

    return asyncio.run(main())


def test_the_control_socket(tmp_path):
    (tmp_path / "agent.sock").write_text("left by a dead daemon")
    asked = Asked()

    def use(client):
        assert client.running() and client.status() == {"daemon": {"running": True}}
        client.reload()
        return list(client.backup(["/a\udcff"], "local"))

    assert [one["message_type"] for one in serve(tmp_path, asked, use)] == ["status", "summary"]
    assert asked.words == ["reload", (["/a\udcff"], "local")]
    assert not (tmp_path / "agent.sock").exists()
    assert not Daemon(tmp_path / "agent.sock").running()


def test_errors_keep_their_exit_code(tmp_path):
    def use(client):
        with pytest.raises(DaemonError) as raised:
            list(client.backup([], "relay"))
        assert raised.value.exit_code == 11 and "gone" in str(raised.value)
        with pytest.raises(DaemonError) as raised:
            client.reload()
        assert raised.value.exit_code == 11

    serve(tmp_path, Asked(Unreachable("it is gone")), use)


# -- lost chunks -------------------------------------------------------------------------------------------------


def test_a_state_without_its_nodes_means_everything():
    def node(id_):
        raise NotFound("no node")

    assert paths_of(SourceState(base=bytes(32)), node, [bytes(32)]) == [b""]
