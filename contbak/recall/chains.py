"""The chains of a vault's devices: putting commits in order, and finding what is wrong with them.

Rules: a device's commits follow one another by the hash of the record before; so a record that is missing in
between shows as a gap, a cloned machine or a rolled back disk as a fork.  Witnesses, the newest commits of other
devices that a commit names, show what a relay has dropped from an end.  Pure: it reads no store.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from contbak.core.commit import NO_PREVIOUS, Details, Signed
from contbak.core.messages import Listed


class Link(NamedTuple):
    """One verified commit."""

    signed: Signed
    details: Details
    listed: Listed

    @property
    def time_ms(self) -> int:
        """When it was made: by the device's clock, but not after it was received."""
        made, received = self.signed.commit.time_ms, self.listed.received_ms
        return min(made, received) if received else made


def in_order(links: Iterable[Link]) -> list[Link]:
    """By time, and never against a device's own chain."""
    moments: dict[bytes, int] = {}
    keyed = []
    for number, link in enumerate(_chained(links)):
        moment = max(link.time_ms, moments.get(link.signed.commit.previous, link.time_ms))
        moments[link.signed.id] = moment
        keyed.append(((moment, number), link))
    return [link for _, link in sorted(keyed, key=lambda pair: pair[0])]


def problems_of(links: Sequence[Link]) -> list[str]:
    """Gaps, forks, falling numbers, and commits that others have seen and that are not there."""
    by_id: dict[bytes, Link] = {link.signed.id: link for link in links}
    followed: dict[tuple[bytes, bytes], list[Link]] = {}
    out = []
    for link in links:
        record = link.signed.commit
        followed.setdefault((record.device, record.previous), []).append(link)
        before = by_id.get(record.previous)
        if record.previous == NO_PREVIOUS:
            continue
        if before is None or before.signed.device != record.device:
            out.append(f"{_who(link)}: the commit before {_short(link.signed.id)} is missing")
        elif before.signed.commit.sequence >= record.sequence:
            out.append(f"{_who(link)}: the number of commit {_short(link.signed.id)} does not rise")
    for group in followed.values():
        if len(group) > 1:
            ids = " and ".join(_short(link.signed.id) for link in group)
            out.append(f"{_who(group[0])}: its history forks: {ids} follow the same commit; was it cloned?")
    return out + list(_unseen(links, set(by_id)))


def _unseen(links: Iterable[Link], known: set[bytes]) -> Iterator[str]:
    told: set[bytes] = set()
    for link in links:
        for witness in link.signed.commit.witnesses:
            if witness.commit not in known and witness.commit not in told:
                told.add(witness.commit)
                yield (
                    f"{_who(link)} has seen commit {_short(witness.commit)} (number {witness.sequence}) of device "
                    f"{witness.device.hex()}, and it is missing here"
                )


def _chained(links: Iterable[Link]) -> Iterator[Link]:
    """Each record after the one it follows; otherwise by time and place."""
    by_previous: dict[bytes, list[Link]] = {}
    known = set()
    for link in links:
        by_previous.setdefault(link.signed.commit.previous, []).append(link)
        known.add(link.signed.id)
    starts = [link for previous, group in by_previous.items() if previous not in known for link in group]
    ready = sorted(starts, key=_newest_first)
    while ready:
        link = ready.pop()
        yield link
        ready += sorted(by_previous.get(link.signed.id, ()), key=_newest_first)


def _newest_first(link: Link) -> tuple[int, int]:
    return (-link.listed.position, -link.time_ms)


def _who(link: Link) -> str:
    return f"{link.details.host} ({link.signed.device.hex()[:8]})"


def _short(id_: bytes) -> str:
    return id_.hex()[:12]
