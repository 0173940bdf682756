"""Small files of truth: a MessagePack record and its BLAKE3, replaced as a whole.

A damaged file is found by its checksum and never deleted: whoever reads it sets it aside with the reason.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TypeVar

from contbak.core import codec
from contbak.core.crypto import digest
from contbak.core.errors import FormatError
from contbak.store.posix import replace_file, translated

T = TypeVar("T")

SUM_LEN = 32
LOST = "lost+found"


def dump(record: object) -> bytes:
    """The bytes of a record file."""
    body = codec.encode(record)
    return body + digest(body)


def load(raw: bytes, kind: type[T], what: str) -> T:
    """The record in the bytes of a record file.  Raises FormatError, naming `what`."""
    body = raw[:-SUM_LEN]
    if len(raw) <= SUM_LEN or digest(body) != raw[-SUM_LEN:]:
        raise FormatError(f"{what} is damaged")
    return codec.decode(body, kind, what)


def read(path: Path, kind: type[T]) -> T | None:
    """The record in the file, None if there is no file.  Raises FormatError, StoreError."""
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise translated(error, str(path)) from error
    return load(raw, kind, str(path))


def write(path: Path, record: object) -> None:
    """Replaces the file; durable on return.  Raises StoreError, StoreFull."""
    replace_file(path, dump(record))


def set_aside(path: Path, top: Path, reason: str) -> Path:
    """Moves a damaged or unknown file to lost+found below `top`, with its reason; returns where it is now."""
    folder = top / LOST
    try:
        folder.mkdir(0o700, exist_ok=True)
        flat = "_".join(path.relative_to(top).parts)
        name, number = flat, 0
        while (folder / name).exists():
            number += 1
            name = f"{flat}.{number}"
        os.rename(path, folder / name)
        replace_file(folder / f"{name}.reason", f"{reason}\n".encode())
    except OSError as error:
        raise translated(error, str(path)) from error
    return folder / name
