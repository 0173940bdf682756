"""What the data sets are made of: real text, real programs, and noise, drawn from this machine through a seed.

The same seed on the same machine gives the same bytes.  Text and programs are files below /usr; when they are used up
they come again, with eight bytes in every 2 KiB changed, so that no set has duplicates that a home would not have.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from functools import cache

TEXT, PROGRAM, NOISE = "text", "program", "noise"
_WHERE = "/usr"
_LARGEST = 64 << 20
_PROBE = 4096
_STRIDE = 2048
_MARK = 8


@cache
def _listing(where: str) -> tuple[str, ...]:
    """All plain files that may be read, in a fixed order."""
    found = []
    for folder, folders, names in os.walk(where):
        folders.sort()
        for name in sorted(names):
            path = os.path.join(folder, name)
            if not os.path.islink(path) and os.access(path, os.R_OK):
                found.append(path)
    return tuple(found)


def _kind(head: bytes) -> str | None:
    """What a file that begins like this is good for; None: nothing."""
    if head.startswith(b"\x7fELF"):
        return PROGRAM
    if len(head) < 200 or b"\0" in head:
        return None
    odd = sum(1 for byte in head[:512] if byte < 9 or byte > 126)
    return TEXT if odd < 50 else None


class Material:
    """An endless stream of bytes of one kind."""

    def __init__(self, kind: str, seed: int) -> None:
        self.kind = kind
        self._random = random.Random(f"{kind} {seed}")
        self._files = self._forever()
        self._buffer = memoryview(b"")

    def take(self, count: int) -> bytes:
        """The next `count` bytes."""
        if self.kind == NOISE:
            return self._random.randbytes(count)
        parts = []
        while count:
            if not self._buffer:
                self._buffer = memoryview(next(self._files))
            parts.append(self._buffer[:count])
            count -= len(parts[-1])
            self._buffer = self._buffer[len(parts[-1]) :]
        return b"".join(parts)

    def _forever(self) -> Iterator[bytes]:
        paths = list(_listing(_WHERE))
        again = False
        while True:
            self._random.shuffle(paths)
            used = 0
            for path in paths:
                data = self._read(path)
                if data:
                    used += 1
                    yield self._marked(data) if again else data
            if not used:
                raise FileNotFoundError(f"{_WHERE} has no file that is {self.kind}")
            again = True

    def _read(self, path: str) -> bytes:
        try:
            with open(path, "rb", buffering=0) as file:
                if os.fstat(file.fileno()).st_size > _LARGEST:
                    return b""
                head = file.read(_PROBE)
                return head + file.read(_LARGEST) if _kind(head) == self.kind else b""
        except OSError:
            return b""

    def _marked(self, data: bytes) -> bytes:
        marked = bytearray(data)
        for start in range(0, len(data) - _MARK, _STRIDE):
            marked[start : start + _MARK] = self._random.randbytes(4).hex().encode()
        return bytes(marked)


class Mixture:
    """Streams of several kinds from one seed."""

    def __init__(self, seed: int) -> None:
        self._streams = {kind: Material(kind, seed) for kind in (TEXT, PROGRAM, NOISE)}

    def take(self, kind: str, count: int) -> bytes:
        """The next `count` bytes of `kind`."""
        return self._streams[kind].take(count)
