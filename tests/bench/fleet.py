"""A fleet on one relay: python -m tests.bench.fleet [--devices 200] [--every 10] [--seconds 60] [--vaults N]

Simulated devices, each with its own connection over TLS, that commit at their own phase of a period: a data pack of
some KB, a tree pack, the commit.  Prints median and 99th percentile of the commit request alone and of the whole backup
until its receipt, and CPU and memory of the relay process.  The devices live in a few processes that share the
machine's cores with the relay; a commit that began late because its device was still busy is counted.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import random
import shutil
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path

from contbak.core import invite
from relay.registry import Registry
from tests.bench.contbak_tool import Relay
from tests.bench.measure import Peak, anonymous_mib, cpu_of
from tests.bench.notes import Figures, note_into, write_json
from tests.relay.peer import Device, Peer

Joined = tuple[Device, str]
Times = list[tuple[float, float, bool]]
"""Of each backup: seconds of all of it, of the commit request, whether it began late."""

_CHUNKS, _CHUNK = 4, 2000


async def _device(device: Device, line: str, joined: bool, period: tuple[float, float, float]) -> Times:
    """One device from `start` (monotonic) every `every` seconds for `seconds`."""
    start, every, seconds = period
    times: Times = []
    async with Peer(device, line) as peer:
        if not joined:
            await peer.join()
        await peer.login()
        due = start + device.random.random() * every
        while due < start + seconds:
            late = time.monotonic() > due
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            began = time.monotonic()
            data = device.data(_CHUNKS, _CHUNK)
            tree = device.tree(data.ids)
            await peer.whole(data)
            await peer.whole(tree)
            sent = time.monotonic()
            await peer.commit(device.record(tree.ids[0]))
            now = time.monotonic()
            times.append((now - began, now - sent, late))
            due += every
    return times


def _share(devices: list[Joined], pipe: Connection) -> None:
    """The devices of one process: joins them, says so, waits for the start, sends the times."""

    async def join() -> None:
        for device, line in devices:
            async with Peer(device, line) as peer:
                await peer.join()

    async def work(period: tuple[float, float, float]) -> Times:
        found = await asyncio.gather(*(_device(device, line, True, period) for device, line in devices))
        return [one for times in found for one in times]

    asyncio.run(join())
    pipe.send("ready")
    pipe.send(asyncio.run(work(pipe.recv())))


def devices_of(relay: Relay, count: int, vaults: int) -> list[Joined]:
    """`count` devices spread over `vaults` vaults, each with an invite."""
    home = relay.top / "home"
    registry, address = Registry(home), invite.parse(relay.invite()).address
    firsts = [Device(random.Random(number)) for number in range(vaults)]
    found: list[Joined] = []
    for number in range(count):
        device = firsts[number % vaults] if number < vaults else firsts[number % vaults].second()
        device.random = random.Random(1000 + number)
        token = registry.invite(b"", "", int((time.time() + 3600) * 1000))
        found.append((device, invite.Invite(address, token, b"").line()))
    return found


def run(relay: Relay, devices: list[Joined], every: float, seconds: float) -> dict[str, float]:
    """Lets the devices work and says what came of it."""
    pid = relay.process.pid if relay.process else 0
    context = multiprocessing.get_context("fork")
    shares = [devices[first::4] for first in range(min(4, len(devices)))]
    pipes = []
    for share in shares:
        ours, theirs = context.Pipe()
        context.Process(target=_share, args=(share, theirs), daemon=True).start()
        pipes.append(ours)
    for pipe in pipes:
        assert pipe.recv() == "ready"
    before = cpu_of([pid])
    with Peak([pid]) as peak:
        for pipe in pipes:
            pipe.send((time.monotonic() + 1, every, seconds))
        times = [one for pipe in pipes for one in pipe.recv()]
    whole, commit = (sorted(one[place] for one in times) for place in (0, 1))
    cpu = cpu_of([pid]) - before
    return {
        "backups": len(times), "commit_p50_ms": _part(commit, 0.5), "commit_p99_ms": _part(commit, 0.99),
        "backup_p50_ms": _part(whole, 0.5), "backup_p99_ms": _part(whole, 0.99), "late": sum(one[2] for one in times),
        "relay_cpu_percent": 100 * cpu / seconds, "relay_cpu_ms_per_backup": 1000 * cpu / len(times),
        "relay_peak_mib": peak.mib, "relay_mib_after": anonymous_mib([pid]),
    }  # fmt: skip


def _part(ordered: list[float], share: float) -> float:
    """A percentile, ms."""
    return 1000 * ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def main() -> None:
    """Measures and prints."""
    options = argparse.ArgumentParser(prog="python -m tests.bench.fleet")
    options.add_argument("--devices", type=int, default=200)
    options.add_argument("--vaults", type=int, default=0, help="default: one for each device")
    options.add_argument("--every", type=float, default=10.0, help="seconds from commit to commit of a device")
    options.add_argument("--seconds", type=float, default=60.0)
    options.add_argument("--work", type=Path)
    options.add_argument("--json", type=Path)
    asked = options.parse_args()
    top = Path(tempfile.mkdtemp(prefix="contbak-fleet-", dir=asked.work))
    found: Figures = {}
    relay: Relay | None = None
    try:
        relay = Relay(top / "relay")
        relay.start()
        devices = devices_of(relay, asked.devices, asked.vaults or asked.devices)
        note_into(found)(f"{asked.devices} devices, a commit in {asked.every:g} s each",
                         run(relay, devices, asked.every, asked.seconds))  # fmt: skip
    finally:
        if relay is not None:
            relay.stop()
        shutil.rmtree(top, ignore_errors=True)
    write_json(asked.json, found)


if __name__ == "__main__":
    main()
