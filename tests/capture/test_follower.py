"""Follower and walker on real directories, driven turn by turn so that the order of things is ours."""

from __future__ import annotations

import os
import random
import select
import shutil
import struct
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from contbak.capture import follower as follower_module
from contbak.capture import inotify
from contbak.capture import walker as walker_module
from contbak.capture.follower import Follower
from contbak.capture.gaps import (
    DENIED,
    GONE,
    LOST_TRACK,
    OTHER_FILE_SYSTEM,
    OVERFLOW,
    UNMOUNTED,
    WATCH_LIMIT,
    Changed,
    Gap,
    Notice,
)

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="inotify is Linux only")


class Followed:
    """A follower of a directory and what it has told so far, by paths relative to the top."""

    def __init__(self, top: Path, prune: Callable[[bytes, bool], bool] = lambda path, is_dir: False) -> None:
        self.top = top
        self.notices: list[Notice] = []
        self.follower = Follower("home", os.fsencode(top), prune, self.notices.extend)
        self.follower.arm()

    def catch_up(self) -> None:
        """Turn until all that was done before is told."""
        fence = len(self.notices)
        while True:
            self.follower.wake()
            self.follower.turn()
            if self.follower.settled() and len(self.notices) == fence:
                return
            fence = len(self.notices)

    def changed(self) -> set[str]:
        return {self._relative(notice.path) for notice in self.notices if isinstance(notice, Changed)}

    def appeared(self) -> set[str]:
        return {
            self._relative(notice.path)
            for notice in self.notices
            if isinstance(notice, Changed) and notice.appeared_directory
        }

    def gaps(self) -> list[tuple[str, str]]:
        return [(self._relative(notice.path), notice.reason) for notice in self.notices if isinstance(notice, Gap)]

    def told(self, relative: str) -> bool:
        """Whether the path itself, or a directory to be scanned above it, was told."""
        if relative in self.changed():
            return True
        return any(relative.startswith(f"{path}/") for path in self.appeared())

    def probe_all(self) -> None:
        """Every directory there is must be watched, under its right name."""
        self.catch_up()
        self.notices.clear()
        probes = set()
        for above, _, _ in os.walk(self.top):
            Path(above, "probe").touch()
            probes.add(os.path.relpath(os.path.join(above, "probe"), self.top))
        self.catch_up()
        assert self.changed() == probes
        assert self.gaps() == []
        assert self.follower.watches() == len(probes)

    def _relative(self, path: bytes) -> str:
        return os.path.relpath(os.fsdecode(path), self.top)


@pytest.fixture
def follow() -> Iterator[Callable[..., Followed]]:
    made: list[Followed] = []

    def make(*arguments: object) -> Followed:
        made.append(Followed(*arguments))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for each in made:
        each.follower.close()


@pytest.fixture
def top(tmp_path: Path) -> Path:
    tree = tmp_path / "top"
    for relative in ("a/a1/a2", "b/b1", "c"):
        (tree / relative).mkdir(parents=True)
    return tree


def test_all_kinds_of_changes_of_files_are_told(top: Path, follow: Callable[..., Followed]) -> None:
    (top / "a/old").write_text("x")
    (top / "a/gone").write_text("x")
    (top / "a/chmod").write_text("x")
    (top / "a/from").write_text("x")
    home = follow(top)
    assert home.notices == []
    (top / "a/old").write_text("y")
    (top / "a/gone").unlink()
    (top / "a/chmod").chmod(0o600)
    (top / "a/from").rename(top / "b/to")
    (top / "a/a1/a2/new").touch()
    (top / "a/link").symlink_to("nowhere")
    os.link(top / "a/old", top / "c/hard")
    os.mkfifo(top / "c/fifo")
    home.catch_up()
    expected = {"a/old", "a/gone", "a/chmod", "a/from", "b/to", "a/a1/a2/new", "a/link", "c/hard", "c/fifo"}
    assert expected <= home.changed()
    assert not home.appeared()


def test_reading_the_tree_makes_no_events(top: Path, follow: Callable[..., Followed]) -> None:
    (top / "a/file").write_text("x")
    home = follow(top)
    for above, _, names in os.walk(top):
        for name in names:
            Path(above, name).read_bytes()
    home.catch_up()
    assert home.notices == []


def test_waiting_costs_nothing(top: Path, follow: Callable[..., Followed], monkeypatch: pytest.MonkeyPatch) -> None:
    """With nothing to do, the wait has no end but an event or a wake; with something put off, it has one."""
    asked: list[float | None] = []

    class Poll:
        def register(self, descriptor: int, events: int) -> None:
            pass

        def poll(self, timeout: float | None) -> list[tuple[int, int]]:
            asked.append(timeout)
            return []

    home = follow(top)
    (top / "a/x").touch()
    home.catch_up()
    monkeypatch.setattr(select, "poll", Poll)
    home.follower.turn()
    (top / "a").rename(top.parent / "outside")
    home.follower.turn()
    home.follower.turn()
    assert asked[:2] == [None, None]
    assert asked[2] is not None


def test_names_are_bytes(top: Path, follow: Callable[..., Followed]) -> None:
    odd = os.fsencode(top) + b"/\xff\xfe d\n"
    os.mkdir(odd)
    home = follow(top)
    with open(odd + b"/\x80", "wb"):
        pass
    home.catch_up()
    assert {notice.path for notice in home.notices} == {odd + b"/\x80"}


def test_a_new_directory_is_watched_and_told_with_all_below(top: Path, follow: Callable[..., Followed]) -> None:
    home = follow(top)
    (top / "new/x/y").mkdir(parents=True)
    (top / "new/x/y/early").touch()
    home.catch_up()
    assert home.appeared() == {"new"}
    (top / "new/x/y/late").touch()
    home.catch_up()
    assert "new/x/y/late" in home.changed()
    home.probe_all()


def test_a_renamed_directory_takes_its_watches_along(top: Path, follow: Callable[..., Followed]) -> None:
    home = follow(top)
    before = home.follower.watches()
    (top / "a/a1/first").touch()
    (top / "a").rename(top / "b/moved")
    (top / "b/moved/a1/a2/second").touch()
    home.catch_up()
    assert {"a", "b/moved"} <= home.changed()
    assert home.appeared() == {"b/moved"}
    assert home.told("b/moved/a1/first")
    assert home.told("b/moved/a1/a2/second")
    assert home.follower.watches() == before
    home.probe_all()


def test_a_rename_walks_nothing_that_is_known(
    top: Path, follow: Callable[..., Followed], monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(50):
        (top / f"a/a1/{number}").mkdir()
    home = follow(top)
    listed: list[int] = []

    def note(walker: walker_module.Walker, descriptor: int, wd: int) -> list[bytes]:
        listed.append(wd)
        return []

    monkeypatch.setattr(walker_module.Walker, "_listed", note)
    (top / "a").rename(top / "z")
    home.catch_up()
    assert listed == []
    monkeypatch.undo()
    home.probe_all()


def test_chains_and_swaps_of_renames(top: Path, follow: Callable[..., Followed]) -> None:
    home = follow(top)
    (top / "a").rename(top / "x")
    (top / "c").rename(top / "a")
    (top / "b").rename(top / "c")
    (top / "x").rename(top / "b")
    (top / "a/after").touch()
    home.catch_up()
    assert {"a", "b", "c", "x"} <= home.changed()
    home.probe_all()


def test_a_parent_that_moves_into_its_former_child(top: Path, follow: Callable[..., Followed]) -> None:
    home = follow(top)
    (top / "a/a1").rename(top / "up")
    (top / "a").rename(top / "up/a")
    (top / "up/a").rename(top / "up/a2/a")
    (top / "up/a2/a/fresh").mkdir()
    home.probe_all()


def test_a_directory_replaced_by_another_of_that_name(top: Path, follow: Callable[..., Followed]) -> None:
    home = follow(top)
    shutil.rmtree(top / "a")
    (top / "a/other/deep").mkdir(parents=True)
    home.catch_up()
    assert "a" in home.appeared()
    home.probe_all()


def test_a_directory_made_inside_one_that_is_renamed_at_once(top: Path, follow: Callable[..., Followed]) -> None:
    home = follow(top)
    (top / "a/fresh/er").mkdir(parents=True)
    (top / "a").rename(top / "d")
    (top / "d/fresh/est").mkdir()
    (top / "decoy/fresh/er").mkdir(parents=True)
    (top / "decoy").rename(top / "a")
    home.probe_all()


def test_a_directory_moved_out_is_forgotten(top: Path, tmp_path: Path, follow: Callable[..., Followed]) -> None:
    home = follow(top)
    before = home.follower.watches()
    (top / "a").rename(tmp_path / "outside")
    home.catch_up()
    assert home.changed() == {"a"}
    assert home.follower.watches() == before - 3
    home.notices.clear()
    (tmp_path / "outside/a1/x").touch()
    home.catch_up()
    assert home.notices == []
    (tmp_path / "outside").rename(top / "back")
    home.catch_up()
    assert home.appeared() == {"back"}
    home.probe_all()


def test_a_directory_that_was_away_for_a_moment(top: Path, tmp_path: Path, follow: Callable[..., Followed]) -> None:
    """What was told under the path it had meanwhile must be looked at again."""
    home = follow(top)
    (top / "a").rename(top / "z")
    (top / "z").rename(top / "a")
    home.catch_up()
    assert home.appeared() == {"a"}
    home.probe_all()


def test_pruned_names_are_neither_watched_nor_told(top: Path, follow: Callable[..., Followed]) -> None:
    def prune(path: bytes, is_dir: bool) -> bool:
        return path == b"a/a1" or path.endswith(b".tmp") or (is_dir and path.rpartition(b"/")[2] == b"cache")

    (top / "b/cache/deep").mkdir(parents=True)
    home = follow(top, prune)
    assert home.follower.watches() == 5
    (top / "a/a1/a2/x").touch()
    (top / "b/x.tmp").touch()
    (top / "b/cache/deep/x").touch()
    (top / "c/cache/deep").mkdir(parents=True)
    (top / "c/kept").touch()
    home.catch_up()
    assert home.changed() == {"c/kept"}
    assert home.follower.watches() == 5


def test_renames_in_and_out_of_what_is_pruned(top: Path, follow: Callable[..., Followed]) -> None:
    home = follow(top, lambda path, is_dir: path in (b"a/a1", b"no"))
    (top / "a").rename(top / "d")  # d/a1 is not left out any more
    (top / "b").rename(top / "no")
    home.catch_up()
    assert "d" in home.appeared()
    home.notices.clear()
    (top / "d/a1/a2/x").touch()
    (top / "no/b1/x").touch()
    home.catch_up()
    assert home.changed() == {"d/a1/a2/x"}


def test_links_to_directories_are_not_followed(top: Path, tmp_path: Path, follow: Callable[..., Followed]) -> None:
    (tmp_path / "outside").mkdir()
    (top / "link").symlink_to(tmp_path / "outside")
    home = follow(top)
    (top / "later").symlink_to(tmp_path / "outside")
    (tmp_path / "outside/x").touch()
    home.catch_up()
    assert home.changed() == {"later"}


def test_an_overflow_is_told_and_the_tree_is_watched_again(top: Path, follow: Callable[..., Followed]) -> None:
    home = follow(top)
    flood(top)
    (top / "lost/in/it").mkdir(parents=True)
    (top / "a").rename(top / "b/a")
    shutil.rmtree(top / "c")
    home.catch_up()
    assert (".", OVERFLOW) in home.gaps()
    home.probe_all()


def flood(top: Path) -> None:
    """More events than the queue holds."""
    room = int(Path("/proc/sys/fs/inotify/max_queued_events").read_text())
    if room > 100_000:
        pytest.skip("the event queue of this machine is too large to fill in a test")
    first, second = top / "flood1", top / "flood2"
    first.touch()
    second.touch()
    for _ in range(room // 2 + 10):  # in turns, for equal neighbours are merged
        os.utime(first)
        os.utime(second)


def test_more_names_than_are_kept_count_as_an_overflow(
    top: Path, follow: Callable[..., Followed], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(follower_module, "DIRTY_BOUND", 40)
    monkeypatch.setattr(follower_module, "SLICE", 1)
    home = follow(top)
    deliver = home.follower._deliver

    def busy(notices: list[Notice]) -> None:
        """While one notice is handed over, much more happens."""
        if not home.notices:
            for number in range(100):
                (top / f"b/{number}").touch()
        deliver(notices)

    monkeypatch.setattr(home.follower, "_deliver", busy)
    (top / "a/x").touch()
    home.catch_up()
    assert home.told("a/x")
    assert (".", OVERFLOW) in home.gaps()


@pytest.mark.parametrize("how", ["removed", "moved", "moved from above", "replaced"])
def test_a_top_that_is_gone(how: str, tmp_path: Path, follow: Callable[..., Followed]) -> None:
    top = tmp_path / "above/top"
    (top / "a").mkdir(parents=True)
    home = follow(top)
    if how == "removed":
        shutil.rmtree(top)
    elif how == "moved":
        top.rename(tmp_path / "elsewhere")
    elif how == "replaced":
        top.rename(tmp_path / "elsewhere")
        top.mkdir()
    else:
        (tmp_path / "above").rename(tmp_path / "elsewhere")
        (tmp_path / "elsewhere/top/a/x").touch()
    home.catch_up()
    assert home.gaps() == [(".", GONE)]
    assert "a/x" not in home.changed()
    assert home.follower.watches() == 0
    home.catch_up()
    assert len(home.gaps()) == 1


def test_a_top_that_was_never_there(tmp_path: Path, follow: Callable[..., Followed]) -> None:
    home = follow(tmp_path / "nowhere")
    assert home.gaps() == [(".", GONE)]


@pytest.fixture
def as_nobody() -> Iterator[Path]:
    """A directory of ours where permissions count, which they do not for root."""
    place = Path(tempfile.mkdtemp())
    root = os.geteuid() == 0
    if root:
        place.chmod(0o777)
        os.seteuid(65534)
    try:
        yield place
    finally:
        if root:
            os.seteuid(0)
        subprocess.run(["chmod", "-R", "u+rwx", str(place)], check=True)
        shutil.rmtree(place)


def test_a_refused_directory_is_a_gap_until_it_may_be_read(as_nobody: Path, follow: Callable[..., Followed]) -> None:
    top = as_nobody / "top"
    (top / "secret/deep").mkdir(parents=True)
    (top / "open").mkdir()
    (top / "secret").chmod(0)
    home = follow(top)
    assert home.gaps() == [("secret", DENIED)]
    (top / "secret").chmod(0o700)
    home.catch_up()
    assert "secret" in home.appeared()
    home.probe_all()


def test_many_refused_directories_are_one_gap(as_nobody: Path, follow: Callable[..., Followed]) -> None:
    top = as_nobody / "top"
    for number in range(walker_module.MANY + 1):
        (top / f"crowd/{number}").mkdir(parents=True)
        (top / f"crowd/{number}").chmod(0)
    home = follow(top)
    assert home.gaps() == [("crowd", DENIED)]


LIMITED = """
limit = open("/proc/sys/user/max_inotify_watches", "w")
limit.write("10")
limit.close()
follower.arm()
os.mkdir(top + b"/late")
follower.turn()
"""

MOUNTED = """
def run(*command):
    subprocess.run(command, check=True)
run("mount", "-t", "tmpfs", "none", top + b"/0")
run("mount", "--bind", top, top + b"/1/deep")
follower.arm()
"""

UNMOUNTED_LATER = """
run = subprocess.run
run(["mount", "-t", "tmpfs", "none", top], check=True)
os.makedirs(top + b"/x/y")
follower.arm()
assert follower.watches() == 3
run(["umount", top], check=True)
follower.turn()
"""


def in_namespace(script: str, top: Path) -> tuple[int, list[tuple[str, str]]]:
    """Run lines about `follower` and `top` where limits and mounts are our own; returns watches and gaps."""
    before = """
import os, subprocess, sys
from contbak.capture.follower import Follower
top = os.fsencode(sys.argv[1])
told = []
follower = Follower("home", top, lambda path, is_dir: False, told.extend)
"""
    after = """
print(follower.watches())
for notice in told:
    if hasattr(notice, "reason"):
        print(os.path.relpath(notice.path, top).decode(), notice.reason, sep="|")
"""
    unshare = ["unshare", "--user", "--map-root-user", "--mount"]
    if shutil.which("unshare") is None or subprocess.run([*unshare, "true"], capture_output=True).returncode:
        pytest.skip("no namespaces of our own here")
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    command = [*unshare, sys.executable, "-c", before + script + after, str(top)]
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    watches, *lines = done.stdout.splitlines()
    return int(watches), [(line.split("|")[0], line.split("|")[1]) for line in lines]


def test_the_watch_limit_is_a_gap_for_each_topmost_directory(tmp_path: Path) -> None:
    for number in range(12):
        (tmp_path / f"{number}/deep/er").mkdir(parents=True)
    watches, gaps = in_namespace(LIMITED, tmp_path)
    assert watches == 10
    assert {reason for _, reason in gaps} == {WATCH_LIMIT}
    places = [place for place, _ in gaps]
    assert len(places) == len(set(places)) == 10  # 3 of 12 are watched; 9 and the late one are not
    assert all("/" not in place for place in places)


def test_other_file_systems_and_circles_are_not_entered(tmp_path: Path) -> None:
    for number in range(2):
        (tmp_path / f"{number}/deep").mkdir(parents=True)
    watches, gaps = in_namespace(MOUNTED, tmp_path)
    assert watches == 2  # the top and 1: a file system is mounted over 0, and 1/deep is the top again
    assert sorted(gaps) == [("0", OTHER_FILE_SYSTEM), ("1/deep", LOST_TRACK)]


def test_an_unmounted_source_is_a_gap(tmp_path: Path) -> None:
    assert in_namespace(UNMOUNTED_LATER, tmp_path) == (0, [(".", UNMOUNTED)])


def test_deeper_than_descriptors_and_paths_allow(
    top: Path, follow: Callable[..., Followed], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(walker_module, "DEPTH", 5)
    deep = top / "a"
    for _ in range(30):
        deep = deep / "d"
        (deep / "side").mkdir(parents=True)
    home = follow(top)
    home.probe_all()


@pytest.mark.parametrize("lossy", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_a_storm_of_changes_leaves_every_directory_watched(
    seed: int, lossy: bool, tmp_path: Path, follow: Callable[..., Followed], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Directories are made, moved in, out and about, and removed while they are being followed."""
    top, outside = tmp_path / "top", tmp_path / "outside"
    top.mkdir()
    outside.mkdir()
    home = follow(top)
    if lossy:
        monkeypatch.setattr(inotify.Inotify, "read", losing(random.Random(-seed)))
    over = threading.Event()

    def rage() -> None:
        try:
            run_storm(random.Random(seed), top, outside)
        finally:
            over.set()
            home.follower.wake()

    storm = threading.Thread(target=rage)
    storm.start()
    while not over.is_set():
        home.follower.turn()
    storm.join()
    monkeypatch.undo()
    home.probe_all()


def losing(dice: random.Random) -> Callable[[inotify.Inotify], bytes]:
    """A `read` that now and then throws away what it read and says that the queue overflowed."""
    read = inotify.Inotify.read

    def lossy(notify: inotify.Inotify) -> bytes:
        buffer = read(notify)
        if buffer and dice.random() < 0.1:
            return struct.pack("iIII", -1, inotify.Q_OVERFLOW, 0, 0)
        return buffer

    return lossy


def run_storm(dice: random.Random, top: Path, outside: Path) -> None:
    def somewhere(root: Path) -> Path:
        place = root
        while (inner := [entry for entry in os.scandir(place) if entry.is_dir()]) and dice.random() < 0.7:
            place = Path(dice.choice(inner).path)
        return place

    for number in range(400):
        name, kind = dice.choice("abcdef"), dice.random()
        try:
            place = somewhere(top)
            if kind < 0.4:
                (place / name / dice.choice("abc")).mkdir(parents=True)
            elif kind < 0.75:
                somewhere(top).rename(place / name)
            elif kind < 0.82:
                somewhere(top).rename(outside / str(number))
            elif kind < 0.9:
                somewhere(outside).rename(place / name)
            elif place != top:
                shutil.rmtree(place)
        except OSError:
            pass  # into itself, onto something, the top: the dice know no better


def test_a_directory_that_cannot_be_found_again_becomes_a_gap(
    top: Path, follow: Callable[..., Followed], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(follower_module, "GIVE_UP_S", 0.0)
    home = follow(top)
    (top / "a/fresh").mkdir()
    monkeypatch.setattr(walker_module.Walker, "_open_known", lambda *arguments: None)
    home.catch_up()
    assert ("a", LOST_TRACK) in home.gaps()
