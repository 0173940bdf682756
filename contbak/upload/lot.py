"""What a worker knows of the files that it is reading, and of the lots that they came in."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import NamedTuple

from contbak.core import codec
from contbak.core.chunker import block_size, is_image
from contbak.core.crypto import Hasher, WriterKeys, digest
from contbak.core.entry import Content
from contbak.core.errors import FormatError
from contbak.core.frame import Chunk
from contbak.core.node import Node, check_entry
from contbak.core.spanlist import SpanListWriter
from contbak.upload import orders
from contbak.upload.orders import Asked, Done, Job, ReadResult, Unread


class Lot:
    """A job under way.

    data, nodes  how many chunks of each sort were added to the packs when the last of the lot's own was
    """

    def __init__(self, job: Job) -> None:
        self.job = job
        self.outcomes: list[Done | Unread | None] = [None] * len(job.files)
        self.open = len(job.files)
        self.data = 0
        self.nodes = 0

    def close(self, index: int, outcome: Done | Unread) -> None:
        """This is what became of a file."""
        self.outcomes[index] = outcome
        self.open -= 1

    def report(self) -> orders.Read:
        """All of it, once nothing is open."""
        return orders.Read(self.job.number, tuple(outcome for outcome in self.outcomes if outcome is not None))


class File:
    """One file of a lot while it is read."""

    __slots__ = (
        "_content",
        "_emit",
        "_hasher",
        "_keys",
        "_length",
        "_list",
        "block",
        "index",
        "lot",
        "new_bytes",
        "windows",
    )

    def __init__(self, lot: Lot, index: int, keys: WriterKeys, emit: Callable[[bytes, Node], None]) -> None:
        self.lot = lot
        self.index = index
        self.windows = 0
        self.new_bytes = 0
        self.block = _block_of(lot.job.files[index])
        """Bytes of its blocks if it is a disk image, else 0."""
        self._keys = keys
        self._emit = emit
        self._length = 0
        self._content: Content | None = None
        self._hasher: Hasher | None = None
        self._list: SpanListWriter | None = None

    def restart(self) -> None:
        """What was shown so far is void."""
        self.windows = self._length = 0
        self._content = self._hasher = self._list = None

    def whole(self, data: bytes, ids: Sequence[bytes]) -> None:
        """The file is `data` and nothing else, in these chunks, or in none: then it stands in the entry itself."""
        self._content = Content(len(data), digest(data), None if ids else data, 0, tuple(ids))

    def part(self, view: memoryview, chunks: Sequence[tuple[bytes, int]]) -> None:
        """Its next bytes, in chunks (id, length)."""
        if self._hasher is None or self._list is None:
            self._hasher = Hasher()
            self._list = SpanListWriter(self._keys.node_id, self._keys.split, self._emit)
        self.windows += 1
        self._length += len(view)
        self._hasher.update(view)
        for id_, length in chunks:
            self._list.add(id_, length)

    def content(self) -> Content:
        """All that was shown."""
        if self._content is not None:
            return self._content
        assert self._hasher is not None and self._list is not None  # a copy that is accepted was shown to its end
        level, ids = self._list.finish()
        return Content(self._length, self._hasher.digest(), None, level, ids)


def _block_of(asked: Asked) -> int:
    try:
        return block_size(os.lstat(asked.path).st_size) if is_image(asked.path) else 0
    except OSError:  # the reader will say so
        return 0


class Piece(NamedTuple):
    """A chunk of a file that may have to be stored.  kind: frame.DATA or frame.NODE."""

    file: File
    kind: int
    chunk: Chunk


class Finished(NamedTuple):
    """A file that was read whole; its pieces are still to be claimed."""

    file: File
    result: ReadResult
    content: Content

    def outcome(self) -> Done | Unread:
        """What to report once its pieces are stored."""
        asked = self.file.lot.job.files[self.file.index]
        entry = codec.replaced(self.result.entry, content=self.content)
        try:
            check_entry((asked.dir_id, asked.name), entry)
            raw = codec.encode(entry)
        except FormatError as error:  # one file of impossible facts is no reason to end
            return Unread("source", f"it cannot be kept ({error})")
        result = self.result
        return Done(
            raw, result.fingerprint, result.length, self.file.new_bytes,
            result.attempts, result.database, result.torn,
        )  # fmt: skip
