"""What every store can do: keep whole, immutable objects under names.

Rules: an object appears whole or not at all, is never changed, and is durable when `put_new` returns.  All calls
block (callers use threads) and may be made from any thread.  Errors are NotFound, AlreadyExists, StoreFull,
FormatError (fewer bytes than asked for), UsageError (the call is wrong) and StoreError (anything else).

Does not know what the bytes mean, keeps no index, and never overwrites.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator

from contbak.core.errors import FormatError, UsageError

MAX_NAME = 200
"""Characters of the longest name."""

Data = bytes | Iterable[bytes | memoryview]
"""The content of a new object: all of it, or its parts in order."""

_NAME = re.compile(r"(?!\.)[0-9a-z._-]+(?:/(?!\.)[0-9a-z._-]+)*")


def is_name(text: str) -> bool:
    """Whether `text` is slash-separated segments of [0-9a-z._-], none led by a dot, of at most MAX_NAME characters."""
    return len(text) <= MAX_NAME and _NAME.fullmatch(text) is not None


def check_name(name: str) -> str:
    """`name`, if it can name an object; raises UsageError if not."""
    if not is_name(name):
        raise UsageError(f"{name!r} cannot name an object")
    return name


def parts_of(data: Data) -> Iterable[bytes | memoryview]:
    """`data` as parts, also when it came as one."""
    return (data,) if isinstance(data, (bytes, bytearray, memoryview)) else data


def check_range(offset: int, length: int) -> None:
    """Raises UsageError for a range that no object can have."""
    if length < 0 or (offset < 0 and length > -offset):
        raise UsageError(f"no object has {length} bytes at {offset}")


def locate(name: str, offset: int, length: int, size: int) -> tuple[int, int]:
    """Where the range begins in an object of `size` bytes, and how many bytes long it is.

    A negative offset counts from the end and is cut to what is there; any other range must be there in full
    (FormatError).
    """
    check_range(offset, length)
    if offset < 0:
        start = max(0, size + offset)
        return start, min(length, size - start)
    if offset + length > size:
        raise FormatError(f"{name} is {size} bytes long and has no {length} bytes at {offset}")
    return offset, length


class Store(ABC):
    """A place for objects.  See the module for the rules."""

    @abstractmethod
    def put_new(self, name: str, data: Data) -> None:
        """Keeps `data` as `name`; durable on return.

        Raises AlreadyExists if a whole and durable object has that name, whatever its content; StoreFull;
        StoreError.  After an error nothing of `data` is visible.
        """

    @abstractmethod
    def get(self, name: str) -> bytes:
        """The whole object; raises NotFound."""

    @abstractmethod
    def get_range(self, name: str, offset: int, length: int) -> bytes:
        """Exactly `length` bytes from `offset` on; raises NotFound, or FormatError if they are not all there.

        A negative offset counts from the end: `get_range(name, -n, n)` is the tail of n bytes, or the whole object
        if that is shorter.
        """

    @abstractmethod
    def size(self, name: str) -> int:
        """Bytes of the object; raises NotFound."""

    @abstractmethod
    def list(self, prefix: str) -> Iterator[tuple[str, int]]:
        """(name, bytes) of every object whose name begins with `prefix`, in the order of the names.

        `prefix` is plain text and may end within a segment; "" lists all.  Objects that come or go meanwhile may
        be listed or not.
        """

    @abstractmethod
    def delete(self, name: str) -> None:
        """Removes the object, durably; raises NotFound."""

    @abstractmethod
    def free(self) -> int | None:
        """Bytes that can still be kept, or None if that is not known."""
