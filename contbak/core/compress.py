"""Compression of a frame's payload: the only door to zstandard.

Rules: data that does not shrink by at least one part in 32 is kept as it is.  Every call has a context of its own:
one that two threads share gives wrong bytes or kills the process, and a new one costs some 30 us.
"""

from __future__ import annotations

import zstandard

from contbak.core.errors import FormatError

RAW = 0
ZSTD = 2
LEVEL = 1
"""zstd's fastest standard level: beyond it the disk and the line gain less than the processor loses."""


def squeeze(data: bytes, level: int = LEVEL) -> tuple[int, bytes]:
    """(codec, bytes) for `data`; codec is RAW or ZSTD."""
    small = zstandard.ZstdCompressor(level=level, write_content_size=True).compress(data)
    if len(small) + len(data) // 32 < len(data):
        return ZSTD, small
    return RAW, data


def unsqueeze(codec: int, data: bytes | memoryview, limit: int) -> bytes:
    """What `squeeze` was given.  Raises FormatError for damage, an unknown codec or more than `limit` bytes."""
    if codec == RAW:
        return bytes(data)
    if codec != ZSTD:
        raise FormatError(f"unknown compression {codec}")
    try:
        if not 0 <= zstandard.frame_content_size(data) <= limit:
            raise FormatError("compressed data claims an impossible size")
        return zstandard.ZstdDecompressor().decompress(data, max_output_size=limit, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise FormatError(f"compressed data is damaged: {error}") from None
