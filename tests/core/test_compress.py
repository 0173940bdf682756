"""Compression: round trips, no more than the limit, damage is a FormatError, and several threads at once."""

from __future__ import annotations

import random
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from contbak.core.compress import RAW, ZSTD, squeeze, unsqueeze
from contbak.core.errors import FormatError

LIMIT = 1 << 20


@given(st.binary(max_size=3000) | st.builds(lambda piece, n: piece * n, st.binary(max_size=20), st.integers(0, 500)))
def test_round_trip(data):
    codec, small = squeeze(data)
    assert codec in (RAW, ZSTD)
    assert len(small) <= len(data)
    assert unsqueeze(codec, memoryview(small), LIMIT) == data


def test_data_larger_than_the_window():
    noise = random.Random(1).randbytes(700_000)
    data = b"".join(b"line %d\n" % n for n in range(200_000)) + noise * 3
    codec, small = squeeze(data)
    assert len(small) < len(data) // 2 and unsqueeze(codec, small, len(data)) == data


def test_what_does_not_shrink_is_kept():
    noise = random.Random(1).randbytes(4096)
    assert squeeze(noise) == (RAW, noise)
    assert squeeze(b"") == (RAW, b"")
    # Just below and just above one part in 32.
    assert squeeze(noise + bytes(32))[0] == RAW
    assert squeeze(noise + bytes(1024))[0] == ZSTD


def test_unknown_codec():
    for codec in (1, 3, 255):
        with pytest.raises(FormatError):
            unsqueeze(codec, b"", LIMIT)


def test_limit():
    codec, small = squeeze(bytes(5000))
    assert unsqueeze(codec, small, 5000) == bytes(5000)
    with pytest.raises(FormatError, match="impossible size"):
        unsqueeze(codec, small, 4999)


def test_a_size_that_is_not_stated_is_refused():
    unsized = zstandard.ZstdCompressor(write_content_size=False).compress(bytes(100))
    with pytest.raises(FormatError, match="impossible size"):
        unsqueeze(ZSTD, unsized, LIMIT)


def test_extra_bytes_are_refused():
    with pytest.raises(FormatError):
        unsqueeze(ZSTD, squeeze(bytes(100))[1] + b"x", LIMIT)


@given(st.binary(max_size=60))
def test_any_bytes(raw):
    for head in (b"", zstandard.FRAME_HEADER):
        with suppress(FormatError):
            assert len(unsqueeze(ZSTD, head + raw, LIMIT)) <= LIMIT


def test_every_truncation_is_refused():
    small = squeeze(b"".join(b"line %d\n" % n for n in range(100)))[1]
    for length in range(len(small)):
        with pytest.raises(FormatError):
            unsqueeze(ZSTD, small[:length], LIMIT)


def test_several_threads():
    """A compressor or decompressor that two threads share gives wrong bytes or kills the process."""
    datas = [random.Random(n).randbytes(700) * (100 + n) for n in range(4)]
    wanted = [squeeze(data) for data in datas]

    def work(n: int) -> bool:
        return all(squeeze(datas[n]) == wanted[n] and unsqueeze(*wanted[n], LIMIT) == datas[n] for _ in range(200))

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with ThreadPoolExecutor(len(datas)) as pool:
            assert list(pool.map(work, range(len(datas)))) == [True] * len(datas)
    finally:
        sys.setswitchinterval(before)
