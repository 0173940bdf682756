"""Scans of real trees: what the relay would restore is what is on disk, whatever happened and in whatever order."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import random
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from contbak.capture import sieve as sieves
from contbak.capture.attributes import fingerprint
from contbak.capture.findings import LOST, TOUCHED, Read
from contbak.capture.proof import Proof
from contbak.capture.proofs import TABLES, Proofs
from contbak.capture.scan import Scan
from contbak.core.errors import Vanished
from contbak.core.excludes import Excludes
from contbak.core.names import TOP_DIR, SourceId
from contbak.store.kv import Kv
from tests.capture.world import CHANGES, Event, Fragile, Keeper, PowerCut, World, disk, disk_link_groups, walk

_serial = itertools.count()


@pytest.fixture(scope="module")
def kv(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kv]:
    with Kv.open(tmp_path_factory.mktemp("kv"), TABLES) as opened:
        yield opened


@pytest.fixture
def place(tmp_path: Path) -> Path:
    top = tmp_path / "top"
    top.mkdir()
    return top


@pytest.fixture
def keeper(kv: Kv, place: Path) -> Keeper:
    return fresh_keeper(kv, place)


def fresh_keeper(kv: Kv | Fragile, top: Path) -> Keeper:
    return Keeper(kv, top, SourceId(b"%08d" % next(_serial)))


def check(keeper: Keeper, top: Path) -> None:
    assert keeper.tree() == disk(top)
    keeper.check_rows()


# -- the model ------------------------------------------------------------------------------------------------

numbers = st.integers(0, 1000)
steps = st.tuples(st.sampled_from(CHANGES), numbers, numbers)
looks = st.sampled_from(["all", "some", "full", "crash"])
stories = st.lists(st.one_of(steps, steps, looks), min_size=3, max_size=25)


class Story:
    """Plays a list of changes and looks."""

    def __init__(self, keeper: Keeper, top: Path, seed: int) -> None:
        self.keeper, self.top = keeper, top
        self.world = World(top)
        self.events: list[Event] = []
        self.random = random.Random(seed)
        self.links_wanted = False

    def play(self, story: list[Any]) -> None:
        self.keeper.full()
        for act in [*story, "all", "full"]:
            if isinstance(act, tuple):
                self.events += getattr(self.world, act[0])(act[1], act[2])
                if act[0] == "link":  # what is done through a name that is gone before a look, only a full scan finds
                    self.all()
            else:
                getattr(self, act)()

    def all(self) -> None:
        """All events, in any order."""
        self.random.shuffle(self.events)
        self.keeper.look(self.events, self.random.choice([1 << 30, 1, 3]))
        self.events = []
        if self.links_wanted or self.keeper.links_wanted:
            self.keeper.full()
            self.links_wanted = False
        check(self.keeper, self.top)
        assert self.keeper.link_groups() == disk_link_groups(self.top)

    def some(self) -> None:
        """A part of the events: what is committed need not be the disk, but nothing may be left lying about."""
        self.random.shuffle(self.events)
        half = len(self.events) // 2
        self.keeper.look(self.events[:half], self.random.choice([1 << 30, 2]))
        del self.events[:half]
        self.links_wanted |= self.keeper.links_wanted
        self.keeper.check_rows()

    def full(self) -> None:
        self.keeper.full(self.random.choice([1 << 30, 2]))
        self.events = []
        check(self.keeper, self.top)
        self.keeper.full()
        assert (self.keeper.reads, self.keeper.staged, self.keeper.troubles) == ([], 0, [])

    def crash(self) -> None:
        """The power fails before some write transaction of a look; a full scan heals."""
        fragile = self.keeper.kv
        fragile.left = self.random.randrange(12)
        with contextlib.suppress(PowerCut):
            self.keeper.look(self.events, self.random.choice([1 << 30, 1, 2, 3]))
        fragile.left = None
        self.keeper.restart()
        self.full()


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(story=stories, seed=st.integers(0, 1 << 16))
def test_what_is_kept_is_what_is_there(kv: Kv, tmp_path_factory: pytest.TempPathFactory, story: Any, seed: int) -> None:
    top = tmp_path_factory.mktemp("top")
    keeper = fresh_keeper(Fragile(kv), top)
    try:
        Story(keeper, top, seed).play(story)
    finally:
        shutil.rmtree(top)
        Proofs(kv, keeper.source).forget()


@pytest.mark.parametrize("seed", range(12))
def test_long_stories(kv: Kv, place: Path, seed: int) -> None:
    chance = random.Random(f"{os.environ['CONTBAK_TEST_SEED']} {seed}")
    acts = [
        (chance.choice(CHANGES), chance.randrange(1000), chance.randrange(1000))
        if chance.random() < 0.75
        else chance.choice(["all", "some", "full", "crash"])
        for _ in range(60)
    ]
    Story(fresh_keeper(Fragile(kv), place), place, seed).play([("make_full", 0, step) for step in range(4)] + acts)


# -- moves ----------------------------------------------------------------------------------------------------


def fill(top: Path, *paths: str) -> None:
    for number, path in enumerate(paths, 1):
        (top / path).parent.mkdir(parents=True, exist_ok=True)
        (top / path).write_bytes(b"x" * number)


def ids(keeper: Keeper) -> dict[bytes, bytes]:
    return {path: keeper.entries[key].dir for path, key in walk(keeper.entries) if keeper.entries[key].dir}


@pytest.mark.parametrize("events", [[b"a", b"b/c"], [b"b/c", b"a"], [b"b/c"]])
def test_a_moved_directory_is_three_rows(keeper: Keeper, place: Path, events: list[bytes]) -> None:
    fill(place, *(f"a/in/{number}" for number in range(50)), "b/x")
    keeper.full()
    before = ids(keeper)
    os.rename(place / "a", place / "b/c")
    keeper.look([(path, True) for path in events])
    check(keeper, place)
    assert keeper.reads == [] and keeper.staged <= 5  # the top, b, the old and the new name
    assert ids(keeper)[b"b/c"] == before[b"a"] and ids(keeper)[b"b/c/in"] == before[b"a/in"]


def test_a_move_in_two_batches_ends_well(keeper: Keeper, place: Path) -> None:
    fill(place, "a/in/x", "a/y")
    for first, second in ((b"a", b"b"), (b"a", b"b")):
        keeper.full()
        os.rename(place / "a", place / "b")
        keeper.look([(first, False)])
        keeper.check_rows()
        keeper.look([(second, True)])
        check(keeper, place)
        os.rename(place / "b", place / "a")


def test_swapped_directories_are_not_read(keeper: Keeper, place: Path) -> None:
    fill(place, *(f"a/{number}" for number in range(9)), *(f"b/in/{number}" for number in range(9)))
    keeper.full()
    before = ids(keeper)
    for old, new in (("a", "c"), ("b", "a"), ("c", "b")):
        os.rename(place / old, place / new)
    keeper.look([(b"b", False), (b"a", False)])
    check(keeper, place)
    assert keeper.reads == [] and ids(keeper)[b"a"] == before[b"b"] and ids(keeper)[b"b"] == before[b"a"]


def test_moved_there_and_back_in_one_batch(keeper: Keeper, place: Path) -> None:
    fill(place, "a/x", "b/y")
    keeper.full()
    proofs = Proofs(keeper.kv, keeper.source)
    scan = Scan(keeper.top, proofs, keeper.left_out)
    os.rename(place / "a", place / "c")
    assert list(scan.look(b"a")) == []
    os.rename(place / "c", place / "a")
    assert list(scan.look(b"a")) == []
    scan.finish()
    keeper.commit(proofs)
    check(keeper, place)


def test_another_directory_takes_the_place_of_a_missing_one(keeper: Keeper, place: Path) -> None:
    fill(place, "a/x")
    keeper.full()
    proofs = Proofs(keeper.kv, keeper.source)
    scan = Scan(keeper.top, proofs, keeper.left_out)
    os.rename(place / "a", place / "c")
    assert list(scan.look(b"a")) == []
    (place / "a").mkdir()
    assert [*scan.look(b"a"), *scan.look(b"c")] == []
    scan.finish()
    keeper.commit(proofs)
    check(keeper, place)


def test_a_reused_inode_number_takes_nothing_over(keeper: Keeper, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The numbers are made up: few file systems deal them out again at once."""
    fill(place, "a/x", "a/in/y")
    keeper.full()
    number, times = os.lstat(place / "a").st_ino, os.stat(place / "a")
    shutil.rmtree(place / "a")
    fill(place, "b/x", "b/z")
    os.utime(place / "b", ns=(times.st_atime_ns, times.st_mtime_ns))  # as an archive does
    other = os.lstat(place / "b").st_ino
    real = os.lstat

    def lstat(path: Any) -> os.stat_result:
        found = real(path)
        fields = list(found)
        fields[1] = number if found.st_ino == other else found.st_ino
        extra = found.__reduce__()[1][1]
        return os.stat_result(fields, extra)

    monkeypatch.setattr(os, "lstat", lstat)
    keeper.look([(b"b", False)])
    keeper.look([(b"a", False)])
    monkeypatch.undo()
    assert keeper.tree() == disk(place)
    keeper.full()
    check(keeper, place)


def test_a_second_mount_of_a_directory_takes_nothing_away(
    keeper: Keeper, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(place, "a/x", "b/y")
    shutil.rmtree(place / "b")
    keeper.full()
    before = ids(keeper)
    fill(place, "b/y")
    real, number = os.lstat, os.lstat(place / "a").st_ino

    def lstat(path: Any) -> os.stat_result:
        found = real(path)
        fields = list(found)
        fields[1] = number if os.fsencode(path).endswith(b"/b") else found.st_ino
        return os.stat_result(fields, found.__reduce__()[1][1])

    with monkeypatch.context() as patch:
        patch.setattr(os, "lstat", lstat)
        keeper.look([(b"b", True)])
    assert keeper.tree() == disk(place) and ids(keeper)[b"a"] == before[b"a"] != ids(keeper)[b"b"]


def test_a_directory_replaced_in_part_of_a_batch_is_cleared_after_a_crash(kv: Kv, place: Path) -> None:
    """Commits in the middle of a batch leave rows that nothing leads to; the next batch finds them."""
    fill(place, "a/x", "a/in/y", "b")
    fragile = Fragile(kv)
    keeper = fresh_keeper(fragile, place)
    keeper.full()
    shutil.rmtree(place / "a")
    (place / "a").write_bytes(b"now a file")
    proofs = Proofs(fragile, keeper.source)  # type: ignore[arg-type]
    scan = Scan(keeper.top, proofs, keeper.left_out)
    keeper._read(proofs, [item for item in scan.look(b"a") if isinstance(item, Read)])
    keeper.commit(proofs)
    keeper.restart()
    assert keeper.rows("detached")
    keeper.full()
    check(keeper, place)


def test_power_fails_before_each_write(kv: Kv, tmp_path: Path) -> None:
    for cut in range(40):
        top = tmp_path / str(cut)
        fill(top, "a/x", "a/in/y", "b/z", "c")
        fragile = Fragile(kv)
        keeper = fresh_keeper(fragile, top)
        keeper.full()
        os.rename(top / "a", top / "b/a")
        os.rename(top / "b", top / "d")
        fill(top, "a/new", "b/new")
        fragile.left = cut
        done = True
        try:
            keeper.look([(b"", True)], commit_every=1)
        except PowerCut:
            done = False
        fragile.left = None
        keeper.restart()
        keeper.full()
        check(keeper, top)
        if done:
            assert cut > 5
            return
    raise AssertionError("the look never ended")


def test_ids_follow_from_paths(kv: Kv, place: Path) -> None:
    """A machine that lost its state writes the same tree again."""
    fill(place, "a/x", "a/in/y")
    one, two = fresh_keeper(kv, place), fresh_keeper(kv, place)
    one.full()
    two.full()
    assert one.entries == two.entries


# -- what cannot be looked at ---------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [errno.EACCES, errno.EIO])
def test_an_unreadable_directory_is_no_deletion(
    keeper: Keeper, place: Path, monkeypatch: pytest.MonkeyPatch, error: int
) -> None:
    fill(place, "a/x", "a/in/y", "b/z")
    keeper.full()
    kept = dict(keeper.entries)
    real = sieves.listed
    bad = os.fsencode(place / "a")

    def listed(path: bytes, descriptor: int) -> Any:
        if path == bad:
            raise OSError(error, os.strerror(error), path)
        return real(path, descriptor)

    fill(place, "b/new")
    with monkeypatch.context() as patch:
        patch.setattr(sieves, "listed", listed)
        keeper.full()
    assert [(t.path, t.reason) for t in keeper.troubles] == [(b"a", os.strerror(error).lower())]
    assert keeper.reads == [b"b/new"] and kept.keys() < keeper.entries.keys()
    keeper.full()
    check(keeper, place)


def test_an_unreadable_name_is_no_deletion(keeper: Keeper, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(place, "a/x", "a/in/y", "b")
    keeper.full()
    real = os.lstat

    def lstat(path: Any) -> os.stat_result:
        if path.endswith(b"/a"):
            raise OSError(errno.EIO, os.strerror(errno.EIO), path)
        return real(path)

    with monkeypatch.context() as patch:
        patch.setattr(os, "lstat", lstat)
        keeper.look([(b"a", True), (b"a/x", False), (b"a/in", True)])
    assert {t.path for t in keeper.troubles} == {b"a"} and keeper.staged == 0
    check(keeper, place)


def test_names_that_vanish_while_they_are_listed(keeper: Keeper, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(place, "a/x", "b/y", "c")
    real = sieves.listed

    def listed(path: bytes, descriptor: int) -> Any:
        found = real(path, descriptor)
        if path == os.fsencode(place):
            shutil.rmtree(place / "a")
            (place / "c").unlink()
        elif path.endswith(b"/b"):
            shutil.rmtree(place / "b")
        return found

    with monkeypatch.context() as patch:
        patch.setattr(sieves, "listed", listed)
        keeper.full()
    assert keeper.troubles == []
    keeper.full()
    check(keeper, place)


def test_more_differs_in_a_directory_than_is_held(keeper: Keeper, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sieves, "_HELD", 3)
    fill(place, *(f"d/{number}" for number in range(10)), "d/in/x", "d/out/y")
    os.symlink("0", place / "d/link")
    keeper.full(commit_every=2)
    check(keeper, place)
    proofs = Proofs(keeper.kv, keeper.source)
    for number in range(10):
        (place / f"d/{number}").write_bytes(b"other")
    found = Scan(keeper.top, proofs, keeper.left_out).look(b"", True)
    first = next(found)
    for number in range(10):
        (place / f"d/{number}").unlink(missing_ok=True)  # meanwhile
    assert isinstance(first, Read) and len(list(found)) == 2
    proofs.drop_staged()
    keeper.full()
    check(keeper, place)


def test_times_that_no_64_bits_hold(keeper: Keeper, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(place, "a", "b")
    listed = sieves.listed

    def far(entry: os.DirEntry[str], follow_symlinks: bool) -> os.stat_result:
        found = entry.stat(follow_symlinks=follow_symlinks)
        extra = found.__reduce__()[1][1]
        return os.stat_result(list(found), extra | {"st_mtime_ns": 1 << 70, "st_ctime_ns": 1 << 70})

    def entries(path: bytes, descriptor: int) -> list[Any]:
        return [
            (name, SimpleNamespace(is_dir=entry.is_dir, stat=partial(far, entry)))
            for name, entry in listed(path, descriptor)
        ]

    monkeypatch.setattr(sieves, "listed", entries)
    keeper.full()
    real = os.lstat(place / "a")
    fields = list(real), real.__reduce__()[1][1] | {"st_mtime_ns": 1 << 70, "st_ctime_ns": 1 << 70}
    proofs = Proofs(keeper.kv, keeper.source)
    known = proofs.find(TOP_DIR, b"a")
    assert known is not None
    proofs.renew(TOP_DIR, b"a", Proof(fingerprint(os.stat_result(*fields))))
    keeper.full()
    assert keeper.reads == [b"b"]


def test_a_source_that_is_gone_is_no_deletion(keeper: Keeper, place: Path) -> None:
    fill(place, "a/x", "b")
    keeper.full()
    os.rename(place, place.parent / "aside")
    with pytest.raises(Vanished):
        keeper.full()
    place.mkdir()  # the mount point
    with pytest.raises(Vanished, match="mounted"):
        keeper.look([(b"a", True)])
    place.rmdir()
    place.write_bytes(b"")
    with pytest.raises(Vanished, match="not a directory"):
        keeper.full()
    place.unlink()
    os.rename(place.parent / "aside", place)
    keeper.look([(b"a/x", False), (b"b", False)])
    check(keeper, place)
    assert keeper.staged <= 1


@pytest.mark.parametrize("event", [(b"", True), (b"a/x", False), (b"b", False)])
def test_a_source_that_goes_away_during_a_scan(keeper: Keeper, place: Path, event: Event) -> None:
    fill(place, "a/x", "b")
    keeper.full()
    proofs = Proofs(keeper.kv, keeper.source)
    scan = Scan(keeper.top, proofs, keeper.left_out)
    os.rename(place, place.parent / "aside")
    place.mkdir()
    with pytest.raises(Vanished):
        list(scan.look(*event))
    assert all(row.entry is not None for row in proofs.staged())


def test_a_new_directory_in_the_place_of_the_source_is_taken(keeper: Keeper, place: Path) -> None:
    fill(place, "a/x", "b")
    keeper.full()
    os.rename(place, place.parent / "aside")
    fill(place, "b")
    keeper.full()
    check(keeper, place)


class Device(NamedTuple):
    """Makes lstat and listings say that what lies at a path is another file system."""

    at: bytes

    def seen(self, path: bytes, st: os.stat_result) -> os.stat_result:
        if path != self.at and not path.startswith(self.at + b"/"):
            return st
        fields = list(st)
        fields[1:3] = 2, st.st_dev + 1
        return os.stat_result(fields, st.__reduce__()[1][1])

    def patch(self, patch: pytest.MonkeyPatch) -> None:
        lstat, listed = os.lstat, sieves.listed

        def stat(path: bytes, entry: os.DirEntry[str], follow_symlinks: bool) -> os.stat_result:
            return self.seen(path, entry.stat(follow_symlinks=follow_symlinks))

        def entries(path: bytes, descriptor: int) -> list[Any]:
            return [
                (name, SimpleNamespace(is_dir=entry.is_dir, stat=partial(stat, os.path.join(path, name), entry)))
                for name, entry in listed(path, descriptor)
            ]

        patch.setattr(os, "lstat", lambda path: self.seen(path, lstat(path)))
        patch.setattr(sieves, "listed", entries)


def test_what_is_mounted_is_not_entered(keeper: Keeper, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(place, "m/x", "b")
    with monkeypatch.context() as patch:
        Device(os.fsencode(place / "m")).patch(patch)
        keeper.full()
        assert set(keeper.tree()) == {b"", b"m", b"b"}
        keeper.look([(b"m/x", False), (b"m/in/y", True)])
        assert keeper.staged == 0
        keeper.full()
        assert keeper.staged == 0
    keeper.full()  # unmounted: what it hid is there
    check(keeper, place)
    with monkeypatch.context() as patch:
        Device(os.fsencode(place / "m")).patch(patch)
        keeper.full()
    assert b"m/x" in keeper.tree() and keeper.reads == []
    keeper.full()
    check(keeper, place)
    assert keeper.reads == []


def test_a_link_on_the_way_is_not_followed(keeper: Keeper, place: Path) -> None:
    fill(place, "a/x", "b/x", "b/y")
    keeper.full()
    shutil.rmtree(place / "a")
    os.symlink("b", place / "a")
    keeper.look([(b"a/x", False), (b"a/y", False)])
    check(keeper, place)
    assert keeper.reads == []


# -- what is left out -----------------------------------------------------------------------------------------

TAG = b"Signature: 8a477f597d28d172789f06886806bc55\n# made by a test\n"


@pytest.mark.parametrize("by_event", [True, False])
@pytest.mark.parametrize(("marker", "content"), [("CACHEDIR.TAG", TAG), (".nobackup", b"")])
def test_marked_directories(keeper: Keeper, place: Path, marker: str, content: bytes, by_event: bool) -> None:
    fill(place, "a/x", "a/in/y", "b")
    keeper.full()
    mark = place / "a" / marker
    name = b"a/" + marker.encode()

    def look() -> None:
        keeper.look([(name, False)] if by_event else [(b"", True)])
        keeper.check_rows()

    mark.write_bytes(content)
    look()
    assert set(keeper.tree()) == {b"", b"a", name, b"b"}
    keeper.look([(b"a/x", False), (b"a/in/y", False), (b"a/in", True)])
    assert set(keeper.tree()) == {b"", b"a", name, b"b"}
    mark.unlink()
    look()
    check(keeper, place)


def test_what_is_no_tag(keeper: Keeper, place: Path) -> None:
    fill(place, "a/x", "b/x", "c/x")
    (place / "a/CACHEDIR.TAG").write_bytes(b"Signature: something else")
    os.mkfifo(place / "b/CACHEDIR.TAG")
    (place / "tag").write_bytes(TAG)
    os.symlink("../tag", place / "c/CACHEDIR.TAG")
    keeper.full()
    assert {b"a/x", b"b/x", b"c/x"} <= set(keeper.tree())


def test_rules_that_come_later(keeper: Keeper, place: Path) -> None:
    fill(place, "a/x", "a/in/y", "b/x")
    keeper.full()
    keeper.left_out = Excludes(["/a/"])
    keeper.look([(b"a/in/y", False)])
    assert set(keeper.tree()) == {b"", b"b", b"b/x"}
    keeper.check_rows()
    fill(place, "a/in/new")
    keeper.look([(b"a/in/new", False), (b"a/in", True), (b"a", True)])
    assert keeper.staged == 0
    keeper.left_out = Excludes(["*x"])
    keeper.full()
    assert set(keeper.tree()) == {b"", b"a", b"a/in", b"a/in/y", b"a/in/new", b"b"}
    keeper.check_rows()
    keeper.left_out = Excludes([])
    keeper.full()
    check(keeper, place)


def test_forced_files_are_read_though_they_look_the_same(keeper: Keeper, place: Path) -> None:
    fill(place, "a/x", ".nobackup")
    (place / ".nobackup").unlink()
    keeper.full()
    keeper.look([(b"a/x", False)])
    assert keeper.reads == []
    keeper.look([(b"a/x", False)], forced=True)
    assert keeper.reads == [b"a/x"]


def test_a_new_directory_and_its_files_in_one_batch_are_read_once(keeper: Keeper, place: Path) -> None:
    keeper.full()
    fill(place, "a/x", "a/y")
    keeper.look([(b"a", True), (b"a/x", False), (b"a/y", False)])
    assert sorted(keeper.reads) == [b"a/x", b"a/y"]


def test_other_names_of_a_changed_file(keeper: Keeper, place: Path) -> None:
    fill(place, "a/x", "b/z")
    os.link(place / "a/x", place / "b/y")
    keeper.full()
    (place / "b/y").write_bytes(b"changed through one name")
    keeper.look([(b"b/y", False)])
    check(keeper, place)
    assert sorted(keeper.reads) == [b"a/x", b"b/y"] and not keeper.links_wanted
    os.link(place / "b/z", place / "c")
    keeper.look([(b"c", False)])
    assert keeper.links_wanted
    keeper.full()
    os.rename(place / "c", place / "d")
    keeper.look([(b"c", False), (b"d", False)])
    assert not keeper.links_wanted
    check(keeper, place)


@pytest.mark.parametrize("end", ["delete", "turn", "tree"])
def test_other_names_of_a_file_that_is_gone(keeper: Keeper, place: Path, end: str) -> None:
    """Its last change may have come through the name that is gone."""
    fill(place, "a/x", "a/in/y")
    os.link(place / "a/x", place / "b")
    keeper.full()
    (place / "a/x").chmod(0o700)
    if end == "tree":
        shutil.rmtree(place / "a")
        keeper.look([(b"a", False)])
        assert keeper.links_wanted
        keeper.full()
    else:
        (place / "a/x").unlink()
        if end == "turn":
            (place / "a/x").mkdir()
        keeper.look([(b"a/x", True)])
    check(keeper, place)


def test_a_path_deeper_than_any_stack(keeper: Keeper, place: Path) -> None:
    depth = 1100
    try:
        for level in range(1, depth + 1):
            os.mkdir(place / ("d/" * level))
        keeper.full()
        path = b"d/" * depth + b"x"
        (place / os.fsdecode(path)).write_bytes(b"x")
        keeper.look([(path, False)])
        assert path in keeper.tree()
        (place / os.fsdecode(path)).unlink()
    finally:
        for level in range(depth, 0, -1):  # the clearing up of the test run would recurse
            os.rmdir(place / ("d/" * level))


@pytest.mark.parametrize("doubt", [0, TOUCHED, LOST])
def test_a_file_that_an_event_told_of_is_read_under_all_its_names(keeper: Keeper, place: Path, doubt: int) -> None:
    fill(place, "a/x", "b/z")
    os.link(place / "a/x", place / "b/y")
    (place / "link").symlink_to("a")
    keeper.full()
    proofs = Proofs(keeper.kv, keeper.source)
    scan = Scan(keeper.top, proofs, Excludes([]))
    found = [item.path for path in (b"a/x", b"link", b"b") for item in scan.look(path, doubt=doubt)]
    assert found == ([b"a/x", b"b/y"] if doubt else [])
    again = [item.path for item in scan.look(b"a/x", doubt=doubt)]
    assert again == ([b"a/x"] if doubt == LOST else []), "once for each batch"
