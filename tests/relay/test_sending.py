"""Ranges of packs: which are asked for, and how their bytes go out, in this process."""

import asyncio
import os
import random
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest

from contbak.core.errors import NotFound, StoreError
from relay import sending, web
from relay.sending import Sealed, wanted
from tests.relay.peer import Device, Peer
from tests.relay.test_web import served


@pytest.mark.parametrize(
    ("text", "span"),
    [
        ("bytes=0-0", (0, 1)),
        ("bytes=0-9", (0, 10)),
        ("bytes=3-100", (3, 10)),
        ("bytes=9-", (9, 10)),
        (" bytes=-3 ", (7, 10)),
        ("bytes=-30", (0, 10)),
    ],
)
def test_ranges(text, span):
    assert wanted(text, 10) == span


@pytest.mark.parametrize(
    "text",
    ["", "bytes", "bytes=", "bytes=-", "bytes=10-", "bytes=10-12", "bytes=5-4", "bytes=-0", "lines=0-1",
     "bytes=0-1,3-4", "bytes=+1-2", "bytes=\N{SUPERSCRIPT TWO}-3", "bytes=\N{ARABIC-INDIC DIGIT ONE}-3",
     "bytes=" + "9" * 30 + "-"],
)  # fmt: skip
def test_what_is_no_range(text):
    with pytest.raises(ValueError):
        wanted(text, 10)
    with pytest.raises(ValueError):
        wanted("bytes=0-0", 0)


def sent(path, start, end):
    """Lengths of the parts, and their bytes; each must stay as it is when the next one comes."""

    async def go():
        file = Sealed(path)
        try:
            with ThreadPoolExecutor(1) as pool:
                return [part async for part in file.parts(start, end, pool)]
        finally:
            file.close()

    parts = asyncio.run(go())
    return [len(part) for part in parts], b"".join(parts)


@pytest.fixture(params=["at once", "not in memory", "half in memory", "no such reads", "refused"])
def system(request, monkeypatch):
    """Systems that have all of a file in memory, or not, or do not know."""
    real = getattr(os, "preadv", None)
    if request.param == "no such reads" or real is None:
        monkeypatch.setattr(sending, "_AT_ONCE", 0)

    def preadv(fd, buffers, offset, flags):
        if request.param == "not in memory":
            raise BlockingIOError
        if request.param == "refused":
            raise OSError(95, "not supported")
        if request.param == "half in memory":
            return real(fd, [buffers[0][: max(1, len(buffers[0]) // 2)]], offset)
        return real(fd, buffers, offset)

    monkeypatch.setattr(os, "preadv", preadv, raising=False)


def test_parts(tmp_path, system, monkeypatch):
    monkeypatch.setattr(sending, "PART", 1000)
    data = random.Random(1).randbytes(10_500)
    (tmp_path / "f").write_bytes(data)
    for start, end in ((0, 10_500), (0, 1), (999, 1001), (10_499, 10_500), (5, 5)):
        lengths, raw = sent(tmp_path / "f", start, end)
        assert raw == data[start:end] and all(0 < length <= 1000 for length in lengths)


def test_files_that_are_not_as_they_should_be(tmp_path, system):
    (tmp_path / "f").write_bytes(b"short")
    with pytest.raises(StoreError):
        sent(tmp_path / "f", 0, 6)
    with pytest.raises(NotFound):
        Sealed(tmp_path / "g")
    with pytest.raises(StoreError):
        sent(tmp_path, 0, 6)


def test_answers(tmp_path):
    async def go():
        async with served(tmp_path) as (_, line, _), Peer(Device(random.Random(1)), line) as peer:
            await peer.join()
            await peer.login()
            data = peer.device.data(40, 60_000)
            await peer.upload(data)
            path, whole = f"/v1/packs/{data.root}", data.body + data.plan.raw
            assert len(whole) > 2 * sending.PART
            etag = f'"{data.root}"'
            own = {"Authorization": "Bearer " + peer.token.hex()}

            async def ask(method="GET", **headers):
                headers = {**own, **{name.replace("_", "-"): value for name, value in headers.items()}}
                async with peer.http.request(method, peer.base + path, headers=headers) as answer:
                    return answer.status, answer.headers, await answer.read()

            status, headers, raw = await ask()
            assert (status, raw, headers["ETag"], headers["Accept-Ranges"]) == (200, whole, etag, "bytes")
            assert "Content-Range" not in headers and headers["Content-Type"] == "application/octet-stream"
            size = len(whole)
            for text, start, end in (("5-300004", 5, 300_005), ("0-", 0, size), ("-7", size - 7, size)):
                status, headers, raw = await ask(Range=f"bytes={text}")
                assert (status, raw) == (206, whole[start:end])
                assert headers["Content-Range"] == f"bytes {start}-{end - 1}/{size}"
                assert headers["Content-Length"] == str(end - start)
            status, headers, raw = await ask(Range=f"bytes={size}-")
            assert (status, headers["Content-Range"]) == (416, f"bytes */{size}")
            await peer.refused("GET", path, 416, "range", headers={"Range": "bytes=5-4"})
            assert (await ask(Range="bytes=1-2", If_Range=etag))[::2] == (206, whole[1:3])
            for other in ('"other"', "Sat, 21 Nov 2026 12:00:00 GMT"):
                assert (await ask(Range="bytes=1-2", If_Range=other))[::2] == (200, whole)
            status, headers, raw = await ask("HEAD")
            assert (status, raw, headers["Content-Length"]) == (200, b"", str(size))
            status, headers, raw = await ask("HEAD", Range="bytes=0-9")
            assert (status, raw, headers["Content-Length"]) == (206, b"", "10")
            await peer.refused("GET", "/v1/packs/" + "0" * 64, 404, "unknown")
            assert (await ask())[2] == whole  # the connection is none the worse

    asyncio.run(go())


async def begun(peer, socket_path, path):
    """A connection on which the pack at `path` has been asked for, of which a little has been read."""
    reader, writer = await asyncio.open_unix_connection(str(socket_path), limit=1)
    token = peer.token.hex()
    writer.write(f"GET {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n\r\n".encode())
    assert (await reader.readexactly(15)) == b"HTTP/1.1 200 OK"
    return reader, writer


@pytest.mark.parametrize("how", ["not taken", "shorter", "left"])
def test_who_does_not_take_it_holds_nothing(tmp_path, monkeypatch, how):
    """Somebody who stops reading is cut off; a file that ends too early ends the connection; nothing stays open."""
    monkeypatch.setattr(web, "TAKEN_S", 0.2 if how == "not taken" else 60.0)
    closed = []
    real = Sealed.close

    def close(file):
        closed.append(file)
        real(file)

    monkeypatch.setattr(Sealed, "close", close)

    async def go():
        async with served(tmp_path) as (_, line, socket_path), Peer(Device(random.Random(1)), line) as peer:
            await peer.join()
            await peer.login()
            data = peer.device.data(40, 60_000)
            await peer.upload(data)
            size = len(data.body + data.plan.raw)
            reader, writer = await begun(peer, socket_path, f"/v1/packs/{data.root}")
            if how == "shorter":
                (file,) = (tmp_path / "store").rglob(data.root + "*")
                os.truncate(file, size // 2)
            elif how == "left":
                writer.transport.abort()
            while not closed:  # by itself: nothing is read from the connection meanwhile
                if how == "shorter":
                    await reader.read(1 << 16)
                await asyncio.sleep(0.01)
            rest = b""
            if how != "left":
                with suppress(ConnectionError):
                    rest = await reader.read()
                assert len(rest) < size
                writer.close()
            _, raw = await peer.call("GET", "/v1/vault", expect=200)
            assert raw

    asyncio.run(asyncio.wait_for(go(), 30))
