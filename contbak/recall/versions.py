"""The versions of one path: every state that it had, newest first.

Rules: a path is followed by name, through the directories that had these names at the time.  A commit that only
adds runs cannot have changed the path unless one of those runs holds a key that the path goes through, so most
commits cost one small lookup.  A state that cannot be read is reported as such and ends nothing.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from contbak.core.entry import DIRECTORY, Entry
from contbak.core.errors import ContbakError, FormatError, NotFound
from contbak.core.names import TOP_DIR
from contbak.core.node import Inner, Key, Leaf, decode_node
from contbak.core.timespec import Latest
from contbak.core.tree import lookup
from contbak.core.view import BARE_TOP
from contbak.recall.chunks import Chunks
from contbak.recall.snapshots import History, Located, Snapshot

_KEPT = 512
"""Decoded nodes that are kept while a history is walked."""


class Version(NamedTuple):
    """One state of a path.

    first, last   the oldest and the newest snapshot that show it, in a row
    entry         None if the path was not there, or if `error` says why it cannot be read
    """

    first: Snapshot
    last: Snapshot
    path: bytes
    entry: Entry | None
    error: ContbakError | None = None


def versions(history: History, path: bytes, device: str | None = None) -> Iterator[Version]:
    """The states of `path` (absolute, or SOURCE:path), newest first; of several sources one after the other.

    A source that never had the path gives nothing.  Raises UsageError, NotFound (no snapshots), Unreachable.
    """
    newest = history.choose(Latest(0), None, device)
    for at in history.candidates(path, newest):
        found = list(_states(history, at))
        if any(version.entry is not None or version.error is not None for version in found):
            yield from found


def _states(history: History, at: Located) -> Iterator[Version]:
    """The states of a path within one source; the oldest absence is left out."""
    walk = _Walk(history.chunks)
    open_: Version | None = None
    for one in reversed(history.of_source(at.snapshot)):
        entry, error = walk.state(one.roots, at.path)
        if open_ is not None and open_.entry == entry and open_.error is None and error is None:
            open_ = open_._replace(first=one)
            continue
        if open_ is not None:
            yield open_
        open_ = Version(one, one, at.path, entry, error)
    if open_ is not None and (open_.entry is not None or open_.error is not None):
        yield open_


class _Walk:
    """Goes from commit to older commit and looks the path up only where it may have changed."""

    def __init__(self, chunks: Chunks) -> None:
        self._chunks = chunks
        self._nodes: OrderedDict[bytes, Leaf | Inner] = OrderedDict()
        self._roots: Sequence[bytes | None] = ()
        self._keys: list[Key] = []
        self._entry: Entry | None = None
        self._sure = False

    def state(self, roots: Sequence[bytes | None], path: bytes) -> tuple[Entry | None, ContbakError | None]:
        """The entry at `path`, or why it cannot be told."""
        try:
            if not (self._sure and self._untouched(roots)):
                self._keys, self._entry = self._trace(roots, path)
        except (NotFound, FormatError) as error:
            self._sure = False
            return None, error
        self._roots, self._sure = roots, True
        return self._entry, None

    def _untouched(self, older: Sequence[bytes | None]) -> bool:
        """Whether the runs that the newer commit has beyond `older` leave all keys of the path alone."""
        if tuple(self._roots[: len(older)]) != tuple(older):
            return False
        added = self._roots[len(older) :]
        return all(lookup(run, key, self._get) is None for run in added for key in self._keys)

    def _trace(self, roots: Sequence[bytes | None], path: bytes) -> tuple[list[Key], Entry | None]:
        """The keys that decide about the path, and its entry."""
        keys: list[Key] = [(TOP_DIR, b"")]
        entry: Entry | None = self._look_up(roots, keys[0]) or BARE_TOP
        for part in filter(None, path.split(b"/")):
            if entry is None or entry.kind != DIRECTORY:
                return keys, None
            keys.append((entry.dir, part))
            entry = self._look_up(roots, keys[-1])
        return keys, entry

    def _look_up(self, roots: Sequence[bytes | None], key: Key) -> Entry | None:
        for root in reversed(roots):
            row = lookup(root, key, self._get)
            if row is not None:
                return row[1]
        return None

    def _get(self, id_: bytes) -> Leaf | Inner:
        node = self._nodes.get(id_)
        if node is None:
            node = self._nodes[id_] = decode_node(self._chunks.node(id_))
            if len(self._nodes) > _KEPT:
                self._nodes.popitem(last=False)
        else:
            self._nodes.move_to_end(id_)
        return node
