"""Reads packs on a relay's disk: their tail for the index, all of them before they are sealed or when verified.

Rules: works on what is in clear, without keys; reads one frame at a time into one buffer, so memory does not grow
with the pack; says FormatError for damage and never mends.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from contbak.core import frame, pack
from contbak.core.errors import FormatError, NotFound
from contbak.core.names import VaultId
from contbak.store.posix import translated

METADATA_KINDS = frozenset((frame.NODE, frame.RUN, frame.COMMIT))
DATA_KINDS = frozenset((frame.DATA,))


@dataclass(frozen=True, slots=True)
class Contents:
    """What a pack says of itself.

    vault  None if the header that names it is damaged
    sound  whether header and tail are whole; with a damaged tail the rows come from a scan for frames
    """

    vault: VaultId | None
    writer: bytes
    length: int
    rows: tuple[pack.Row, ...]
    sound: bool

    @property
    def metadata(self) -> bool:
        return any(row.kind in METADATA_KINDS for row in self.rows)


class PackFile:
    """An open pack; use it with `with`."""

    def __init__(self, path: Path) -> None:
        try:
            self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            raise NotFound(f"there is no pack {path.name}") from None
        except OSError as error:
            raise translated(error, str(path)) from error
        self.length = os.fstat(self._fd).st_size
        self._buffer = memoryview(b"")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)

    def read(self, offset: int, length: int) -> bytes:
        """Exactly these bytes.  Raises FormatError if they are not there, StoreError."""
        parts, left = [], length
        while left:
            try:
                part = os.pread(self._fd, left, offset + length - left)
            except OSError as error:
                raise translated(error, "a pack") from error
            if not part:
                raise FormatError("a pack is cut short")
            parts.append(part)
            left -= len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def view(self, offset: int, length: int) -> memoryview:
        """As `read`, without a copy; good until the next call."""
        if len(self._buffer) < length:
            self._buffer = memoryview(bytearray(length))
        found, got = self._buffer[:length], 0
        while got < length:
            try:
                part = os.preadv(self._fd, [found[got:]], offset + got)
            except OSError as error:
                raise translated(error, "a pack") from error
            if not part:
                raise FormatError("a pack is cut short")
            got += part
        return found

    def plan(self) -> pack.Plan:
        """The plan at the pack's end.  Raises FormatError."""
        if self.length < pack.TRAILER_LEN:
            raise FormatError("a pack is cut short")
        length = pack.plan_length(self.read(self.length - pack.TRAILER_LEN, pack.TRAILER_LEN))
        if length > min(self.length, pack.PLAN_MAX):
            raise FormatError("a pack's trailer claims an impossible length")
        plan = pack.parse_plan(self.read(self.length - length, length))
        if plan.file_len != self.length:
            raise FormatError("a pack has the wrong length")
        return plan

    def directory(self, plan: pack.Plan) -> list[pack.Row]:
        """The rows; each frame begins where the one before ends.  Raises FormatError."""
        rows = pack.parse_directory(self.read(plan.directory_offset, plan.directory_len))
        at = pack.HEADER_LEN
        for row in rows:
            if row.offset != at:
                raise FormatError("a pack's directory does not fit its frames")
            at += row.length
        if at != plan.directory_offset or not rows:
            raise FormatError("a pack's directory does not fit its frames")
        return rows

    def header(self, row_offset: int) -> frame.Header:
        """The header of the frame at `row_offset`.  Raises FormatError."""
        start = self.read(row_offset, min(frame.FIXED_LEN, max(0, self.length - row_offset)))
        length = frame.header_length(start)
        if row_offset + length > self.length:
            raise FormatError("a frame header is cut short")
        return frame.parse_header(self.read(row_offset, length))

    def contents(self) -> Contents:
        """What the index needs, from the tail, or by a scan if the tail is damaged.

        Raises FormatError if there is no sound frame in it.
        """
        try:
            rows, sound = self.directory(self.plan()), True
        except FormatError:
            rows, sound = list(self._scan()), False
        if not rows:
            raise FormatError("there is no sound frame in the pack")
        try:
            vault, writer = pack.parse_header(self.read(0, min(self.length, pack.HEADER_LEN)))
        except FormatError:  # every frame names the writer too
            return Contents(None, self.header(rows[0].offset).writer, self.length, tuple(rows), False)
        return Contents(vault, writer, self.length, tuple(rows), sound)

    def check_frames(self, rows: list[pack.Row], writer: bytes) -> None:
        """Raises FormatError unless every frame is whole, is what its row says and is by `writer`."""
        for row in rows:
            raw = self.view(row.offset, row.length)
            header = frame.parse_header(raw[: row.header_len])
            if (len(header.raw), header.length, header.kind, header.ids) != (
                row.header_len, row.length, row.kind, row.ids,
            ):  # fmt: skip
                raise FormatError("a pack's directory does not fit its frames")
            if header.writer != writer:
                raise FormatError("a frame names another writer than its pack")
            body = raw[row.header_len :]
            if header.kind == frame.COMMIT:
                frame.decode_commit(header, body)
            else:
                frame.check_body(header, body)

    def check_segments(self, plan: pack.Plan) -> Iterator[int]:
        """The numbers of the segments that are damaged."""
        for index in range(len(plan.hashes)):
            offset, length = plan.span(index)
            if not plan.verify(index, self.view(offset, length)):
                yield index

    def _scan(self) -> Iterator[pack.Row]:
        """The frames that are whole, bodies included."""
        at = pack.HEADER_LEN
        while at < self.length:
            at = self._next_magic(at)
            if at < 0:
                return
            try:
                header = self.header(at)
                frame.check_body(header, self.read(at + len(header.raw), header.length - len(header.raw)))
            except FormatError:
                at += 1
                continue
            yield pack.Row(at, len(header.raw), header.length - len(header.raw), header.kind, header.ids)
            at += header.length

    def _next_magic(self, at: int) -> int:
        step, overlap = 1 << 20, len(frame.MAGIC) - 1
        while at < self.length:
            found = self.read(at, min(step + overlap, self.length - at)).find(frame.MAGIC)
            if found >= 0:
                return at + found
            at += step
        return -1


class PackBytes(PackFile):
    """A pack in memory."""

    def __init__(self, raw: bytes) -> None:
        self._raw = raw
        self.length = len(raw)

    def __exit__(self, *_: object) -> None:
        pass

    def read(self, offset: int, length: int) -> bytes:
        """As of a file."""
        if offset + length > self.length:
            raise FormatError("a pack is cut short")
        return self._raw[offset : offset + length]

    def view(self, offset: int, length: int) -> memoryview:
        """As of a file."""
        return memoryview(self.read(offset, length))


def check_sealed(opened: PackFile, plan: pack.Plan, vault: VaultId, writer: bytes) -> Contents:
    """Everything that can be said of a pack without keys; closes it.  Raises FormatError if any of it is wrong."""
    with opened as file:
        named_vault, named_writer = pack.parse_header(file.read(0, pack.HEADER_LEN))
        if named_vault != vault:
            raise FormatError("the pack names another vault")
        if named_writer != writer:
            raise FormatError("the pack names another writer")
        if file.plan().raw != plan.raw:
            raise FormatError("the pack's tail is not its plan")
        rows = file.directory(plan)
        kinds = {row.kind for row in rows}
        if not (kinds <= DATA_KINDS or kinds <= METADATA_KINDS):
            raise FormatError("the pack mixes data and metadata")
        file.check_frames(rows, writer)
        return Contents(vault, writer, file.length, tuple(rows), True)
