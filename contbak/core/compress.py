"""Compression of a frame's payload: the only door to zstandard.

Rules: data that does not shrink by at least one part in 32 is kept as it is.  Every call has a context of its own:
one that two threads share gives wrong bytes or kills the process, and a new one costs some 30 us.
"""

from __future__ import annotations

import zstandard

from contbak.core.errors import FormatError

RAW = 0
ZSTD = 2
_PARAMETERS = zstandard.ZstdCompressionParameters(
    strategy=zstandard.STRATEGY_DFAST, window_log=20, hash_log=16, chain_log=15, min_match=5, write_content_size=True
)
"""The method of zstd's level 3 with tables that stay in the processor's cache: its size, to 0.2 %, at the cost of
level 2.  No part of the format: a reader needs none of it."""


def compressor() -> zstandard.ZstdCompressor:
    """One for a single call."""
    return zstandard.ZstdCompressor(compression_params=_PARAMETERS)


def squeeze(data: bytes) -> tuple[int, bytes]:
    """(codec, bytes) for `data`; codec is RAW or ZSTD."""
    small = compressor().compress(data)
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
