"""A small agent for tests: makes packs and commits with core, and speaks the protocol with aiohttp.

Also the relay as a process.  Nothing of contbak's own sender is used, so that the relay is tested against the words
of docs/protocol.md and not against their other reader.
"""

import asyncio
import copy
import json
import os
import select
import shutil
import subprocess
import sys
import zlib
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp

from contbak.core import codec, commit, frame, invite, messages
from contbak.core.crypto import AEGIS, OwnerKeys, Sealer, public_of, vouch
from contbak.core.pack import PackBuilder, Plan

ROOT = Path(__file__).resolve().parents[2]


@dataclass
class Packed:
    """A finished pack: its plan and its body."""

    plan: Plan
    body: bytes
    ids: list[bytes] = field(default_factory=list)

    @property
    def root(self):
        return self.plan.root.hex()

    def segments(self, first, count=1):
        start = self.plan.span(first)[0]
        last = self.plan.span(first + count - 1)
        return self.body[start : last[0] + last[1]]


class Device:
    """A device of a vault: keys, and a chain of commits."""

    def __init__(self, random, root=None):
        self.random = random
        self.owner = OwnerKeys.from_root(root or random.randbytes(32))
        self.keys = self.owner.writer
        self.vault = self.keys.vault
        self.seed = random.randbytes(32)
        self.id = public_of(self.seed)
        self.writer = self.id[:8]
        self.incarnation = random.randbytes(16)
        self.sequence = 0
        self.previous = commit.NO_PREVIOUS

    def second(self):
        """Another device of the same vault."""
        other = Device(self.random)
        other.owner, other.keys, other.vault = self.owner, self.keys, self.vault
        return other

    def pack(self, frames, writer=None, vault=None, frame_writer=None, copies=()):
        """A pack of (kind, [(payload, refs)]) frames and of copies of commit records."""
        sealer = Sealer(self.keys, self.random.randbytes(32), AEGIS)
        builder = PackBuilder(vault or self.vault, self.random.randbytes(16), writer or self.writer)
        parts, ids = [], []
        for kind, chunks in frames:
            made = [self.chunk(kind, payload, refs) for payload, refs in chunks]
            raw = frame.encode(kind, made, sealer, frame_writer or writer or self.writer, self.random.randbytes(32))
            parts += builder.add(frame.parse_header(raw), raw)
            ids += [c.id for c in made]
        for record in copies:
            raw = frame.encode_commit(record, writer or self.writer)
            parts += builder.add(frame.parse_header(raw), raw)
        rest, plan = builder.finish()
        whole = b"".join([*parts, *rest])
        return Packed(plan, whole[: plan.body_len], ids)

    def chunk(self, kind, payload, refs=()):
        refs = tuple(sorted(set(refs)))
        id_ = self.keys.data_id(payload) if kind == frame.DATA else self.keys.node_id(refs, payload)
        return frame.Chunk(id_, payload, refs)

    def data(self, count, size=3000):
        """A data pack of `count` random chunks, a hundred to a frame."""
        payloads = [(self.random.randbytes(size), ()) for _ in range(count)]
        return self.pack([(frame.DATA, payloads[i : i + 100]) for i in range(0, count, 100)])

    def tree(self, refs, payload=None, copies=()):
        """A metadata pack with one node over `refs`."""
        return self.pack([(frame.NODE, [(payload or self.random.randbytes(40), refs)])], copies=copies)

    def record(self, base, runs=(), **changes):
        """A signed commit that continues the chain; `advance` says that it was accepted."""
        sealed = commit.Sealed(AEGIS, bytes(32), bytes(32), b"x" * 40)
        facts = {
            "version": 1, "vault": self.vault, "device": self.id, "incarnation": self.incarnation,
            "sequence": self.sequence + 1, "previous": self.previous, "time_ms": 0, "source": bytes(8),
            "base": base, "runs": tuple(runs), "witnesses": (),
            "vouch": vouch(self.owner.admin_seed, self.vault, self.id), "sealed": sealed,
        }  # fmt: skip
        return commit.encode(commit.Commit(**{**facts, **changes}), self.seed)

    def advance(self, signed):
        self.sequence = signed.commit.sequence
        self.previous = signed.id


class Peer:
    """A device that speaks to a relay.  Use `async with`."""

    def __init__(self, device, line):
        self.device = device
        self.invite = invite.parse(line)
        self.token = b""
        self.session = None

    async def __aenter__(self):
        address = self.invite.address
        if address.socket:
            connector, self.base = aiohttp.UnixConnector(address.socket), "http://relay"
        else:
            connector = aiohttp.TCPConnector(ssl=aiohttp.Fingerprint(address.cert))
            self.base = f"https://{address.host}:{address.port}"
        self.http = aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(sock_read=60))
        return self

    async def __aexit__(self, *_):
        await self.http.close()

    async def call(self, method, path, body=b"", expect=None, headers=None, token=None):
        """(status, body); `expect` asserts the status."""
        headers = dict(headers or {})
        if token or self.token:
            headers["Authorization"] = "Bearer " + (token or self.token).hex()
        async with self.http.request(method, self.base + path, data=body or None, headers=headers) as answer:
            raw = await answer.read()
            if answer.status >= 400:
                assert answer.content_type == "application/problem+json", raw
                raw = json.loads(raw)
                assert raw["status"] == answer.status and raw["title"] and raw["detail"]
            if expect is not None:
                assert answer.status == expect, (answer.status, raw)
            return answer.status, raw

    async def refused(self, method, path, status, kind, body=b"", **more):
        """The members of a refusal."""
        _, problem = await self.call(method, path, body, expect=status, **more)
        assert problem["type"] == kind, problem
        return problem

    def join_body(self, **changes):
        device = self.device
        facts = {
            "version": 1, "token": self.invite.token, "read_public": device.keys.read_public,
            "admin_public": device.keys.admin_public, "device": device.id, "device_name": "laptop",
            "vault_name": "home", "vouch": vouch(device.owner.admin_seed, device.vault, device.id),
        }  # fmt: skip
        return codec.encode(messages.Join(**{**facts, **changes}))

    async def join(self):
        _, raw = await self.call("POST", "/v1/join", self.join_body(), expect=200)
        joined = codec.decode(raw, messages.Joined, "joined")
        assert joined == messages.Joined(self.invite.address.relay, self.device.vault)
        return joined

    async def login_body(self, **changes):
        _, raw = await self.call("POST", "/v1/challenge", self.device.id, expect=200)
        challenge = codec.decode(raw, messages.Challenge, "challenge")
        own = self.device.random.randbytes(32)
        signature = messages.login_signature(self.device.seed, self.device.vault, challenge, own)
        facts = {"vault": self.device.vault, "device": self.device.id, "nonce": challenge.nonce, "challenge": own}
        return challenge, codec.encode(messages.Login(**{**facts, "signature": signature, **changes}))

    async def login(self):
        _, body = await self.login_body()
        _, raw = await self.call("POST", "/v1/session", body, expect=200)
        self.session = codec.decode(raw, messages.Session, "session")
        login = codec.decode(body, messages.Login, "login")
        messages.check_session(self.session, self.invite.address.relay, login)
        self.token = self.session.token
        return self.session

    async def plan(self, packed):
        _, raw = await self.call("PUT", f"/v1/packs/{packed.root}/plan", packed.plan.raw, expect=200)
        return codec.decode(raw, messages.PlanState, "state")

    async def segments(self, packed, first, count=1, expect=204):
        body = packed.segments(first, count)
        return await self.call("PUT", f"/v1/packs/{packed.root}/segments/{first}", body, expect=expect)

    async def upload(self, packed, parallel=4):
        """Sends what the relay lacks and seals."""
        state = await self.plan(packed)
        if not state.sealed:
            have = messages.bits(state.have, len(packed.plan.hashes))
            step = max(1, messages.PUT_MAX >> packed.plan.segment_log2)
            limit = asyncio.Semaphore(parallel)

            async def send(first, count):
                async with limit:
                    await self.segments(packed, first, count)

            count = len(packed.plan.hashes)
            firsts = [first for first in range(0, count, step) if not all(have[first : first + step])]
            await asyncio.gather(*(send(first, min(step, count - first)) for first in firsts))
            await self.call("POST", f"/v1/packs/{packed.root}/seal", expect=204)

    async def whole(self, packed):
        """Sends a small pack as agents do."""
        await self.call("PUT", f"/v1/packs/{packed.root}", packed.body + packed.plan.raw, expect=204)

    async def commit(self, signed):
        """The receipt, checked."""
        _, raw = await self.call("POST", "/v1/commits", signed.raw, expect=200)
        receipt = messages.open_receipt(raw, self.invite.address.relay, signed.id)
        assert receipt.level == messages.RELAY and receipt.vault == self.device.vault
        self.device.advance(signed)
        return receipt

    async def backup(self, chunks=5, size=3000):
        """One data pack, one tree over it and the commit; what was sent."""
        data = self.device.data(chunks, size)
        tree = self.device.tree(data.ids)
        await self.upload(data)
        await self.upload(tree)
        signed = self.device.record(tree.ids[0])
        await self.commit(signed)
        return data, tree, signed

    async def have(self, ids):
        _, raw = await self.call("POST", "/v1/have", b"".join(ids), expect=200)
        return messages.bits(raw, len(ids))

    async def locate(self, ids):
        _, raw = await self.call("POST", "/v1/locate", b"".join(ids), expect=200)
        return codec.decode(raw, tuple[tuple[messages.Place, ...], ...], "places")

    async def listed(self, after=0):
        _, raw = await self.call("GET", f"/v1/commits?after={after}", expect=200)
        return codec.decode(raw, tuple[messages.Listed, ...], "commits")

    async def packs(self, after=""):
        _, raw = await self.call("GET", "/v1/packs" + (f"?after={after}" if after else ""), expect=200)
        return codec.decode(raw, tuple[messages.PackInfo, ...], "packs")


class Relay:
    """A relay in a directory of its own, as a process when it is started."""

    def __init__(self, top: Path, tls=False, stores=1):
        self.top = top
        self.home = top / "home"
        self.stores = [top / f"store{n}" for n in range(stores)]
        self.socket = top / "s"
        self.process = None
        self.port = 0
        how = ["--listen", "127.0.0.1:0"] if tls else ["--socket", str(self.socket)]
        self.tls = tls
        self.cli("init", *(part for store in self.stores for part in ("--store", str(store))), *how)

    def moved(self, top):
        """A copy of this relay, which does not run, in another place."""
        made = copy.copy(self)
        shutil.copytree(self.top, top)
        made.top, made.home, made.socket = top, top / "home", top / "s"
        made.stores = [top / store.name for store in self.stores]
        settings = made.home / "config.toml"
        settings.write_text(settings.read_text().replace(str(self.top), str(top)))
        return made

    def environment(self):
        return {**os.environ, "CONTBAK_RELAY_HOME": str(self.home), "PYTHONPATH": str(ROOT)}

    def cli(self, *words, code=0):
        """Standard output of a command."""
        done = subprocess.run(
            [sys.executable, "-m", "relay", *words],
            env=self.environment(), capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        assert done.returncode == code, (done.returncode, done.stdout, done.stderr)
        assert "Traceback" not in done.stderr
        return done.stdout if code == 0 else done.stderr

    def start(self, *words):
        """Starts it and waits until it says that it is ready."""
        self.process = subprocess.Popen(
            [sys.executable, "-m", "relay", "-v", "run", *words],
            env=self.environment(), stdin=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        said = b""
        while b"ready: " not in said or not said.endswith(b"\n"):
            assert select.select([self.process.stderr], [], [], 60)[0], said
            part = os.read(self.process.stderr.fileno(), 65536)
            assert part, said.decode()
            said += part
        if self.tls:
            self.port = int(said.decode().strip().rpartition(":")[2])
        return self

    def invite(self, *words):
        line = self.cli("invite", *words).strip()
        return line.replace("127.0.0.1:0/", f"127.0.0.1:{self.port}/")

    def kill(self):
        self.process.kill()
        self._reap()

    def stop(self):
        """Ends it by SIGTERM; its exit code."""
        if self.process is None:
            return 0
        self.process.terminate()
        return self._reap()

    def _reap(self):
        rest = self.process.stderr.read()
        code = self.process.wait(30)
        self.process.stdin.close()
        self.process.stderr.close()
        self.process = None
        assert b"Traceback" not in rest, rest.decode()
        return code

    def files(self):
        """Every file of home and stores with its bytes."""
        tops = (self.home, *self.stores)
        return {path: path.read_bytes() for top in tops for path in top.rglob("*") if path.is_file()}


def flip(path, at=None):
    """Changes one byte of a file."""
    raw = bytearray(path.read_bytes())
    at = zlib.crc32(bytes(raw)) % len(raw) if at is None else at
    raw[at] ^= 0x41
    path.write_bytes(bytes(raw))
