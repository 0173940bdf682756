"""What every tool of the benchmark can do: the steps, and where it may keep things.

A tool is prepared in an empty directory, then asked for the steps in the order of STEPS; it is asked for one thing at a
time and measures itself what it is asked for.  A step that a tool does not have is None.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tests.bench.measure import Usage, bytes_below

FIRST = "first backup"
AGAIN = "no change"
WATCHED = "no change, daemon"
CHANGED = "1 % changed"
RESTORE = "restore all"
ONE = "restore one file"
VERIFY = "verify"
CHECK = "verify with keys"
STEPS = (FIRST, AGAIN, WATCHED, CHANGED, RESTORE, ONE, VERIFY, CHECK)

PASSWORD = "correct horse battery staple"


@dataclass(frozen=True)
class Place:
    """An empty directory for the tool, the tree it protects, and where other programs are."""

    top: Path
    source: Path

    @property
    def repository(self) -> Path:
        """Where it stores."""
        return self.top / "repository"

    @property
    def cache(self) -> Path:
        """Where it may cache."""
        return self.top / "cache"


class Tool:
    """One tool with one choice of options.  Steps raise CommandFailed."""

    name: str
    place: Place

    def version(self) -> str:
        """What it says it is."""
        raise NotImplementedError

    def prepare(self, place: Place) -> None:
        """Makes an empty, encrypted repository; not measured."""
        raise NotImplementedError

    def backup(self) -> Usage:
        """The source as it is now; returns when it is durable."""
        raise NotImplementedError

    def watched(self) -> Usage | None:
        """A backup of an unchanged source by a daemon that has watched it."""
        return None

    def restore(self, target: Path) -> Usage:
        """Everything of the newest backup into an empty directory."""
        raise NotImplementedError

    def restored(self, target: Path) -> Path:
        """Where in `target` the source is then."""
        return target.joinpath(*self.place.source.parts[1:])

    def one(self, path: Path, target: Path) -> Usage:
        """One file of the newest backup into an empty directory."""
        raise NotImplementedError

    def verify(self) -> Usage | None:
        """Reads everything that is stored and finds damage."""
        raise NotImplementedError

    def check(self) -> Usage | None:
        """The same with the keys, where that is another command."""
        return None

    def stored(self) -> int:
        """Bytes of the repository, without indexes that can be made again where they are apart."""
        return bytes_below(self.place.repository)

    def indexes(self) -> int:
        """Bytes of caches and indexes on both sides."""
        return bytes_below(self.place.cache)

    def close(self) -> None:
        """Ends what runs."""
