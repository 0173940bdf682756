"""What only the store in a directory does: order of syncs, leftovers, modes, and a disk that fails."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from contbak.core.errors import AlreadyExists, ContbakError, StoreError, StoreFull
from contbak.store import posix
from contbak.store.posix import PosixStore, lock_file, replace_file, sync_directory


@pytest.fixture
def store(tmp_path: Path) -> PosixStore:
    return PosixStore(tmp_path / "store")


class Disk:
    """Notes the calls that order things on the disk; `fail` makes the next call of that kind fail."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, top: Path) -> None:
        self.calls: list[str] = []
        self.failures: dict[str, int] = {}
        self.top = top
        for name in ("fsync", "link", "rename", "replace", "unlink", "mkdir"):
            monkeypatch.setattr(os, name, self._noted(name, getattr(os, name)))

    def _noted(self, name: str, real: Callable[..., object]) -> Callable[..., object]:
        def call(*args: object, **options: object) -> object:
            last = args[0] if name in ("fsync", "unlink", "mkdir") else args[1]
            text = f"{name} {self._name(last)}"
            self.calls.append(text)
            for begin, number in self.failures.items():
                if text.startswith(begin):
                    raise OSError(number, os.strerror(number))
            return real(*args, **options)

        return call

    def _name(self, thing: object) -> str:
        path = os.readlink(f"/proc/self/fd/{thing}") if isinstance(thing, int) else os.fspath(thing)  # type: ignore[call-overload]
        name = os.path.relpath(path, self.top)
        folder, _, last = name.rpartition("/")
        return f"{folder}/TEMP" if last.startswith(posix.TEMP_PREFIX) else name


linux = pytest.mark.skipif(sys.platform != "linux", reason="names of descriptors come from /proc")


@pytest.fixture
def disk(store: PosixStore, monkeypatch: pytest.MonkeyPatch) -> Disk:
    return Disk(monkeypatch, store.root)


@linux
def test_synced_before_named_before_told(store: PosixStore, disk: Disk) -> None:
    store.put_new("a/b/c", b"x")
    assert disk.calls == [
        "mkdir a",
        "fsync .",
        "mkdir a/b",
        "fsync a",
        "fsync a/b/TEMP",
        "link a/b/c",
        "fsync a/b",
        "unlink a/b/TEMP",
    ]
    disk.calls.clear()
    store.put_new("a/b/d", b"x")
    assert disk.calls == ["fsync a/b/TEMP", "link a/b/d", "fsync a/b", "unlink a/b/TEMP"]
    disk.calls.clear()
    store.delete("a/b/d")
    assert disk.calls == ["unlink a/b/d", "fsync a/b"]


@linux
def test_folders_made_by_another_process_are_synced_too(store: PosixStore, disk: Disk) -> None:
    (store.root / "a").mkdir()
    disk.calls.clear()
    store.put_new("a/b", b"x")
    assert disk.calls.index("fsync .") < disk.calls.index("link a/b")


@linux
def test_already_exists_means_durable(store: PosixStore, disk: Disk) -> None:
    store.put_new("a", b"x")
    disk.calls.clear()
    with pytest.raises(AlreadyExists):
        store.put_new("a", b"x")
    assert disk.calls == ["fsync ."]


@linux
@pytest.mark.parametrize("at", ["fsync /TEMP", "fsync .", "link a"])
@pytest.mark.parametrize(
    ("number", "kind"), [(errno.EIO, StoreError), (errno.ENOSPC, StoreFull), (errno.EDQUOT, StoreFull)]
)
def test_a_failing_disk_leaves_nothing(
    store: PosixStore, disk: Disk, at: str, number: int, kind: type[ContbakError]
) -> None:
    disk.failures[at] = number
    with pytest.raises(kind) as caught:
        store.put_new("a", b"x")
    assert caught.value.retry == (kind is StoreFull)
    assert sum(call.startswith(at) for call in disk.calls) == 1, "a failed sync must not be tried again"
    assert os.listdir(store.root) == []
    disk.failures.clear()
    store.put_new("a", b"y")
    assert store.get("a") == b"y"


@linux
@pytest.mark.parametrize("number", [errno.EPERM, errno.ENOTSUP, errno.EMLINK])
def test_without_hard_links(store: PosixStore, disk: Disk, number: int, tmp_path: Path) -> None:
    disk.failures["link"] = number
    store.put_new("a", b"x")
    with pytest.raises(AlreadyExists):
        store.put_new("a", b"y")
    (tmp_path / "new").write_bytes(b"z")
    store.adopt("b", tmp_path / "new")
    assert (store.get("a"), store.get("b")) == (b"x", b"z")
    (tmp_path / "new").write_bytes(b"z")
    disk.failures["fsync ."] = errno.EIO
    with pytest.raises(StoreError):
        store.adopt("c", tmp_path / "new")
    assert (tmp_path / "new").read_bytes() == b"z" and not store.path_of("c").exists()


def test_adopt_moves_the_file(store: PosixStore, tmp_path: Path) -> None:
    received = tmp_path / "received"
    received.write_bytes(b"content")
    number = received.stat().st_ino
    store.adopt("packs/ab/cd", received)
    assert not received.exists()
    assert store.path_of("packs/ab/cd").stat().st_ino == number
    received.write_bytes(b"other")
    with pytest.raises(AlreadyExists):
        store.adopt("packs/ab/cd", received)
    assert received.read_bytes() == b"other" and store.get("packs/ab/cd") == b"content"
    received.unlink()
    with pytest.raises(StoreError):
        store.adopt("packs/ab/ef", received)


@linux
def test_adopt_is_told_after_the_sync(store: PosixStore, disk: Disk) -> None:
    spool = store.root.parent / "spool"
    spool.mkdir()
    (spool / "x").write_bytes(b"1")
    disk.calls.clear()
    store.adopt("a", spool / "x")
    assert disk.calls == ["link a", "fsync .", "unlink ../spool/x", "fsync ../spool"]
    (spool / "x").write_bytes(b"1")
    disk.failures["fsync ."] = errno.EIO
    with pytest.raises(StoreError):
        store.adopt("b", spool / "x")
    assert (spool / "x").read_bytes() == b"1" and not store.path_of("b").exists()


def test_leftovers_are_invisible_and_swept(store: PosixStore) -> None:
    store.put_new("a/b", b"x")
    left = store.root / "a" / ".tmp-0123456789abcdef"
    left.write_bytes(b"half")
    strange = [store.root / "a" / ".hidden", store.root / "a" / "Upper", store.root / "a" / ".tmp-mine"]
    for path in strange:
        path.write_bytes(b"")
    assert list(store.list("")) == [("a/b", 1)]

    def parts() -> Iterator[bytes]:
        yield b"1"
        assert store.sweep() == 1, "the write that is under way must be left alone"
        yield b"2"

    store.put_new("a/c", parts())
    assert not left.exists() and all(path.exists() for path in strange)
    assert store.get("a/c") == b"12"


def test_modes(store: PosixStore) -> None:
    store.put_new("a/b", b"x")
    assert stat.S_IMODE(store.path_of("a/b").stat().st_mode) == 0o600
    assert stat.S_IMODE(store.path_of("a/b").parent.stat().st_mode) == 0o700
    assert stat.S_IMODE(store.root.stat().st_mode) == 0o700


def test_symbolic_links_are_not_objects(store: PosixStore, tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "secret").write_bytes(b"")
    (store.root / "link").symlink_to(tmp_path / "outside")
    assert list(store.list("")) == []


def test_a_vanished_root_is_no_empty_store(store: PosixStore) -> None:
    store.put_new("a/b", b"x")
    store.root.rename(store.root.with_name("unmounted"))
    calls: list[Callable[[], object]] = [
        lambda: list(store.list("")),
        lambda: store.get("a/b"),
        lambda: store.size("a/b"),
        lambda: store.delete("a/b"),
        lambda: store.put_new("a/c", b""),
        store.sweep,
        store.free,
    ]
    for call in calls:
        with pytest.raises(StoreError) as caught:
            call()
        assert type(caught.value) is StoreError
    assert not store.root.exists()
    with pytest.raises(StoreError):
        PosixStore(store.root / "deeper")


def test_a_folder_that_was_removed_is_made_again(store: PosixStore) -> None:
    store.put_new("a/b", b"x")
    store.delete("a/b")
    (store.root / "a").rmdir()
    store.put_new("a/b", b"y")
    assert store.get("a/b") == b"y"


def test_replace_file(tmp_path: Path) -> None:
    path = tmp_path / "state"
    replace_file(path, b"one")
    replace_file(path, b"two", mode=0o640)
    assert path.read_bytes() == b"two" and stat.S_IMODE(path.stat().st_mode) == 0o640
    assert os.listdir(tmp_path) == ["state"]


@linux
def test_replace_file_keeps_the_old_until_the_new_is_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "state"
    replace_file(path, b"one")
    disk = Disk(monkeypatch, tmp_path)
    replace_file(path, b"two")
    assert disk.calls == ["fsync /TEMP", "replace state", "unlink /TEMP", "fsync ."]
    disk.failures["fsync /TEMP"] = errno.EIO
    with pytest.raises(StoreError):
        replace_file(path, b"three")
    assert path.read_bytes() == b"two" and os.listdir(tmp_path) == ["state"]


@linux
def test_directories_without_sync(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = Disk(monkeypatch, tmp_path)
    disk.failures["fsync"] = errno.EINVAL
    sync_directory(tmp_path)
    disk.failures["fsync"] = errno.EIO
    with pytest.raises(StoreError):
        sync_directory(tmp_path)


def test_the_lock_ends_with_its_process(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from contbak.store.posix import lock_file; "
        "lock_file(Path(sys.argv[1])); print('held', flush=True); sys.stdin.read()"
    )
    environ = os.environ | {"PYTHONPATH": str(Path(posix.__file__).parents[2])}
    holder = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "lock")], env=environ, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        assert holder.stdout is not None and holder.stdout.readline() == b"held\n"
        with pytest.raises(StoreError, match="in use by another process"):
            lock_file(tmp_path / "lock")
    finally:
        holder.kill()
        holder.communicate()
    os.close(lock_file(tmp_path / "lock"))
