"""Frames: what goes in comes out, and every changed, cut or hostile byte is a FormatError."""

from __future__ import annotations

import random
import struct
import tracemalloc
import zlib
from contextlib import suppress
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from contbak.core import compress, frame
from contbak.core.crypto import AEGIS, NONCE_LEN, SUITES, TAG_LEN, XCHACHA, Opener, OwnerKeys, Sealer, digest
from contbak.core.errors import FormatError
from contbak.core.frame import COMMIT, DATA, NODE, RUN, Chunk, padme

OWNER = OwnerKeys.from_root(bytes(range(32)))
KEYS = OWNER.writer
OTHER = OwnerKeys.from_root(bytes(range(1, 33)))
WRITER, RANDOM, EPHEMERAL = b"writer 1", b"r" * 32, b"e" * 32
FIXED = struct.Struct("<8sBBBBHHII8s32s32s")
FIELDS = "magic version suite kind flags epoch n header_len body_len writer ephemeral nonce".split()


def sealer(suite=XCHACHA, keys=KEYS):
    return Sealer(keys, EPHEMERAL, suite)


def data(*payloads):
    return [Chunk(KEYS.data_id(each), each) for each in payloads]


def node(payload, *refs):
    return Chunk(KEYS.node_id(refs, payload), payload, refs)


def crc(raw):
    return raw + struct.pack("<I", zlib.crc32(raw))


def forged(table, **fields):
    """A header with a right checksum and whatever else is asked for."""
    values = {
        "magic": frame.MAGIC, "version": 1, "suite": XCHACHA, "kind": DATA, "flags": 0, "epoch": 0, "n": 1,
        "header_len": 100 + len(table), "body_len": 64, "writer": WRITER,
        "ephemeral": sealer().ephemeral_public, "nonce": bytes(32),
    } | fields  # fmt: skip
    return crc(FIXED.pack(*(values[each] for each in FIELDS)) + table)


def sealed(plain, chunks, kind=DATA):
    """A frame of that plaintext, whatever it is."""
    table = b"".join(each.id for each in chunks)
    if kind != DATA:
        table = b"".join(each.id + struct.pack("<I", len(each.refs)) + b"".join(each.refs) for each in chunks)
    head = forged(table, kind=kind, n=len(chunks), body_len=len(plain) + TAG_LEN[XCHACHA])
    return head + crc(sealer().seal(head, bytes(32), plain))


PAYLOADS = st.binary(max_size=300) | st.builds(lambda n: b"text " * n, st.integers(0, 200))
REFS = st.lists(st.integers(0, 99), max_size=9, unique=True).map(lambda ns: tuple(b"%032d" % n for n in sorted(ns)))
SMALL = {
    DATA: data(b"first chunk", b"", b"third chunk"),
    NODE: [node(b"leaf", b"a" * 32, b"b" * 32), node(b"inner")],
    RUN: [node(b"run", b"c" * 32)],
}


@pytest.mark.parametrize("suite", SUITES)
@given(payloads=st.lists(PAYLOADS, min_size=1, max_size=20))
def test_data(suite, payloads):
    chunks = data(*payloads)
    raw = frame.encode(DATA, chunks, sealer(suite), WRITER, RANDOM)
    assert frame.decode(raw, Opener(OWNER)) == chunks
    header = frame.parse_header(memoryview(raw))
    assert header.length == len(raw)
    assert (header.suite, header.kind, header.writer, header.refs) == (suite, DATA, WRITER, ())
    assert header.ids == tuple(each.id for each in chunks)
    assert frame.header_length(raw) == len(header.raw)


@pytest.mark.parametrize(("kind", "suite"), [*product((NODE, RUN), SUITES)])
@given(nodes=st.lists(st.tuples(PAYLOADS, REFS), min_size=1, max_size=9))
def test_nodes(kind, suite, nodes):
    chunks = [node(payload, *refs) for payload, refs in nodes]
    raw = frame.encode(kind, chunks, sealer(suite), WRITER, RANDOM)
    assert frame.decode(memoryview(raw), Opener(OWNER)) == chunks
    assert frame.parse_header(raw).refs == tuple(each.refs for each in chunks)


@given(st.binary(min_size=1, max_size=400))
def test_commit_copies(record):
    raw = frame.encode_commit(record, WRITER)
    header = frame.parse_header(raw)
    assert (header.suite, header.kind, header.ids) == (frame.CLEAR, COMMIT, (digest(record),))
    assert frame.decode_commit(header, raw[len(header.raw) :]) == record
    with pytest.raises(FormatError):
        frame.decode(raw, Opener(OWNER))


def test_views_are_payloads_too():
    payload = b"some content" * 50
    raw = frame.encode(DATA, [Chunk(KEYS.data_id(payload), memoryview(payload))], sealer(), WRITER, RANDOM)
    assert frame.decode(raw, Opener(OWNER)) == data(payload)


def test_256_chunks():
    chunks = data(*(b"%d" % n for n in range(256)))
    assert frame.decode(frame.encode(DATA, chunks, sealer(), WRITER, RANDOM), Opener(OWNER)) == chunks


@pytest.mark.parametrize(("kind", "count"), [(DATA, 0), (DATA, 257), (COMMIT, 1), (4, 1)])
def test_what_no_frame_holds(kind, count):
    with pytest.raises(FormatError):
        frame.encode(kind, data(*[b"x"] * count), sealer(), WRITER, RANDOM)


# -- sizes ------------------------------------------------------------------------------------------------------


@given(st.integers(0, 2**40))
def test_padme(length):
    padded = padme(length)
    assert length <= padded <= length + length * 12 // 100 + 1
    assert padme(padded) == padded
    if length > 1:
        exponent = length.bit_length() - 1
        unit = 1 << (exponent - exponent.bit_length())
        assert padded % unit == 0
        assert padded - length < unit


def test_padme_shows_little():
    assert [padme(n) for n in (0, 1, 2, 9, 255, 257, 1000, 1025)] == [0, 1, 2, 10, 256, 272, 1024, 1088]
    assert len({padme(n) for n in range(1 << 16)}) < 1000


def test_sizes_are_padded():
    noise = random.Random(1).randbytes(10_000)
    lengths = {len(frame.encode(DATA, data(noise[:n]), sealer(), WRITER, RANDOM)) for n in range(9001, 9200)}
    assert len(lengths) <= 2


def test_too_large():
    """What could not be read is not written, however well it would compress."""
    half = bytes(frame.PLAIN_MAX // 2 - 4)
    raw = frame.encode(DATA, data(half, half), sealer(), WRITER, RANDOM)
    assert frame.decode(raw, Opener(OWNER)) == data(half, half)
    with pytest.raises(FormatError, match="too large"):
        frame.encode(DATA, data(half, half + b"x"), sealer(), WRITER, RANDOM)
    refs = tuple(n.to_bytes(32, "big") for n in range(1 << 17))
    with pytest.raises(FormatError, match="too large"):
        frame.encode(NODE, [node(b"payload", *refs)], sealer(), WRITER, RANDOM)


# -- damage -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "suite"), [*product(SMALL, SUITES)])
def test_every_byte_counts(kind, suite):
    raw = frame.encode(kind, SMALL[kind], sealer(suite), WRITER, RANDOM)
    chance = random.Random(kind)
    for place in range(len(raw)):
        for change in {1 << chance.randrange(8), 0xFF}:
            wrong = bytearray(raw)
            wrong[place] ^= change
            with pytest.raises(FormatError):
                frame.decode(bytes(wrong), Opener(OWNER))


@pytest.mark.parametrize(("kind", "suite"), [*product(SMALL, SUITES)])
def test_every_byte_counts_also_with_right_checksums(kind, suite):
    """Checksums are no protection against people; the seal is."""
    raw = frame.encode(kind, SMALL[kind], sealer(suite), WRITER, RANDOM)
    size = len(frame.parse_header(raw).raw)
    opener = Opener(OWNER)
    for place in [*range(size - 4), *range(size, len(raw) - 4)]:
        wrong = bytearray(raw)
        wrong[place] ^= 1
        with pytest.raises(FormatError):
            frame.decode(crc(wrong[: size - 4]) + crc(wrong[size:-4]), opener)


def test_every_byte_of_a_commit_copy_counts():
    raw = frame.encode_commit(b"a commit record", WRITER)
    for place in range(len(raw)):
        wrong = bytearray(raw)
        wrong[place] ^= 4
        with pytest.raises(FormatError):
            header = frame.parse_header(bytes(wrong))
            frame.decode_commit(header, bytes(wrong)[len(header.raw) :])


@pytest.mark.parametrize("kind", SMALL)
def test_every_length_but_the_right_one(kind):
    raw = frame.encode(kind, SMALL[kind], sealer(), WRITER, RANDOM)
    for length in range(len(raw)):
        with pytest.raises(FormatError):
            frame.decode(raw[:length], Opener(OWNER))
    with pytest.raises(FormatError):
        frame.decode(raw + b"\0", Opener(OWNER))


@given(st.binary(max_size=300))
def test_any_bytes(raw):
    for each in (raw, frame.MAGIC + raw):
        for read in (frame.parse_header, frame.header_length):
            with suppress(FormatError):
                read(each)


@settings(max_examples=200)
@given(
    table=st.binary(max_size=200) | st.integers(0, 9).map(lambda n: bytes(32 * n)),
    fields=st.fixed_dictionaries(
        {},
        optional={
            "version": st.integers(0, 255),
            "suite": st.integers(0, 255),
            "kind": st.integers(0, 5),
            "flags": st.integers(0, 255),
            "epoch": st.integers(0, 65535),
            "n": st.integers(0, 65535),
            "header_len": st.integers(0, 2**32 - 1),
            "body_len": st.integers(0, 2**32 - 1),
        },
    ),
)
def test_hostile_headers(table, fields):
    raw = forged(table, **fields)
    try:
        header = frame.parse_header(raw)
    except FormatError:
        return
    assert header.raw == raw
    assert 1 <= len(header.ids) <= 256
    assert 0 < header.body_len <= frame.BODY_MAX
    assert header.kind in frame.KINDS
    assert not fields.get("flags") and not fields.get("epoch")
    assert frame.header_length(raw) == len(raw)


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({"magic": b"\xf0CBKFRM2"}, "no frame"),
        ({"version": 2}, "update"),
        ({"flags": 1}, "update"),
        ({"epoch": 1}, "update"),
        ({"suite": 3}, "update"),
        ({"suite": 0}, "update"),
        ({"kind": 4}, "update"),
        ({"kind": COMMIT}, "update"),
        ({"kind": COMMIT, "suite": 0, "n": 2}, "update"),
        ({"n": 0}, "update"),
        ({"n": 257}, "update"),
        ({"n": 2}, "table"),
        ({"header_len": 99}, "cut short"),
        ({"header_len": 133}, "cut short"),
        ({"header_len": 2**32 - 1}, "cut short"),
        ({"body_len": 0}, "impossible"),
        ({"body_len": 16}, "impossible"),
        ({"body_len": frame.BODY_MAX + 1}, "impossible"),
        ({"kind": NODE}, "table"),
    ],
)
def test_each_field(fields, word):
    frame.parse_header(forged(bytes(32)))
    with pytest.raises(FormatError, match=word):
        frame.parse_header(forged(bytes(32), **fields))


@pytest.mark.parametrize(
    "table",
    [
        bytes(35),  # no room for the count
        bytes(32) + struct.pack("<I", 1),  # a reference that is not there
        bytes(32) + struct.pack("<I", 2**32 - 1) + bytes(64),
        bytes(32) + struct.pack("<I", 1) + bytes(33),
        bytes(32) + struct.pack("<I", 0) + bytes(1),
        bytes(32) + struct.pack("<I", 2) + bytes(64),  # the same twice
        bytes(32) + struct.pack("<I", 2) + b"b" * 32 + b"a" * 32,
    ],
)
@pytest.mark.parametrize("kind", [NODE, RUN])
def test_hostile_tables(kind, table):
    tracemalloc.start()
    with pytest.raises(FormatError):
        frame.parse_header(forged(table, kind=kind))
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()


def test_header_length_is_bounded():
    for length, right in ((96, False), (97, True), (frame.HEADER_MAX, True), (frame.HEADER_MAX + 1, False)):
        raw = forged(bytes(32), header_len=length)
        if right:
            assert frame.header_length(raw) == length
        else:
            with pytest.raises(FormatError):
                frame.header_length(raw)


# -- seals ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suite", SUITES)
def test_another_vault(suite):
    raw = frame.encode(DATA, SMALL[DATA], sealer(suite), WRITER, RANDOM)
    with pytest.raises(FormatError, match="another vault"):
        frame.decode(raw, Opener(OTHER))


@pytest.mark.parametrize("suite", SUITES)
def test_a_header_opens_its_own_body_only(suite):
    one = frame.encode(DATA, data(b"one"), sealer(suite), WRITER, RANDOM)
    two = frame.encode(DATA, data(b"two"), sealer(suite), WRITER, RANDOM)
    size = len(frame.parse_header(one).raw)
    assert len(one) == len(two)
    for raw in (one[:size] + two[size:], two[:size] + one[size:]):
        with pytest.raises(FormatError):
            frame.decode(raw, Opener(OWNER))


@pytest.mark.parametrize("suite", SUITES)
def test_equal_randomness_and_other_content(suite):
    """A cloned machine repeats its random numbers: the nonce must differ all the same."""
    frames = [frame.encode(DATA, data(each), sealer(suite), WRITER, RANDOM) for each in (b"one", b"two", b"one")]
    nonces = [frame.parse_header(raw).nonce for raw in frames]
    assert nonces[0] != nonces[1]
    assert frames[0] == frames[2]
    assert nonces[0][NONCE_LEN[suite] :] == bytes(32 - NONCE_LEN[suite])
    assert frame.parse_header(frame.encode(DATA, data(b"one"), sealer(suite), WRITER, b"q" * 32)).nonce != nonces[0]


@pytest.mark.parametrize(
    ("plain", "word"),
    [
        (b"", "impossible length"),
        (b"\0\1\0\0", "too short"),
        (struct.pack("<BI", 0, 100) + bytes(8), "impossible length"),
        (struct.pack("<BI", 0, 2**32 - 1) + bytes(8), "impossible length"),
        (struct.pack("<BI", 0, 3) + bytes(3), "too short"),
        (struct.pack("<BII", 0, 7, 2**32 - 1) + b"one", "wrong length"),
        (struct.pack("<BII", 0, 7, 2) + b"one", "wrong length"),
        (struct.pack("<BII", 0, 7, 3) + b"two", "not what its id says"),
        (struct.pack("<BII", 9, 7, 3) + b"one", "unknown compression"),
        (struct.pack("<BII", 2, 7, 3) + b"one", "damaged"),
    ],
)
def test_a_writer_that_lies(plain, word):
    right = struct.pack("<BII", 0, 7, 3) + b"one"
    assert frame.decode(sealed(right + b"\0", data(b"one")), Opener(OWNER)) == data(b"one")
    with pytest.raises(FormatError, match=word):
        frame.decode(sealed(plain, data(b"one")), Opener(OWNER))


def test_a_small_body_that_unpacks_to_much():
    codec, small = compress.squeeze(bytes(frame.PLAIN_MAX + 1))
    with pytest.raises(FormatError, match="impossible size"):
        frame.decode(sealed(struct.pack("<BI", codec, len(small)) + small, data(b"")), Opener(OWNER))


def test_the_references_are_part_of_a_node():
    true = node(b"payload", b"a" * 32)
    plain = struct.pack("<BII", 0, 11, 7) + b"payload"
    assert frame.decode(sealed(plain, [true], NODE), Opener(OWNER)) == [true]
    with pytest.raises(FormatError, match="not what its id says"):
        frame.decode(sealed(plain, [Chunk(true.id, b"", (b"b" * 32,))], NODE), Opener(OWNER))
    # Nor is a node taken for data, or data for a node.
    with pytest.raises(FormatError, match="not what its id says"):
        frame.decode(sealed(plain, [true], DATA), Opener(OWNER))


def test_a_commit_copy_has_to_be_one():
    raw = frame.encode(DATA, SMALL[DATA], sealer(AEGIS), WRITER, RANDOM)
    header = frame.parse_header(raw)
    with pytest.raises(FormatError):
        frame.decode_commit(header, raw[len(header.raw) :])
    lie = forged(b"i" * 32, kind=COMMIT, suite=0, body_len=6) + crc(b"record")
    header = frame.parse_header(lie)
    with pytest.raises(FormatError):
        frame.decode_commit(header, lie[len(header.raw) :])


# -- search -----------------------------------------------------------------------------------------------------


def test_find():
    frames = [frame.encode(kind, SMALL[kind], sealer(), WRITER, RANDOM) for kind in SMALL]
    frames.insert(1, frame.encode_commit(b"a record", WRITER))
    raw = b"junk" + frame.MAGIC + b"junk".join(frames) + frame.MAGIC
    found = list(frame.find(raw))
    assert [raw[at : at + header.length] for at, header in found] == frames
    assert list(frame.find(memoryview(raw))) == found
    assert list(frame.find(raw, found[1][0])) == found[1:]
    # A damaged body hides nothing, a damaged header its own frame only.
    wrong = bytearray(raw)
    wrong[found[0][0] + len(frames[0]) - 5] ^= 1
    assert list(frame.find(wrong)) == found
    wrong[found[2][0] + 20] ^= 1
    assert list(frame.find(wrong)) == found[:2] + found[3:]


def test_bytes_lost_from_a_body_hide_no_other_frame():
    frames = [frame.encode(frame.DATA, SMALL[frame.DATA], sealer(), WRITER, RANDOM) for _ in range(3)]
    whole = b"".join(frames)
    cut = len(frames[0]) - 40
    found = [at for at, _ in frame.find(whole[:cut] + whole[cut + 30 :])]
    assert found == [0, len(frames[0]) - 30, len(frames[0]) + len(frames[1]) - 30]
