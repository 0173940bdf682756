"""The test tool itself: every single difference between two trees is seen, and a tree has everything."""

import os
import random
import stat

import pytest

from tests.trees import ACL, ROOT, acl, list_tree, make_sparse, make_tree, same_tree

NS = 1_600_000_000_123_456_789


def small_tree(root):
    os.makedirs(root / "sub")
    (root / "sub" / "file").write_bytes(b"x" * 100_000)
    (root / "hard1").write_bytes(b"hard")
    os.link(root / "hard1", root / "hard2")
    os.mkfifo(root / "fifo", 0o644)
    os.symlink("here", root / "link")
    make_sparse(root / "sparse", 1 << 20, ((0, 4096),), random.Random(1))
    os.setxattr(root / "sub", "user.x", b"1")
    os.setxattr(root / "hard1", "system.posix_acl_access", ACL)
    os.mknod(root / "dev", stat.S_IFCHR | 0o600, os.makedev(1, 3))
    settle(root)


def settle(root):
    for path in reversed(list_tree(root)):
        os.utime(path, ns=(NS, NS), follow_symlinks=False)


def write_at(path, at, data):
    with open(path, "r+b") as file:
        file.seek(at)
        file.write(data)


def unlink_one(root):
    os.unlink(root / "hard2")
    (root / "hard2").write_bytes(b"hard")
    os.setxattr(root / "hard2", "system.posix_acl_access", ACL)


def other_kind(root):
    os.unlink(root / "fifo")
    os.mknod(root / "fifo", stat.S_IFSOCK | 0o644)


def other_target(root):
    os.unlink(root / "link")
    os.symlink("there", root / "link")


def other_device(root):
    os.unlink(root / "dev")
    os.mknod(root / "dev", stat.S_IFCHR | 0o600, os.makedev(1, 5))


OTHER_ACL = acl(
    (1, 6, 2**32 - 1), (2, 4, 12346), (4, 4, 2**32 - 1), (8, 6, 54321), (16, 6, 2**32 - 1), (32, 0, 2**32 - 1)
)
CASES = [  # what is seen, on how many paths, what is done
    ("content", 1, lambda root: write_at(root / "sub" / "file", 70_000, b"\xff")),
    ("content", 1, lambda root: write_at(root / "sparse", 4095, b"\0")),
    ("kind", 1, other_kind),
    ("links", 2, unlink_one),
    ("target", 1, other_target),
    ("rdev", 1, other_device),
    ("holes", 1, lambda root: write_at(root / "sparse", 1 << 19, bytes(4096))),
    ("size", 1, lambda root: os.truncate(root / "sparse", (1 << 20) - 1)),
    ("mode", 1, lambda root: os.chmod(root / "sub", 0o1755)),
    ("mode", 1, lambda root: os.chmod(root / "fifo", 0)),
    ("owner", 1, lambda root: os.chown(root / "link", 1, 0, follow_symlinks=False)),
    ("owner", 1, lambda root: os.chown(root / "sub", 0, 1)),
    ("xattrs", 1, lambda root: os.setxattr(root / "sub", "user.x", b"2")),
    ("xattrs", 1, lambda root: os.setxattr(root / "sub", "user.y", b"")),
    ("xattrs", 1, lambda root: os.setxattr(root / "link", "trusted.x", b"", follow_symlinks=False)),
    ("xattrs", 2, lambda root: os.setxattr(root / "hard1", "system.posix_acl_access", OTHER_ACL)),
    ("only in the first", 1, lambda root: os.unlink(root / "link")),
    ("only in the second", 1, lambda root: os.mkfifo(root / "more")),
]


@pytest.mark.skipif(not ROOT, reason="takes root")
@pytest.mark.parametrize(("what", "paths", "change"), CASES)
def test_every_single_difference_is_seen(tmp_path, what, paths, change):
    for name in "ab":
        small_tree(tmp_path / name)
    assert same_tree(tmp_path / "a", tmp_path / "b") == []
    change(tmp_path / "b")
    settle(tmp_path / "b")
    found = same_tree(tmp_path / "a", tmp_path / "b")
    assert len(found) == paths and all(f": {what}" in line for line in found), found
    assert what.startswith("only") or same_tree(tmp_path / "a", tmp_path / "b", ignore=(what,)) == []


@pytest.mark.parametrize("name", ["sub", "sub/file", "link", "fifo"])
@pytest.mark.skipif(not ROOT, reason="takes root")
def test_one_nanosecond_is_seen(tmp_path, name):
    for tree in "ab":
        small_tree(tmp_path / tree)
    os.utime(tmp_path / "b" / name, ns=(NS, NS + 1), follow_symlinks=False)
    assert len(same_tree(tmp_path / "a", tmp_path / "b")) == 1


def test_a_tree_has_everything(tmp_path, seed):
    make_tree(tmp_path / "tree", seed)
    found = [os.lstat(path) for path in list_tree(tmp_path / "tree")]
    kinds = {stat.S_IFMT(st.st_mode) for st in found}
    assert kinds >= {stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK, stat.S_IFIFO, stat.S_IFSOCK}
    assert not ROOT or kinds >= {stat.S_IFCHR, stat.S_IFBLK}
    assert any(st.st_nlink > 1 for st in found if stat.S_ISREG(st.st_mode))
    assert any(st.st_blocks * 512 < st.st_size for st in found if stat.S_ISREG(st.st_mode))
    make_tree(tmp_path / "again", seed)
    assert same_tree(tmp_path / "tree", tmp_path / "again", ignore=("target",)) == []
