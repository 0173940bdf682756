"""A store in memory, for tests: the behaviour of a real one without a disk.

Keeps the rules of `base` to the letter, so that what passes here passes on a disk.  Nothing outlives the process.
"""

from __future__ import annotations

from collections.abc import Iterator
from threading import Lock

from contbak.core.errors import AlreadyExists, NotFound, StoreError, StoreFull
from contbak.store.base import Data, Store, check_name, check_range, locate, parts_of


class MemoryStore(Store):
    """Objects in a dict.  `capacity` is the bytes it takes before it is full; None is no limit."""

    def __init__(self, capacity: int | None = None) -> None:
        self.capacity = capacity
        self._objects: dict[str, bytes] = {}
        self._folders: set[str] = set()
        self._lock = Lock()

    def put_new(self, name: str, data: Data) -> None:
        check_name(name)
        whole = b"".join(parts_of(data))
        cuts = [at for at, letter in enumerate(name) if letter == "/"]
        folders = {name[:cut] for cut in cuts}
        with self._lock:
            if name in self._objects:
                raise AlreadyExists(f"{name} is already there")
            if name in self._folders or not folders.isdisjoint(self._objects):
                raise StoreError(f"{name} cannot be made: a name is both an object and a folder")
            room = self._room()
            if room is not None and len(whole) > room:
                raise StoreFull(f"there is no room for the {len(whole)} bytes of {name}")
            self._folders |= folders
            self._objects[name] = whole

    def get(self, name: str) -> bytes:
        try:
            return self._objects[check_name(name)]
        except KeyError:
            raise NotFound(f"there is no {name}") from None

    def get_range(self, name: str, offset: int, length: int) -> bytes:
        check_range(offset, length)
        whole = self.get(name)
        start, count = locate(name, offset, length, len(whole))
        return whole[start : start + count]

    def size(self, name: str) -> int:
        return len(self.get(name))

    def list(self, prefix: str) -> Iterator[tuple[str, int]]:
        with self._lock:
            found = [(name, len(whole)) for name, whole in self._objects.items() if name.startswith(prefix)]
        return iter(sorted(found))

    def delete(self, name: str) -> None:
        with self._lock:
            if self._objects.pop(check_name(name), None) is None:
                raise NotFound(f"there is no {name}")

    def free(self) -> int | None:
        return self._room()

    def _room(self) -> int | None:
        if self.capacity is None:
            return None
        return max(0, self.capacity - sum(map(len, self._objects.values())))
