"""Reader to writer over hostile trees, and everything that may stand in the way of a restore."""

import hashlib
import os
import random
import stat
import subprocess
import sys

import pytest

from contbak.capture.attributes import stat_entry, with_content, with_fields
from contbak.capture.reader import Reader
from contbak.core.entry import BLOCK, CHARACTER, DIRECTORY, FIFO, FILE, SOCKET, SYMLINK, Content, Entry
from contbak.core.errors import FormatError
from contbak.recall import fill, writer
from contbak.recall.writer import NotWritten, Outcome, TreeWriter
from tests.trees import ACL, NOBODY, ROOT, acl, list_tree, make_sparse, make_tree, same_tree

NS = 1_600_000_000_123_456_789
as_root = pytest.mark.skipif(not ROOT, reason="takes root")


def hasher():
    return hashlib.blake2b(digest_size=32)


def content_of(data):
    return Content(len(data), hashlib.blake2b(data, digest_size=32).digest(), None, 0, ())


def file_entry(data=b"new", **fields):
    entry = Entry(FILE, 0o640, os.getuid(), os.getgid(), "", "", len(data), NS, NS, content=content_of(data))
    return with_fields(entry, **fields)


def entry(kind, **fields):
    return with_fields(Entry(kind, 0o755, os.getuid(), os.getgid(), "", "", 0, NS, NS), **fields)


class Restore:
    """A TreeWriter and what it noted."""

    def __init__(self, target, overwrite="never", **options):
        self.notes = []
        self.target = target
        self.writer = TreeWriter(os.fsencode(target), overwrite, hasher, self.note, **options)

    def note(self, path, text):
        self.notes.append((path, text))

    def __getattr__(self, name):
        return getattr(self.writer, name)


@pytest.fixture
def restore(tmp_path):
    made = []

    def make(overwrite="never", **options):
        made.append(Restore(tmp_path / "target", overwrite, **options))
        return made[-1]

    yield make
    for one in made:
        one.close()


def leftovers(root):
    names = map(os.path.basename, list_tree(root))
    return [name for name in names if name.startswith(b".contbak-") and name.endswith(b".part")]


def copy_tree(source, target, order=None):
    """Read `source` and write it to `target`; `order` rearranges the paths, parents need not come first."""
    source = os.fsencode(source)
    reader, restore, linked = Reader(window=256 << 10), Restore(target), {}
    paths = list_tree(source)
    if order:
        order(paths)
    for path in paths:
        relative = os.path.relpath(path, source)
        st = os.lstat(path)
        if not stat.S_ISREG(st.st_mode):
            one = stat_entry(path, st)
            put = {DIRECTORY: restore.directory, SYMLINK: restore.symlink}.get(one.kind, restore.special)
            assert put(relative, one) is Outcome.WRITTEN
            continue
        pieces = []
        result = reader.read(path, lambda view, final, to=pieces: to.append(bytes(view)) or len(view), pieces.clear)
        one = with_content(result.entry, content_of(b"".join(pieces)))
        if one.link and one.link in linked:
            assert restore.link(relative, linked[one.link], one) is Outcome.WRITTEN
        else:
            linked[one.link] = relative
            assert restore.file(relative, one, pieces) is Outcome.WRITTEN
    restore.finish()
    restore.close()
    return restore.notes


@pytest.mark.parametrize("round", range(6))
def test_a_tree_comes_back_as_it_was(tmp_path, seed, round):
    make_tree(tmp_path / "source", seed + round)
    notes = copy_tree(tmp_path / "source", tmp_path / "target", random.Random(seed).shuffle if round % 2 else None)
    assert same_tree(tmp_path / "source", tmp_path / "target") == []
    assert notes == []
    assert leftovers(tmp_path / "target") == []


def test_into_a_directory_with_a_default_acl_and_setgid(tmp_path, seed):
    make_tree(tmp_path / "source", seed)
    (tmp_path / "target").mkdir()
    try:
        os.setxattr(tmp_path / "target", "system.posix_acl_default", ACL)
    except OSError:
        pytest.skip("no ACLs here")
    (tmp_path / "target").chmod(0o2777)
    copy_tree(tmp_path / "source", tmp_path / "target")
    assert same_tree(tmp_path / "source", tmp_path / "target") == []


def as_nobody(target):
    """What a user without root sees; raises AssertionError."""
    restore = Restore(target)
    assert restore.special(b"null", entry(CHARACTER, rdev=(1, 3))) is Outcome.SKIPPED
    foreign = file_entry(b"data", uid=0, gid=0, mode=0o6755, xattrs=((b"trusted.x", b"1"), (b"user.x", b"1")))
    assert restore.file(b"file", foreign, [b"data"]) is Outcome.WRITTEN
    read_only = acl((1, 4, NOBODY), (2, 4, 5), (4, 4, NOBODY), (16, 4, NOBODY), (32, 0, NOBODY))
    sealed = file_entry(mode=0o440, xattrs=((b"system.posix_acl_access", read_only), (b"user.x", b"1")))
    assert restore.file(b"read-only", sealed, [b"new"]) is Outcome.WRITTEN
    assert restore.directory(b"dir", entry(DIRECTORY, mode=0)) is Outcome.WRITTEN
    assert restore.directory(b"dir/empty", entry(DIRECTORY)) is Outcome.WRITTEN
    assert restore.directory(b"dir/sub", entry(DIRECTORY, mode=0o500)) is Outcome.WRITTEN
    assert restore.file(b"dir/sub/file", file_entry(), [b"new"]) is Outcome.WRITTEN
    restore.finish()
    assert [path for path, _ in restore.notes if path.startswith(b"dir")] == []
    st = os.stat(target / "file")
    assert (st.st_mode & 0o7777, st.st_mtime_ns, st.st_uid) == (0o755, NS, 65534)
    assert os.stat(target / "dir").st_mode & 0o7777 == 0
    assert os.getxattr(target / "read-only", "user.x") == b"1"
    texts = [text for path, text in restore.notes if path == b"file"]
    assert [word in text for word, text in zip(("owner", "trusted.x", "setuid"), texts, strict=True)] == [True] * 3


@as_root
def test_a_user_restores_what_a_user_may(tmp_path):
    """Data, modes and times are right, owners and the like are notes, setuid is left off."""
    for parent in (tmp_path, *(each for each in tmp_path.parents if "pytest" in str(each))):
        parent.chmod(0o777)
    pid = os.fork()
    if not pid:
        try:
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)
            as_nobody(tmp_path / "target")
            os._exit(0)
        except BaseException as error:
            sys.stderr.write(f"{error!r}\n")
            os._exit(1)
    status = os.waitpid(pid, 0)[1]
    assert status == 0


@as_root
def test_owners_go_by_name_unless_numeric(restore):
    one = file_entry(user="root", uid=4242, group="no such group", gid=4343)
    restore().file(b"named", one, [b"new"])
    restore(numeric=True).file(b"numbered", one, [b"new"])
    target = restore().target
    assert (os.stat(target / "named").st_uid, os.stat(target / "named").st_gid) == (0, 4343)
    assert (os.stat(target / "numbered").st_uid, os.stat(target / "numbered").st_gid) == (4242, 4343)


@as_root
def test_a_capability_survives_the_change_of_owner(restore):
    raw = bytes.fromhex("0100000200040000000000000000000000000000")
    restore = restore()
    restore.file(b"ping", file_entry(mode=0o755, uid=1, xattrs=((b"security.capability", raw),)), [b"new"])
    if not restore.notes:
        assert os.getxattr(restore.target / "ping", "security.capability") == raw


# --- data that is not what its entry says


@pytest.mark.parametrize("pieces", [[], [b"ne"], [b"neW"], [b"new", b"x"], [b"new", b"", b"\0"], [b"wen"]])
def test_wrong_data_never_gets_the_name(restore, pieces):
    restore = restore("always")
    (restore.target / "file").write_bytes(b"old")
    with pytest.raises(FormatError):
        restore.file(b"file", file_entry(b"new"), pieces)
    assert (restore.target / "file").read_bytes() == b"old"
    assert os.listdir(restore.target) == ["file"]


@pytest.mark.parametrize(
    "fields",
    [
        {"extents": ((0, 2),)},
        {"extents": ((0, 4),)},
        {"extents": ((5, 1), (0, 2)), "size": 100},
        {"extents": ((0, 2), (1, 1)), "size": 100},
        {"extents": ((99, 3),), "size": 100},
        {"extents": ((-1, 3),), "size": 100},
        {"extents": ((0, 3), (4, 0)), "size": 100},
        {"content": None},
        {"mtime": 1 << 100},
        {"uid": 1 << 40},
        {"xattrs": ((b"user.\0", b"x"),)},
    ],
)
def test_entries_that_cannot_be_right(restore, fields):
    restore = restore()
    with pytest.raises(FormatError):
        restore.file(b"file", file_entry(b"new", **fields), [b"new"])
    assert os.listdir(restore.target) == []


@pytest.mark.parametrize("path", [b"", b"/etc/x", b"../x", b"a/../../x", b".", b"a//b", b"a/", b"a\0b"])
def test_paths_that_lead_elsewhere(restore, tmp_path, path):
    restore = restore("always")
    restore.file(b"x", file_entry(), [b"new"])
    for put in (
        lambda: restore.file(path, file_entry(), [b"new"]),
        lambda: restore.symlink(path, entry(SYMLINK, target=b"x")),
        lambda: restore.directory(path, entry(DIRECTORY)),
        lambda: restore.special(path, entry(FIFO)),
        lambda: restore.link(b"x", path, file_entry()),
        lambda: restore.link(path, b"x", file_entry()),
    ):
        with pytest.raises(FormatError):
            put()
    assert os.listdir(tmp_path) == ["target"] and os.listdir(restore.target) == ["x"]


def test_special_files_that_cannot_be(restore):
    restore = restore()
    for one in (entry(CHARACTER), entry(BLOCK, rdev=(-1, 0)), entry(BLOCK, rdev=(1 << 12, 0)), entry(SYMLINK)):
        with pytest.raises(FormatError):
            restore.special(b"x", one)
    with pytest.raises(FormatError):
        restore.symlink(b"x", entry(SYMLINK, target=b"a\0b"))
    assert os.listdir(restore.target) == []


def test_a_size_without_data_is_noted_and_the_data_kept(restore):
    restore = restore()
    assert restore.file(b"file", file_entry(b"new", size=100), [b"new"]) is Outcome.WRITTEN
    assert (restore.target / "file").read_bytes() == b"new" and len(restore.notes) == 1


def test_pieces_of_any_size_land_between_the_holes(restore, tmp_path):
    extents = ((4096, 4096), (1 << 20, 70_000), (9 << 20, 1 << 20))
    data = make_sparse(tmp_path / "file", 10 << 20, extents, random.Random(1)).read_bytes()
    stream = b"".join(data[a : a + n] for a, n in extents)
    one = file_entry(stream, size=len(data), extents=extents)
    restore = restore()
    for step in (1 << 30, 4096, 4097, 100_003):
        pieces = (memoryview(stream)[at : at + step] for at in range(0, len(stream), step))
        restore.file(b"%d" % step, one, pieces)
        got = restore.target / str(step)
        assert got.read_bytes() == data and os.stat(got).st_blocks * 512 < 2 << 20


def test_partial_writes_are_written_on(restore, monkeypatch):
    real = os.pwrite
    monkeypatch.setattr(fill.os, "pwrite", lambda fd, data, at: real(fd, data[:7], at))
    restore = restore()
    restore.file(b"file", file_entry(b"x" * 1000), [b"x" * 600, b"x" * 400])
    assert (restore.target / "file").read_bytes() == b"x" * 1000


# --- what is there already


def test_never_keeps_and_reports(restore):
    restore = restore("never")
    for name in ("file", "link", "fifo", "symlink"):
        (restore.target / name).write_bytes(b"old")
    restore.file(b"new", file_entry(), [b"new"])
    assert restore.file(b"file", file_entry(), [b"new"]) is Outcome.KEPT
    assert restore.link(b"link", b"new", file_entry()) is Outcome.KEPT
    assert restore.special(b"fifo", entry(FIFO)) is Outcome.KEPT
    assert restore.symlink(b"symlink", entry(SYMLINK, target=b"x")) is Outcome.KEPT
    assert restore.directory(b"file", entry(DIRECTORY)) is Outcome.KEPT
    assert restore.file(b"file/below", file_entry(), [b"new"]) is Outcome.KEPT
    assert {(restore.target / name).read_bytes() for name in ("file", "link", "fifo", "symlink")} == {b"old"}
    assert leftovers(restore.target) == []


def test_never_does_not_fetch_what_it_keeps(restore):
    restore = restore("never")
    (restore.target / "file").write_bytes(b"old")
    pieces = iter([b"new"])
    restore.file(b"file", file_entry(), pieces)
    assert next(pieces) == b"new"


def test_never_loses_a_race_with_grace(restore):
    """The name is taken while the data arrives."""
    restore = restore("never")

    def pieces():
        yield b"ne"
        (restore.target / "file").write_bytes(b"user's")
        yield b"w"

    assert restore.file(b"file", file_entry(), pieces()) is Outcome.KEPT
    assert (restore.target / "file").read_bytes() == b"user's"
    assert os.listdir(restore.target) == ["file"]


def test_if_changed(restore):
    restore = restore("if-changed")
    for name, data, ns in (("same", b"abc", NS), ("size", b"ab", NS), ("time", b"abc", NS + 1)):
        (restore.target / name).write_bytes(data)
        os.utime(restore.target / name, ns=(NS, ns))
    outcomes = [restore.file(name, file_entry(), [b"new"]) for name in (b"same", b"size", b"time")]
    assert outcomes == [Outcome.SAME, Outcome.WRITTEN, Outcome.WRITTEN]
    assert (restore.target / "same").read_bytes() == b"abc"
    assert (restore.target / "size").read_bytes() == (restore.target / "time").read_bytes() == b"new"


def test_always_replaces_files_links_and_empty_directories(restore, tmp_path):
    restore = restore("always")
    outside = tmp_path / "outside"
    outside.write_bytes(b"outside")
    (restore.target / "a").write_bytes(b"old")
    (restore.target / "b").symlink_to(outside)
    (restore.target / "c").mkdir()
    os.link(outside, restore.target / "d")
    (restore.target / "e").mkdir()
    (restore.target / "e" / "child").write_bytes(b"stays")
    for name in (b"a", b"b", b"c", b"d"):
        assert restore.file(name, file_entry(), [b"new"]) is Outcome.WRITTEN
        assert (restore.target / os.fsdecode(name)).read_bytes() == b"new"
    assert restore.file(b"e", file_entry(), [b"new"]) is Outcome.KEPT
    assert outside.read_bytes() == b"outside" and os.stat(outside).st_mode & 0o777 != 0o640
    assert (restore.target / "e" / "child").read_bytes() == b"stays"


def test_a_directory_that_was_replaced_is_not_written_to(restore):
    restore = restore("always")
    (restore.target / "dir").mkdir()
    assert restore.link(b"x", b"dir/none", file_entry()) is Outcome.NEEDS_DATA  # it is open now
    assert restore.file(b"dir", file_entry(), [b"new"]) is Outcome.WRITTEN
    assert restore.file(b"dir/file", file_entry(), [b"new"]) is Outcome.KEPT
    assert restore.directory(b"dir", entry(DIRECTORY)) is Outcome.WRITTEN
    assert restore.file(b"dir/file", file_entry(), [b"new"]) is Outcome.WRITTEN
    assert (restore.target / "dir" / "file").read_bytes() == b"new"


@pytest.mark.parametrize(
    ("overwrite", "outcome", "mode"), [("never", Outcome.SAME, 0o711), ("always", Outcome.WRITTEN, 0o755)]
)
def test_an_existing_directory_is_merged_into(restore, overwrite, outcome, mode):
    restore = restore(overwrite)
    (restore.target / "dir").mkdir()
    (restore.target / "dir").chmod(0o711)
    (restore.target / "dir" / "old").write_bytes(b"old")
    assert restore.directory(b"dir", entry(DIRECTORY)) is outcome
    assert restore.file(b"dir/new", file_entry(), [b"new"]) is Outcome.WRITTEN
    restore.finish()
    assert sorted(os.listdir(restore.target / "dir")) == ["new", "old"]
    assert os.stat(restore.target / "dir").st_mode & 0o7777 == mode


def test_directories_are_private_until_the_end(restore):
    restore = restore()
    restore.file(b"a/b/file", file_entry(), [b"new"])
    for path in (b"a", b"a/b", b"c"):
        assert restore.directory(path, entry(DIRECTORY, mode=0o555)) is Outcome.WRITTEN
        assert os.stat(restore.target / os.fsdecode(path)).st_mode & 0o7777 == 0o700
    restore.file(b"a/b/more", file_entry(), [b"new"])
    restore.finish()
    for path in ("a", "a/b", "c"):
        st = os.stat(restore.target / path)
        assert (st.st_mode & 0o7777, st.st_mtime_ns) == (0o555, NS)


# --- symlinks that lead outside


@pytest.mark.parametrize("overwrite", ["never", "if-changed", "always"])
def test_a_planted_symlink_leads_nowhere(restore, tmp_path, overwrite):
    outside = tmp_path / "outside"
    outside.mkdir(mode=0o711)
    was = os.stat(outside)
    restore = restore(overwrite)
    (restore.target / "link").symlink_to(outside)
    (restore.target / "file").symlink_to(outside / "made")
    assert restore.file(b"link/x", file_entry(), [b"new"]) is Outcome.KEPT
    assert restore.file(b"link/deep/x", file_entry(), [b"new"]) is Outcome.KEPT
    assert restore.symlink(b"link/x", entry(SYMLINK, target=b"x")) is Outcome.KEPT
    assert restore.link(b"y", b"link/x", file_entry()) is Outcome.NEEDS_DATA
    restore.file(b"file", file_entry(), [b"new"])
    restore.directory(b"link", entry(DIRECTORY, mode=0o777))
    restore.file(b"link/z", file_entry(), [b"new"])
    restore.finish()
    assert os.listdir(outside) == []
    now = os.stat(outside)
    assert (now.st_mode, now.st_mtime_ns, now.st_ctime_ns) == (was.st_mode, was.st_mtime_ns, was.st_ctime_ns)
    if overwrite == "always":
        assert (restore.target / "link" / "z").read_bytes() == b"new" and not (restore.target / "link").is_symlink()


def test_a_symlink_planted_before_finish(restore, tmp_path):
    restore = restore("always")
    outside = tmp_path / "outside"
    outside.mkdir(mode=0o711)
    restore.directory(b"dir", entry(DIRECTORY, mode=0o777))
    for number in range(40):  # more than stay open
        restore.file(b"%d/file" % number, file_entry(), [b"new"])
    os.rmdir(restore.target / "dir")
    (restore.target / "dir").symlink_to(outside)
    restore.finish()
    assert os.stat(outside).st_mode & 0o777 == 0o711
    assert restore.notes


def test_the_target_may_be_named_by_a_symlink(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    restore = Restore(tmp_path / "link")
    assert restore.file(b"file", file_entry(), [b"new"]) is Outcome.WRITTEN
    assert (tmp_path / "real" / "file").read_bytes() == b"new"
    restore.close()


# --- hard links


def test_links_need_the_very_file(restore):
    restore = restore("always")
    assert restore.link(b"b", b"a", file_entry()) is Outcome.NEEDS_DATA
    (restore.target / "a").write_bytes(b"someone else's")
    assert restore.link(b"b", b"a", file_entry()) is Outcome.NEEDS_DATA
    restore.file(b"a", file_entry(), [b"new"])
    (restore.target / "b").write_bytes(b"old")
    for _ in range(2):  # the second time both are one file already, and a rename would do nothing
        assert restore.link(b"b", b"a", file_entry()) is Outcome.WRITTEN
    assert os.path.samefile(restore.target / "a", restore.target / "b")
    assert sorted(os.listdir(restore.target)) == ["a", "b"]


@pytest.mark.parametrize("overwrite", ["never", "always"])
def test_where_there_are_no_links(restore, monkeypatch, overwrite):
    def refused(*args, **options):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(writer.os, "link", refused)
    restore = restore(overwrite)
    assert restore.file(b"a", file_entry(), [b"new"]) is Outcome.WRITTEN
    assert restore.link(b"b", b"a", file_entry()) is Outcome.NEEDS_DATA
    outcome = Outcome.KEPT if overwrite == "never" else Outcome.WRITTEN
    assert restore.file(b"a", file_entry(b"other"), [b"other"]) is outcome
    assert os.listdir(restore.target) == ["a"]


# --- interruptions and failures


def test_an_interruption_leaves_nothing_behind(restore):
    restore = restore("always")
    (restore.target / "file").write_bytes(b"old")

    def pieces():
        yield b"ne"
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        restore.file(b"file", file_entry(), pieces())
    assert os.listdir(restore.target) == ["file"] and (restore.target / "file").read_bytes() == b"old"


def test_a_temporary_file_is_private_and_named_as_ours(restore):
    restore = restore()
    seen = []

    def pieces():
        seen.extend((path.name, path.stat().st_mode & 0o777) for path in restore.target.iterdir())
        yield b"new"

    restore.file(b"n" * 255, file_entry(mode=0o777), pieces())
    [(name, mode)] = seen
    assert name.startswith(".contbak-") and name.endswith(".part") and mode == 0o600


def test_a_full_disk_is_reported_and_hopeless(restore, monkeypatch):
    def full(fd, data, at):
        raise OSError(28, "No space left on device")

    restore = restore()
    monkeypatch.setattr(fill.os, "pwrite", full)
    with pytest.raises(NotWritten, match="no space left") as caught:
        restore.file(b"file", file_entry(), [b"new"])
    assert caught.value.hopeless and caught.value.exit_code == 3 and os.listdir(restore.target) == []


def test_one_refusal_does_not_stop_the_next(restore):
    restore = restore()
    with pytest.raises(NotWritten) as caught:
        restore.file(b"n" * 256, file_entry(), [b"new"])
    assert not caught.value.hopeless
    assert restore.file(b"file", file_entry(), [b"new"]) is Outcome.WRITTEN


def test_no_descriptor_leaks(restore):
    before = len(os.listdir("/proc/self/fd"))
    restore = restore("always")
    for number in range(100):
        restore.file(b"%d/a/b/c/file" % number, file_entry(), [b"new"])
        restore.special(b"%d/a/fifo" % number, entry(SOCKET))
        with pytest.raises(FormatError):
            restore.file(b"%d/a/bad" % number, file_entry(), [])
    assert len(os.listdir("/proc/self/fd")) < before + 40
    restore.finish()
    restore.close()
    assert len(os.listdir("/proc/self/fd")) == before


def test_deeper_than_any_path(restore):
    restore = restore()
    names = [b"%03d" % depth + b"d" * 200 for depth in range(60)]
    for depth in range(1, 61):
        assert restore.directory(b"/".join(names[:depth]), entry(DIRECTORY)) is Outcome.WRITTEN
    deepest = b"/".join(names)
    assert restore.file(deepest + b"/file", file_entry(), [b"new"]) is Outcome.WRITTEN
    assert restore.special(deepest + b"/fifo", entry(FIFO)) is Outcome.WRITTEN
    assert restore.symlink(deepest + b"/link", entry(SYMLINK, target=b"x")) is Outcome.WRITTEN
    restore.finish()
    assert restore.notes == []
    fd = os.open(restore.target, os.O_RDONLY)
    for name in names:
        assert os.stat(name, dir_fd=fd).st_mtime_ns == NS
        deeper = os.open(name, os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = deeper
    assert sorted(os.listdir(fd)) == ["fifo", "file", "link"]
    os.close(fd)
    subprocess.run(["rm", "-rf", restore.target / os.fsdecode(names[0])], check=True)
