"""The history: choosing, paths, and every way in which a relay or an accident could bend it."""

import os
import random
import shutil

import pytest

from contbak.core import commit
from contbak.core.errors import NotFound, UsageError, WrongKey
from contbak.core.timespec import Latest, Moment, Prefix
from contbak.recall.directory import DirectoryPlace
from contbak.recall.opening import open_vault
from contbak.recall.versions import versions
from tests.vaults import VaultMaker


@pytest.fixture
def maker(tmp_path, seed):
    return VaultMaker(tmp_path / "store", seed)


@pytest.fixture
def home(tmp_path):
    (tmp_path / "home" / "docs").mkdir(parents=True)
    (tmp_path / "home" / "docs" / "letter").write_text("one")
    return tmp_path / "home"


def opened(maker, keys=None):
    return open_vault(DirectoryPlace(maker.store), keys or maker.keys)


def test_latest_moment_and_prefix(maker, home):
    device = maker.device()
    made = [device.commit("home", home, time_ms=1000 * number, received_ms=0) for number in range(1, 6)]
    with opened(maker) as vault:
        history = vault.history
        assert [one.id for one in history.snapshots] == [one.id for one in made]
        assert [one.parent for one in history.snapshots] == [None, *(one.id for one in made[:-1])]
        assert history.choose(Latest(0))[0].id == made[4].id
        assert history.choose(Latest(2))[0].id == made[2].id
        assert history.choose(Moment(3_999_000_000))[0].id == made[2].id
        assert history.choose(Moment(4_000_000_000))[0].id == made[3].id
        assert history.choose(Prefix(made[1].id.hex()[:12]))[0].id == made[1].id
        assert history.problems == [] and vault.place.problems == []
        for nothing in (Latest(5), Moment(999), Prefix("0" * 64)):
            with pytest.raises(NotFound):
                history.choose(nothing)
        with pytest.raises(UsageError, match="home"):
            history.choose(Latest(0), "hose")


def test_each_source_of_each_device_has_its_own_moment(maker, home):
    laptop, desk = maker.device("laptop"), maker.device("desk")
    laptop.commit("home", home, time_ms=1000)
    desk.commit("home", home, time_ms=2000)
    laptop.commit("work", home, time_ms=3000, at="/work")
    with opened(maker) as vault:
        found = vault.history.choose(Moment(2_500_000_000))
        assert [(one.device_name, one.source_name) for one in found] == [("desk", "home"), ("laptop", "home")]
        assert len(vault.history.choose(Latest(0))) == 3
        assert len(vault.history.choose(Latest(0), "home", "desk")) == 1
        with pytest.raises(UsageError, match="desk, laptop"):
            vault.history.locate(os.fsencode(home / "docs"), Latest(0))
        at = vault.history.locate(os.fsencode(home / "docs"), Latest(0), "desk")
        assert [(one.snapshot.device_name, one.path) for one in at] == [("desk", b"docs")]


def test_a_clock_that_jumps_does_not_shuffle_a_chain(maker, home):
    device = maker.device()
    times = [5_000, 9_999_999_999, 6_000, 7_000]  # the second: a clock far in the future when it was made
    made = [device.commit("home", home, time_ms=t, received_ms=5_000 + 500 * n) for n, t in enumerate(times)]
    with opened(maker) as vault:
        assert [one.id for one in vault.history.snapshots] == [one.id for one in made]
        assert vault.history.snapshots[1].time_ms == 5_500
        assert vault.history.choose(Moment(5_600_000_000))[0].id == made[1].id


def test_a_clock_set_back_does_not_shuffle_a_chain(maker, home):
    device, other = maker.device(), maker.device("desk")
    made = [device.commit("home", home, time_ms=t, received_ms=9_000) for t in (5_000, 2_000, 3_000)]
    late = other.commit("home", home, time_ms=5_500, received_ms=9_000)
    early = other.commit("home", home, time_ms=1_000, received_ms=9_000)
    with opened(maker) as vault:
        ids = [one.id for one in vault.history.snapshots]
        assert ids == [*(one.id for one in made), late.id, early.id]
        assert vault.history.choose(Latest(0), device="laptop")[0].id == made[2].id
        assert vault.history.choose(Moment(2_500_000_000), device="laptop")[0].id == made[1].id


def test_paths_in_all_their_forms(maker, home):
    maker.device().commit("home", home)
    top = os.fsencode(home)
    with opened(maker) as vault:
        locate = vault.history.locate
        for path in (
            top + b"/docs/letter", top + b"//docs/./letter/", top + b"/x/../docs/letter", b"home:docs/letter",
            b"home:/docs/letter",
        ):  # fmt: skip
            (at,) = locate(path, Latest(0))
            assert (at.path, at.absolute) == (b"docs/letter", top + b"/docs/letter")
        for path in (top, b"home:", os.path.dirname(top), b"/"):
            assert [at.path for at in locate(path, Latest(0))] == [b""]
        for path in (top + b"/nothing", top + b"/docs/letter/more", top + b"2/docs"):
            with pytest.raises(NotFound):
                locate(path, Latest(0))
        for path in (b"docs/letter", b"elsewhere:docs"):
            with pytest.raises(UsageError):
                locate(path, Latest(0))


def test_the_inner_of_two_sources_is_meant(maker, home):
    device = maker.device()
    device.commit("all", home)
    device.commit("docs", home / "docs")
    with opened(maker) as vault:
        (at,) = vault.history.locate(os.fsencode(home / "docs" / "letter"), Latest(0))
        assert at.snapshot.source_name == "docs"


def test_a_missing_record_shows_as_a_gap_or_comes_from_its_copy(maker, home):
    device = maker.device()
    made = []
    for number in range(4):
        (home / "docs" / "letter").write_text(f"version {number}")
        made.append(device.commit("home", home))
    folder = maker.top / "commits" / device.device.hex()
    (folder / f"{2:016x}-{made[1].id.hex()}").unlink()
    (folder / f"{1:016x}-{made[0].id.hex()}").write_bytes(made[0].raw[:-1] + b"?")
    with opened(maker) as vault:
        assert [one.id for one in vault.history.snapshots] == [one.id for one in made]
        assert vault.history.problems == []
        assert any("came from a copy" in problem for problem in vault.place.problems)
    (folder / f"{4:016x}-{made[3].id.hex()}").write_bytes(b"no record")
    with opened(maker) as vault:
        assert [one.id for one in vault.history.snapshots] == [one.id for one in made[:3]]
        assert any("no commit record" in problem for problem in vault.history.problems)
    shutil.rmtree(maker.top / "commits")
    shutil.rmtree(maker.top / "order")
    with opened(maker) as vault:
        assert [one.id for one in vault.history.snapshots] == [one.id for one in made[:3]]
    for path in maker.packs():  # without the copies, the rest cannot be ordered to anything
        path.unlink()
    with opened(maker) as vault:
        assert vault.history.snapshots == []


def test_a_gap_a_fork_and_a_dropped_end_are_told(maker, home):
    device, other = maker.device(), maker.device("desk")
    made = [device.commit("home", home) for _ in range(3)]
    other.commit("home", home, witnesses=[commit.Witness(device.device[:8], 3, made[2].id)])
    folder = maker.top / "commits" / device.device.hex()
    with opened(maker) as vault:
        assert vault.history.problems == []
    moved = folder / f"{2:016x}-{made[1].id.hex()}"
    raw = moved.read_bytes()
    moved.unlink()
    with opened(maker) as vault:
        assert [problem for problem in vault.history.problems if "is missing" in problem]
    moved.write_bytes(raw)
    (folder / f"{3:016x}-{made[2].id.hex()}").unlink()
    with opened(maker) as vault:
        assert [problem for problem in vault.history.problems if "has seen commit" in problem]
    device.head, device.sequence = made[0], 5
    device.commit("home", home)
    with opened(maker) as vault:
        assert [problem for problem in vault.history.problems if "forks" in problem]


def test_a_record_that_was_not_made_with_the_keys_does_not_count(maker, home, tmp_path, seed):
    real = maker.device().commit("home", home)
    stranger = VaultMaker(tmp_path / "other", seed + 1)
    stranger.vault = maker.vault  # it claims the vault without its keys
    forged = stranger.device("evil").commit("home", home)
    maker.accept(forged, 5000)
    with opened(maker) as vault:
        assert [one.id for one in vault.history.snapshots] == [real.id]
        assert any("not made with the keys" in problem for problem in vault.history.problems)
    with pytest.raises(WrongKey):
        opened(maker, VaultMaker(tmp_path / "third", seed + 2).keys)


def test_versions_of_a_path(maker, home):
    device = maker.device()
    letter, texts = home / "docs" / "letter", []
    for number in range(12):
        if number % 3 == 0:
            letter.write_text(f"version {number}")
        (home / "noise").write_text(str(number))
        if number == 10:
            letter.unlink()
        device.commit("home", home, fold=number == 5)
        texts.append(letter.read_text() if letter.exists() else None)
    with opened(maker) as vault:
        found = list(versions(vault.history, os.fsencode(letter)))
        ids = [one.id for one in vault.history.snapshots]
        spans = [(ids.index(v.first.id), ids.index(v.last.id), v.entry and v.entry.content.inline) for v in found]
        assert spans == [
            (10, 11, None), (9, 9, b"version 9"), (6, 8, b"version 6"), (3, 5, b"version 3"), (0, 2, b"version 0"),
        ]  # fmt: skip
        assert list(versions(vault.history, os.fsencode(home / "nothing"))) == []
        assert len(list(versions(vault.history, b"home:noise"))) == 12


def test_versions_when_a_directory_above_is_renamed(maker, home):
    """The file's own row does not change at all."""
    device = maker.device()
    device.commit("home", home)
    (home / "docs").rename(home / "papers")
    device.commit("home", home)
    with opened(maker) as vault:
        found = [version.entry and version.entry.size for version in versions(vault.history, b"home:docs/letter")]
        assert found == [None, 3]
        (version,) = versions(vault.history, b"home:papers/letter")
        assert version.first.id == version.last.id == device.head.id


def test_versions_agree_with_a_plain_look_at_every_snapshot(maker, tmp_path, seed):
    chance = random.Random(seed)
    home, device = tmp_path / "tree", maker.device()
    (home / "d").mkdir(parents=True)
    for _ in range(25):
        path = home / "d" / chance.choice("abc")
        if path.exists() and chance.random() < 0.4:
            path.unlink()
        else:
            path.write_text(str(chance.random()))
        device.commit("tree", home, fold=chance.random() < 0.2)
    with opened(maker) as vault:
        for name in "abc":
            path, states = f"d/{name}".encode(), []
            for one in vault.history.snapshots:
                found = vault.history.view(one).resolve(path)
                entry = found[0] if found else None
                if not states or states[-1] != entry:
                    states.append(entry)
            while states and states[0] is None:
                del states[0]
            assert [v.entry for v in versions(vault.history, b"tree:" + path)] == states[::-1]
