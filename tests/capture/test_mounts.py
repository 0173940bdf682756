"""File system types from a mountinfo."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from contbak.capture.mounts import fstype, fstype_in, tells_all

TABLE = rb"""22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/root rw
30 22 0:25 / /home rw - btrfs /dev/sda2 rw
31 30 0:26 / /home/me/my\040share rw,nosuid shared:3 master:4 - nfs4 nas:/x rw
32 22 0:27 / /mnt rw - ext4 /dev/sdb rw
33 22 0:28 / /mnt rw - fuse.sshfs host: rw
broken line
"""


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        (b"/etc", "ext4"),
        (b"/home", "btrfs"),
        (b"/homes", "ext4"),
        (b"/home/me/my share/x", "nfs4"),
        (b"/home/me/my shared", "btrfs"),
        (b"/mnt/x", "fuse.sshfs"),
    ],
)
def test_the_innermost_and_latest_mount_counts(path: bytes, kind: str) -> None:
    assert fstype_in(TABLE, path) == kind


def test_which_tell_all() -> None:
    assert all(map(tells_all, ("ext4", "btrfs", "xfs", "tmpfs", "overlay", "fuseblk", "zfs", "")))
    assert not any(map(tells_all, ("nfs", "nfs4", "cifs", "9p", "fuse.sshfs", "fuse", "virtiofs")))


def test_this_machine(tmp_path: Path) -> None:
    if os.path.exists("/proc/self/mountinfo"):
        assert fstype(os.fsencode(tmp_path)) != ""
