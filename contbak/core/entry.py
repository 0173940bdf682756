"""One directory entry: everything that is kept about one name at one moment.

An entry is stored under the key (directory id, name).  Chunk ids inside an entry are whole here; in a tree
node they are replaced by indexes into the node's clear list of references (core.tree does that).
"""

from __future__ import annotations

from contbak.core.codec import Record

FILE = "f"
DIRECTORY = "d"
SYMLINK = "l"
FIFO = "p"
SOCKET = "s"
CHARACTER = "c"
BLOCK = "b"
KINDS = frozenset((FILE, DIRECTORY, SYMLINK, FIFO, SOCKET, CHARACTER, BLOCK))

INLINE_MAX = 256
"""Bytes of content up to which a file lives in its entry."""

TORN = 1
"""Flag: the file never held still, so its copy may mix several states."""


class Content(Record, frozen=True, array_like=True, forbid_unknown_fields=True):
    """The data of a file: the concatenation of its data extents.

    length   bytes in all
    hash     BLAKE3 of those bytes (32)
    inline   the bytes themselves if length <= INLINE_MAX, else nil
    level    0: `chunks` are data chunks; n > 0: they are list nodes of level n-1 (core.tree)
    chunks   their ids, in order; empty if inline
    """

    length: int
    hash: bytes
    inline: bytes | None
    level: int
    chunks: tuple[bytes, ...]


class Entry(Record, frozen=True, array_like=True, forbid_unknown_fields=True):
    """One name.  Times in ns since 1970, sizes in bytes.

    kind       one of KINDS
    mode       permission bits with setuid, setgid and sticky (no type bits)
    uid gid    numbers; user group: their names at backup time, "" if unknown
    size       st_size (with holes); 0 for what has no data
    mtime ctime   ns
    dir        DIRECTORY: its 8-byte directory id, else b""
    target     SYMLINK: where it points; raw bytes
    rdev       CHARACTER, BLOCK: (major, minor), else nil
    xattrs     sorted (name, value) pairs, raw; POSIX ACLs are among them as system.posix_acl_*
    extents    FILE with holes: sorted (offset, length) of what is data, else nil
    link       FILE with several names: 8 bytes that all its names share, else b""
    content    FILE: its data, else nil
    flags      TORN or 0
    """

    kind: str
    mode: int
    uid: int
    gid: int
    user: str
    group: str
    size: int
    mtime: int
    ctime: int
    dir: bytes = b""
    target: bytes = b""
    rdev: tuple[int, int] | None = None
    xattrs: tuple[tuple[bytes, bytes], ...] = ()
    extents: tuple[tuple[int, int], ...] | None = None
    link: bytes = b""
    content: Content | None = None
    flags: int = 0
