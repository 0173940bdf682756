"""The processes that write a restore: their end, their parent's end, what they ask and what they say."""

import errno
import os
import random
import signal

import pytest

from contbak.core.entry import Entry
from contbak.core.errors import ContbakError, Unreachable, WrongKey
from contbak.core.messages import Place as Spot
from contbak.core.timespec import Latest
from contbak.recall import files as files_module
from contbak.recall import fill
from contbak.recall.directory import DirectoryPlace
from contbak.recall.opening import open_vault
from contbak.recall.report import LISTED_MAX, Problem, Report
from contbak.recall.restore import Wanted, restore
from contbak.recall.share import Account, File, Share
from contbak.recall.team import Team
from tests.trees import same_tree
from tests.vaults import VaultMaker

ENTRY = Entry("f", 0o600, 0, 0, "", "", 0, 0, 0)


def share(name=b"name", spots=()):
    return Share((File(name, ENTRY),), spots)


def none_is_left():
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


def run(do, shares, count=2, locate=None):
    """The accounts of `shares`, done by `do(parent, share)` in children."""
    out = []
    before = set(os.listdir("/proc/self/fd"))
    try:
        with Team(count, lambda parent: lambda one: do(parent, one), locate, lambda *pair: out.append(pair)) as team:
            for one in shares:
                team.give(one)
            team.drain()
    finally:
        none_is_left()
        assert set(os.listdir("/proc/self/fd")) == before
    return out


def test_each_share_is_done_once_and_all_help():
    names = [b"%d" % number for number in range(100)]
    out = run(lambda _, one: Account(Report(restored=os.getpid()), [0], 7), [share(name) for name in names])
    assert sorted(given.files[0].path for given, _ in out) == sorted(names)
    assert len({account.report.restored for _, account in out}) == 2 and os.getpid() not in {
        account.report.restored for _, account in out
    }
    assert all(account.read == 7 and account.there == [0] for _, account in out)


def test_large_messages_in_both_directions_while_a_child_asks():
    """A share that no socket holds waits behind one whose child asks where chunks lie."""
    spots = tuple((number.to_bytes(32, "big"), (Spot(bytes(32), number, 1, 0, 0),)) for number in range(20_000))

    def do(parent, one):
        found = parent.locate([id_ for id_, _ in one.spots])
        assert found == [places for _, places in one.spots]
        report = Report()
        for number in range(LISTED_MAX):
            report.add("failed", Problem(b"%d" % number, "x" * 200))
        return Account(report, [])

    known = dict(spots)
    out = run(do, [share(b"%d" % n, spots) for n in range(6)], locate=lambda ids: [known[id_] for id_ in ids])
    assert [account.report.counts["failed"] for _, account in out] == [LISTED_MAX] * 6


@pytest.mark.parametrize("error", [Unreachable("gone"), WrongKey("another"), ZeroDivisionError("a bug")])
def test_what_ends_a_child_ends_the_run(error):
    def do(parent, one):
        raise error

    kind = type(error) if isinstance(error, ContbakError) else RuntimeError
    with pytest.raises(kind, match=str(error)):
        run(do, [share()] * 4)


def test_a_child_that_is_killed_is_told():
    with pytest.raises(ContbakError, match="has died"):
        run(lambda *_: os.kill(os.getpid(), signal.SIGKILL), [share()] * 4)


def test_an_interruption_reaches_the_children(tmp_path):
    """They clean up before they end."""

    def do(parent, one):
        try:
            (tmp_path / "begun").touch()
            while True:
                signal.pause()
        finally:
            (tmp_path / "cleaned").touch()

    with pytest.raises(KeyboardInterrupt), Team(1, lambda parent: lambda one: do(parent, one), None, None) as team:
        team.give(share())
        while not (tmp_path / "begun").exists():
            os.sched_yield()
        raise KeyboardInterrupt
    none_is_left()
    assert (tmp_path / "cleaned").exists()


def test_children_end_when_their_parent_is_killed(tmp_path):
    """None waits for ever, though each was forked while the wires of those before it were open."""

    def do(parent, one):
        (tmp_path / str(os.getpid())).touch()
        return Account(Report(), [])

    parent = os.fork()
    if not parent:
        os.setpgid(0, 0)
        with Team(3, lambda parent: lambda one: do(parent, one), None, lambda *_: None) as team:
            for _ in range(60):
                team.give(share())
            team.drain()
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(parent, 0)
    children = [int(path.name) for path in tmp_path.iterdir()]
    assert children
    while any(is_alive(pid) for pid in children):
        os.sched_yield()


def is_alive(pid):
    """Whether it runs; one that nobody has buried yet does not."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


# -- whole restores ----------------------------------------------------------------------------------------------


@pytest.fixture
def maker(tmp_path, seed, monkeypatch):
    maker = VaultMaker(tmp_path / "store", seed)
    chance = random.Random(seed)
    for number in range(60):
        path = tmp_path / "home" / f"d{number % 7}" / f"f{number}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(chance.randbytes(chance.choice((0, 100, 3000, 30_000))))
    maker.device().commit("home", tmp_path / "home")
    monkeypatch.setattr(files_module, "WINDOW_FILES", 16)
    monkeypatch.setattr(files_module, "SHARE_FILES", 2)
    return maker


def restored(maker, target, **options):
    with open_vault(DirectoryPlace(maker.store), maker.keys) as vault:
        roots = vault.history.choose(Latest(0))[0].roots
        return restore(vault.chunks, [Wanted(roots, b"", b"")], os.fsencode(target), **options)


def leftovers(top):
    return [path for path in top.rglob("*") if path.name.startswith(".contbak-")]


def test_a_full_disk_stops_all_and_is_told_once(maker, tmp_path, monkeypatch):
    def full(fd, data, at):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(fill.os, "pwrite", full)
    report = restored(maker, tmp_path / "out")
    assert "no space left" in report.stopped and not report.complete
    assert leftovers(tmp_path / "out") == []


def test_an_interrupted_restore_leaves_no_temporary_files_and_goes_on(maker, tmp_path):
    def interrupt(report):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        restored(maker, tmp_path / "out", progress=interrupt)
    none_is_left()
    assert leftovers(tmp_path / "out") == []
    report = restored(maker, tmp_path / "out", overwrite="if-changed")
    assert report.complete and report.same + report.restored == 60
    assert same_tree(tmp_path / "home", tmp_path / "out") == []


def test_the_place_going_away_is_no_loss(maker, tmp_path, monkeypatch):
    def gone(*_):
        raise Unreachable("the relay is out of reach")

    monkeypatch.setattr(DirectoryPlace, "reader", lambda self: gone)
    with pytest.raises(Unreachable):
        restored(maker, tmp_path / "out")
    assert leftovers(tmp_path / "out") == []


def test_names_of_one_file_become_one_file_whoever_wrote_it(maker, tmp_path):
    home = tmp_path / "home"
    for number in range(10):
        (home / "d3" / f"linked{number}").write_bytes(b"%d" % number * 3000)
        for folder in ("d0", "d5"):
            os.link(home / "d3" / f"linked{number}", home / folder / f"linked{number}")
    maker.device("desk").commit("home", home)
    with open_vault(DirectoryPlace(maker.store), maker.keys) as vault:
        roots = vault.history.choose(Latest(0), None, "desk")[0].roots
        report = restore(vault.chunks, [Wanted(roots, b"", b"")], os.fsencode(tmp_path / "out"))
    assert report.complete and same_tree(home, tmp_path / "out") == []
    assert {(tmp_path / "out" / "d0" / f"linked{number}").stat().st_nlink for number in range(10)} == {3}
