"""The only door between records and bytes: MessagePack by msgspec.

Rules: positional arrays whose first element is a version; file names are bytes; integers, bytes, text,
booleans, nil and arrays only.  What is decoded must encode to the same bytes, so that no two byte strings
mean the same record.
"""

from __future__ import annotations

from typing import Any, TypeVar

import msgspec
import msgspec.structs

from contbak.core.errors import FormatError

Record = msgspec.Struct
"""Base of the records: subclass with `frozen=True, array_like=True, forbid_unknown_fields=True`."""

T = TypeVar("T")
R = TypeVar("R", bound=Record)

_encoder = msgspec.msgpack.Encoder()
_decoders: dict[Any, msgspec.msgpack.Decoder[Any]] = {}


def encode(record: object) -> bytes:
    """The one byte string of `record`.  Raises FormatError for integers beyond 64 bits and text that is no Unicode."""
    try:
        return _encoder.encode(record)
    except (OverflowError, UnicodeError) as error:
        raise FormatError(f"a record cannot be encoded: {error}") from None


def decode(raw: bytes | memoryview, kind: type[T], what: str) -> T:
    """The `kind` that `raw` encodes.

    Raises FormatError, naming `what`, if the bytes are no such record or not its canonical encoding.
    """
    record = decode_own(raw, kind, what)
    if _encoder.encode(record) != raw:
        raise FormatError(f"{what} is not in its canonical encoding")
    return record


def decode_own(raw: bytes | memoryview, kind: type[T], what: str) -> T:
    """As `decode`, for what another process of ours has just encoded: that it is canonical is not checked."""
    decoder = _decoders.get(kind)
    if decoder is None:
        decoder = _decoders[kind] = msgspec.msgpack.Decoder(kind)
    try:
        return decoder.decode(raw)  # type: ignore[no-any-return]
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise FormatError(f"{what} cannot be decoded: {error}") from None


def replaced(record: R, **fields: Any) -> R:
    """A copy of `record` in which the named fields have the given values."""
    return msgspec.structs.replace(record, **fields)
