"""What a relay does for one vault: takes packs and commits in, and says what it has.

Rules: `seal` and `commit` return only when everything is durable, in this order: bytes, names, index rows.  A
commit comes in only if all that it leads to is there.  Every call may be repeated with the same result.  Nothing
here sees another vault.  All calls block and may be made from any thread.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from threading import Lock
from zlib import crc32

from contbak.core import commit as commits
from contbak.core import pack as packs
from contbak.core.commit import NO_PREVIOUS, Signed
from contbak.core.crypto import public_of
from contbak.core.errors import AlreadyExists, FormatError, StoreError
from contbak.core.frame import Header
from contbak.core.messages import RELAY, Listed, PackInfo, Place, PlanState, Receipt, sign_receipt
from contbak.core.names import CommitId, DeviceId, PackId, VaultId
from contbak.store.posix import sync_directory
from relay.arrivals import Arrival, Arrivals
from relay.closure import Closure
from relay.index import CommitRow, Index
from relay.packfile import PackBytes, PackFile, check_sealed
from relay.problem import Problem, invalid, unknown
from relay.records import set_aside
from relay.registry import Vault
from relay.stores import Stores, pack_name

WRITER_LEN = 8
LISTED_MAX = 1_000
_REPLY_MAX = 8 << 20
_ORDER = struct.Struct("<32sQ")
_CRC = struct.Struct("<I")


def writer_of(device: bytes) -> bytes:
    """The 8 bytes by which packs name the device that wrote them."""
    return device[:WRITER_LEN]


def commit_name(vault: VaultId, device: bytes, sequence: int, commit: CommitId) -> str:
    """The name of a commit record in a store."""
    return f"{vault.hex()}/commits/{device.hex()}/{sequence:016x}-{commit.hex()}"


def order_name(vault: VaultId, position: int) -> str:
    """The name of the note that says which commit was accepted at `position`."""
    return f"{vault.hex()}/order/{position:016x}"


def order_note(commit: CommitId, received_ms: int) -> bytes:
    """The bytes of such a note."""
    body = _ORDER.pack(commit, received_ms)
    return body + _CRC.pack(crc32(body))


def parse_order(raw: bytes) -> tuple[CommitId, int]:
    """(commit, received_ms).  Raises FormatError."""
    if len(raw) != _ORDER.size + _CRC.size or _CRC.unpack_from(raw, _ORDER.size)[0] != crc32(raw[: _ORDER.size]):
        raise FormatError("a note of the order of acceptance is damaged")
    commit, received_ms = _ORDER.unpack_from(raw)
    return CommitId(commit), received_ms


class Intake:
    """One vault on this relay.  clock: Unix time in ms; seed: the relay's, to sign receipts."""

    def __init__(self, record: Vault, stores: Stores, index: Index, seed: bytes, clock: Callable[[], int]) -> None:
        vault = record.id
        self.vault = vault
        self._admin_public = record.admin_public
        self.index = index
        self._stores = stores
        self._arrivals = Arrivals(stores, vault)
        self._seed = seed
        self._relay = public_of(seed)
        self._clock = clock
        self._accepting = Lock()

    def close(self) -> None:
        self._arrivals.close()
        self.index.close()

    # -- packs

    def have(self, ids: Sequence[bytes]) -> list[bool]:
        """Which of the chunk ids the vault has."""
        return self.index.have(ids)

    def plan(self, root: PackId, raw: bytes) -> PlanState:
        """Begins or resumes a pack.  Raises Problem, StoreFull."""
        try:
            plan = packs.parse_plan(raw)
        except FormatError as error:
            raise Problem(422, "mismatch", str(error)) from None
        if plan.root != root:
            raise Problem(422, "mismatch", "the plan is of another pack")
        if self._sealed(root):
            return PlanState(True, b"")
        return PlanState(False, self._arrivals.start(plan).have())

    def state(self, root: PackId) -> PlanState:
        """What is there of a pack.  Raises Problem if nothing is."""
        if self._sealed(root):
            return PlanState(True, b"")
        arrival = self._arrivals.get(root)
        if arrival is None:
            raise unknown("there is no plan of this pack")
        return PlanState(False, arrival.have())

    def segments(self, root: PackId, first: int, data: bytes | memoryview) -> int:
        """Takes whole consecutive segments from number `first` on; returns the number after them.

        Raises Problem, StoreFull.
        """
        arrival = self._arrivals.get(root)
        if arrival is not None:
            return arrival.take(first, data)
        if not self._sealed(root):
            raise Problem(409, "no-plan", "the plan of this pack must come first")
        return first

    def seal(self, root: PackId, device: DeviceId) -> None:
        """Makes the pack durable and known.  Raises Problem."""
        if self._sealed(root):
            return
        arrival = self._arrivals.get(root)
        if arrival is None:
            if self._sealed(root):  # by a twin of this request
                return
            raise Problem(409, "no-plan", "the plan of this pack must come first")
        if not arrival.complete:
            raise Problem(409, "incomplete", "not all segments are there", have=arrival.have().hex())
        with arrival.sealing:
            if self._sealed(root):
                return
            if arrival.ended:  # the seal that this one waited for failed and dropped it
                raise Problem(409, "no-plan", "the plan of this pack must come first")
            self._seal(arrival, device)
            self._arrivals.drop(arrival)

    def whole(self, root: PackId, raw: bytes, device: DeviceId) -> None:
        """Takes a small pack in one piece; durable and known on return.  Raises Problem, StoreFull."""
        if self._sealed(root):
            return
        plan = self._plan_of(root, raw)
        try:
            contents = check_sealed(PackBytes(raw), plan, self.vault, writer_of(device))
        except FormatError as error:
            raise invalid(str(error)) from None
        name = pack_name(self.vault, root)
        standing = self._standing(name)
        if standing is not None:
            sync_directory(standing.parent)
        else:
            with suppress(AlreadyExists):  # by a twin of this request, and then it is durable
                self._stores.put_new(name, raw)
        self.index.add_pack(root, contents)

    def _plan_of(self, root: PackId, raw: bytes) -> packs.Plan:
        """The plan of a pack whose bytes it describes.  Raises Problem."""
        with PackBytes(raw) as file:
            try:
                plan = file.plan()
            except FormatError as error:
                raise Problem(422, "mismatch", str(error)) from None
            if plan.root != root:
                raise Problem(422, "mismatch", "the bytes are of another pack")
            for index in file.check_segments(plan):
                raise Problem(422, "mismatch", f"segment {index} is not what the plan says")
        return plan

    def _seal(self, arrival: Arrival, device: DeviceId) -> None:
        plan, name = arrival.plan, pack_name(self.vault, arrival.plan.root)
        standing = self._standing(name)
        try:
            contents = check_sealed(PackFile(standing or arrival.path), plan, self.vault, writer_of(device))
        except FormatError as error:
            self._arrivals.drop(arrival)
            raise invalid(str(error)) from None
        if standing is None:
            with suppress(AlreadyExists):  # it came whole meanwhile, and then it is durable
                self._adopt(arrival, name)
        else:
            sync_directory(standing.parent)
        self.index.add_pack(plan.root, contents)

    def _adopt(self, arrival: Arrival, name: str) -> None:
        try:
            arrival.sync()
        except StoreError:  # the kernel may have dropped the bytes: they must come again, into a new file
            self._arrivals.drop(arrival)
            raise
        arrival.store.adopt(name, arrival.path)

    def _standing(self, name: str) -> Path | None:
        """The pack in its place, if an earlier seal came so far; a damaged one there is set aside."""
        store = self._stores.find(name)
        if store is None:
            return None
        path = store.path_of(name)
        try:
            with PackFile(path) as file:
                if next(file.check_segments(file.plan()), None) is None:
                    return path
        except FormatError:
            pass
        set_aside(path, store.root, "damaged, and replaced by a whole one")
        return None

    def _sealed(self, root: PackId) -> bool:
        row = self.index.pack(root)
        return row is not None and not row.damaged

    # -- commits

    def commit(self, raw: bytes, device: DeviceId) -> bytes:
        """Accepts a commit; returns the signed receipt.  Raises Problem."""
        try:
            signed = commits.decode(raw)
            commits.check_vouched(signed, self._admin_public)
        except FormatError as error:
            raise invalid(str(error)) from None
        if signed.commit.vault != self.vault or signed.device != device:
            raise invalid("the commit names another vault or another device")
        row = self.index.commit(signed.id)
        if row is not None:
            return self._receipt(row)
        self._check_chain(signed)
        closed = self._check_closure(signed)
        with self._accepting:
            row = self.index.commit(signed.id)
            if row is None:
                self._check_chain(signed)
                row = self._accept(signed, closed)
        return self._receipt(row)

    def receipt(self, commit: CommitId) -> bytes:
        """The signed receipt of a commit that was accepted.  Raises Problem."""
        row = self.index.commit(commit)
        if row is None:
            raise unknown("this relay has no such commit")
        return self._receipt(row)

    def _check_chain(self, signed: Signed) -> None:
        head = self.index.head(signed.device)
        previous = NO_PREVIOUS if head is None else head.id
        if signed.commit.previous == previous and (head is None or signed.commit.sequence > head.sequence):
            return
        facts = None
        if head is not None:
            facts = {"incarnation": head.incarnation.hex(), "sequence": head.sequence, "commit": head.id.hex()}
        raise Problem(409, "head", "the commit does not continue the device's newest one", head=facts)

    def _check_closure(self, signed: Signed) -> set[bytes]:
        """The new nodes from which everything is there.  Raises Problem if anything is not."""
        closure = Closure(self.index, self._header)
        try:
            missing = closure.missing(signed.roots)
        except FormatError as error:
            raise invalid(str(error)) from None
        if missing:
            raise Problem(
                409, "missing", "the commit leads to chunks that are not here", missing=[id_.hex() for id_ in missing]
            )
        return closure.closed

    def _header(self, place: Place) -> Header:
        with PackFile(self.pack_path(PackId(place.pack))) as file:
            return file.header(place.offset)

    def _accept(self, signed: Signed, closed: set[bytes]) -> CommitRow:
        received_ms = self._clock()
        last = self.index.last_position()
        name = commit_name(self.vault, signed.device, signed.commit.sequence, signed.id)
        try:
            self._stores.put_new(name, signed.raw)
        except AlreadyExists:
            if self._stores.get(name) != signed.raw:
                raise
        position, received_ms = self._note(signed.id, last + 1, received_ms)
        commit = signed.commit
        row = CommitRow(signed.id, position, received_ms, signed.device, commit.sequence, commit.incarnation)
        self.index.add_commit(row, closed)
        return row

    def _note(self, commit: CommitId, position: int, received_ms: int) -> tuple[int, int]:
        """Notes the commit at the first free position from `position` on; says where and when it stands."""
        while True:
            name = order_name(self.vault, position)
            try:
                self._stores.put_new(name, order_note(commit, received_ms))
                return position, received_ms
            except AlreadyExists:  # of this commit or another that did not come to its index rows
                with suppress(FormatError):
                    noted, when = parse_order(self._stores.get(name))
                    if noted == commit:
                        return position, when
                position += 1

    def _receipt(self, row: CommitRow) -> bytes:
        receipt = Receipt(1, self._relay, self.vault, row.id, RELAY, row.position, row.received_ms)
        return sign_receipt(receipt, self._seed)

    # -- reading

    def listed(self, after: int) -> list[Listed]:
        """The commits accepted after position `after`, oldest first; not all, if they are many."""
        found: list[Listed] = []
        size = 0
        for row in self.index.commits_after(after, LISTED_MAX):
            raw = self._stores.get(commit_name(self.vault, row.device, row.sequence, row.id))
            size += len(raw)
            if found and size > _REPLY_MAX:
                break
            found.append(Listed(row.position, RELAY, row.received_ms, raw))
        return found

    def locate(self, ids: Sequence[bytes]) -> list[tuple[Place, ...]]:
        """The places of each id."""
        return self.index.places(ids)

    def packs(self, after: bytes) -> list[PackInfo]:
        """Sealed packs in the order of their ids, from the one behind `after` on; at most LISTED_MAX."""
        return self.index.packs_after(after, LISTED_MAX)

    def pack_path(self, root: PackId) -> Path:
        """The file of a sealed pack.  Raises NotFound."""
        return self._stores.path_of(pack_name(self.vault, root))
