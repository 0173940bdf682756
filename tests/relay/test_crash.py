"""What was acknowledged is there: after kill -9 at random moments, without the index, with damaged files."""

import asyncio
import copy
import random
import shutil
import threading

import aiohttp
import pytest

from contbak.core import commit, frame
from tests.relay.peer import Device, Peer, Relay, flip

KILLS = 32


class Witnessed:
    """What the relay has acknowledged."""

    def __init__(self):
        self.packs = []
        self.receipts = []
        self.pending = None


async def work(peer, seen, rng):
    """Backs up until the relay dies."""
    device = peer.device
    try:
        await peer.login()
        if seen.pending is not None:  # sent, and maybe accepted: the same record again
            seen.receipts.append((seen.pending, await peer.commit(seen.pending)))
            seen.pending = None
        while True:
            data = device.data(rng.randrange(1, 40), rng.randrange(100, 30_000))
            tree = device.tree(data.ids)
            for packed in (data, tree):
                await peer.upload(packed)
                seen.packs.append(packed)
            seen.pending = device.record(tree.ids[0])
            receipt = await peer.commit(seen.pending)
            seen.receipts.append((seen.pending, receipt))
            seen.pending = None
    except (aiohttp.ClientError, ConnectionError):
        return


async def check(peer, seen):
    """Everything acknowledged is there, whole."""
    session = await peer.login()
    listed = {item.record: item for item in await peer.listed()}
    for signed, receipt in seen.receipts:
        assert listed[signed.raw].position == receipt.position
        assert listed[signed.raw].received_ms == receipt.time_ms
    if seen.receipts:
        newest = seen.receipts[-1][0]
        assert session.head.sequence >= newest.commit.sequence
    known = set()
    after = ""
    while page := await peer.packs(after):
        known |= {info.pack for info in page}
        after = page[-1].pack.hex()
    for packed in seen.packs:
        assert packed.plan.root in known
        assert all(await peer.have(packed.ids))
    for packed in random.sample(seen.packs, min(5, len(seen.packs))):
        _, raw = await peer.call("GET", f"/v1/packs/{packed.root}", expect=200)
        assert raw == packed.body + packed.plan.raw


@pytest.mark.slow
def test_kill_at_random_moments(tmp_path, seed):
    rng = random.Random(seed)
    relay, device, seen = Relay(tmp_path).start(), Device(rng), Witnessed()
    line = relay.invite()

    async def go():
        async with Peer(device, line) as peer:
            await peer.join()
        for number in range(KILLS):
            threading.Timer(rng.random() * 0.5, relay.process.kill).start()
            async with Peer(device, line) as peer:
                await work(peer, seen, rng)
            relay.kill()
            relay.start()
            if number % 8 == 7:
                async with Peer(device, line) as peer:
                    await check(peer, seen)

    asyncio.run(go())
    assert relay.stop() == 0
    assert len(seen.receipts) > KILLS / 4
    assert '"damage": []' in relay.cli("verify", "--json")
    shutil.rmtree(relay.home / "index")
    relay.start()

    async def again():
        async with Peer(device, line) as peer:
            await check(peer, seen)

    asyncio.run(again())
    assert relay.stop() == 0
    assert '"damage": []' in relay.cli("verify", "--json")


class Filled:
    """A relay that holds three backups of a device, stopped."""

    def __init__(self, top):
        self.relay = Relay(top).start()
        self.device = Device(random.Random(1))
        self.line = self.relay.invite()
        self.backups = []
        asyncio.run(self._fill())
        self.stop()

    def copy(self, top):
        """The same in another place."""
        made = copy.copy(self)
        made.device = copy.copy(self.device)
        made.line = self.line.replace(str(self.relay.top), str(top))
        made.relay = self.relay.moved(top)
        return made

    async def _fill(self):
        async with Peer(self.device, self.line) as peer:
            await peer.join()
            await peer.login()
            for _ in range(3):
                copies = [self.backups[-1][2].raw] if self.backups else []
                data = self.device.data(5)
                tree = self.device.tree(data.ids, copies=copies)
                await peer.upload(data)
                await peer.upload(tree)
                signed = self.device.record(tree.ids[0])
                receipt = await peer.commit(signed)
                self.backups.append((data, tree, signed, receipt))

    def stop(self):
        assert self.relay.stop() == 0

    def index(self):
        return self.relay.home / "index" / self.device.vault.hex()

    def pack(self, packed):
        return next(self.relay.stores[0].rglob(packed.root))

    def record(self, signed):
        return next(self.relay.stores[0].rglob(f"*-{signed.id.hex()}"))

    def ask(self, question):
        """Starts the relay, asks, stops it; the answer."""

        async def go():
            async with Peer(self.device, self.line) as peer:
                await peer.login()
                return await question(peer)

        self.relay.start()
        try:
            return asyncio.run(go())
        finally:
            self.stop()

    def all_there(self):
        async def question(peer):
            listed = await peer.listed()
            assert [c.record for c in listed] == [signed.raw for *_, signed, _ in self.backups]
            assert [(c.position, c.received_ms) for c in listed] == [
                (receipt.position, receipt.time_ms) for *_, receipt in self.backups
            ]
            assert peer.session.head.commit == self.backups[-1][2].id
            assert len(await peer.packs()) == 6
            for data, tree, *_ in self.backups:
                assert all(await peer.have([*data.ids, *tree.ids]))

        self.ask(question)
        assert '"damage": []' in self.relay.cli("verify", "--json")


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    return Filled(tmp_path_factory.mktemp("filled"))


@pytest.fixture
def filled(template, tmp_path):
    return template.copy(tmp_path / "relay")


def test_index_gone(filled):
    shutil.rmtree(filled.index())
    filled.all_there()


def test_index_damaged(filled):
    flip(filled.index() / "data.mdb", 2 * 4096 + 17)
    filled.all_there()


def test_index_cut_short(filled):
    path = filled.index() / "data.mdb"
    path.write_bytes(path.read_bytes()[:8192])
    filled.all_there()


def test_index_lags_behind(filled):
    """As after a crash between the file and its rows: the index is of an earlier time."""
    kept = filled.relay.top / "kept"
    shutil.copytree(filled.index(), kept)

    async def more(peer):
        filled.device.previous = filled.backups[-1][2].id
        await peer.backup()
        return len(await peer.listed())

    assert filled.ask(more) == 4
    shutil.rmtree(filled.index())
    shutil.copytree(kept, filled.index())

    async def count(peer):
        return len(await peer.listed()), len(await peer.packs()), (await peer.backup())[2].commit.sequence

    assert filled.ask(count) == (4, 8, 5)


def test_rebuild_index(filled):
    filled.relay.cli("rebuild-index")
    filled.all_there()


def test_a_pack_is_gone(filled):
    """Its chunks are asked for again, and once they are there the commit comes in."""
    data, _, _, _ = filled.backups[1]
    filled.pack(data).unlink()

    async def question(peer):
        assert await peer.have(data.ids) == [False] * 5
        tree = filled.device.tree([*data.ids, *filled.backups[0][0].ids])
        await peer.upload(tree)
        signed = filled.device.record(tree.ids[0])
        problem = await peer.refused("POST", "/v1/commits", 409, "missing", signed.raw)
        assert sorted(problem["missing"]) == sorted(id_.hex() for id_ in data.ids)
        await peer.upload(data)
        await peer.commit(signed)

    filled.ask(question)
    assert '"found": 1' in filled.relay.cli("status", "--json")
    assert '"damage": []' in filled.relay.cli("verify", "--json")


@pytest.mark.parametrize("where", ["header", "tail", "directory"])
def test_a_pack_is_damaged_and_the_index_gone(filled, where):
    """A flipped byte outside the frames costs nothing: all frames are found."""
    data, _, _, _ = filled.backups[0]
    at = {"header": 20, "tail": data.plan.file_len - 10, "directory": data.plan.directory_offset + 9}[where]
    flip(filled.pack(data), at)
    filled.relay.cli("verify", code=1)
    shutil.rmtree(filled.index())

    async def question(peer):
        assert all(await peer.have(data.ids))
        # the same pack, sent again, takes the place of the damaged one
        await peer.upload(data)
        _, raw = await peer.call("GET", f"/v1/packs/{data.root}", expect=200)
        return raw

    assert filled.ask(question) == data.body + data.plan.raw
    assert '"damage": []' in filled.relay.cli("verify", "--json")
    assert any((filled.relay.stores[0] / "lost+found").iterdir())


def test_a_node_that_cannot_be_read_is_asked_for_again(filled):
    _, tree, _, _ = filled.backups[2]
    flip(filled.pack(tree), 70)  # in the header of its first frame

    async def question(peer):
        top = filled.device.tree(tree.ids)
        await peer.upload(top)
        # closed before, so the index must forget that first: it does when it is made again
        signed = filled.device.record(top.ids[0])
        problem = await peer.refused("POST", "/v1/commits", 409, "missing", signed.raw)
        return problem["missing"]

    shutil.rmtree(filled.index())
    assert filled.ask(question) == [tree.ids[0].hex()]


def test_a_record_is_damaged_and_comes_back_from_its_copy(filled):
    signed = filled.backups[0][2]
    path = filled.record(signed)
    flip(path)
    shutil.rmtree(filled.index())

    async def question(peer):
        return [c.record for c in await peer.listed()]

    assert sorted(filled.ask(question)) == sorted(signed.raw for *_, signed, _ in filled.backups)
    assert path.read_bytes() == signed.raw
    assert '"damage": []' in filled.relay.cli("verify", "--json")


def test_order_notes_are_gone(filled):
    for path in filled.relay.stores[0].rglob("order/*"):
        path.unlink()
    shutil.rmtree(filled.index())

    async def question(peer):
        return [(c.position, c.record) for c in await peer.listed()]

    expected = [(n + 1, signed.raw) for n, (*_, signed, _) in enumerate(filled.backups)]
    assert filled.ask(question) == expected


def test_unknown_files_are_left_alone(filled):
    top = filled.relay.stores[0] / filled.device.vault.hex()
    strange = [top / "packs" / "aa" / "notes", top / "commits" / "readme", top / "packs" / "00" / ("ff" * 32)]
    for path in strange:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"mine")
    assert len(filled.ask(lambda peer: peer.packs())) == 6
    assert all(path.read_bytes() == b"mine" for path in strange)


def test_nothing_readable_is_on_the_relay(tmp_path, seed):
    secret, name = b"the quick brown fox jumps over " * 8, b"tax-return-2026.pdf"
    relay, device = Relay(tmp_path).start(), Device(random.Random(seed))

    async def go():
        async with Peer(device, relay.invite()) as peer:
            await peer.join()
            await peer.login()
            data = device.pack([(frame.DATA, [(secret, ())])])
            tree = device.pack([(frame.NODE, [(name, tuple(data.ids))])])
            await peer.upload(data)
            await peer.upload(tree)
            await peer.commit(device.record(tree.ids[0]))

    asyncio.run(go())
    assert relay.stop() == 0
    found = relay.files()
    assert sum(map(len, found.values())) > 1000
    for raw in found.values():
        assert secret[:16] not in raw and name not in raw
        for key in (device.owner.read_secret, device.owner.admin_seed, device.keys.psk, device.keys.chunk_id_key):
            assert key not in raw
    assert commit.MAGIC in b"".join(found.values())


def test_a_pack_is_cut_short_behind_the_back_of_the_index(filled):
    """The index is made again, and the frames that are still whole are known."""
    data = filled.backups[0][0]
    path = filled.pack(data)
    path.write_bytes(path.read_bytes()[: data.plan.directory_offset - 5])

    async def question(peer):
        return await peer.have(data.ids), await peer.have(filled.backups[1][0].ids)

    assert filled.ask(question) == ([False] * 5, [True] * 5)
    assert path.exists() or any((filled.relay.stores[0] / "lost+found").iterdir())
