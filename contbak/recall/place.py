"""Where the objects of one vault are read from: a relay, or a store directory pulled out of one.

Rules: a place only reads.  It hands over bytes as they are; whoever asks verifies them.  `Unreachable` means
"ask again later", never "not there": only `NotFound` says that something is missing.

Implementations: recall/remote.py (a relay), recall/directory.py (a directory); recall/opening.py chooses.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol, TypeAlias

from contbak.core.messages import Listed, PackInfo, VaultInfo
from contbak.core.messages import Place as Spot

Read: TypeAlias = Callable[[bytes, int, int], bytes]
"""As Source.read."""


class Source(Protocol):
    """What chunks are read from.  All calls block and may be made from any thread."""

    def locate(self, ids: Sequence[bytes]) -> list[tuple[Spot, ...]]:
        """For each id (32 bytes) where its copies lie, the first to try first; empty if there is none."""
        ...

    def read(self, pack: bytes, offset: int, length: int) -> bytes:
        """Exactly `length` bytes of a pack.  Raises NotFound, or FormatError if the pack ends before."""
        ...

    def reader(self) -> Read:
        """A `read` for another process that was forked from this one: it shares no connection with this object."""
        ...


class Place(Source, Protocol):
    """One vault at one place."""

    label: str
    """What a person knows the place as: an address or a directory."""
    problems: list[str]
    """Damage that was noticed on the way and got around, one sentence each; grows while the place is used."""

    def vault(self) -> VaultInfo:
        """What is known of the vault.  Raises Unreachable."""
        ...

    def commits(self) -> Iterator[Listed]:
        """Every commit record in the order in which the relay accepted them; records may be damaged."""
        ...

    def packs(self) -> Iterator[PackInfo]:
        """Every sealed pack in the order of the ids."""
        ...

    def close(self) -> None:
        """Lets go of connections and temporary files; the place is spent."""
        ...


class Lent:
    """The source of a forked process: it reads by itself, and another says where chunks lie."""

    def __init__(self, read: Read, locate: Callable[[Sequence[bytes]], list[tuple[Spot, ...]]]) -> None:
        self._read = read
        self._locate = locate

    def locate(self, ids: Sequence[bytes]) -> list[tuple[Spot, ...]]:
        return self._locate(ids)

    def read(self, pack: bytes, offset: int, length: int) -> bytes:
        return self._read(pack, offset, length)

    def reader(self) -> Read:
        return self._read
