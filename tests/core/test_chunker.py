"""Chunks: the cuts are those of the whole stream however it is shown, and one change moves few of them."""

from __future__ import annotations

import importlib.util
import random
import subprocess
import sys

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from contbak.core import chunker
from contbak.core.chunker import Blocks, Chunker, ChunkSizes, block_size, check_engine, is_image
from contbak.core.errors import ContbakError

SMALL = ChunkSizes(64, 256, 1024)
TEXT = b"".join(b"%d bottles of beer on the wall\n" % (n * n) for n in range(400))
STREAMS = st.one_of(
    st.builds(lambda seed, n: random.Random(seed).randbytes(n), st.integers(0, 2**32), st.integers(0, 20_000)),
    st.builds(bytes, st.integers(0, 10_000)),
    st.builds(lambda start, n: TEXT[start : start + n], st.integers(0, 999), st.integers(0, 12_000)),
    st.builds(
        lambda seed, n: bytes(n) + random.Random(seed).randbytes(n) + bytes(n), st.integers(), st.integers(0, 3000)
    ),
)


def whole(data, sizes=SMALL):
    return Chunker(sizes).cuts(memoryview(data), True)


def windowed(data, windows, sizes=SMALL):
    """The cuts when the stream comes in pieces of `windows` bytes, again and again."""
    cutter, cuts, held, at, turn = Chunker(sizes), [], b"", 0, 0
    while True:
        step = windows[turn % len(windows)]
        turn += 1
        held += data[at : at + step]
        at += step
        final = at >= len(data)
        found = cutter.cuts(memoryview(held), final)
        cuts += found
        held = held[sum(found) :]
        if final:
            assert not held
            return cuts
        assert len(held) < sizes.max


@given(STREAMS)
@example(b"")
@example(bytes(64))
@example(bytes(65))
def test_lengths(data):
    cuts = whole(data)
    assert sum(cuts) == len(data)
    assert all(0 < cut <= SMALL.max for cut in cuts)
    assert all(cut >= SMALL.min for cut in cuts[:-1])


@settings(max_examples=300)
@given(STREAMS, st.lists(st.integers(1, 5000), min_size=1, max_size=6))
@example(TEXT, [1024])
@example(TEXT, [1025, 63])
@example(bytes(4096), [1024])
def test_windows_do_not_matter(data, windows):
    assert windowed(data, windows) == whole(data)


def test_windows_do_not_matter_at_the_default_sizes():
    data = random.Random(3).randbytes(3 << 20)
    sizes = ChunkSizes().jittered(b"k" * 32)
    assert windowed(data, [1 << 20], sizes) == windowed(data, [300_001, 7], sizes) == whole(data, sizes)


def test_the_average():
    cuts = whole(random.Random(4).randbytes(1 << 20))
    assert 200 < (1 << 20) / len(cuts) < 400


@given(st.integers(0, 2**32), st.integers(0, 60_000), st.binary(min_size=1, max_size=1))
def test_one_inserted_byte_changes_few_chunks(seed, place, byte):
    data = random.Random(seed).randbytes(60_000)

    def chunks(stream):
        at, found = 0, []
        for cut in whole(stream):
            found.append(stream[at : at + cut])
            at += cut
        return found

    before, after = chunks(data), chunks(data[:place] + byte + data[place:])
    assert len(set(after) - set(before)) <= 20 < len(before) / 5


def test_short_streams_are_one_chunk():
    assert whole(b"") == []
    for length in (1, 63, 64):
        assert whole(bytes(length)) == [length]


def test_nothing_is_cut_before_a_whole_chunk_is_in_sight():
    cutter = Chunker(SMALL)
    assert cutter.cuts(memoryview(bytes(1023)), False) == []
    assert cutter.cuts(memoryview(bytes(1024)), False) == [1024]
    # At the first place that leaves less than a whole chunk in sight, it ends.
    assert cutter.cuts(memoryview(bytes(2047)), False) == [1024]


def test_the_window_may_be_used_again():
    buffer = bytearray(TEXT[:5000])
    view = memoryview(buffer)
    assert Chunker(SMALL).cuts(view, False)
    view.release()
    buffer.extend(b"x")  # would be refused if a view were left


def test_sizes_are_moved_by_the_key():
    sizes = {ChunkSizes().jittered(b"%032d" % n) for n in range(200)}
    assert len(sizes) == 200
    for each in sizes:
        assert 14 << 10 <= each.min < 18 << 10
        assert each.avg == 64 << 10
        assert 224 << 10 < each.max <= 256 << 10
    assert ChunkSizes().jittered(b"k" * 32) == ChunkSizes().jittered(b"k" * 32)


def test_a_missing_extension_is_said(monkeypatch):
    check_engine()
    monkeypatch.setattr(chunker, "fastcdc_cy", None)
    with pytest.raises(ContbakError, match="fastcdc"):
        check_engine()
    with pytest.raises(ContbakError, match="fastcdc"):
        Chunker(SMALL)


def test_it_can_be_imported_without_the_extension(monkeypatch):
    monkeypatch.setitem(sys.modules, "fastcdc.fastcdc_cy", None)
    spec = importlib.util.spec_from_file_location("chunker_alone", chunker.__file__)
    alone = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "chunker_alone", alone)  # dataclasses look there
    spec.loader.exec_module(alone)
    assert alone.fastcdc_cy is None
    assert alone.ChunkSizes().min == 16384


def test_a_missing_extension_prints_nothing():
    program = (
        "import sys; sys.modules['fastcdc.fastcdc_cy'] = None\n"
        "from contbak.core import chunker\n"
        "assert chunker.fastcdc_cy is None\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr


@given(st.integers(1, 64), st.lists(st.binary(max_size=200)), st.integers(1, 200))
def test_blocks_are_aligned_however_the_windows_fall(size, parts, most):
    data, blocks, lengths, at = b"".join(parts), Blocks(size), [], 0
    while at < len(data):
        end = min(len(data), at + max(most, size))
        taken = blocks.cuts(memoryview(data)[at:end], end == len(data))
        lengths += taken
        at += sum(taken)
    assert lengths == [size] * (len(data) // size) + [len(data) % size] * bool(len(data) % size)


def test_what_is_an_image_and_its_blocks():
    assert is_image(b"/vm/Disk.QCOW2") and is_image(b"a.img") and not is_image(b"img") and not is_image(b"a.img.txt")
    assert [block_size(n) for n in (0, (1 << 20) - 1, 1 << 20, 64 << 30)] == [0, 0, 16384, 16384]
    assert [block_size(n) for n in ((64 << 30) + 1, 1 << 40, (1 << 40) + 1)] == [65536, 65536, 262144]
