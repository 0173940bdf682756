"""Workers as real processes: what they store is what was there, once, and a death costs nothing."""

import asyncio
import os
import random
import signal
from pathlib import Path

import pytest

from contbak.capture import reader
from contbak.core import frame, pack
from contbak.core.crypto import XCHACHA, Opener, OwnerKeys, digest, public_of
from contbak.core.errors import ContbakError, FormatError, SourceError, StoreError, Vanished
from contbak.core.node import Node
from contbak.core.spanlist import spans
from contbak.upload.bundle import Seal
from contbak.upload.jobs import Failed
from contbak.upload.orders import Asked, Done, Setup
from contbak.upload.spool import Spool
from contbak.upload.workers import Workers

OWNER = OwnerKeys.from_root(bytes(32))
READER = f"{reader.__name__}:Reader"


class Backup:
    """Workers with an index that is a set, and everything in the spool decoded again by `content`."""

    def __init__(self, top, reader=READER):
        self.spool = Spool(top / "spool", 1 << 30)
        seal = Seal(OWNER.writer, public_of(bytes(32)), XCHACHA)
        self.index = set()
        self.packs = []
        self.asked = []
        self.workers = Workers(Setup(seal, str(self.spool.dir), reader), self.known, self.on_pack, 1)

    async def known(self, ids):
        self.asked += ids
        await asyncio.sleep(0)
        return [id in self.index for id in ids]

    def on_pack(self, packed):
        self.spool.check(packed.root)
        self.packs.append(packed)
        self.index.update(packed.ids)

    async def submit(self, *paths, **more):
        """The future of one lot."""
        return await self.workers.submit([Asked(os.fsencode(path)) for path in paths], **more)

    async def read(self, paths, lot=7, **more):
        """The outcomes; the files go in lots of `lot`."""
        futures = [await self.submit(*paths[at : at + lot], **more) for at in range(0, len(paths), lot)]
        await self.workers.flush()
        assert all(future.done() for future in futures) and not len(self.workers._jobs.claims)
        return [outcome for future in futures for outcome in future.result()]

    def chunks(self):
        """Every chunk in the spool: id -> Chunk; each is there once."""
        opener, found = Opener(OWNER), {}
        for packed in self.packs:
            plan = self.spool.plan(packed.root)
            raw = self.spool.read(packed.root, plan.directory_offset, plan.directory_len)
            for row in pack.parse_directory(raw):
                for chunk in frame.decode(self.spool.read(packed.root, row.offset, row.length), opener):
                    assert chunk.id not in found, "stored twice"
                    found[chunk.id] = chunk
                    assert packed.metadata == (row.kind == frame.NODE)
        return found


def content(done, chunks):
    """The bytes of a file as the vault has them."""
    whole = done.entry.content
    if whole.inline is not None:
        data = whole.inline
    else:
        get = lambda id: Node(chunks[id].refs, bytes(chunks[id].payload))  # noqa: E731
        data = b"".join(bytes(chunks[id].payload) for id, _ in spans(whole.level, whole.chunks, get))
    assert (len(data), digest(data)) == (whole.length, whole.hash)
    return data


def run(backup, count, go):
    async def whole():
        backup.workers._count = count
        await backup.workers.start()
        try:
            return await go()
        finally:
            await backup.workers.stop()

    return asyncio.run(whole())


def write(top, files):
    top.mkdir()
    for name, data in files.items():
        (top / name).write_bytes(data)
    return sorted(top.iterdir())


def test_what_is_stored_is_what_was_there(tmp_path, seed):
    chance = random.Random(seed)
    sizes = [0, 1, 255, 256, 257, 5_000, 16_384, 70_000, 262_144, 262_145, 900_000, 4 << 20, (4 << 20) + 1, 11_000_000]
    paths = write(tmp_path / "s", {f"{size:09}": chance.randbytes(size) for size in sizes})
    backup = Backup(tmp_path)
    results = run(backup, 2, lambda: backup.read(paths))
    chunks = backup.chunks()
    for path, size, done in zip(paths, sizes, results, strict=True):
        assert content(done, chunks) == path.read_bytes() and done.length == size == done.entry.size
        assert done.new_bytes == (size if size > 256 else 0) and done.fingerprint and not done.torn
        assert (done.entry.content.inline is not None) == (size <= 256)
    assert results[-1].entry.content.level == 1


def test_equal_files_are_stored_once_by_two_workers(tmp_path, seed):
    data = random.Random(seed).randbytes(3_000_000)
    paths = write(tmp_path / "s", {f"{n}": data for n in range(10)})
    backup = Backup(tmp_path)
    results = run(backup, 2, lambda: backup.read(paths))
    chunks = backup.chunks()  # asserts that none is there twice
    assert sum(done.new_bytes for done in results) == 3_000_000
    assert all(content(done, chunks) == data for done in results)


def test_what_is_known_is_not_stored_again(tmp_path, seed):
    chance = random.Random(seed)
    paths = write(tmp_path / "s", {f"{n}": chance.randbytes(n * 1000) for n in range(60)})
    backup = Backup(tmp_path)

    async def go():
        first, count = await backup.read(paths), len(backup.packs)
        assert len(backup.asked) < 200 and await backup.read(paths) == [
            Done(d.raw, d.fingerprint, d.length, 0, d.attempts, d.database) for d in first
        ]
        assert len(backup.packs) == count

    run(backup, 2, go)


@pytest.mark.slow
def test_a_byte_in_front_of_a_large_file_costs_little(tmp_path, seed):
    chance = random.Random(seed)
    path = tmp_path / "image"
    with path.open("wb") as file:
        for _ in range(256):
            file.write(chance.randbytes(1 << 20))
    backup = Backup(tmp_path)

    async def go():
        (first,) = await backup.read([path])
        assert first.new_bytes == 256 << 20
        moved = tmp_path / "moved"
        with moved.open("wb") as file, path.open("rb") as old:
            file.write(b"!")
            while part := old.read(1 << 20):
                file.write(part)
        path.unlink()
        before = sum(packed.file_len for packed in backup.packs)
        (second,) = await backup.read([moved])
        assert 0 < second.new_bytes <= 1 << 20
        assert sum(packed.file_len for packed in backup.packs) - before <= 1 << 20

    run(backup, 2, go)


def test_a_disk_image_costs_the_blocks_that_changed(tmp_path, seed):
    """Also where a write filled a hole, which moves all that follows in the stream of data."""
    chance = random.Random(seed)
    path = tmp_path / "disk.img"
    with path.open("wb") as file:
        file.truncate(64 << 20)
        for at in range(0, 64 << 20, 4 << 20):
            file.seek(at + 8192)
            file.write(chance.randbytes(1 << 20))
    backup = Backup(tmp_path)

    async def go():
        (first,) = await backup.read([path])
        assert all(at % 16384 == 0 and length % 16384 == 0 for at, length in first.entry.extents)
        with path.open("r+b") as file:
            for at in (12_288, 2 << 20, (36 << 20) + 4096):  # in data, in a hole, in a hole beside data
                file.seek(at)
                file.write(chance.randbytes(4096))
        (second,) = await backup.read([path])
        assert 0 < second.new_bytes <= 3 * 16384
        data, chunks, whole = path.read_bytes(), backup.chunks(), bytearray(64 << 20)
        rest = content(second, chunks)
        for at, length in second.entry.extents:
            whole[at : at + length], rest = rest[:length], rest[length:]
        assert bytes(whole) == data

    run(backup, 1, go)


def test_one_bad_file_stops_no_other(tmp_path, seed):
    paths = write(tmp_path / "s", {"a": b"1" * 1000, "c": b"2" * 1000})
    backup = Backup(tmp_path)
    a, gone, c, folder = run(backup, 1, lambda: backup.read([paths[0], tmp_path / "gone", paths[1], tmp_path / "s"]))
    assert isinstance(a, Done) and isinstance(c, Done)
    assert isinstance(gone, Failed) and isinstance(gone.error, Vanished) and gone.error.path == gone.path
    assert isinstance(folder, Failed) and isinstance(folder.error, SourceError)


def test_what_a_restart_made_void_is_forgotten(tmp_path, seed, monkeypatch):
    chance = random.Random(seed)
    data = {"a": chance.randbytes(100), "b": chance.randbytes(100_000), "c": chance.randbytes(9_000_000)}
    paths = write(tmp_path / "s", data)
    backup = Backup(tmp_path, "tests.upload.faulty:Restarting")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    results = run(backup, 1, lambda: backup.read(paths))
    chunks = backup.chunks()
    assert [content(done, chunks) for done in results] == list(data.values())


def test_a_file_that_kills_twice_is_left_and_the_others_are_not(tmp_path, seed, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    chance = random.Random(seed)
    files = {f"{n:02}": chance.randbytes(5_000 * n) for n in range(30)} | {"deadly": b"x" * 1000}
    paths = write(tmp_path / "s", files)
    backup = Backup(tmp_path, "tests.upload.faulty:Killer")
    results = dict(zip([path.name for path in paths], run(backup, 2, lambda: backup.read(paths)), strict=True))
    deadly = results.pop("deadly")
    assert isinstance(deadly, Failed) and isinstance(deadly.error, SourceError) and deadly.error.retry
    chunks = backup.chunks()
    assert {name: content(done, chunks) for name, done in results.items()} == {
        name: data for name, data in files.items() if name != "deadly"
    }
    assert backup.workers.deaths == 2


def test_workers_killed_at_random_lose_nothing(tmp_path, seed):
    chance = random.Random(seed)
    shared = chance.randbytes(400_000)
    files = {f"{n:03}": shared[: n * 3_000] + chance.randbytes(n * 200) for n in range(120)}
    files |= {f"large{n}": chance.randbytes(9_000_000) for n in range(3)}
    paths = write(tmp_path / "s", files)
    backup = Backup(tmp_path)

    async def go():
        waiting = asyncio.create_task(backup.read(paths))
        for _ in range(4):
            seen = len(backup.asked)
            while len(backup.asked) == seen and not waiting.done():
                await asyncio.sleep(0.005)
            await asyncio.sleep(chance.random() * 0.05)
            for pid in chance.sample(backup.workers.pids, min(1, len(backup.workers.pids))):
                os.kill(pid, signal.SIGKILL)
        return await waiting

    results = run(backup, 2, go)
    chunks = backup.chunks()
    assert backup.workers.deaths >= 1
    for name, result in zip(sorted(files), results, strict=True):
        if isinstance(result, Failed):  # it may have been hit twice: then it is named, and tried again by the app
            assert result.error.retry and "died" in result.error.reason
        else:
            assert content(result, chunks) == files[name]
    assert sum(isinstance(result, Done) for result in results) >= len(files) - 2
    assert not [name for name in os.listdir(backup.spool.dir) if name.startswith(".")], "unfinished files are swept"


def test_a_large_file_does_not_hold_up_the_small_ones(tmp_path, seed):
    chance = random.Random(seed)
    path = tmp_path / "large"
    path.write_bytes(chance.randbytes(60_000_000))
    small = write(tmp_path / "s", {f"{n}": chance.randbytes(2000) for n in range(100)})
    backup = Backup(tmp_path)

    async def go():
        large = await backup.submit(path)
        for each in small:
            await backup.submit(each)
        await backup.workers.flush()
        assert isinstance(large.result()[0], Done)

    run(backup, 2, go)
    ids = {OWNER.writer.data_id(each.read_bytes()) for each in small}
    places = [at for at, id in enumerate(backup.asked) if id in ids]
    assert len(places) == 100 and places[-1] < len(backup.asked) - 1, "the last one asked for is the large one's"


def test_a_flush_does_not_cut_the_pack_of_a_file_that_is_being_read(tmp_path, seed):
    chance = random.Random(seed)
    path = tmp_path / "large"
    path.write_bytes(chance.randbytes(20_000_000))
    backup = Backup(tmp_path)
    (done,) = run(backup, 1, lambda: backup.read([path]))
    assert content(done, backup.chunks()) == path.read_bytes()
    assert [packed.file_len > 20_000_000 for packed in backup.packs if not packed.metadata] == [True]


def test_a_full_spool_is_the_files_failure_and_passes(tmp_path, seed):
    paths = write(tmp_path / "s", {"a": random.Random(seed).randbytes(100_000)})
    backup = Backup(tmp_path)

    async def go():
        await backup.read([tmp_path / "none"])  # the worker is there
        os.rename(backup.spool.dir, tmp_path / "away")
        (failed,) = await backup.read(paths)
        assert isinstance(failed, Failed) and isinstance(failed.error, StoreError)
        os.rename(tmp_path / "away", backup.spool.dir)
        (done,) = await backup.read(paths)
        assert isinstance(done, Done)

    run(backup, 1, go)


def test_workers_that_cannot_start_say_so(tmp_path):
    backup = Backup(tmp_path, "no.such.module:Reader")
    paths = write(tmp_path / "s", {"a": b"1"})

    async def go():
        (failed,) = await backup.read(paths)
        assert isinstance(failed, Failed) and "no reader" in str(failed.error)
        futures = []
        with pytest.raises(ContbakError):
            while True:
                futures.append(await backup.submit("/x"))
                await futures[-1]

    run(backup, 1, go)


def test_a_worker_ends_with_its_parent(tmp_path):
    backup = Backup(tmp_path)

    async def go():
        return backup.workers.pids

    (pid,) = run(backup, 1, go)
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


@pytest.mark.parametrize("error", [KeyError("index"), FormatError("index"), ConnectionResetError()])
def test_an_index_that_fails_leaves_nobody_waiting(tmp_path, seed, error):
    paths = write(tmp_path / "s", {"a": random.Random(seed).randbytes(100_000)})
    backup = Backup(tmp_path)

    async def broken(ids):
        raise error

    backup.workers._known = broken

    async def go():
        (failed,) = await (await backup.submit(*paths))
        assert isinstance(failed, Failed)
        await backup.workers.flush()

    with pytest.raises(type(error)):
        run(backup, 1, go)
