"""What the measurements of a relay share: the relay as a process, and blocking clients in processes of their own.

The client speaks the protocol with the standard library, one connection each, so that what the relay costs is not mixed
with what a sender costs.  Packs are made before the clock starts.
"""

from __future__ import annotations

import asyncio
import http.client
import multiprocessing
import random
import ssl
import time
from contextlib import closing
from dataclasses import dataclass
from multiprocessing.connection import Connection

from contbak.core import messages
from tests.bench.contbak_tool import Relay
from tests.bench.measure import Peak, idle_cpu
from tests.relay.peer import Device, Packed, Peer

_PACK = 32 << 20


@dataclass(frozen=True)
class Load:
    """What one client sends: packs of about 32 MiB, made of random chunks of `chunk` bytes, `total` bytes in all."""

    total: int
    chunk: int


@dataclass(frozen=True)
class Ingest:
    """What it came to.  Bytes and chunks sent, seconds, CPU seconds of the relay, its highest anonymous memory."""

    bytes: int
    chunks: int
    wall_s: float
    relay_cpu_s: float
    relay_peak_mib: float


class Client:
    """One device that is joined and logged in, over one TLS connection."""

    def __init__(self, line: str, seed: int) -> None:
        self.device = Device(random.Random(seed))
        self.token, port = asyncio.run(self._log_in(line))
        insecure = ssl.create_default_context()  # who answers was checked when logging in
        insecure.check_hostname, insecure.verify_mode = False, ssl.CERT_NONE
        self.connection = http.client.HTTPSConnection("127.0.0.1", port, context=insecure, timeout=120)

    async def _log_in(self, line: str) -> tuple[bytes, int]:
        async with Peer(self.device, line) as peer:
            await peer.join()
            await peer.login()
            return peer.token, peer.invite.address.port

    def call(self, method: str, path: str, body: bytes = b"") -> bytes:
        """The body of an answer that is not a refusal."""
        headers = {"Authorization": f"Bearer {self.token.hex()}"}
        self.connection.request(method, path, body, headers)
        answer = self.connection.getresponse()
        raw = answer.read()
        if answer.status >= 400:
            raise RuntimeError(f"{method} {path}: {answer.status} {raw[:300]!r}")
        return raw

    def upload(self, packed: Packed) -> None:
        """One whole pack: plan, segments, seal."""
        self.call("PUT", f"/v1/packs/{packed.root}/plan", packed.plan.raw)
        count = len(packed.plan.hashes)
        step = max(1, messages.PUT_MAX >> packed.plan.segment_log2)
        for first in range(0, count, step):
            body = packed.segments(first, min(step, count - first))
            self.call("PUT", f"/v1/packs/{packed.root}/segments/{first}", body)
        self.call("POST", f"/v1/packs/{packed.root}/seal")


def _client(line: str, seed: int, load: Load, pipe: Connection) -> None:
    client = Client(line, seed)
    per_pack = max(1, min(_PACK, load.total) // load.chunk)
    packs, chunks = [], 0
    while chunks * load.chunk < load.total:
        packs.append(client.device.data(per_pack, load.chunk))
        chunks += per_pack
    with closing(client.connection):
        pipe.send("ready")
        pipe.recv()
        for packed in packs:
            client.upload(packed)
    pipe.send((sum(len(packed.body) for packed in packs), chunks))


def ingest(relay: Relay, pid: int, clients: int, load: Load) -> Ingest:
    """`clients` devices, each with a vault of its own, send `load` at the same time."""
    context = multiprocessing.get_context("spawn")
    pipes, processes = [], []
    for seed in range(clients):
        ours, theirs = context.Pipe()
        process = context.Process(target=_client, args=(relay.invite(), seed, load, theirs))
        process.start()
        theirs.close()
        pipes.append(ours)
        processes.append(process)
    for pipe in pipes:
        assert pipe.recv() == "ready"
    before, started = idle_cpu([pid]), time.monotonic()
    with Peak([pid]) as peak:
        for pipe in pipes:
            pipe.send("go")
        sent = [pipe.recv() for pipe in pipes]
        wall = time.monotonic() - started
    for process in processes:
        process.join()
    return Ingest(
        sum(one[0] for one in sent), sum(one[1] for one in sent), wall, idle_cpu([pid]) - before, peak.mib
    )  # fmt: skip
