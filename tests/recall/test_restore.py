"""Restoring from a store directory: everything comes back, damage is listed, nothing is silently wrong."""

import io
import os
import random
import tracemalloc

import pytest

from contbak.core import pack
from contbak.core.errors import FormatError, NotFound, Partial
from contbak.core.node import decode_node
from contbak.core.timespec import Latest
from contbak.recall import chunks as chunks_module
from contbak.recall import files as files_module
from contbak.recall.directory import DirectoryPlace
from contbak.recall.opening import open_vault
from contbak.recall.restore import Wanted, dump, restore, wanted
from contbak.recall.snapshots import Located
from tests.trees import list_tree, make_tree, same_tree
from tests.vaults import VaultMaker


@pytest.fixture(params=["here", "team"], autouse=True)
def hands(request, monkeypatch):
    """Everything holds in this process, and with several that write."""
    if request.param == "team":
        monkeypatch.setattr(files_module, "WINDOW_FILES", 5)
        monkeypatch.setattr(files_module, "SHARE_FILES", 1)
        monkeypatch.setattr(files_module, "TEAM_MAX", 2)
    else:
        monkeypatch.setattr(files_module, "possible", lambda: False)
    yield request.param
    with pytest.raises(ChildProcessError):  # none is left
        os.waitpid(-1, os.WNOHANG)


@pytest.fixture
def maker(tmp_path, seed):
    return VaultMaker(tmp_path / "store", seed)


def opened(maker):
    return open_vault(DirectoryPlace(maker.store), maker.keys)


def restored(maker, target, **options):
    with opened(maker) as vault:
        snapshot = vault.history.choose(Latest(0))[0]
        return restore(vault.chunks, [Wanted(snapshot.roots, b"", b"")], os.fsencode(target), **options)


def fill(top, sizes, chance):
    """Files of these sizes (name to bytes)."""
    for name, size in sizes.items():
        path = top / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(chance.randbytes(size))


def flip(path, at):
    raw = bytearray(path.read_bytes())
    raw[at] ^= 1 << (at % 8)
    path.write_bytes(raw)


def frames_of(path):
    """The rows of a sound pack."""
    raw = path.read_bytes()
    plan = pack.parse_plan(raw[-pack.plan_length(raw[-pack.TRAILER_LEN :]) :])
    return pack.parse_directory(raw[plan.directory_offset : plan.directory_offset + plan.directory_len])


def data_packs(maker):
    return [path for path in maker.packs() if frames_of(path)[0].kind == 0]


def test_a_hostile_tree_comes_back_whole(maker, tmp_path, seed):
    make_tree(tmp_path / "home", seed)
    maker.device().commit("home", tmp_path / "home")
    report = restored(maker, tmp_path / "out")
    assert report.complete, report
    assert same_tree(tmp_path / "home", tmp_path / "out") == []


def test_runs_on_a_base_come_back_whole(maker, tmp_path, seed):
    chance = random.Random(seed)
    home, device = tmp_path / "home", maker.device()
    fill(home, {f"d{n % 5}/f{n}": chance.randrange(20_000) for n in range(50)}, chance)
    device.commit("home", home)
    for round_ in range(5):
        files = sorted(path for path in home.rglob("*") if path.is_file())
        chance.choice(files).unlink()
        fill(home, {f"d{round_}/new": 5000, f"e{round_}/f": 300}, chance)
        device.commit("home", home)
    assert restored(maker, tmp_path / "out").complete
    assert same_tree(home, tmp_path / "out") == []


def test_a_path_is_restored_as_cp_does(maker, tmp_path, seed):
    home = tmp_path / "home"
    fill(home, {"a/b/one": 10, "a/b/two": 3000, "a/three": 7}, random.Random(seed))
    maker.device().commit("home", home)
    with opened(maker) as vault:
        for path, expected in ((home / "a" / "b", "b/two"), (home / "a" / "three", "three"), (home, "home/a/b/two")):
            places = vault.history.locate(os.fsencode(path), Latest(0))
            out = tmp_path / f"out-{path.name}"
            assert restore(vault.chunks, wanted(places), os.fsencode(out)).complete
            assert (out / expected).is_file()
            assert same_tree(path, out / path.name) == [] if path.is_dir() else True


def test_sources_of_one_name_do_not_mix(maker, tmp_path, seed):
    laptop, desk = maker.device("laptop"), maker.device("a/desk")
    for device, name, content in ((laptop, "a", "1"), (laptop, "b", "2"), (desk, "b", "3"), (desk, "c", "4")):
        (tmp_path / "tree").mkdir(exist_ok=True)
        (tmp_path / "tree" / "file").write_text(content)
        device.commit(name, tmp_path / "tree", at=f"/{name}/docs" if name != "c" else "/other")
    with opened(maker) as vault:
        places = [Located(one, b"") for one in vault.history.choose(Latest(0))]
        assert restore(vault.chunks, wanted([*places, *places]), os.fsencode(tmp_path / "out")).complete
    found = {str(path.relative_to(tmp_path / "out")): path.read_text() for path in (tmp_path / "out").rglob("file")}
    assert found == {
        "laptop/a/docs/file": "1", "laptop/b/docs/file": "2", "a_desk/b/docs/file": "3", "other/file": "4",
    }  # fmt: skip


def test_what_exists_is_kept_and_reported(maker, tmp_path, seed):
    home, out = tmp_path / "home", tmp_path / "out"
    fill(home, {"a": 5000, "d/b": 5000, "c": 50}, random.Random(seed))
    maker.device().commit("home", home)
    fill(out, {"d/b": 5000}, random.Random(seed + 1))
    before = (out / "d" / "b").read_bytes()
    report = restored(maker, out)
    assert report.kept == [b"d/b"] and not report.complete and report.restored == 2
    assert (out / "d" / "b").read_bytes() == before
    assert restored(maker, out, overwrite="always").complete
    assert same_tree(home, out) == []


def test_going_on_after_an_interruption_reads_little(maker, tmp_path, seed):
    home, out = tmp_path / "home", tmp_path / "out"
    fill(home, {f"f{n}": 60_000 for n in range(20)}, random.Random(seed))
    maker.device().commit("home", home)
    assert restored(maker, out, overwrite="if-changed").restored == 20
    (out / "f7").unlink()
    with opened(maker) as vault:
        snapshot = vault.history.snapshots[-1]
        report = restore(vault.chunks, [Wanted(snapshot.roots, b"", b"")], os.fsencode(out), overwrite="if-changed")
        assert (report.restored, report.same, report.complete) == (1, 19, True)
        assert vault.chunks.read_bytes < 250_000


def test_hard_links_are_not_made_between_files_that_differ(maker, tmp_path, seed):
    home = tmp_path / "home"
    fill(home, {"a": 3000}, random.Random(seed))
    os.link(home / "a", home / "b")
    device = maker.device()
    device.commit("home", home)
    rows = device.sources["home"]["rows"]
    assert len({entry.link for (_, name), entry in rows.items() if name in (b"a", b"b")}) == 1
    # b was saved again after a change that a does not have yet
    time = (home / "a").stat().st_mtime_ns
    (home / "b").write_bytes(b"other" * 600)
    os.utime(home / "b", ns=(time, time))  # not even size and time tell
    old = {key: entry for key, entry in rows.items() if key[1] == b"a"}
    device.commit("home", home)
    assert restored(maker, tmp_path / "same").complete
    assert same_tree(home, tmp_path / "same") == []
    nodes = []
    mixed = sorted({**device.sources["home"]["rows"], **old}.items())
    root = device._tree(mixed, nodes)
    maker.write_packs(1, nodes, device.device[:8])
    with opened(maker) as vault:
        report = restore(vault.chunks, [Wanted((root,), b"", b"")], os.fsencode(tmp_path / "mixed"))
    assert report.complete
    assert (tmp_path / "mixed" / "a").read_bytes() != (tmp_path / "mixed" / "b").read_bytes()
    assert (tmp_path / "mixed" / "a").stat().st_nlink == 1


def check_against(home, out, report):
    """Every file is as it was, or is listed; damaged ones are right outside of the ranges.  Returns the lost names."""
    listed = {problem.path for problem in report.failed}
    tree_lost = any("the tree is lost" in problem.reason for problem in report.failed)
    stale = any("may be older" in problem.reason for problem in report.failed)
    damaged = {damage.path: damage.lost for damage in report.damaged}
    lost = []
    for path in list_tree(home):
        name = os.path.relpath(path, os.fsencode(home))
        copy = os.path.join(os.fsencode(out), name)
        if not os.path.lexists(copy):
            above = {name[:at] for at, letter in enumerate(name) if letter == ord("/")} | {name}
            assert tree_lost or stale or above & listed, f"{name!r} is missing and nobody says so"
            lost.append(name)
        elif os.path.isfile(path):
            with open(path, "rb") as one, open(copy, "rb") as other:
                good, found = bytearray(one.read()), other.read()
            for offset, length in damaged.get(name, ()):
                good[offset : offset + length] = bytes(length)
            assert stale or good == found, f"{name!r} is silently wrong"
    for path in [] if stale else list_tree(out):
        assert os.path.lexists(os.path.join(os.fsencode(home), os.path.relpath(path, os.fsencode(out))))
    return lost


def damage_rounds(maker, tmp_path, rounds, chance, do):
    """Damages one pack in each round; every restore is right or says what is not."""
    sound = {path: path.read_bytes() for path in maker.packs()}
    kinds = set()
    for number in range(rounds):
        path = chance.choice(sorted(sound))
        do(path, chance)
        out = tmp_path / f"out{number}"
        report = restored(maker, out)
        lost = check_against(tmp_path / "home", out, report)
        kinds.add((bool(lost), bool(report.damaged)))
        assert report.complete == (not lost and not report.damaged and not report.failed)
        path.write_bytes(sound[path])
    return kinds


@pytest.fixture
def small(tmp_path, seed):
    maker = VaultMaker(tmp_path / "store", seed, chunk=512, bundle=4)
    chance = random.Random(seed)
    fill(tmp_path / "home", {f"d{n % 3}/f{n}": chance.choice((10, 300, 2000, 6000)) for n in range(12)}, chance)
    device = maker.device()
    device.commit("home", tmp_path / "home")
    fill(tmp_path / "home", {"d1/late": 4000}, chance)
    device.commit("home", tmp_path / "home")
    return maker


def test_any_flipped_byte_is_harmless_or_listed(small, tmp_path, seed):
    kinds = damage_rounds(
        small, tmp_path, 60, random.Random(seed), lambda path, chance: flip(path, chance.randrange(path.stat().st_size))
    )
    assert (False, False) in kinds and len(kinds) > 1, "the test must see both"


def test_a_pack_cut_short_or_gone_is_listed(small, tmp_path, seed):
    def cut(path, chance):
        if chance.random() < 0.3:
            path.unlink()
        else:
            os.truncate(path, chance.randrange(path.stat().st_size))

    damage_rounds(small, tmp_path, 25, random.Random(seed), cut)


def test_zeroed_blocks_are_listed(small, tmp_path, seed):
    def zero(path, chance):
        raw = bytearray(path.read_bytes())
        start = chance.randrange(len(raw))
        raw[start : start + 700] = bytes(len(raw[start : start + 700]))
        path.write_bytes(raw)

    damage_rounds(small, tmp_path, 25, random.Random(seed), zero)


def test_a_large_file_comes_back_around_its_holes(tmp_path, seed):
    """300 chunks, so list nodes give every loss its exact place."""
    maker = VaultMaker(tmp_path / "store", seed, chunk=1000, bundle=2, pack_frames=1000)
    home, out = tmp_path / "home", tmp_path / "out"
    fill(home, {"big": 300_500}, random.Random(seed))
    maker.device().commit("home", home)
    path = data_packs(maker)[0]
    rows = frames_of(path)
    for row in (rows[3], rows[20]):
        flip(path, row.offset + row.header_len + 5)
    report = restored(maker, out)
    numbers = [2 * number for number in (3, 20)]
    assert report.damaged == [(b"big", tuple((1000 * number, 2000) for number in numbers))]
    check_against(home, out, report)
    assert (out / "big").stat().st_size == 300_500


def test_small_file_with_losses_keeps_what_has_a_sure_place(tmp_path, seed):
    maker = VaultMaker(tmp_path / "store", seed, chunk=1000, bundle=1, pack_frames=1000)
    home = tmp_path / "home"
    fill(home, {"file": 20_500}, random.Random(seed))
    maker.device().commit("home", home)
    path = data_packs(maker)[0]
    rows = frames_of(path)
    for row in (rows[3], rows[7]):
        flip(path, row.offset + row.header_len + 5)
    report = restored(maker, tmp_path / "out")
    assert report.damaged == [(b"file", ((3000, 5000),))]
    check_against(home, tmp_path / "out", report)


def test_a_damaged_file_never_replaces_what_is_there(tmp_path, seed):
    maker = VaultMaker(tmp_path / "store", seed, chunk=1000, bundle=1, pack_frames=1000)
    home, out = tmp_path / "home", tmp_path / "out"
    fill(home, {"file": 20_500}, random.Random(seed))
    maker.device().commit("home", home)
    fill(out, {"file": 100}, random.Random(seed + 1))
    before = (out / "file").read_bytes()
    path = data_packs(maker)[0]
    flip(path, frames_of(path)[3].offset + 300)
    report = restored(maker, out, overwrite="always")
    assert [problem.path for problem in report.failed] == [b"file"]
    assert (out / "file").read_bytes() == before


def test_a_damaged_copy_is_passed_over_for_a_sound_one(tmp_path, seed):
    maker = VaultMaker(tmp_path / "store", seed, chunk=1000, bundle=4)
    home = tmp_path / "home"
    fill(home, {"file": 20_500}, random.Random(seed))
    maker.device().commit("home", home)
    first = set(maker.packs())
    maker.stored.clear()  # a second device did not know, and stored all of it once more
    maker.device("desk").commit("home", home)
    for number, copy in enumerate((first, set(maker.packs()) - first)):  # whichever is asked for first
        sound = {path: path.read_bytes() for path in copy}
        for path in copy:
            for row in frames_of(path):
                flip(path, row.offset + row.header_len + 9)
        assert restored(maker, tmp_path / f"out{number}").complete
        assert same_tree(home, tmp_path / f"out{number}") == []
        for path, raw in sound.items():
            path.write_bytes(raw)


def test_a_lost_leaf_costs_what_is_in_it_and_no_more(tmp_path, seed):
    """The first leaf, which also holds the entry of the top itself."""
    maker = VaultMaker(tmp_path / "store", seed, chunk=1000, bundle=1)
    home = tmp_path / "home"
    fill(home, {f"f{n:03}": 300 for n in range(700)}, random.Random(seed))
    maker.device().commit("home", home)
    with opened(maker) as vault:
        root = decode_node(vault.chunks.node(vault.history.snapshots[-1].roots[0]))
    gone = root.items[0]
    for path in maker.packs():
        for row in frames_of(path):
            if gone.id in row.ids:
                flip(path, row.offset + row.header_len + 9)
    report = restored(maker, tmp_path / "out")
    lost = check_against(home, tmp_path / "out", report)
    assert len(lost) == gone.rows - 1 and report.restored == 700 - len(lost)
    assert len(report.failed) == 2 and not report.complete


def test_dump(maker, tmp_path, seed):
    home = tmp_path / "home"
    make_tree(home, seed, files=5)
    (home / "big").write_bytes(random.Random(seed).randbytes(400_000))
    maker.device().commit("home", home)
    with opened(maker) as vault:
        view = vault.history.view(vault.history.snapshots[-1])
        for path in list_tree(home):
            name = os.path.relpath(path, os.fsencode(home))
            if os.path.isfile(path) and not os.path.islink(path) and os.path.getsize(path) < 10 << 20:
                out = io.BytesIO()
                with open(path, "rb") as file:
                    assert dump(vault.chunks, view, name, out) == len(out.getvalue())
                    assert out.getvalue() == file.read(), name
        with pytest.raises(NotFound):
            dump(vault.chunks, view, b"nothing", io.BytesIO())
        with pytest.raises(Partial):
            dump(vault.chunks, view, b"empty", io.BytesIO())
    path = max(data_packs(maker), key=lambda path: path.stat().st_size)
    for row in frames_of(path):
        flip(path, row.offset + row.header_len + 5)
    with opened(maker) as vault, pytest.raises(FormatError):
        dump(vault.chunks, vault.history.view(vault.history.snapshots[-1]), b"big", io.BytesIO())


def test_memory_does_not_grow_with_the_file(tmp_path, seed, monkeypatch):
    maker = VaultMaker(tmp_path / "store", seed, chunk=1 << 16)
    home = tmp_path / "home"
    fill(home, {"big": 48 << 20}, random.Random(seed))
    maker.device().commit("home", home)
    monkeypatch.setattr(chunks_module, "WINDOW", 1 << 20)
    with open_vault(DirectoryPlace(maker.store), maker.keys, cache=2 << 20) as vault:
        tracemalloc.start()
        try:
            restore(vault.chunks, [Wanted(vault.history.snapshots[-1].roots, b"", b"")], os.fsencode(tmp_path / "out"))
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    assert peak < 20 << 20
    assert same_tree(home, tmp_path / "out") == []


def test_no_more_is_read_ahead_than_the_window(tmp_path, seed, monkeypatch):
    """What a child reads at once is its own window, however large the windows of others are."""
    maker = VaultMaker(tmp_path / "store", seed, chunk=1 << 16)
    home = tmp_path / "home"
    fill(home, {"big": 4 << 20}, random.Random(seed))
    maker.device().commit("home", home)
    path = max(data_packs(maker), key=lambda path: path.stat().st_size)
    longest = max(row.length for row in frames_of(path))
    with opened(maker) as vault:
        real, lengths = vault.place.read, []

        def read(pack, offset, length):
            lengths.append(length)
            return real(pack, offset, length)

        monkeypatch.setattr(vault.place, "read", read)
        ids = [id_ for pack_path in data_packs(maker) for row in frames_of(pack_path) for id_ in row.ids]
        for window in (1, None):
            chunks = chunks_module.Chunks(vault.place, vault.chunks.opener, 1, 4, window)
            next(chunks.fetch(ids))
            chunks._pool.shutdown()  # what waits is read, too
            assert (sum(length >= longest for length in lengths) <= 2) == (window == 1)
            lengths.clear()
