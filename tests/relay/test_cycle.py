"""A relay as a process, spoken to from outside: the whole of docs/protocol.md."""

import asyncio
import random

import pytest

from contbak.core import codec, frame, messages
from tests.relay.peer import Device, Peer, Relay


@pytest.fixture(params=["socket", "tls"])
def relay(request, tmp_path):
    relay = Relay(tmp_path, tls=request.param == "tls").start()
    yield relay
    assert relay.stop() == 0


@pytest.fixture
def device(seed):
    return Device(random.Random(seed))


async def joined(device, relay):
    peer = await Peer(device, relay.invite()).__aenter__()
    await peer.join()
    await peer.login()
    return peer


def test_a_whole_cycle(relay, device):
    async def go():
        async with Peer(device, relay.invite()) as peer:
            await peer.join()
            assert await peer.join()
            session = await peer.login()
            assert (session.head, session.heads, session.packs, session.foreign) == (None, (), 0, 0)
            data, tree, signed = await peer.backup(chunks=250)
            assert await peer.have([*data.ids, b"\0" * 32, tree.ids[0]]) == [True] * 250 + [False, True]
            places = await peer.locate([data.ids[120], b"\0" * 32])
            assert places[1] == () and places[0][0].pack == data.plan.root and places[0][0].ordinal == 20
            place = places[0][0]
            span = {"Range": f"bytes={place.offset}-{place.offset + place.length - 1}"}
            _, raw = await peer.call("GET", f"/v1/packs/{data.root}", headers=span, expect=206)
            assert frame.parse_header(raw).ids[20] == data.ids[120]
            _, whole = await peer.call("GET", f"/v1/packs/{data.root}", expect=200)
            assert whole == data.body + data.plan.raw
            listed = await peer.listed()
            assert [(c.position, c.level, c.record) for c in listed] == [(1, 1, signed.raw)]
            assert await peer.listed(1) == ()
            infos = await peer.packs()
            assert {i.pack for i in infos} == {data.plan.root, tree.plan.root}
            assert {i.pack: i.metadata for i in infos} == {data.plan.root: False, tree.plan.root: True}
            _, raw = await peer.call("GET", "/v1/vault", expect=200)
            info = codec.decode(raw, messages.VaultInfo, "vault")
            assert (info.vault, info.name, info.packs) == (device.vault, "home", 2)
            assert info.size == data.plan.file_len + tree.plan.file_len
            assert [(d.device, d.enabled) for d in info.devices] == [(device.id, True)]
            assert (await peer.login()).head.commit == signed.id
            _, raw = await peer.call("GET", f"/v1/receipts/{signed.id.hex()}", expect=200)
            assert messages.open_receipt(raw, peer.invite.address.relay, signed.id).position == 1
        assert '"damage": []' in relay.cli("verify", "--json")

    asyncio.run(go())
