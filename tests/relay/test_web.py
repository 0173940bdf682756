"""Bodies that trickle, and failures inside: the endpoints in this process, where their patience can be shortened."""

import asyncio
import json
import logging
import random
import socket
from contextlib import asynccontextmanager
from datetime import UTC, datetime

import pytest

from contbak.core.invite import Address, Invite
from relay import body, identity, stores, web
from relay.config import Config
from relay.service import Service
from tests.relay.peer import Device, Peer


@asynccontextmanager
async def served(top):
    home = top / "home"
    home.mkdir()
    stores.create(top / "store")
    config = Config(stores=(str(top / "store"),), reserve_bytes=0)
    service = Service(home, config, identity.create(home, datetime.now(UTC)))
    service.start()
    server = web.Server(service, 1.0)
    bound = socket.socket(socket.AF_UNIX)
    bound.bind(str(top / "s"))
    await server.listen_unix(bound)
    try:
        token = service.registry.invite(b"", "", 1 << 60)
        line = Invite(Address(service.identity.public, socket=str(top / "s")), token).line()
        yield service, line, top / "s"
    finally:
        await server.close()
        service.close()


async def answer(path, *parts, pause=0.0):
    """What the relay says to raw bytes sent with pauses, until it closes."""
    reader, writer = await asyncio.open_unix_connection(str(path))
    for part in parts:
        writer.write(part)
        await writer.drain()
        await asyncio.sleep(pause)
    raw = await reader.read()
    writer.close()
    return raw


def test_a_body_that_stops(tmp_path, monkeypatch):
    monkeypatch.setattr(body, "SILENCE_S", 0.1)

    async def go():
        async with served(tmp_path) as (_, _, path):
            raw = await answer(path, b"POST /v1/join HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nabc")
            assert raw.startswith(b"HTTP/1.1 503") and b"too slowly" in raw and b"problem+json" in raw

    asyncio.run(go())


def test_a_body_that_trickles(tmp_path, monkeypatch):
    monkeypatch.setattr(body, "SILENCE_S", 0.2)
    monkeypatch.setattr(body, "SLOWEST", 1 << 20)

    async def go():
        async with served(tmp_path) as (_, _, path):
            head = b"POST /v1/join HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n"
            raw = await answer(path, head, *[b"x"] * 20, pause=0.05)
            assert raw.startswith(b"HTTP/1.1 503")

    asyncio.run(go())


def test_a_body_without_end(tmp_path):
    async def go():
        async with served(tmp_path) as (_, _, path):
            head = b"POST /v1/challenge HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
            raw = await answer(path, head, b"40\r\n" + b"x" * 64 + b"\r\n")
            assert raw.startswith(b"HTTP/1.1 413")

    asyncio.run(go())


def test_a_failure_inside_is_told_without_its_trace(tmp_path, caplog, monkeypatch):
    async def go():
        async with served(tmp_path) as (service, line, _), Peer(Device(random.Random(1)), line) as peer:
            await peer.join()
            await peer.login()

            def broken(vault):
                raise RuntimeError("secret detail")

            monkeypatch.setattr(service, "vault_info", broken)
            problem = await peer.refused("GET", "/v1/vault", 500, "internal")
            assert "secret" not in json.dumps(problem)

    with caplog.at_level(logging.ERROR):
        asyncio.run(go())
    assert "secret detail" in caplog.text


def test_an_index_that_is_damaged_while_it_runs(tmp_path, caplog):
    """lmdb maps its file, so a changed byte is seen at once."""

    async def go():
        async with served(tmp_path) as (_, line, _), Peer(Device(random.Random(1)), line) as peer:
            await peer.join()
            await peer.login()
            data, tree, signed = await peer.backup(chunks=60)
            file = tmp_path / "home" / "index" / peer.device.vault.hex() / "data.mdb"
            raw = bytearray(file.read_bytes())
            for id_ in data.ids:  # a byte of each row's value, wherever its copies are
                at = raw.find(id_)
                while at >= 0:
                    raw[at + 36] ^= 0xFF
                    at = raw.find(id_, at + 1)
            with open(file, "r+b") as open_file:
                open_file.write(raw)
            answers = await asyncio.gather(*(peer.have(data.ids) for _ in range(3)), return_exceptions=True)
            assert any(isinstance(have, list) and all(have) for have in answers)
            assert all(await peer.have([*data.ids, *tree.ids]))
            assert [c.record for c in await peer.listed()] == [signed.raw]
            await peer.backup()

    asyncio.run(go())
    assert caplog.text.count("is damaged and is made again") == 1


@pytest.mark.parametrize("when", ["add_pack", "add_commit"])
def test_an_index_row_that_could_not_be_written(tmp_path, monkeypatch, when):
    """The file is there and its row is not; the same request again makes both agree."""

    async def go():
        async with served(tmp_path) as (service, line, _), Peer(Device(random.Random(1)), line) as peer:
            await peer.join()
            await peer.login()
            index = service._opened(peer.device.vault).index
            real, failures = getattr(index, when), []

            def failing(*arguments):
                if not failures:
                    failures.append(arguments)
                    raise RuntimeError("power cut")
                real(*arguments)

            monkeypatch.setattr(index, when, failing)
            device = peer.device
            data = device.data(3)
            await peer.plan(data)
            await peer.segments(data, 0, len(data.plan.hashes))
            path = f"/v1/packs/{data.root}/seal"
            if when == "add_pack":
                await peer.refused("POST", path, 500, "internal")
                assert not any(await peer.have(data.ids))
                await peer.upload(data)
            else:
                await peer.call("POST", path, expect=204)
                signed = device.record(None)
                await peer.refused("POST", "/v1/commits", 500, "internal", signed.raw)
                assert await peer.listed() == ()
                await peer.commit(signed)
                await peer.commit(device.record(None))
                assert len(await peer.listed()) == 2
            assert failures and all(await peer.have(data.ids))

    asyncio.run(go())
