"""Bundles and packs: all that goes in comes out, once; every pack has its own key."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contbak.core import frame, pack
from contbak.core.crypto import AEGIS, XCHACHA, Opener, OwnerKeys, public_of
from contbak.core.errors import FormatError
from contbak.core.frame import COMMIT, DATA, NODE, RUN, Chunk
from contbak.upload import bundle
from contbak.upload.bundle import Bundler, Seal, choose_suite
from contbak.upload.spool import Spool

OWNER = OwnerKeys.from_root(bytes(32))
DEVICE = public_of(bytes(32))
SEAL = Seal(OWNER.writer, DEVICE, XCHACHA)


def data(payload):
    return Chunk(OWNER.writer.data_id(payload), payload)


def node(payload, refs=()):
    refs = tuple(sorted(refs))
    return Chunk(OWNER.writer.node_id(refs, payload), payload, refs)


def frames(spool, packed):
    """(header, raw frame) of every frame; vault, writer and directory are right."""
    raw = spool.path_of(packed.root).read_bytes()
    plan = spool.plan(packed.root)
    assert pack.parse_header(raw) == (OWNER.writer.vault, DEVICE[:8])
    rows = pack.parse_directory(raw[plan.directory_offset : plan.directory_offset + plan.directory_len])
    assert rows == pack.scan(raw[: plan.body_len])
    return [(frame.parse_header(raw[row.offset :]), raw[row.offset : row.offset + row.length]) for row in rows]


@given(sizes=st.lists(st.integers(0, 40_000), min_size=1, max_size=30), seed=st.integers(0, 9))
def test_all_that_goes_in_comes_out(tmp_path_factory, sizes, seed):
    chance = random.Random(seed)
    spool = Spool(tmp_path_factory.mktemp("spool"), 0)
    bundler = Bundler(SEAL, spool, chance.randbytes, metadata=False)
    chunks = [data(chance.randbytes(size)) for size in sizes]
    packs = [packed for chunk in chunks for packed in bundler.add(chunk)] + bundler.flush()
    assert bundler.empty and bundler.flush() == []
    assert [id for packed in packs for id in packed.ids] == [chunk.id for chunk in chunks]
    opener = Opener(OWNER)
    found = [chunk for packed in packs for _, raw in frames(spool, packed) for chunk in frame.decode(raw, opener)]
    assert [(chunk.id, chunk.payload) for chunk in found] == [(chunk.id, chunk.payload) for chunk in chunks]


def test_bundles_and_packs_have_their_sizes(tmp_path):
    chance = random.Random(1)
    spool = Spool(tmp_path, 0)
    bundler = Bundler(SEAL, spool, chance.randbytes, metadata=False)
    packs = []
    for _ in range(300):
        packs += bundler.add(data(chance.randbytes(200_000)))
    packs += bundler.flush()
    assert len(packs) == 2 and pack.TARGET <= packs[0].file_len < pack.TARGET + (2 << 20)
    for header, _ in frames(spool, packs[0]):
        assert len(header.ids) == 5 and header.suite == XCHACHA  # 1 MiB holds five of them
    keys = {header.ephemeral for packed in packs for header, _ in frames(spool, packed)}
    nonces = [header.nonce for packed in packs for header, _ in frames(spool, packed)]
    assert len(keys) == 2 and len(set(nonces)) == len(nonces)


def test_many_small_chunks(tmp_path, monkeypatch):
    monkeypatch.setattr(bundle, "CHUNKS_MAX", 600)
    spool = Spool(tmp_path, 0)
    bundler = Bundler(SEAL, spool, random.Random(1).randbytes, metadata=False)
    packs = [packed for n in range(700) for packed in bundler.add(data(b"%d" % n))] + bundler.flush()
    assert [[len(header.ids) for header, _ in frames(spool, packed)] for packed in packs] == [[256, 256, 188]]
    bundler = Bundler(SEAL, spool, random.Random(2).randbytes, metadata=False)
    packs = [packed for n in range(800) for packed in bundler.add(data(b"%d" % n))] + bundler.flush()
    assert [len(packed.ids) for packed in packs] == [768, 32]


def test_metadata_has_packs_of_its_own(tmp_path):
    spool = Spool(tmp_path, 0)
    bundler = Bundler(SEAL, spool, random.Random(1).randbytes, metadata=True)
    first, second = node(b"leaf", [b"r" * 32]), node(b"run")
    bundler.add(first, NODE)
    bundler.add(second, RUN)
    bundler.add_commit(b"a record")
    with pytest.raises(FormatError):
        bundler.add(data(b"x"), DATA)
    (packed,) = bundler.flush()
    assert packed.metadata and packed.ids == (first.id, second.id)
    found = frames(spool, packed)
    assert [header.kind for header, _ in found] == [NODE, RUN, COMMIT]
    assert found[0][0].refs == ((b"r" * 32,),)
    header, raw = found[2]
    assert frame.decode_commit(header, raw[len(header.raw) :]) == b"a record"
    files = Bundler(SEAL, spool, random.Random(1).randbytes, metadata=False)
    for call in (lambda: files.add(first, NODE), lambda: files.add_commit(b"x")):
        with pytest.raises(FormatError):
            call()
    assert files.empty


def test_nothing_of_an_aborted_pack_stays(tmp_path):
    spool = Spool(tmp_path, 0)
    bundler = Bundler(SEAL, spool, random.Random(1).randbytes, metadata=False)
    for n in range(300):
        bundler.add(data(b"%d" % n))
    assert not bundler.empty and len(list(tmp_path.iterdir())) == 1
    bundler.abort()
    assert bundler.empty and list(tmp_path.iterdir()) == [] and bundler.flush() == []


def test_the_suite_fits_the_processor():
    assert (choose_suite(True), choose_suite(False)) == (AEGIS, XCHACHA)
