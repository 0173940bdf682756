"""How fast a relay takes, verifies and indexes: python -m tests.bench.relay_bulk [--mb N] [--chunks N] [--clients N]

    ingest    MB/s of packs over TLS, each synced and indexed, and CPU seconds of the relay per GB
    verify    GB/s of packs that `contbak-relay verify` reads
    chunks    the same with small chunks: chunks/s that are taken, and that `contbak-relay rebuild-index` indexes

Physical bounds in the same run: writing and syncing the same bytes as files of 32 MiB, and hashing them with BLAKE3.
The clients are blocking and in processes of their own, but they share the machine's cores with the relay: the CPU of
the relay is the figure that does not depend on them.
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
import time
from pathlib import Path

from contbak.core.crypto import digest
from tests.bench.clients import Ingest, Load, ingest
from tests.bench.contbak_tool import RELAY, Relay
from tests.bench.measure import Command, bytes_below, run
from tests.bench.notes import Figures, note_into, write_json

_FILE = 32 << 20


def rates(done: Ingest) -> dict[str, float]:
    """Figures of an ingest."""
    return {
        "MB": done.bytes / 1e6, "chunks": done.chunks, "seconds": done.wall_s,
        "MB_per_s": done.bytes / 1e6 / done.wall_s, "chunks_per_s": done.chunks / done.wall_s,
        "relay_cpu_s": done.relay_cpu_s,
        "relay_cpu_s_per_GB": done.relay_cpu_s / done.bytes * 1e9,
        "relay_cpu_us_per_chunk": done.relay_cpu_s / done.chunks * 1e6, "relay_peak_mib": done.relay_peak_mib,
    }  # fmt: skip


def bound(top: Path, size: int) -> dict[str, float]:
    """MB/s of writing and syncing, and GB/s of hashing, of `size` bytes."""
    data = os.urandom(_FILE)
    started = time.monotonic()
    for number in range(max(1, size // _FILE)):
        with open(top / f"bound-{number}", "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    wrote = time.monotonic() - started
    started = time.monotonic()
    for _ in range(max(1, size // _FILE)):
        digest(data)
    hashed = time.monotonic() - started
    done = max(1, size // _FILE) * _FILE
    return {"write_and_sync_MB_per_s": done / 1e6 / wrote, "blake3_GB_per_s": done / 1e9 / hashed}


def at_rest(relay: Relay, command: str) -> dict[str, float]:
    """What one command of a relay that does not run costs."""
    used = run(Command([*RELAY, command], relay.env))
    return {"seconds": used.wall_s, "cpu_s": used.cpu_s, "peak_mib": used.peak_mib}


def main() -> None:
    """Measures and prints."""
    options = argparse.ArgumentParser(prog="python -m tests.bench.relay_bulk")
    options.add_argument("--mb", type=int, default=512, help="sent with chunks of 64 KiB, all clients together")
    options.add_argument("--chunks", type=int, default=200_000, help="of 1 KiB, all clients together")
    options.add_argument("--clients", type=int, default=4)
    options.add_argument("--work", type=Path)
    options.add_argument("--json", type=Path)
    asked = options.parse_args()
    top = Path(tempfile.mkdtemp(prefix="contbak-bulk-", dir=asked.work))
    found: Figures = {}
    note = note_into(found)
    try:
        note("bound", bound(top, asked.mb * 1_000_000))
        loads = {"large": Load(asked.mb * 1_000_000 // asked.clients, 1 << 16)}
        loads["small"] = Load(asked.chunks * 1024 // asked.clients, 1024)
        for name, load in loads.items():
            relay = Relay(top / name)
            done = ingest(relay, relay.start(), asked.clients, load)
            relay.stop()
            note(f"ingest, {name} chunks", rates(done))
            size = bytes_below(relay.store)
            verified = at_rest(relay, "verify")
            note(f"verify, {name} chunks", verified | {"GB_per_s": size / 1e9 / verified["seconds"]})
            rebuilt = at_rest(relay, "rebuild-index")
            note(f"rebuild index, {name} chunks", rebuilt | {"chunks_per_s": done.chunks / rebuilt["seconds"]})
            shutil.rmtree(relay.top)
    finally:
        shutil.rmtree(top, ignore_errors=True)
    write_json(asked.json, found)


if __name__ == "__main__":
    main()
