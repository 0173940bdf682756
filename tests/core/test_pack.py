"""Packs: the file is what the builder returned, its plan is right, and damage costs what it touches and no more."""

from __future__ import annotations

import random
import struct
import zlib
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from contbak.core import frame, pack
from contbak.core.crypto import Opener, OwnerKeys, Sealer, derive, digest
from contbak.core.errors import FormatError
from contbak.core.frame import DATA, NODE, Chunk
from contbak.core.pack import PackBuilder, Row, segment_log2

OWNER = OwnerKeys.from_root(bytes(range(32)))
KEYS = OWNER.writer
WRITER, SERIAL = b"writer 1", b"serial 16 bytes "
MIB = 1 << 20


def sealed(kind=DATA, *payloads, refs=()):
    ids = [KEYS.data_id(each) if kind == DATA else KEYS.node_id(refs, each) for each in payloads]
    chunks = [Chunk(id_, each, refs) for id_, each in zip(ids, payloads, strict=True)]
    return frame.encode(kind, chunks, Sealer(KEYS, b"e" * 32, 1), WRITER, b"r" * 32)


def built(frames):
    """(file, plan) of a pack of these frames."""
    builder = PackBuilder(KEYS.vault, SERIAL, WRITER)
    out = []
    for raw in frames:
        before = builder.frames
        out += builder.add(frame.parse_header(raw), raw)
        assert builder.frames == before + 1
    rest, plan = builder.finish()
    assert builder.body_len == plan.body_len
    return b"".join(out + rest), plan


def bulk(length):
    """A frame of about `length` bytes that costs nothing to make: its body is noise."""
    head = bytearray(frame.parse_header(sealed(DATA, b"x")).raw)
    struct.pack_into("<I", head, 20, length)
    head[-4:] = struct.pack("<I", zlib.crc32(head[:-4]))
    body = random.Random(length).randbytes(1 << 16) * (length // (1 << 16) + 1)
    return bytes(head) + body[:length] + struct.pack("<I", zlib.crc32(body[:length]))


def read(raw):
    """The rows of a pack as a reader gets them: by the tail, or by a search if that is damaged."""
    try:
        plan = pack.parse_plan(raw[-pack.plan_length(raw[-pack.TRAILER_LEN :]) :])
        return pack.parse_directory(raw[plan.directory_offset : plan.directory_offset + plan.directory_len])
    except FormatError:
        return pack.scan(raw)


def opened(raw, row):
    """The chunks of the frame at `row`, or None if it is damaged."""
    try:
        return frame.decode(raw[row.offset : row.offset + row.length], Opener(OWNER))
    except FormatError:
        return None


FRAMES = [sealed(DATA, b"first", b"second"), sealed(NODE, b"node", refs=(b"a" * 32,)), sealed(DATA, b"third" * 99)]


def check_plan(raw, plan):
    assert len(raw) == plan.file_len
    assert pack.parse_plan(plan.raw) == plan
    assert raw.endswith(plan.raw)
    assert pack.plan_length(raw[-pack.TRAILER_LEN :]) == len(plan.raw)
    assert plan.segment_size == 1 << segment_log2(plan.body_len)
    at = 0
    for index in range(len(plan.hashes)):
        assert plan.span(index) == (at, len(raw[at : min(at + plan.segment_size, plan.body_len)]))
        length = plan.span(index)[1]
        assert plan.verify(index, memoryview(raw)[at : at + length])
        at += length
    assert at == plan.body_len


def test_a_pack():
    raw, plan = built(FRAMES)
    check_plan(raw, plan)
    assert pack.parse_header(raw) == pack.parse_header(memoryview(raw)[:64]) == (KEYS.vault, WRITER)
    rows = read(raw)
    assert [raw[row.offset : row.offset + row.length] for row in rows] == FRAMES
    assert [(row.kind, len(row.ids)) for row in rows] == [(DATA, 2), (NODE, 1), (DATA, 1)]
    assert rows == pack.scan(raw) == pack.scan(raw[: plan.directory_offset])
    assert not plan.verify(0, raw[: plan.body_len - 1])
    assert not plan.verify(0, raw[1 : plan.body_len] + b"\0")


def test_the_root():
    raw, plan = built(FRAMES)
    body = raw[: plan.body_len]
    assert plan.hashes == (digest(body),)
    facts = struct.pack("<QQIB", plan.body_len, plan.directory_offset, plan.directory_len, 12)
    assert plan.root == derive("pack root", digest(body) + facts)
    assert built(FRAMES) == (raw, plan)
    assert built(FRAMES[:2])[1].root != plan.root


def test_an_empty_pack():
    raw, plan = built([])
    check_plan(raw, plan)
    assert read(raw) == []


@pytest.mark.parametrize("length", [15 * MIB, 16 * MIB - 600, 16 * MIB + 1, 20 * MIB, 33 * MIB])
def test_sizes(length):
    """Below 16 MiB the segments' size is chosen at the end, above it is 1 MiB; above 32 MiB there are more of them."""
    raw, plan = built([*FRAMES, bulk(length - 5000), FRAMES[0]])
    check_plan(raw, plan)
    assert len(read(raw)) == 5
    assert len(plan.hashes) <= 32 or plan.segment_log2 == 20


@pytest.mark.parametrize("segments", [2, 32])
def test_the_last_segment_may_be_whole(segments):
    spare = built([bulk(100)])[1].body_len - 100
    raw, plan = built([bulk((segments << 12) - spare)])
    assert (plan.body_len, len(plan.hashes)) == (segments << 12, segments)
    check_plan(raw, plan)


def test_frames_that_add_up():
    """Many frames, so that the 16 MiB are crossed by adding."""
    builder = PackBuilder(KEYS.vault, SERIAL, WRITER)
    raw = bulk(900_000)
    out, held = b"", 64
    for _ in range(20):
        pieces = builder.add(frame.parse_header(raw), raw)
        held += len(raw)
        if held <= 16 * MIB:
            assert pieces == []
        out += b"".join(pieces)
    rest, plan = builder.finish()
    check_plan(out + b"".join(rest), plan)


def test_the_directory_may_cross_16_mib():
    """The frames end just below, the directory carries the body beyond."""
    first = bulk(16 * MIB - 64 - 136 - 4 - 20)
    raw, plan = built([first])
    assert plan.directory_offset <= 16 * MIB < plan.body_len
    check_plan(raw, plan)


@settings(max_examples=30)
@given(st.lists(st.integers(100, 40_000), max_size=12))
def test_any_frames(lengths):
    frames = [bulk(length) for length in lengths]
    raw, plan = built(frames)
    check_plan(raw, plan)
    assert [raw[row.offset : row.offset + row.length] for row in read(raw)] == frames


def test_segment_sizes():
    assert [segment_log2(n) for n in (1, 32 << 12, (32 << 12) + 1, 16 * MIB, 16 * MIB + 1, 128 * MIB)] == [
        12, 12, 13, 19, 20, 20,
    ]  # fmt: skip


def test_too_large():
    builder = PackBuilder(KEYS.vault, SERIAL, WRITER)
    raw = bulk(40 * MIB)
    header = frame.parse_header(raw)
    for _ in range(3):
        builder.add(header, raw)
    with pytest.raises(FormatError, match="too large"):
        builder.add(header, raw)
    assert builder.finish()[1].body_len <= pack.BODY_MAX


def test_the_directory_counts(monkeypatch):
    """What is refused is what would not fit with its directory."""
    size = built(FRAMES)[1].body_len
    monkeypatch.setattr(pack, "BODY_MAX", size)
    assert built(FRAMES)[1].body_len == size
    monkeypatch.setattr(pack, "BODY_MAX", size - 1)
    with pytest.raises(FormatError, match="too large"):
        built(FRAMES)


# -- damage -----------------------------------------------------------------------------------------------------


def test_every_byte():
    """Each flipped byte is noticed, and costs the frame in which it lies, or nothing."""
    raw, plan = built(FRAMES)
    rows = read(raw)
    chunks = [opened(raw, row) for row in rows]
    chance = random.Random(1)
    for place in range(len(raw)):
        wrong = bytearray(raw)
        wrong[place] ^= 1 << chance.randrange(8)
        damaged = bytes(wrong)
        if place < plan.body_len:
            assert not plan.verify(0, damaged[: plan.body_len])
        else:
            with pytest.raises(FormatError):
                pack.parse_plan(damaged[plan.body_len :])
        if place < pack.HEADER_LEN:
            with pytest.raises(FormatError):
                pack.parse_header(damaged)
        hit = [row.offset <= place < row.offset + row.length for row in rows]
        assert read(damaged) == rows
        assert [opened(damaged, row) for row in rows] == [
            None if each else whole for each, whole in zip(hit, chunks, strict=True)
        ]
        in_header = [row.offset <= place < row.offset + row.header_len for row in rows]
        assert pack.scan(damaged) == [row for each, row in zip(in_header, rows, strict=True) if not each]


def test_every_truncation():
    raw, plan = built(FRAMES)
    rows = read(raw)
    for length in range(len(raw)):
        short = raw[:length]
        with pytest.raises(FormatError):
            pack.parse_plan(short[plan.body_len :])
        assert read(short.ljust(pack.TRAILER_LEN)) == [row for row in rows if row.offset + row.length <= length]
        if length < pack.HEADER_LEN:
            with pytest.raises(FormatError):
                pack.parse_header(short)


def test_every_truncation_of_the_directory():
    raw, plan = built(FRAMES)
    directory = raw[plan.directory_offset : plan.body_len]
    assert len(pack.parse_directory(directory)) == 3
    for length in range(len(directory)):
        with pytest.raises(FormatError):
            pack.parse_directory(directory[:length])


# -- hostile bytes ----------------------------------------------------------------------------------------------


def trailer(**fields):
    """A plan of one segment with right checksums and whatever else is asked for."""
    values = {
        "magic": pack.END_MAGIC, "version": 1, "log2": 12, "zero": 0, "body_len": 200, "offset": 100, "length": 100,
        "count": 1, "hashes": bytes(32),
    } | fields  # fmt: skip
    hashes = values.pop("hashes")
    facts = struct.pack("<QQIB", *(values[each] for each in ("body_len", "offset", "length", "log2")))
    raw = struct.pack("<8sBBHQQII", *values.values()) + derive("pack root", hashes + facts)
    return hashes + raw + struct.pack("<I", zlib.crc32(raw))


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({"magic": b"\xf2CBKEND2"}, "damaged or missing"),
        ({"version": 2}, "update"),
        ({"log2": 13}, "impossible shape"),
        ({"log2": 255}, "impossible shape"),
        ({"body_len": 64, "offset": 0, "length": 64}, "impossible shape"),
        ({"offset": 63, "length": 137}, "impossible shape"),
        ({"offset": 99}, "impossible shape"),
        ({"count": 2}, "impossible shape"),
        ({"count": 2, "hashes": bytes(64)}, "impossible shape"),
        ({"count": 0, "hashes": b""}, "impossible shape"),
        ({"count": 2**32 - 1}, "impossible shape"),
        ({"body_len": 2**63, "offset": 2**63 - 100, "log2": 20}, "impossible shape"),
        ({"body_len": pack.BODY_MAX + 1, "offset": pack.BODY_MAX - 99, "log2": 20}, "impossible shape"),
        ({"hashes": bytes(33)}, "impossible shape"),
    ],
)
def test_each_field_of_the_trailer(fields, word):
    assert pack.parse_plan(trailer()).body_len == 200
    with pytest.raises(FormatError, match=word):
        pack.parse_plan(trailer(**fields))


def test_the_largest_plan():
    hashes = bytes(128 * 32)
    raw = trailer(body_len=pack.BODY_MAX, offset=pack.BODY_MAX - 100, log2=20, count=128, hashes=hashes)
    assert len(pack.parse_plan(raw).hashes) == 128
    assert pack.plan_length(raw[-pack.TRAILER_LEN :]) == len(raw)
    with pytest.raises(FormatError, match="impossible length"):
        pack.parse_plan(bytes(pack.PLAN_MAX + 1))


def test_plan_length_is_bounded():
    """The caller is about to read that many bytes."""
    for count in (0, 1, 128):
        assert pack.plan_length(trailer(count=count)[-pack.TRAILER_LEN :]) == pack.TRAILER_LEN + 32 * count
    for fields in ({"count": 2**32 - 1}, {"count": 200}, {"magic": b"\xf2CBKEND2"}):
        with pytest.raises(FormatError):
            pack.plan_length(trailer(**fields)[-pack.TRAILER_LEN :])
    for length in (0, 71, 73):
        with pytest.raises(FormatError):
            pack.plan_length(bytes(length))


def directory(*rows, count=None):
    raw = pack.DIRECTORY_MAGIC + struct.pack("<I", len(rows) if count is None else count) + b"".join(rows)
    return raw + digest(raw)


def row(offset=64, header_len=132, body_len=50, kind=DATA, zero=0, n=1, ids=bytes(32)):
    return struct.pack("<IIIBBH", offset, header_len, body_len, kind, zero, n) + ids


@pytest.mark.parametrize(
    "raw",
    [
        directory(count=1),
        directory(count=2**32 - 1),
        directory(row(), count=2),
        directory(row(), count=0),
        directory(row()[:-1]),
        directory(row() + b"\0"),
        directory(row(n=2)),
        directory(row(n=65535)),
        directory(row(n=0, ids=b"")),
        directory(row(n=257, ids=bytes(257 * 32))),
        directory(row(kind=4)),
        directory(row(header_len=99)),
        directory(row(header_len=frame.HEADER_MAX + 1)),
        directory(row(header_len=2**32 - 1)),
        directory(row(body_len=4)),
        directory(row(body_len=2**32 - 1)),
        directory(row(body_len=frame.BODY_MAX + 5)),
        directory(row(offset=63)),
        directory(row())[:-1],
        directory(row())[1:],
        b"",
    ],
    ids=range(21),
)
def test_hostile_directories(raw):
    assert pack.parse_directory(directory(row())) == [Row(64, 132, 50, DATA, (bytes(32),))]
    with pytest.raises(FormatError):
        pack.parse_directory(raw)


@given(st.binary(max_size=200))
def test_any_bytes(raw):
    reads = (pack.parse_plan, pack.plan_length, pack.parse_header, pack.parse_directory)
    for read_ in reads:
        for each in (raw, pack.MAGIC + raw, pack.DIRECTORY_MAGIC + raw):
            with suppress(FormatError):
                read_(each)
    assert pack.scan(raw) == []


def test_the_header():
    raw = built([])[0]
    newer = bytearray(raw[:60])
    newer[8] = 2
    with pytest.raises(FormatError, match="update"):
        pack.parse_header(bytes(newer) + struct.pack("<I", zlib.crc32(newer)))
    other = bytearray(raw[:60])
    other[0] ^= 1
    with pytest.raises(FormatError, match="damaged or missing"):
        pack.parse_header(bytes(other) + struct.pack("<I", zlib.crc32(other)))
    for serial in (b"", bytes(15), bytes(17)):
        with pytest.raises(FormatError):
            PackBuilder(KEYS.vault, serial, WRITER)


def test_every_pack_is_another_file():
    builder = PackBuilder(KEYS.vault, b"other 16 bytes !", WRITER)
    builder.add(frame.parse_header(FRAMES[0]), FRAMES[0])
    assert builder.finish()[1].root != built(FRAMES[:1])[1].root


def test_a_frame_beyond_the_end_is_not_found():
    raw, _ = built(FRAMES)
    rows = pack.scan(raw)
    assert pack.scan(raw[: rows[2].offset + rows[2].length - 1]) == rows[:2]
