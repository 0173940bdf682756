"""The uplink against a real relay process: over the socket and over TLS, through kills, refusals and damage."""

import asyncio
import random
import socket

import pytest

from contbak.core import codec, commit, frame, invite, messages
from contbak.core.crypto import XCHACHA, vouch
from contbak.core.errors import NotFound, Unreachable, WrongKey
from contbak.core.frame import Chunk
from contbak.core.transfer import HeadMismatch, MissingChunks, RejectedByPeer
from contbak.recall.remote import join
from contbak.upload.bundle import Bundler, Seal
from contbak.upload.spool import Spool
from contbak.upload.uplink import Credentials, Uplink
from tests.relay.peer import Device, Relay, flip


class Agent:
    """A device with a spool: makes packs with the bundler and commits with core."""

    def __init__(self, top, seed):
        self.device = Device(random.Random(seed))
        self.keys = self.device.keys
        self.spool = Spool(top / "spool", 1 << 30)
        self.seal = Seal(self.keys, self.device.id, XCHACHA)
        self.random = self.device.random.randbytes

    def data(self, count=20, size=30_000):
        bundler = Bundler(self.seal, self.spool, self.random, metadata=False)
        chunks = [self.random(size) for _ in range(count)]
        packs = [p for data in chunks for p in bundler.add(Chunk(self.keys.data_id(data), data))]
        (packed,) = [*packs, *bundler.flush()]
        return packed

    def node(self, refs, record=b""):
        bundler = Bundler(self.seal, self.spool, self.random, metadata=True)
        refs, payload = tuple(sorted(refs)), self.random(50)
        bundler.add(Chunk(self.keys.node_id(refs, payload), payload, refs), frame.NODE)
        if record:
            bundler.add_commit(record)
        (packed,) = bundler.flush()
        return packed

    def backup(self, **sizes):
        data = self.data(**sizes)
        node = self.node(data.ids)
        return self.device.record(node.ids[0]), [data.root, node.root]

    def join_record(self, line):
        device = self.device
        word = vouch(device.owner.admin_seed, device.vault, device.id)
        token = invite.parse(line).token
        keys = device.keys
        return messages.Join(1, token, keys.read_public, keys.admin_public, device.id, "laptop", "home", word)

    def uplink(self, address):
        return Uplink(address, Credentials(self.device.vault, self.device.seed), self.spool)


@pytest.fixture(params=["socket", "tls"])
def relay(request, tmp_path):
    relay = Relay(tmp_path, tls=request.param == "tls").start()
    yield relay
    assert relay.stop() == 0


@pytest.fixture
def socket_relay(tmp_path):
    relay = Relay(tmp_path).start()
    yield relay
    relay.stop()


@pytest.fixture
def agent(tmp_path, seed):
    return Agent(tmp_path, seed)


async def joined(agent, relay):
    line = relay.invite()
    address = invite.parse(line).address
    join(invite.parse(line), agent.join_record(line))
    uplink = agent.uplink(address)
    await uplink.start()
    return uplink


def test_packs_and_a_commit_arrive(relay, agent):
    async def go():
        uplink = await joined(agent, relay)
        session = await uplink.connected()
        assert session is uplink.session and session.head is None
        signed, needs = agent.backup(count=100)
        uplink.offer(needs[0])
        uplink.offer(needs[0])
        await uplink.sealed(needs[0])
        await uplink.sealed(b"?" * 32)  # never offered
        raw = await uplink.commit(signed, needs)
        assert codec.decode(raw[:-64], messages.Receipt, "receipt").level == messages.RELAY
        assert await uplink.commit(signed, needs) == raw, "the same commit, the same receipt"
        assert await uplink.receipt(signed.id) is not None and await uplink.receipt(b"?" * 32) is None
        ids = [*agent.data(count=3).ids, signed.commit.base]
        assert await uplink.have(ids) == [False, False, False, True] and await uplink.have([]) == []
        status = uplink.status()
        assert status.reachable and status.error == "" and status.lag_bytes == 0
        assert 3_000_000 < status.bytes_sent < 3_400_000, "nothing is sent twice"
        assert set(agent.spool.packs()) >= set(needs), "the uplink removes nothing"
        await uplink.close()

    asyncio.run(go())


def test_a_relay_that_is_away_is_waited_for(socket_relay, agent):
    async def go():
        uplink = await joined(agent, socket_relay)
        await uplink.connected()
        socket_relay.kill()
        await uplink.reset()
        signed, needs = agent.backup()
        waiting = asyncio.create_task(uplink.commit(signed, needs))
        while uplink.status().reachable:
            await asyncio.sleep(0.01)
        assert "cannot be reached" in uplink.status().error and uplink.status().lag_bytes > 600_000
        with pytest.raises(Unreachable):
            await uplink.have([b"?" * 32])
        socket_relay.start()
        await uplink.reset()
        await waiting
        assert uplink.status().reachable
        await uplink.close()

    asyncio.run(go())


@pytest.mark.slow
def test_a_relay_that_is_killed_again_and_again_gets_everything(socket_relay, agent, seed):
    async def go():
        uplink, chance = await joined(agent, socket_relay), random.Random(seed)
        for _ in range(3):
            signed, needs = agent.backup(count=200, size=50_000)
            waiting = asyncio.create_task(uplink.commit(signed, needs))
            await asyncio.sleep(chance.random() * 0.15)
            socket_relay.kill()
            socket_relay.start()
            await uplink.reset()
            receipt = await waiting
            messages.open_receipt(receipt, uplink._line.address.relay, signed.id)
            agent.device.advance(signed)
        await uplink.close()

    asyncio.run(go())
    assert '"damage": []' in socket_relay.cli("verify", "--json")


def test_missing_chunks_and_another_head_are_told(socket_relay, agent):
    async def go():
        uplink = await joined(agent, socket_relay)
        node = agent.node([b"?" * 32])
        signed = agent.device.record(node.ids[0])
        with pytest.raises(MissingChunks) as missing:
            await uplink.commit(signed, [node.root])
        assert missing.value.ids == (b"?" * 32,)
        signed, needs = agent.backup()
        await uplink.commit(signed, needs)
        agent.device.advance(signed)
        stale = agent.device.record(signed.commit.base, previous=commit.NO_PREVIOUS)
        with pytest.raises(HeadMismatch) as other:
            await uplink.commit(stale, [])
        assert (other.value.head.commit, other.value.head.sequence) == (signed.id, 1)
        await uplink.commit(agent.device.record(signed.commit.base), [])
        await uplink.close()

    asyncio.run(go())


def test_damage_in_the_spool_is_found_before_it_leaves(socket_relay, agent):
    async def go():
        uplink = await joined(agent, socket_relay)
        bad, cut, good = agent.data(), agent.data(), agent.data()
        flip(agent.spool.path_of(bad.root), 300_000)
        flip(agent.spool.path_of(cut.root), cut.file_len - 10)
        uplink.offer(bad.root)
        uplink.offer(good.root)
        with pytest.raises(RejectedByPeer, match="damaged"):
            await uplink.sealed(bad.root)
        await uplink.sealed(good.root)
        with pytest.raises(RejectedByPeer) as lost:
            await uplink.commit(agent.device.record(None), [cut.root])
        assert lost.value.kind == "lost"
        with pytest.raises(NotFound):
            uplink.offer(b"?" * 32)
        assert uplink.status().lag_bytes == 0
        await uplink.close()

    asyncio.run(go())


@pytest.mark.parametrize("sealed", [True, False])
def test_a_pack_that_left_the_spool_is_there_if_the_relay_says_so(socket_relay, agent, sealed):
    """It may be offered once more between the relay's word that it is sealed and its removal."""

    async def go():
        before = await joined(agent, socket_relay)
        packed = agent.data(count=2)
        if sealed:
            before.offer(packed.root)
            await before.sealed(packed.root)
        await before.close()
        uplink = agent.uplink(before._line.address)
        uplink.offer(packed.root)
        agent.spool.remove(packed.root)
        await uplink.start()
        if sealed:
            await uplink.sealed(packed.root)
        else:
            with pytest.raises(RejectedByPeer):
                await uplink.sealed(packed.root)
        await uplink.close()

    asyncio.run(go())


def test_a_pack_of_another_writer_is_rejected(socket_relay, agent):
    async def go():
        uplink = await joined(agent, socket_relay)
        agent.seal = Seal(agent.keys, b"x" * 32, XCHACHA)
        packed = agent.data()
        uplink.offer(packed.root)
        with pytest.raises(RejectedByPeer) as rejected:
            await uplink.sealed(packed.root)
        assert rejected.value.kind == "invalid"
        await uplink.close()

    asyncio.run(go())


def test_a_session_that_the_relay_forgot_is_renewed(socket_relay, agent):
    async def go():
        uplink = await joined(agent, socket_relay)
        first = await uplink.connected()
        uplink.session = messages.Session(bytes(32), first.expires_s, None, (), 0, 0, b"")
        assert await uplink.have([b"?" * 32]) == [False]
        assert uplink.session.token != bytes(32)
        uplink._renew_at = 0.0
        assert (await uplink.connected()).token != first.token
        await uplink.close()

    asyncio.run(go())


def test_a_relay_with_another_certificate_gets_nothing(tmp_path, agent):
    relay = Relay(tmp_path, tls=True).start()

    async def go():
        line = relay.invite()
        good = invite.parse(line)
        address = good.address
        other = invite.Address(address.relay, address.host, address.port, b"?" * 32)
        with pytest.raises(WrongKey, match="certificate"):
            join(invite.Invite(other, good.token), agent.join_record(line))
        join(good, agent.join_record(line))
        for wrong in (other, invite.Address(b"?" * 32, address.host, address.port, address.cert)):
            uplink = agent.uplink(wrong)
            with pytest.raises(WrongKey):
                await uplink.connected()
            assert not uplink.status().reachable
            await uplink.close()

    asyncio.run(go())
    assert relay.stop() == 0


def test_nobody_there_is_one_sentence(tmp_path, agent):
    async def go():
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            port = taken.getsockname()[1]
            for address in (
                invite.Address(bytes(32), "127.0.0.1", port, bytes(32)),
                invite.Address(bytes(32), socket=str(tmp_path / "none")),
            ):
                uplink = agent.uplink(address)
                with pytest.raises(Unreachable) as away:
                    await uplink.connected()
                assert "\n" not in str(away.value) and "cannot be reached" in uplink.status().error
                await uplink.close()

    asyncio.run(go())


def test_an_end_in_the_middle_leaves_nothing_behind(socket_relay, agent):
    async def go():
        uplink = await joined(agent, socket_relay)
        signed, needs = agent.backup(count=200, size=50_000)
        waiting = asyncio.create_task(uplink.commit(signed, needs))
        await asyncio.sleep(0)
        await uplink.close()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        again = agent.uplink(uplink._line.address)
        await again.start()
        await again.commit(signed, needs)
        await again.close()

    asyncio.run(go())


def test_a_reset_while_a_name_is_looked_up_does_not_end_the_uplink(tmp_path, agent):
    async def run():
        asked = asyncio.Queue()

        async def lookup(*_, **__):
            asked.put_nowait(None)
            await asyncio.sleep(3600)

        asyncio.get_running_loop().getaddrinfo = lookup
        uplink = agent.uplink(invite.Address(bytes(32), "nas.example", 9999, bytes(32)))
        await uplink.start()
        for _ in range(3):  # each time it tries again
            await asyncio.wait_for(asked.get(), 20)
            await uplink.reset()
        await asyncio.wait_for(asked.get(), 20)
        await uplink.close()

    asyncio.run(run())


def test_a_request_of_a_pack_that_was_given_up_frees_its_place(tmp_path, agent):
    """A flight that begins after its pack was dropped must not keep one of the few places for ever."""

    async def run():
        uplink = agent.uplink(invite.Address(bytes(32), socket=str(tmp_path / "nobody")))
        packed = agent.data()
        uplink.offer(packed.root)
        (request,) = uplink._sender.to_send(0.0)
        uplink._sender.drop(packed.root, "lost")
        uplink._report(uplink._sender.events())
        await uplink._fly(request)
        assert not uplink._sender._flying
        await uplink.close()

    asyncio.run(run())
