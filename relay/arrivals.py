"""Packs that are arriving: one file for each in a store's `incoming`, filled segment by segment.

Rules: a segment is written only after it was verified; nothing here is durable, so after a restart the bytes that
are there are verified again.  The plan stands at the end of the file from the beginning, where the sealed pack has
it.  A file that nobody added to for a week is removed: its sender still has it all.  So are abandoned ones when too
many of a vault are arriving: first those without a segment, then those idle for an hour, the oldest of them first.
"""

from __future__ import annotations

import os
import time
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from threading import Lock

from contbak.core.errors import FormatError, NotFound, PeerError, StoreFull
from contbak.core.names import PackId, VaultId
from contbak.core.pack import Plan
from contbak.core.transfer import Receiver
from contbak.store.posix import PosixStore, sync_file, translated
from relay.packfile import PackFile
from relay.problem import Problem
from relay.stores import Stores

_OPEN_MAX = 64
_ARRIVING_MAX = 256
_KEEP_S = 7 * 86_400
_BARE_S = 60.0  # a plan of which no segment came for so long is abandoned
_IDLE_S = 3600.0


class Arrival:
    """One pack on its way; may be used from any thread."""

    def __init__(self, store: PosixStore, path: Path, plan: Plan, held: Iterator[int]) -> None:
        self.store = store
        self.path = path
        self.plan = plan
        self.sealing = Lock()
        self._lock = Lock()
        self._receiver = Receiver(plan, held)
        try:
            self._fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            raise translated(error, "an arriving pack") from error

    def take(self, first: int, data: bytes | memoryview) -> int:
        """Verifies whole consecutive segments and writes those that are new; returns the number after them.

        Raises Problem, StoreError.
        """
        try:
            found = self._receiver.take(first, data)
        except PeerError as error:
            raise Problem(422, "mismatch", str(error)) from None
        with self._lock:  # also because writers of one file would wait for each other in the kernel, spinning
            if self._fd >= 0:  # else it was sealed meanwhile, so it has them all
                self._write(found)
        return first + -(-len(data) >> self.plan.segment_log2)

    def _write(self, found: list[tuple[int, memoryview]]) -> None:
        for index, piece in found:
            try:
                _write_at(self._fd, piece, self.plan.span(index)[0])
            except OSError as error:
                raise translated(error, "an arriving pack") from error
            self._receiver.written(index)

    def have(self) -> bytes:
        return self._receiver.bitmap()

    @property
    def bare(self) -> bool:
        """Whether not one segment is there."""
        return not any(self._receiver.bitmap())

    @property
    def complete(self) -> bool:
        return self._receiver.complete

    @property
    def ended(self) -> bool:
        """Whether it was sealed or dropped."""
        return self._fd < 0

    def sync(self) -> None:
        """Makes the bytes durable."""
        sync_file(self._fd)

    def close(self) -> None:
        with self._lock:
            if self._fd >= 0:
                os.close(self._fd)
            self._fd = -1


class Arrivals:
    """The packs of one vault that are arriving."""

    def __init__(self, stores: Stores, vault: VaultId) -> None:
        self._stores = stores
        self._vault = vault
        self._lock = Lock()
        self._known: OrderedDict[PackId, Arrival] = OrderedDict()
        self._bare: set[Path] = set()  # files that were closed before a segment came

    def start(self, plan: Plan) -> Arrival:
        """The arrival of the pack, begun or resumed.  Raises StoreFull, StoreError."""
        with self._lock:
            return self._find(plan.root) or self._keep(self._create(plan))

    def get(self, root: PackId) -> Arrival | None:
        """The arrival of the pack, None if it has no plan."""
        with self._lock:
            return self._find(root)

    def drop(self, arrival: Arrival) -> None:
        """Ends an arrival and removes what is left of its file."""
        with self._lock:
            self._drop(arrival.path, arrival)

    def close(self) -> None:
        with self._lock:
            for arrival in self._known.values():
                arrival.close()
            self._known.clear()

    def _find(self, root: PackId) -> Arrival | None:
        known = self._known.get(root)
        if known is not None and (known.sealing.locked() or known.path.is_file()):  # sealing takes the file away
            self._known.move_to_end(root)
            return known
        if known is not None:  # swept away
            self._drop(known.path, known)
        for store in self._stores.all():
            path = store.path_of(self._name(root))
            if path.is_file():
                resumed = _resume(store, path, root)
                if resumed is not None:
                    return self._keep(resumed)
        return None

    def _keep(self, arrival: Arrival) -> Arrival:
        self._known[arrival.plan.root] = arrival
        self._bare.discard(arrival.path)
        for root, other in list(self._known.items()):
            if len(self._known) <= _OPEN_MAX:
                break
            if other is not arrival and not other.sealing.locked():
                other.close()
                del self._known[root]
                if other.bare:  # after its end, so this stays true
                    self._bare.add(other.path)
        return arrival

    def _drop(self, path: Path, arrival: Arrival | None) -> None:
        if arrival is not None:
            if self._known.get(arrival.plan.root) is arrival:
                del self._known[arrival.plan.root]
            arrival.close()
        self._bare.discard(path)
        with suppress(FileNotFoundError):
            path.unlink()

    def _make_room(self, now: float) -> bool:
        """Drops one abandoned arrival; returns whether there was one.  now: Unix seconds."""
        known = {arrival.path: arrival for arrival in self._known.values()}
        abandoned: list[tuple[bool, float, Path]] = []
        for store in self._stores.all():
            for name, _ in store.list(self._prefix()):
                path = store.path_of(name)
                arrival = known.get(path)
                bare = path in self._bare if arrival is None else arrival.bare
                with suppress(FileNotFoundError):
                    since = path.stat().st_mtime
                    if since <= now - (_BARE_S if bare else _IDLE_S) and not (arrival and arrival.sealing.locked()):
                        abandoned.append((not bare, since, path))
        if abandoned:
            path = min(abandoned)[2]
            self._drop(path, known.get(path))
        return bool(abandoned)

    def _create(self, plan: Plan) -> Arrival:
        count = sum(self._count(store) for store in self._stores.all())
        if count >= _ARRIVING_MAX and not self._make_room(time.time()):
            raise StoreFull("too many packs of this vault are arriving; seal some first")
        for store in self._stores.roomy(plan.file_len):
            path = store.path_of(self._name(plan.root))
            try:
                path.parent.mkdir(0o700, exist_ok=True)
                _allocate(path, plan)
            except OSError as error:
                with suppress(OSError):
                    path.unlink()
                reason = translated(error, "a pack that wants to arrive")
                if isinstance(reason, StoreFull):
                    continue
                raise reason from error
            return Arrival(store, path, plan, iter(()))
        raise StoreFull("no store of this relay has room")

    def _count(self, store: PosixStore) -> int:
        return sum(1 for _ in store.list(self._prefix()))

    def _prefix(self) -> str:
        return f"incoming/{self._vault.hex()}-"

    def _name(self, root: PackId) -> str:
        return f"{self._prefix()}{root.hex()}.part"


def sweep(stores: Stores, now: float) -> int:
    """Removes the files of packs that stopped arriving long ago; returns how many.  now: Unix seconds."""
    gone = 0
    for store in stores.all():
        for name, _ in store.list("incoming/"):
            path = store.path_of(name)
            with suppress(OSError):
                if path.stat().st_mtime < now - _KEEP_S:
                    path.unlink()
                    gone += 1
    return gone


def _resume(store: PosixStore, path: Path, root: PackId) -> Arrival | None:
    try:
        with PackFile(path) as file:
            plan = file.plan()
            if plan.root != root:
                raise FormatError("the plan is of another pack")
            damaged = set(file.check_segments(plan))
    except (FormatError, NotFound):
        with suppress(OSError):  # never promised to anyone
            path.unlink()
        return None
    return Arrival(store, path, plan, (i for i in range(len(plan.hashes)) if i not in damaged))


def _allocate(path: Path, plan: Plan) -> None:
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(fd, 0, plan.file_len)
        _write_at(fd, memoryview(plan.raw), plan.body_len)
    finally:
        os.close(fd)


def _write_at(fd: int, data: memoryview, offset: int) -> None:
    while data:
        done = os.pwrite(fd, data, offset)
        data, offset = data[done:], offset + done
