"""Connections that say nothing: they are ended, and lock nobody out."""

import asyncio
import random
import ssl
from contextlib import asynccontextmanager
from datetime import UTC, datetime

import pytest

from contbak.core.invite import Address, Invite
from relay import daemon, door, identity, stores, web
from relay.config import Config
from relay.service import Service
from tests.relay.peer import Device, Peer


@asynccontextmanager
async def served(top):
    home = top / "home"
    home.mkdir()
    stores.create(top / "store")
    made = identity.create(home, datetime.now(UTC))
    service = Service(home, Config(stores=(str(top / "store"),), reserve_bytes=0), made)
    service.start()
    server = web.Server(service, 1.0)
    try:
        (place,) = await server.listen_tls("127.0.0.1", 0, identity.tls_context(made, home))
        port = int(place.rpartition(":")[2])
        token = service.registry.invite(b"", "", 1 << 60)
        yield server, Invite(Address(made.public, "127.0.0.1", port, made.fingerprint), token).line(), port
    finally:
        await server.close()
        service.close()


async def end_of(reader):
    async with asyncio.timeout(30):
        try:
            return await reader.read()
        except ConnectionError:
            return b""


def test_silent_connections_lock_nobody_out(tmp_path, monkeypatch):
    monkeypatch.setattr(door, "CONNECTIONS_MAX", 4)

    monkeypatch.setattr(door, "HANDSHAKE_S", 1000.0)  # so that it is not this that helps

    async def go():
        async with served(tmp_path) as (server, line, port):
            silent = [await asyncio.open_connection("127.0.0.1", port) for _ in range(12)]
            async with asyncio.timeout(30), Peer(Device(random.Random(1)), line) as peer:
                await peer.join()
                await peer.login()
                await peer.backup()
            for reader, _ in silent[:8]:  # the oldest made room
                assert await end_of(reader) == b""
            assert len(server._door._open) <= 4
            for _, writer in silent:
                writer.close()

    asyncio.run(go())


def test_a_busy_connection_is_kept_and_a_new_one_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(door, "CONNECTIONS_MAX", 1)

    async def go():
        async with served(tmp_path) as (server, line, port), Peer(Device(random.Random(1)), line) as peer:
            await peer.join()
            server._web.busy.update(server._door._open.values())
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            assert await end_of(reader) == b""
            writer.close()
            await peer.login()

    asyncio.run(go())


def test_a_handshake_that_does_not_come(tmp_path, monkeypatch):
    monkeypatch.setattr(door, "HANDSHAKE_S", 0.1)

    async def go():
        async with served(tmp_path) as (server, _, port):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            assert await end_of(reader) == b""
            writer.close()
            garbage, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"GET / HTTP/1.1\r\n\r\n")
            await end_of(garbage)
            writer.close()
            while server._door._open:
                await asyncio.sleep(0.01)

    asyncio.run(go())


@pytest.mark.parametrize("sent", [b"", b"POST /v1/join HTTP/1.1\r\nHost: "])
def test_a_request_that_does_not_come(tmp_path, monkeypatch, sent):
    monkeypatch.setattr(web, "_IDLE_S", 0.2)

    async def go():
        async with served(tmp_path) as (_, line, port):
            peer = Peer(Device(random.Random(1)), line)
            context = ssl.create_default_context()
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
            reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
            writer.write(sent)
            assert await end_of(reader) == b""
            writer.close()
            async with peer:
                await peer.join()

    asyncio.run(go())


def test_as_many_files_as_allowed(monkeypatch):
    limits = [(256, 4096)]
    monkeypatch.setattr(daemon.resource, "getrlimit", lambda _: limits[-1])
    monkeypatch.setattr(daemon.resource, "setrlimit", lambda _, pair: limits.append(pair))
    assert door.connections_max() == 128
    daemon.raise_nofile()
    assert limits[-1] == (4096, 4096) and door.connections_max() == 1000


def test_what_stopped_arriving_is_swept_again_and_again(monkeypatch):
    monkeypatch.setattr(daemon, "SWEEP_S", 0)

    class Swept:
        def __init__(self):
            self.left, self.done = 3, asyncio.Event()
            self.loop = asyncio.get_running_loop()

        def sweep(self):
            self.left -= 1
            if not self.left:
                self.loop.call_soon_threadsafe(self.done.set)

    async def go():
        swept = Swept()
        task = asyncio.create_task(daemon._sweep(swept))
        await asyncio.wait_for(swept.done.wait(), 30)
        task.cancel()

    asyncio.run(go())
