"""The relay as a process: how it starts, ends, finds its stores, and what its commands say."""

import asyncio
import json
import random
import shutil
import signal
import socket
import ssl
import subprocess
import sys

import aiohttp
import pytest

from contbak.core import invite
from tests.relay.peer import Device, Peer, Relay, flip


@pytest.fixture
def device(seed):
    return Device(random.Random(seed))


def test_tls_is_1_3_and_pinned(tmp_path, device):
    relay = Relay(tmp_path, tls=True).start()
    try:
        context = ssl.create_default_context()
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        with socket.create_connection(("127.0.0.1", relay.port)) as raw, context.wrap_socket(raw) as tls:
            assert tls.version() == "TLSv1.3"
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        with socket.create_connection(("127.0.0.1", relay.port)) as raw, pytest.raises(ssl.SSLError):
            context.wrap_socket(raw)
        line = relay.invite("--host", "127.0.0.1")
        known = invite.parse(line)
        wrong = line.replace(known.address.cert.hex(), "0" * 64)

        async def go():
            async with Peer(device, wrong) as peer:
                with pytest.raises(aiohttp.ServerFingerprintMismatch):
                    await peer.join()
            async with Peer(device, line) as peer:
                await peer.join()

        asyncio.run(go())
    finally:
        assert relay.stop() == 0


def test_it_ends_with_its_standard_input(tmp_path):
    relay = Relay(tmp_path).start("--exit-with-stdin")
    relay.process.stdin.close()
    assert relay.process.wait(20) == 0
    relay.process.stderr.close()


def test_it_dies_with_a_killed_parent(tmp_path):
    """The parent holds the other side of its standard input; nobody tells it anything."""
    relay = Relay(tmp_path)
    parent = subprocess.Popen(
        [
            sys.executable, "-c",
            "import subprocess, sys, time\n"
            "words = [sys.executable, '-m', 'relay', '-v', 'run', '--exit-with-stdin']\n"
            "subprocess.Popen(words, stdin=subprocess.PIPE)\n"
            "time.sleep(600)",
        ],
        env=relay.environment(), stderr=subprocess.PIPE,
    )  # fmt: skip
    assert b"ready" in parent.stderr.readline()
    parent.kill()
    parent.wait()
    parent.stderr.read()  # ends when the relay has ended too
    parent.stderr.close()
    assert '"running": null' in relay.cli("status", "--json")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_ends_in_order(tmp_path, number):
    relay = Relay(tmp_path).start()
    channel = socket.socket(socket.AF_UNIX)
    channel.connect(str(relay.socket))  # idle, and no reason to wait
    relay.process.send_signal(number)
    assert relay._reap() == 0
    channel.close()


def test_it_tells_systemd(tmp_path, monkeypatch):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(tmp_path / "notify"))
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        relay = Relay(tmp_path / "r").start()
        assert listener.recv(4096).startswith(b"READY=1")
        assert relay.stop() == 0
        assert listener.recv(4096) == b"STOPPING=1"


def test_stores_that_come_and_go(tmp_path, device):
    relay = Relay(tmp_path, stores=2).start()
    line = relay.invite()
    first, second = relay.stores

    async def begin():
        async with Peer(device, line) as peer:
            await peer.join()
            await peer.login()
            await peer.backup()

    asyncio.run(begin())
    assert relay.stop() == 0
    holder = next(s for s in relay.stores if list(s.rglob("packs/*/*")))
    other = second if holder == first else first
    aside = tmp_path / "aside"
    holder.rename(aside)
    holder.mkdir()  # as an empty mount point

    async def without():
        async with Peer(device, line) as peer:
            await peer.login()
            assert await peer.packs() == ()
            await peer.upload(device.data(3))

    relay.start()
    asyncio.run(without())
    status = json.loads(relay.cli("status", "--json"))
    assert {s["path"]: bool(s["problem"]) for s in status["stores"]} == {str(holder): True, str(other): False}
    assert status["damage"] == {"found": 0, "healed": 0, "open": 0}
    assert relay.stop() == 0
    assert not list(holder.iterdir())
    holder.rmdir()
    aside.rename(holder)

    async def again():
        async with Peer(device, line) as peer:
            await peer.login()
            assert len(await peer.packs()) == 3
            assert len(await peer.listed()) == 1

    relay.start()
    asyncio.run(again())
    assert relay.stop() == 0
    assert '"damage": []' in relay.cli("verify", "--json")


def test_a_full_store_and_one_more(tmp_path, device):
    relay = Relay(tmp_path)
    path = relay.home / "config.toml"
    free = shutil.disk_usage(tmp_path).total * 2
    path.write_text(path.read_text().replace("reserve_bytes = 268435456", f"reserve_bytes = {free}"))
    relay.start()

    async def go():
        async with Peer(device, relay.invite()) as peer:
            await peer.join()
            await peer.login()
            packed = device.data(3)
            await peer.refused("PUT", f"/v1/packs/{packed.root}/plan", 507, "full", packed.plan.raw)
            path.write_text(path.read_text().replace(f"reserve_bytes = {free}", "reserve_bytes = 0"))
            await peer.refused("POST", "/v1/commits", 507, "full", device.record(None).raw)

    asyncio.run(go())
    assert relay.stop() == 0


def test_a_store_is_added_while_it_runs(tmp_path, device):
    relay = Relay(tmp_path).start()
    relay.cli("store", "add", str(tmp_path / "more"))
    relay.cli("store", "add", str(tmp_path / "more"))
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "thesis.txt").touch()
    assert "not empty" in relay.cli("store", "add", str(tmp_path / "used"), code=13)
    assert len(json.loads(relay.cli("status", "--json"))["stores"]) == 2
    (relay.stores[0] / "contbak-store").unlink()  # the first one is unmounted

    async def go():
        async with Peer(device, relay.invite()) as peer:
            await peer.join()
            await peer.login()
            await peer.upload(device.data(3))

    asyncio.run(go())
    assert relay.stop() == 0
    assert list((tmp_path / "more").rglob("packs/*/*"))


def test_keys_heal(tmp_path):
    relay = Relay(tmp_path)
    whole = (relay.home / "identity").read_bytes()
    before = invite.parse(relay.cli("invite")).address
    for name in ("identity", "identity.copy"):
        flip(relay.home / name)
        assert invite.parse(relay.cli("invite")).address == before
        assert (relay.home / name).read_bytes() == whole
    (relay.home / "identity").unlink()
    assert invite.parse(relay.cli("invite")).address == before
    for name in ("identity", "identity.copy"):
        flip(relay.home / name)
    assert "both files" in relay.cli("invite", code=1)


def test_commands_that_go_wrong(tmp_path):
    relay = Relay(tmp_path / "r")
    path = relay.home / "config.toml"
    good = path.read_text()
    for word, text, named in (
        ("run", "colour = 1\n", "colour"),
        ("status", "listen = 5\n", "listen"),
        ("invite", 'stores = ["x"]\n', "stores"),
        ("devices", "=", "config.toml"),
    ):
        path.write_text(text)
        said = relay.cli(word, code=2)
        assert named in said and said.count("\n") == 1, said
    path.write_text(good)
    assert "already" in relay.cli("init", code=13)
    assert "exclude" in relay.cli("invite", "--vault", "a", "--new-vault", "b", code=2)
    assert "no vaults match" in relay.cli("invite", "--vault", "nobody", code=2)
    assert "no devices match" in relay.cli("device", "disable", "nobody", code=2)
    relay.cli("nonsense", code=2)
    path.unlink()
    assert "init" in relay.cli("run", code=10)
    environment = {**relay.environment(), "CONTBAK_RELAY_HOME": "relative"}
    done = subprocess.run([sys.executable, "-m", "relay", "status"], env=environment, capture_output=True)
    assert done.returncode == 2 and b"absolute" in done.stderr


def test_an_address_in_use(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        relay = Relay(tmp_path, tls=True)
        path = relay.home / "config.toml"
        path.write_text(path.read_text().replace("127.0.0.1:0", f"127.0.0.1:{taken.getsockname()[1]}"))
        assert "listen" in relay.cli("run", code=2)


def test_nothing_but_the_line_is_printed(tmp_path):
    relay = Relay(tmp_path)
    out = relay.cli("invite", "--new-vault", "home")
    assert out.count("\n") == 1 and invite.parse(out).address.socket == str(relay.socket)
    assert all(b"token" not in raw for raw in relay.files().values())
    token = invite.parse(out).token
    assert all(token not in raw and token.hex().encode() not in raw for raw in relay.files().values())
