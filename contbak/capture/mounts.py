"""Which file system a path is on, and whether the kernel tells of every change made to it.

On a file system that other machines or another program write to, events say only what was done here.
"""

from __future__ import annotations

import os
import re

_MOUNTINFO = "/proc/self/mountinfo"
_SHARED = frozenset(
    "9p afs beegfs ceph cifs coda fuse gfs2 glusterfs lustre ncpfs nfs nfs4 ocfs2 orangefs prl_fs smb2 smb3 smbfs "
    "vboxsf virtiofs".split()
)
_OCTAL = re.compile(rb"\\([0-7]{3})")


def fstype(path: bytes) -> str:
    """Type of the file system that holds `path`, as in mountinfo(5); empty where that cannot be known."""
    try:
        with open(_MOUNTINFO, "rb") as table:
            return fstype_in(table.read(), os.path.realpath(path))
    except OSError:
        return ""


def fstype_in(table: bytes, path: bytes) -> str:
    """The same from the text of a mountinfo; `path` holds no symbolic link.  The last of several mounts counts."""
    best, found = -1, ""
    for line in table.splitlines():
        left, _, right = line.partition(b" - ")
        fields = left.split(b" ")
        if len(fields) < 5 or not right:
            continue
        point = _OCTAL.sub(lambda code: bytes((int(code[1], 8),)), fields[4])
        if (path == point or path.startswith(point.rstrip(b"/") + b"/")) and len(point) >= best:
            best, found = len(point), right.split(b" ")[0].decode("ascii", "replace")
    return found


def tells_all(kind: str) -> bool:
    """Whether events on a file system of type `kind` are to be relied on.  fuseblk is: it is a local disk."""
    return kind not in _SHARED and not kind.startswith("fuse.")
