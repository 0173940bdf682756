"""What a relay refuses, and in which words; and that repeating anything changes nothing.  One process for all."""

import asyncio
import gzip
import random
import socket
from contextlib import asynccontextmanager

import pytest

from contbak.core import codec, frame, messages
from contbak.core.crypto import Sealer, derive, digest, sign
from contbak.core.pack import PackBuilder
from tests.relay.peer import Device, Packed, Peer, Relay


@pytest.fixture(scope="module")
def relay(tmp_path_factory):
    relay = Relay(tmp_path_factory.mktemp("relay")).start()
    yield relay
    assert relay.stop() == 0


@pytest.fixture
def device(seed):
    return Device(random.Random(seed))


@asynccontextmanager
async def joined(relay, device, *words):
    async with Peer(device, relay.invite(*words)) as peer:
        await peer.join()
        await peer.login()
        yield peer


# -- admission


def test_an_invite_admits_one_device(relay, device):
    async def go():
        line = relay.invite()
        async with Peer(device, line) as peer, Peer(device.second(), line) as other:
            await peer.join()
            await peer.join()
            await other.refused("POST", "/v1/join", 403, "denied", other.join_body())
            await other.refused("POST", "/v1/session", 403, "denied", (await other.login_body())[1])

    asyncio.run(go())


def test_an_invite_for_a_vault_admits_to_no_other(relay, device):
    async def go():
        async with joined(relay, device):
            line = relay.invite("--vault", device.vault.hex())
            async with Peer(Device(device.random), line) as stranger:
                await stranger.refused("POST", "/v1/join", 403, "denied", stranger.join_body())
            async with Peer(device.second(), line) as second:
                await second.join()
                await second.login()

    asyncio.run(go())


def test_a_vault_cannot_be_claimed(relay, device):
    async def go():
        async with joined(relay, device):
            thief = Device(device.random)
            async with Peer(thief, relay.invite()) as peer:
                keys = device.keys
                body = peer.join_body(read_public=keys.read_public, admin_public=keys.admin_public)
                await peer.refused("POST", "/v1/join", 403, "denied", body)
                body = peer.join_body(admin_public=keys.admin_public)
                await peer.refused("POST", "/v1/join", 403, "denied", body)
                for changes in ({"token": bytes(32)}, {"vouch": bytes(64)}):
                    await peer.refused("POST", "/v1/join", 403, "denied", peer.join_body(**changes))
                for changes in ({"token": b"x"}, {"device": b""}, {"device_name": "x" * 999}, {"version": 2}):
                    await peer.refused("POST", "/v1/join", 400, "malformed", peer.join_body(**changes))
                await peer.refused("POST", "/v1/join", 400, "malformed", b"\xc1garbage")
                await peer.join()

    asyncio.run(go())


def test_a_challenge_is_good_once(relay, device):
    async def go():
        async with joined(relay, device) as peer:
            _, body = await peer.login_body()
            await peer.call("POST", "/v1/session", body, expect=200)
            await peer.refused("POST", "/v1/session", 401, "token", body)
            other = Device(device.random)
            challenge, body = await peer.login_body(signature=bytes(64))
            await peer.refused("POST", "/v1/session", 403, "denied", body)
            _, body = await peer.login_body(nonce=bytes(32))
            await peer.refused("POST", "/v1/session", 401, "token", body)
            _, body = await peer.login_body(nonce=b"")
            await peer.refused("POST", "/v1/session", 401, "token", body)
            _, body = await peer.login_body(challenge=bytes(32))
            await peer.refused("POST", "/v1/session", 403, "denied", body)
            _, body = await peer.login_body(challenge=b"")
            await peer.refused("POST", "/v1/session", 403, "denied", body)
            _, body = await peer.login_body(vault=other.vault)
            await peer.refused("POST", "/v1/session", 403, "denied", body)
            # a challenge for one device answered by another
            signature = messages.login_signature(other.seed, device.vault, challenge, bytes(32))
            body = codec.encode(messages.Login(device.vault, other.id, challenge.nonce, bytes(32), signature))
            await peer.refused("POST", "/v1/session", 401, "token", body)
            await peer.refused("POST", "/v1/challenge", 400, "malformed", b"short")
            await peer.refused("POST", "/v1/challenge", 413, "too-large", b"x" * 33)

    asyncio.run(go())


def test_tokens(relay, device):
    async def go():
        async with joined(relay, device) as peer:
            good, peer.token = peer.token, b""
            await peer.refused("GET", "/v1/vault", 401, "token")
            await peer.refused("GET", "/v1/vault", 401, "token", token=bytes(32))
            await peer.refused("GET", "/v1/vault", 401, "token", token=b"short")
            await peer.refused("POST", "/v1/have", 401, "token", b"x" * 3200)
            await peer.call("GET", "/v1/vault", expect=200, token=good)
            relay.cli("device", "disable", device.id.hex()[:12])
            await peer.refused("GET", "/v1/vault", 403, "denied", token=good)
            await peer.refused("POST", "/v1/session", 403, "denied", (await peer.login_body())[1])
            assert "DISABLED" in relay.cli("devices")
            relay.cli("device", "enable", device.id.hex())
            await peer.call("GET", "/v1/vault", expect=200, token=good)
            relay.cli("device", "remove", device.id.hex())
            await peer.refused("GET", "/v1/vault", 403, "denied", token=good)
            await peer.refused("POST", "/v1/join", 403, "denied", peer.join_body())  # the invite was used

    asyncio.run(go())


# -- packs


def test_the_words_of_a_transfer(relay, device):
    async def go():
        async with joined(relay, device) as peer:
            packed = device.data(40, 10_000)
            path = f"/v1/packs/{packed.root}"
            await peer.refused("GET", path + "/plan", 404, "unknown")
            await peer.refused("GET", path, 404, "unknown")
            await peer.refused("PUT", path + "/segments/0", 409, "no-plan", packed.segments(0))
            await peer.refused("POST", path + "/seal", 409, "no-plan")
            assert await peer.plan(packed) == messages.PlanState(False, bytes(4))
            await peer.refused("PUT", path + "/segments/0", 422, "mismatch", b"x" * 16384)
            await peer.refused("PUT", path + "/segments/1", 422, "mismatch", packed.segments(0))
            await peer.refused("PUT", path + "/segments/0", 422, "mismatch", packed.segments(0)[:-1])
            await peer.refused("PUT", path + "/segments/999", 422, "mismatch", packed.segments(0))
            await peer.refused("PUT", path + "/segments/-1", 400, "malformed", packed.segments(0))
            await peer.refused("PUT", path + "/segments/0", 422, "mismatch")
            await peer.refused("PUT", path + "/segments/0", 413, "too-large", b"x" * (messages.PUT_MAX + 1))
            await peer.segments(packed, 3)
            await peer.segments(packed, 3)
            await peer.segments(packed, 8, 2)
            have = messages.bitmap([n in (3, 8, 9) for n in range(len(packed.plan.hashes))])
            assert await peer.plan(packed) == messages.PlanState(False, have)
            problem = await peer.refused("POST", path + "/seal", 409, "incomplete")
            assert problem["have"] == have.hex()
            await asyncio.gather(*(peer.upload(packed) for _ in range(4)))
            assert await peer.plan(packed) == messages.PlanState(True, b"")
            await peer.segments(packed, 0)
            await peer.call("POST", path + "/seal", expect=204)
            _, raw = await peer.call("GET", path + "/plan", expect=200)
            assert codec.decode(raw, messages.PlanState, "state").sealed
            assert not list((relay.stores[0] / "incoming").glob("*" + packed.root + "*"))

    asyncio.run(go())


def test_plans_that_are_none(relay, device):
    async def go():
        async with joined(relay, device) as peer:
            packed, other = device.data(3), device.data(3)
            await peer.refused("PUT", f"/v1/packs/{other.root}/plan", 422, "mismatch", packed.plan.raw)
            raw = bytearray(packed.plan.raw)
            raw[5] ^= 1
            await peer.refused("PUT", f"/v1/packs/{packed.root}/plan", 422, "mismatch", bytes(raw))
            await peer.refused("PUT", f"/v1/packs/{packed.root}/plan", 422, "mismatch", b"")
            await peer.refused("PUT", f"/v1/packs/{packed.root}/plan", 413, "too-large", b"x" * 99_999)

    asyncio.run(go())


@pytest.mark.parametrize(
    "root",
    ["..", "../../vault", "%2e%2e%2fvault", "%2e%2e/%2e%2e/etc/passwd", "A" * 64, "a" * 63, "a" * 65, "0" * 62 + "%00"],
)
def test_roots_that_are_paths(relay, device, root):
    async def go():
        async with joined(relay, device) as peer:
            for method, end in (("GET", ""), ("PUT", "/plan"), ("PUT", "/segments/0"), ("POST", "/seal")):
                status, problem = await peer.call(method, f"/v1/packs/{root}{end}", b"x" if method == "PUT" else b"")
                assert status in (400, 404) and problem["type"] in ("malformed", "unknown"), problem

    before = set(relay.top.rglob("*"))
    asyncio.run(go())
    assert not {path for path in set(relay.top.rglob("*")) - before if ".." in str(path) or "etc" in str(path)}


def forged(device, **kinds):
    """A pack that is wrong in one way and right in every hash."""
    rng, good = device.random, [(frame.DATA, [(b"x" * 9000, ())])]
    node = (frame.NODE, [(b"n", ())])
    match kinds["wrong"]:
        case "vault":
            return device.pack(good, vault=Device(rng).vault)
        case "writer":
            return device.pack(good, writer=b"somebody")
        case "pack writer":
            return device.pack(good, writer=b"somebody", frame_writer=device.writer)
        case "frame writer":
            return device.pack(good, frame_writer=b"somebody")
        case "mixed":
            return device.pack([*good, node])
        case "empty":
            return device.pack([])
    sealer = Sealer(device.keys, rng.randbytes(32), 2)
    chunk = device.chunk(frame.DATA, rng.randbytes(9000))
    raw = frame.encode(frame.DATA, [chunk], sealer, device.writer, rng.randbytes(32))
    header = frame.parse_header(raw)
    bad = bytearray(raw)
    if kinds["wrong"] == "body":
        bad[len(header.raw) + 100] ^= 1
    elif kinds["wrong"] == "header":
        bad[50] ^= 1
    builder = PackBuilder(device.vault, rng.randbytes(16), device.writer)
    parts = builder.add(header, bytes(bad) if kinds["wrong"] != "gap" else bytes(bad) + b"gap")
    if kinds["wrong"] == "hidden frame":
        parts += builder.add(header, raw)
        del builder._rows[0]
    if kinds["wrong"] == "frame named twice":
        parts += builder.add(header, raw)
        builder._rows[1] = builder._rows[0]
    if kinds["wrong"] == "foreign row":
        other = device.chunk(frame.DATA, b"other")
        builder._rows[0] = builder._rows[0][:-32] + other.id
    rest, plan = builder.finish()
    whole = b"".join([*parts, *rest])
    return Packed(plan, whole[: plan.body_len], [chunk.id])


WRONG = [
    "vault", "writer", "frame writer", "pack writer", "mixed", "empty", "body", "header", "foreign row", "gap",
    "hidden frame", "frame named twice",
]  # fmt: skip


@pytest.mark.parametrize("wrong", WRONG)
def test_packs_that_break_the_format(relay, device, wrong):
    async def go():
        async with joined(relay, device) as peer:
            packed = forged(device, wrong=wrong)
            await peer.plan(packed)
            await peer.segments(packed, 0, len(packed.plan.hashes))
            await peer.refused("POST", f"/v1/packs/{packed.root}/seal", 422, "invalid")
            await peer.refused("POST", f"/v1/packs/{packed.root}/seal", 409, "no-plan")
            assert await peer.packs() == ()
            assert not any(await peer.have(packed.ids or [bytes(32)]))

    asyncio.run(go())


def test_a_long_body_is_taken_mib_by_mib(relay, device):
    """What came before the damage is there; the rest is sent again."""

    async def go():
        async with joined(relay, device) as peer:
            packed = device.data(36, 100_000)
            count, size = len(packed.plan.hashes), packed.plan.segment_size
            body = bytearray(packed.segments(0, count))
            body[(1 << 20) + 5] ^= 1
            await peer.plan(packed)
            await peer.refused("PUT", f"/v1/packs/{packed.root}/segments/0", 422, "mismatch", bytes(body))
            have = messages.bits((await peer.plan(packed)).have, count)
            assert have == [n < (1 << 20) // size for n in range(count)]
            await peer.segments(packed, 0, count)
            assert all(messages.bits((await peer.plan(packed)).have, count))
            await peer.upload(packed)

    asyncio.run(go())


@pytest.mark.parametrize("wrong", WRONG)
def test_whole_packs_that_break_the_format(relay, device, wrong):
    async def go():
        async with joined(relay, device) as peer:
            packed = forged(device, wrong=wrong)
            raw = packed.body + packed.plan.raw
            await peer.refused("PUT", f"/v1/packs/{packed.root}", 422, "invalid", raw)
            assert await peer.packs() == ()
            assert not any(await peer.have(packed.ids or [bytes(32)]))

    asyncio.run(go())


def test_a_pack_in_one_request(relay, device):
    async def go():
        async with joined(relay, device) as peer:
            packed, other = device.data(40, 10_000), device.data(3)
            path, raw = f"/v1/packs/{packed.root}", packed.body + packed.plan.raw
            flipped = bytearray(raw)
            flipped[100_000] ^= 1
            wrong = (bytes(flipped), raw[:-1], raw[1:], raw + b"x", b"", b"x" * 200, other.body + other.plan.raw)
            for body in (*wrong, raw[:-200] + other.plan.raw):
                await peer.refused("PUT", path, 422, "mismatch", body)
            await peer.refused("PUT", path, 413, "too-large", bytes(messages.WHOLE_MAX + 1))
            assert await peer.packs() == ()
            await peer.plan(other)  # begun in parts
            await asyncio.gather(
                *(peer.call("PUT", path, raw, expect=204) for _ in range(4)),
                peer.upload(packed),
                peer.call("PUT", f"/v1/packs/{other.root}", other.body + other.plan.raw, expect=204),
            )
            assert len(await peer.packs()) == 2 and all(await peer.have([*packed.ids, *other.ids]))
            _, whole = await peer.call("GET", path, expect=200)
            assert whole == raw
            await peer.call("PUT", path, raw, expect=204)
            assert (await peer.plan(other)).sealed

    asyncio.run(go())


# -- commits


def test_a_commit_waits_for_all_that_it_leads_to(relay, device):
    async def go():
        async with joined(relay, device) as peer:
            data = device.data(20)
            leaf = device.tree(data.ids)
            top = device.tree([*leaf.ids, data.ids[0]])
            signed = device.record(top.ids[0])
            problem = await peer.refused("POST", "/v1/commits", 409, "missing", signed.raw)
            assert problem["missing"] == [top.ids[0].hex()]
            await peer.upload(top)
            problem = await peer.refused("POST", "/v1/commits", 409, "missing", signed.raw)
            assert sorted(problem["missing"]) == sorted([leaf.ids[0].hex(), data.ids[0].hex()])
            await peer.upload(leaf)
            problem = await peer.refused("POST", "/v1/commits", 409, "missing", signed.raw)
            assert sorted(problem["missing"]) == sorted(id_.hex() for id_ in data.ids)
            assert await peer.listed() == ()
            await peer.upload(data)
            first, second = await peer.commit(signed), await peer.commit(signed)
            assert first == second

    asyncio.run(go())


def test_many_missing_are_named_in_part(relay, device):
    async def go():
        async with joined(relay, device) as peer:
            refs = [device.random.randbytes(32) for _ in range(5000)]
            tree = device.tree(refs)
            await peer.upload(tree)
            signed = device.record(tree.ids[0])
            problem = await peer.refused("POST", "/v1/commits", 409, "missing", signed.raw)
            assert len(problem["missing"]) == messages.MISSING_MAX
            assert {bytes.fromhex(text) for text in problem["missing"]} <= set(refs)

    asyncio.run(go())


def test_the_chain_of_a_device(relay, device):
    async def go():
        async with joined(relay, device) as peer:
            orphan = device.record(None, previous=b"p" * 32)
            assert (await peer.refused("POST", "/v1/commits", 409, "head", orphan.raw))["head"] is None
            first = device.record(None)
            await peer.commit(first)
            second = device.record(None)
            await peer.commit(second)
            head = {"incarnation": device.incarnation.hex(), "sequence": 2, "commit": second.id.hex()}
            for wrong in (
                device.record(None, previous=first.id),
                device.record(None, previous=bytes(32)),
                device.record(None, sequence=2),
                device.record(None, sequence=1, incarnation=b"n" * 16),
            ):
                problem = await peer.refused("POST", "/v1/commits", 409, "head", wrong.raw)
                assert problem["head"] == head
            await peer.commit(first)  # an old one still gets its receipt
            device.previous, device.sequence = second.id, 2
            await peer.commit(device.record(None, sequence=9, incarnation=b"n" * 16))
            assert [c.position for c in await peer.listed()] == [1, 2, 3]

    asyncio.run(go())


def test_records_that_are_wrong(relay, device):
    async def go():
        async with joined(relay, device) as peer:
            other = Device(device.random)
            signed = device.record(None)
            bad = bytearray(signed.raw)
            bad[40] ^= 1
            for raw in (bytes(bad), b"", signed.raw[:-1], other.record(None).raw, device.second().record(None).raw):
                await peer.refused("POST", "/v1/commits", 422, "invalid", raw)
            foreign = device.record(None, vault=other.vault)
            await peer.refused("POST", "/v1/commits", 422, "invalid", foreign.raw)
            await peer.refused("POST", "/v1/commits", 413, "too-large", b"x" * 70_000)
            await peer.refused("GET", f"/v1/receipts/{signed.id.hex()}", 404, "unknown")

    asyncio.run(go())


def test_two_commits_at_once_for_one_place_in_the_chain(relay, device):
    async def go():
        async with joined(relay, device) as peer:
            rivals = [device.record(None, time_ms=n) for n in range(6)]
            calls = (peer.call("POST", "/v1/commits", signed.raw) for signed in rivals)
            statuses = sorted([status for status, _ in await asyncio.gather(*calls)])
            assert statuses == [200] + [409] * 5
            assert len(await peer.listed()) == 1

    asyncio.run(go())


def circle(device):
    """Two nodes that point to each other: no honest writer can make them, a forger can."""
    rng = device.random
    sealer = Sealer(device.keys, rng.randbytes(32), 2)
    one, two = sorted([rng.randbytes(32), rng.randbytes(32)])
    chunks = [frame.Chunk(one, b"a", (two,)), frame.Chunk(two, b"b", (one,))]
    raw = frame.encode(frame.NODE, chunks, sealer, device.writer, rng.randbytes(32))
    builder = PackBuilder(device.vault, rng.randbytes(16), device.writer)
    parts = builder.add(frame.parse_header(raw), raw)
    rest, plan = builder.finish()
    whole = b"".join([*parts, *rest])
    return Packed(plan, whole[: plan.body_len], [one, two])


def test_references_in_a_circle(relay, device):
    async def go():
        async with joined(relay, device) as peer:
            packed = circle(device)
            await peer.upload(packed)
            await peer.refused("POST", "/v1/commits", 422, "invalid", device.record(packed.ids[0]).raw)

    asyncio.run(go())


# -- other vaults, other devices


def test_a_vault_sees_nothing_of_another(relay, device):
    async def go():
        async with joined(relay, device) as peer, joined(relay, Device(device.random)) as stranger:
            data, tree, signed = await peer.backup()
            assert not any(await stranger.have([*data.ids, *tree.ids]))
            assert set(await stranger.locate(data.ids)) == {()}
            assert await stranger.packs() == () and await stranger.listed() == ()
            await stranger.refused("GET", f"/v1/packs/{data.root}", 404, "unknown")
            await stranger.refused("GET", f"/v1/packs/{data.root}/plan", 404, "unknown")
            await stranger.refused("GET", f"/v1/receipts/{signed.id.hex()}", 404, "unknown")
            own = stranger.device.record(tree.ids[0])
            await stranger.refused("POST", "/v1/commits", 409, "missing", own.raw)
            # sealing another's pack is refused and does the other no harm
            arriving = device.data(30)
            await peer.plan(arriving)
            await stranger.refused("PUT", f"/v1/packs/{arriving.root}/segments/0", 409, "no-plan", arriving.segments(0))
            await stranger.plan(arriving)
            await stranger.segments(arriving, 0, len(arriving.plan.hashes))
            await stranger.refused("POST", f"/v1/packs/{arriving.root}/seal", 422, "invalid")
            await peer.upload(arriving)

    asyncio.run(go())


def test_two_devices_of_a_vault(relay, device):
    async def go():
        second = device.second()
        async with joined(relay, device) as peer, joined(relay, second, "--vault", device.vault.hex()) as other:
            data, tree, signed = await peer.backup()
            session = await other.login()
            assert (session.packs, session.foreign, session.head) == (2, 2, None)
            assert [head.commit for head in session.heads] == [signed.id]
            assert all(await other.have(data.ids))
            own = second.record(tree.ids[0])
            await other.commit(own)
            assert [c.record for c in await peer.listed()] == [signed.raw, own.raw]
            assert (await peer.login()).foreign == 0
            packed = second.data(2)
            await other.plan(packed)
            await other.segments(packed, 0, len(packed.plan.hashes))
            await peer.refused("POST", f"/v1/packs/{packed.root}/seal", 422, "invalid")

    asyncio.run(go())


# -- the rest


def test_requests_that_are_none(relay, device):
    async def go():
        async with joined(relay, device) as peer:
            await peer.refused("GET", "/", 404, "unknown")
            await peer.refused("DELETE", "/v1/packs/" + "0" * 64, 405, "unknown")
            await peer.refused("POST", "/v1/have", 400, "malformed", b"x" * 33)
            await peer.refused("POST", "/v1/have", 413, "too-large", bytes(messages.HAVE_MAX * 32 + 32))
            await peer.refused("GET", "/v1/commits?after=x", 400, "malformed")
            await peer.refused("GET", "/v1/packs?after=x", 400, "malformed")
            assert await peer.have([bytes(32)] * 65_536) == [False] * 65_536
            assert await peer.have([]) == []
            data = device.data(1)
            await peer.upload(data)
            for wrong in ("bytes=99999999-", "bytes=5-1", "lines=1-2"):
                status, _ = await peer.call("GET", f"/v1/packs/{data.root}", headers={"Range": wrong})
                assert status in (200, 416)

    asyncio.run(go())


def test_raw_rubbish_and_early_ends(relay, device):
    async def go():
        async with joined(relay, device) as peer:
            cut = b"POST /v1/join HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nabc"
            for text in (b"\0" * 100, b"GET / HTTP/9.9\r\n\r\n", b"PUT /v1/have HTTP/1.1\r\n\r\n", cut):
                channel = socket.socket(socket.AF_UNIX)
                channel.connect(str(relay.socket))
                channel.sendall(text)
                channel.close()
            await peer.call("GET", "/v1/vault", expect=200)

    asyncio.run(go())


def test_a_hundred_open_connections(relay, device):
    async def go():
        async with joined(relay, device) as peer:
            idle = []
            for _ in range(100):
                channel = socket.socket(socket.AF_UNIX)
                channel.connect(str(relay.socket))
                channel.sendall(b"PUT /v1/packs/" + b"0" * 64 + b"/plan HTTP/1.1\r\n")  # and never the rest
                idle.append(channel)
            await peer.backup()
            for channel in idle:
                channel.close()

    asyncio.run(go())


def test_the_socket_is_for_this_user_only(relay):
    assert relay.socket.stat().st_mode & 0o777 == 0o600
    for path in relay.home.rglob("*"):
        assert not path.stat().st_mode & 0o077, path


def test_one_relay_at_a_time(relay):
    assert "another relay runs" in relay.cli("run", "--wait", "0.1", code=13)
    assert "running" in relay.cli("rebuild-index", code=13)
    assert f"process {relay.process.pid}" in relay.cli("status")


def test_the_vault_lies_in_the_store_with_its_keys(relay, device):
    async def go():
        async with joined(relay, device):
            raw = (relay.stores[0] / device.vault.hex() / "vault").read_bytes()
            assert digest(raw[:-32]) == raw[-32:]
            assert device.keys.read_public in raw and device.keys.admin_public in raw

    asyncio.run(go())


def test_repeats_by_the_client_library(relay, device):
    """The same bytes on a stale connection, twice at once, in any order."""

    async def go():
        async with joined(relay, device) as peer:
            packed = device.data(60, 10_000)
            await peer.plan(packed)
            count = len(packed.plan.hashes)
            order = [n for n in range(count) for _ in range(3)]
            device.random.shuffle(order)
            await asyncio.gather(*(peer.segments(packed, n) for n in order))
            seals = (peer.call("POST", f"/v1/packs/{packed.root}/seal", expect=204) for _ in range(5))
            await asyncio.gather(*seals)
            _, raw = await peer.call("GET", f"/v1/packs/{packed.root}", expect=200)
            assert raw == packed.body + packed.plan.raw

    asyncio.run(go())


def test_signatures_are_bound_to_their_purpose(relay, device):
    """A login signature of another purpose is none."""

    async def go():
        async with joined(relay, device) as peer:
            challenge, _ = await peer.login_body()
            signature = sign(device.seed, "commit", device.vault + challenge.relay + challenge.nonce + bytes(32))
            body = codec.encode(messages.Login(device.vault, device.id, challenge.nonce, bytes(32), signature))
            await peer.refused("POST", "/v1/session", 403, "denied", body)
            assert derive("relay challenge", b"") != challenge.nonce

    asyncio.run(go())


def test_compressed_bodies_are_not_unpacked(relay, device):
    async def go():
        async with joined(relay, device) as peer:
            packed = gzip.compress(bytes(3200))
            headers = {"Content-Encoding": "gzip"}
            assert len(packed) % 32
            await peer.refused("POST", "/v1/have", 400, "malformed", packed, headers=headers)

    asyncio.run(go())
