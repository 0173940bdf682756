"""What every store must do; each kind of store passes the same tests."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contbak.core.errors import AlreadyExists, FormatError, NotFound, StoreError, UsageError
from contbak.store.base import MAX_NAME, Store, check_name, locate
from contbak.store.memory import MemoryStore
from contbak.store.posix import PosixStore


@pytest.fixture(params=["memory", "posix"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    return MemoryStore() if request.param == "memory" else PosixStore(tmp_path / "store")


def test_what_was_put_is_there(store: Store) -> None:
    store.put_new("packs/ab/abcd", b"content")
    assert store.get("packs/ab/abcd") == b"content"
    assert store.size("packs/ab/abcd") == 7
    store.put_new("empty", b"")
    assert store.get("empty") == b"" and store.size("empty") == 0


def test_content_may_come_in_parts(store: Store) -> None:
    parts: list[bytes | memoryview] = [b"one", memoryview(b"two"), b"", bytes(3_000_000)]
    store.put_new("a", iter(parts))
    assert store.get("a") == b"onetwo" + bytes(3_000_000)
    store.put_new("b", [])
    assert store.get("b") == b""


def test_an_object_is_never_overwritten(store: Store) -> None:
    store.put_new("a", b"first")
    with pytest.raises(AlreadyExists):
        store.put_new("a", b"second")
    with pytest.raises(AlreadyExists):
        store.put_new("a", b"first")
    assert store.get("a") == b"first"


def test_content_that_fails_leaves_nothing(store: Store) -> None:
    def parts() -> Iterator[bytes]:
        yield b"half"
        raise FormatError("the other half is missing")

    with pytest.raises(FormatError):
        store.put_new("a/b", parts())
    assert list(store.list("")) == []
    store.put_new("a/b", b"whole")
    assert store.get("a/b") == b"whole"


@pytest.mark.parametrize("method", ["get", "size", "delete", "get_range"])
def test_what_is_absent_is_not_found(store: Store, method: str) -> None:
    call = getattr(store, method)
    rest = (0, 0) if method == "get_range" else ()
    store.put_new("folder/a", b"x")
    for name in ("b", "folder", "folder/b", "folder/a/b", "no/such/folder"):
        with pytest.raises(NotFound):
            call(name, *rest)
    assert store.get("folder/a") == b"x"


def test_ranges(store: Store) -> None:
    store.put_new("a", b"0123456789")
    assert store.get_range("a", 0, 10) == b"0123456789"
    assert store.get_range("a", 3, 4) == b"3456"
    assert store.get_range("a", 10, 0) == b""
    assert store.get_range("a", -3, 3) == b"789"
    assert store.get_range("a", -3, 1) == b"7"
    assert store.get_range("a", -10, 10) == store.get_range("a", -99, 99) == b"0123456789"


@pytest.mark.parametrize(("offset", "length"), [(0, 11), (10, 1), (11, 0), (1 << 40, 1)])
def test_a_range_that_is_not_all_there(store: Store, offset: int, length: int) -> None:
    store.put_new("a", b"0123456789")
    with pytest.raises(FormatError):
        store.get_range("a", offset, length)


@pytest.mark.parametrize(("offset", "length"), [(0, -1), (-3, 4), (-1, -1)])
def test_a_range_that_nothing_has(store: Store, offset: int, length: int) -> None:
    with pytest.raises(UsageError):
        store.get_range("a", offset, length)


def test_list_is_sorted_by_whole_names(store: Store) -> None:
    names = ["a", "ab/c", "ab-c", "ab.c", "ab0", "b/1/2/3", "b/1/2-3", "b/1.x/y", "c"]
    for name in names:
        store.put_new(name, name.encode())
    assert list(store.list("")) == sorted((name, len(name)) for name in names)


@pytest.mark.parametrize(
    "prefix",
    [
        "",
        "p",
        "pa",
        "packs",
        "packs/",
        "packs/a",
        "packs/ab",
        "packs/ab/",
        "packs/ab/1",
        "packs/ab/1/",
        "packs/c",
        "x",
        "x/y/z",
        "../",
        "packs/../",
        "/",
        "PACKS",
    ],
)
def test_list_takes_any_prefix(store: Store, prefix: str) -> None:
    names = ["packs/ab/1", "packs/ab/12", "packs/ac/1", "packs/b", "packsaddle", "pb/1"]
    for name in names:
        store.put_new(name, b"")
    assert [name for name, _ in store.list(prefix)] == sorted(name for name in names if name.startswith(prefix))


def test_deleted_is_gone_and_may_come_again(store: Store) -> None:
    store.put_new("a/b", b"1")
    store.delete("a/b")
    assert list(store.list("")) == []
    with pytest.raises(NotFound):
        store.delete("a/b")
    store.put_new("a/b", b"2")
    assert store.get("a/b") == b"2"


def test_a_name_is_an_object_or_a_folder(store: Store) -> None:
    store.put_new("a/b", b"1")
    for name in ("a", "a/b/c"):
        with pytest.raises(StoreError) as caught:
            store.put_new(name, b"2")
        assert not isinstance(caught.value, (AlreadyExists, NotFound))
    assert list(store.list("")) == [("a/b", 1)]


def test_one_of_many_writers_wins(store: Store) -> None:
    outcome: list[bytes | None] = [None] * 8
    start = threading.Barrier(len(outcome))

    def write(number: int) -> None:
        content = bytes([number]) * 100_000
        start.wait()
        try:
            store.put_new("new/folder/a", [content[:50_000], content[50_000:]])
            outcome[number] = content
        except AlreadyExists:
            assert len(store.get("new/folder/a")) == 100_000

    threads = [threading.Thread(target=write, args=(number,)) for number in range(len(outcome))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    won = [content for content in outcome if content is not None]
    assert won == [store.get("new/folder/a")]


def test_free_is_a_number_or_unknown(store: Store) -> None:
    free = store.free()
    assert free is None or free > 0


@pytest.mark.parametrize("name", ["a", "0", "a/b", "a.b/c-d_e", "a..b", "x" * MAX_NAME])
def test_good_names(name: str) -> None:
    assert check_name(name) == name


@pytest.mark.parametrize(
    "name",
    [
        "",
        "/",
        "/a",
        "a/",
        "a//b",
        ".",
        "..",
        ".a",
        "a/.b",
        "a/../b",
        "A",
        "a b",
        "a\n",
        "ä",
        "a\0",
        "a\\b",
        "x" * (MAX_NAME + 1),
        ".tmp-0123456789abcdef",
    ],
)
def test_bad_names(store: Store, name: str) -> None:
    for method, rest in (("get", ()), ("size", ()), ("delete", ()), ("put_new", (b"",)), ("get_range", (0, 0))):
        with pytest.raises(UsageError):
            getattr(store, method)(name, *rest)


@given(size=st.integers(0, 50), offset=st.integers(-60, 60), length=st.integers(0, 60))
def test_locate_is_what_slicing_does(size: int, offset: int, length: int) -> None:
    whole = bytes(range(size))
    try:
        start, count = locate("a", offset, length, size)
    except UsageError:
        assert offset < 0 and length > -offset
    except FormatError:
        assert offset >= 0 and offset + length > size
    else:
        begin = offset if offset >= 0 else max(0, size + offset)
        assert whole[start : start + count] == whole[begin : begin + length]
        assert count == length or (offset < 0 and -offset > size)
