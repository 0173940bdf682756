"""Moves packs and commits to a peer that may vanish at any moment (docs/protocol.md).  No I/O, no clock, no network.

Rule 1: every state and every legal move is in a table; an answer that is not in it is a PeerError.
Rule 2: nothing counts as held before the shell has said so (`Receiver.written`): the promise follows the disk.
Rule 3: every request may be sent again with the same result, and answers may come in any order.
Rule 4: time comes in as an argument; a lost request is cured by `failed` or `handle_timer`, and only there.

It does not read packs, open connections or wait: the shells in upload/uplink and in the relay do.
"""

from __future__ import annotations

from collections.abc import Iterable

from contbak.core.errors import PeerError
from contbak.core.pack import Plan


def bitmap(indexes: Iterable[int], count: int) -> bytes:
    """`count` bits (bit i of byte i//8, lowest first), set for each of `indexes` (0 <= index < count)."""
    bits = bytearray(-(-count // 8))
    for index in indexes:
        bits[index >> 3] |= 1 << (index & 7)
    return bytes(bits)


def from_bitmap(bits: bytes, count: int) -> set[int]:
    """The set indexes below `count`.  Raises PeerError if `bits` has another length or bits beyond `count`."""
    if len(bits) != -(-count // 8):
        raise PeerError(f"a bitmap of {count} bits must have {-(-count // 8)} bytes, not {len(bits)}")
    if int.from_bytes(bits, "little") >> count:
        raise PeerError(f"a bitmap of {count} bits has more bits set")
    return {index for index in range(count) if bits[index >> 3] >> (index & 7) & 1}


class Receiver:
    """The relay's side of one pack: which segments are there.

    Keeps numbers, never bytes.  After a restart it is made anew; the shell passes as `held` the numbers of the
    segments whose bytes on disk it has verified against `plan`.
    """

    def __init__(self, plan: Plan, held: Iterable[int] = ()) -> None:
        self.plan = plan
        self._held: set[int] = set()
        for index in held:
            self.written(index)

    def take(self, first: int, data: bytes | memoryview) -> list[tuple[int, memoryview]]:
        """The segments in `data` that are not held yet, as (index, bytes), all of `data` verified.

        `data`: whole consecutive segments from number `first` on.  The caller writes each at `plan.span(index)`
        and then says `written(index)`.  Raises PeerError if the numbers, the lengths or a hash are wrong; then
        nothing of `data` is to be kept.
        """
        view, plan = memoryview(data), self.plan
        if not 0 <= first < len(plan.hashes) or not len(view):
            raise PeerError(f"the pack has no segments at {first}")
        found, index, at = [], first, 0
        while at < len(view):
            if index >= len(plan.hashes):
                raise PeerError("more bytes than the pack has")
            piece = view[at : at + plan.span(index)[1]]
            if not plan.verify(index, piece):
                raise PeerError(f"segment {index} is not what the plan says")
            if index not in self._held:
                found.append((index, piece))
            at += len(piece)
            index += 1
        return found

    def written(self, index: int) -> None:
        """Segment `index` is in the file.  Raises PeerError if the pack has no such segment."""
        if not 0 <= index < len(self.plan.hashes):
            raise PeerError(f"the pack has no segment {index}")
        self._held.add(index)

    def bitmap(self) -> bytes:
        """Which segments are held, as `PlanState.have` wants it."""
        return bitmap(self._held, len(self.plan.hashes))

    @property
    def complete(self) -> bool:
        """Whether every segment is held."""
        return len(self._held) == len(self.plan.hashes)
