"""What the main process and a worker say to each other, and how it crosses a pipe.

A message is its length (4 bytes, little-endian) and one MessagePack record in an envelope.  File content never
crosses.  To a worker go Setup (once), Job, Claimed and Close; from it come Begun, Claim, Finished, Read, Returned,
Free, Closed and Broken.  The end of the pipe ends the worker.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Protocol, TypeAlias

from contbak.core import codec
from contbak.core.codec import Record
from contbak.core.entry import Entry
from contbak.core.errors import ContbakError, SourceError, StoreError, StoreFull, Unsettled, Vanished
from contbak.core.names import TOP_DIR
from contbak.upload.bundle import Packed, Seal

LENGTH = struct.Struct("<I")
MESSAGE_MAX = 64 << 20
LOT_MAX = 1 << 16
"""Files in one lot."""


class ReadResult(Protocol):
    """What a reader tells of a file that it has read (capture/reader)."""

    @property
    def entry(self) -> Entry: ...
    @property
    def fingerprint(self) -> bytes: ...
    @property
    def length(self) -> int: ...
    @property
    def attempts(self) -> int: ...
    @property
    def database(self) -> bool: ...
    @property
    def torn(self) -> bool: ...


class Reader(Protocol):
    """Reads files in windows.  See capture/reader for the contract; upload gets it handed in."""

    def read(
        self,
        path: bytes,
        consume: Callable[[memoryview, bool], int],
        on_restart: Callable[[], None],
        *,
        allow_torn: bool = False,
        align: int = 1,
    ) -> ReadResult: ...


class Setup(Record, frozen=True, array_like=True, forbid_unknown_fields=True, tag="setup"):
    """How a worker works.

    spool    directory of the spool
    reader   "module:callable" that makes the Reader; called with `scratch`
    scratch  directory for copies of databases that are in use, nil for none
    nice     added to the process's niceness, 0 to 19
    """

    seal: Seal
    spool: str
    reader: str
    scratch: str | None = None
    nice: int = 0


class Asked(Record, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A file to read.  path: absolute, raw bytes; dir_id: of the directory that it is in."""

    path: bytes
    dir_id: bytes = TOP_DIR

    @property
    def name(self) -> bytes:
        """The last part of the path."""
        return self.path[self.path.rfind(b"/") + 1 :]


class Job(Record, frozen=True, array_like=True, forbid_unknown_fields=True, tag="job"):
    """Read this lot of files, 1 to LOT_MAX."""

    number: int
    files: tuple[Asked, ...]
    allow_torn: bool


class Claimed(Record, frozen=True, array_like=True, forbid_unknown_fields=True, tag="claimed"):
    """The answer to a Claim: bit i says that the worker must store the i-th id of all, in order."""

    bits: bytes


class Close(Record, frozen=True, array_like=True, forbid_unknown_fields=True, tag="close"):
    """Close the open packs."""

    number: int


class Claim(Record, frozen=True, array_like=True, forbid_unknown_fields=True, tag="claim"):
    """Which of these must I store?  (job, ids joined) for each file."""

    parts: tuple[tuple[int, bytes], ...]


class Finished(Record, frozen=True, array_like=True, forbid_unknown_fields=True, tag="finished"):
    """A pack is in the spool."""

    packed: Packed


class Done(Record, frozen=True, array_like=True, forbid_unknown_fields=True, tag="done"):
    """A file was read; when the lot is reported, all that this worker stored of it is in finished packs.

    raw          the encoded Entry, with its content; a tree may hold it under the file's directory and name
    fingerprint  of the stat; while the file has it, it need not be read again
    length       bytes read; new_bytes: how many of them this worker stored anew for this file
    attempts     how often it was read
    database     the data is SQLite's own copy
    torn         the copy may mix several states
    """

    raw: bytes
    fingerprint: bytes
    length: int
    new_bytes: int
    attempts: int = 1
    database: bool = False
    torn: bool = False

    @property
    def entry(self) -> Entry:
        """The entry, decoded.  Raises FormatError."""
        return codec.decode_own(self.raw, Entry, "an entry")


class Unread(Record, frozen=True, array_like=True, forbid_unknown_fields=True, tag="unread"):
    """A file could not be read.  `kind`: see `error_of`."""

    kind: str
    reason: str


class Begun(Record, frozen=True, array_like=True, forbid_unknown_fields=True, tag="begun"):
    """The worker has begun to read this lot."""

    job: int


class Read(Record, frozen=True, array_like=True, forbid_unknown_fields=True, tag="read"):
    """What became of a lot, in the order of its files."""

    job: int
    outcomes: tuple[Done | Unread, ...]


class Returned(Record, frozen=True, array_like=True, forbid_unknown_fields=True, tag="returned"):
    """A large file keeps this worker busy; these jobs are for others, and no more until it is Free."""

    jobs: tuple[int, ...]


class Free(Record, frozen=True, array_like=True, forbid_unknown_fields=True, tag="free"):
    """The large file has been read."""


class Closed(Record, frozen=True, array_like=True, forbid_unknown_fields=True, tag="closed"):
    """The open packs are closed and reported."""

    number: int


class Broken(Record, frozen=True, array_like=True, forbid_unknown_fields=True, tag="broken"):
    """The worker cannot go on and ends; what it had not reported is lost.  `kind`: see `error_of`."""

    kind: str
    reason: str


Order: TypeAlias = Setup | Job | Claimed | Close
Report: TypeAlias = Claim | Finished | Begun | Read | Returned | Free | Closed | Broken


class _OrderEnvelope(Record, frozen=True, array_like=True, forbid_unknown_fields=True):
    body: Order


class _ReportEnvelope(Record, frozen=True, array_like=True, forbid_unknown_fields=True):
    body: Report


def pack_order(order: Order) -> bytes:
    """The bytes of an order, length first."""
    raw = codec.encode(_OrderEnvelope(order))
    return LENGTH.pack(len(raw)) + raw


def pack_report(report: Report) -> bytes:
    """The bytes of a report, length first."""
    raw = codec.encode(_ReportEnvelope(report))
    return LENGTH.pack(len(raw)) + raw


def parse_order(raw: bytes) -> Order:
    """The order in `raw` (without its length).  Raises FormatError."""
    return codec.decode_own(raw, _OrderEnvelope, "an order to a worker").body


def parse_report(raw: bytes) -> Report:
    """The report in `raw` (without its length).  Raises FormatError."""
    return codec.decode_own(raw, _ReportEnvelope, "a worker's report").body


_SOURCE_KINDS = {"vanished": Vanished, "unsettled": Unsettled, "source": SourceError}
_OTHER_KINDS = {"full": StoreFull, "store": StoreError}


def kind_of(error: ContbakError) -> str:
    """The word for the class of `error`."""
    for kind, cls in (_SOURCE_KINDS | _OTHER_KINDS).items():
        if isinstance(error, cls):
            return kind
    return "other"


def error_of(kind: str, path: bytes, reason: str) -> ContbakError:
    """The error that `kind_of` named."""
    if kind in _SOURCE_KINDS:
        return _SOURCE_KINDS[kind](path, reason)
    return _OTHER_KINDS.get(kind, ContbakError)(reason)
