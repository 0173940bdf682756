"""Where each directory is, and which names a file has: indexes over the clean rows of contbak.capture.proofs.

Tables (all keys begin with the 8 bytes of the source; an inode number is 8 bytes):
    directories  directory id               -> inode number, parent's directory id, name
    inodes       inode number               -> directory id, so that a moved directory is known again
    links        inode number, key of name  -> nothing: one row for each name of a file that has several
    detached     directory id               -> nothing: its row went away, so it may hold rows that nothing leads to

Rules: they change in the transaction that changes the clean rows, so they are never ahead of them; what is detached
stays in the indexes, and so can be found at its new place, until nothing is left in it (`sweep`).
"""

from __future__ import annotations

from itertools import islice
from typing import NamedTuple

from contbak.core.names import DIR_ID_LEN, SOURCE_ID_LEN, SourceId
from contbak.store.kv import Kv, Writer

TABLES = ("directories", "inodes", "links", "detached")
INODE_LEN = 8


class Mark(NamedTuple):
    """What the indexes know of one row: `directory` b"" if it is none, `links` how many names the file has.

    `inode` 0: the number tells nothing (another file system is mounted there).
    """

    directory: bytes
    inode: int
    links: int


def number(inode: int) -> bytes:
    """An inode number as a key."""
    return inode.to_bytes(INODE_LEN, "little")


def note(rows: Writer, key: bytes, old: Mark | None, new: Mark | None) -> None:
    """The clean row at `key` (source, directory id, name) changes from `old` to `new`; None: there is no row."""
    source, place = key[:SOURCE_ID_LEN], key[SOURCE_ID_LEN:]
    if old is not None:
        if old.directory and (new is None or new.directory != old.directory):
            rows.put("detached", source + old.directory, b"")
        elif old.directory and new is not None and new.inode != old.inode:
            _unname(rows, source, number(old.inode), old.directory)
        if old.links > 1 and (new is None or new.links < 2 or new.inode != old.inode):
            rows.delete("links", source + number(old.inode) + place)
    if new is None:
        return
    if new.directory:
        rows.put("directories", source + new.directory, number(new.inode) + place)
        if new.inode:
            rows.put("inodes", source + number(new.inode), new.directory)
    if new.links > 1:
        rows.put("links", source + number(new.inode) + place, b"")


def sweep(kv: Kv, source: SourceId, batch: int = 10_000) -> None:
    """Forgets directories that are detached and empty, and that those are detached which are in a place again."""
    after = b""
    while True:
        with kv.write() as rows:
            keys = [key for key, _ in islice(rows.items("detached", after, source, bool(after)), batch)]
            for key in keys:
                _sweep(rows, source, key)
        if len(keys) < batch:
            return
        after = keys[-1]


def _sweep(rows: Writer, source: SourceId, key: bytes) -> None:
    own = key[SOURCE_ID_LEN:]
    where = rows.get("directories", key)
    if where is not None:
        clean = rows.get("clean", source + where[INODE_LEN:])
        if clean is not None and clean.startswith(own):
            rows.delete("detached", key)
            return
    if any(True for _ in rows.items("clean", prefix=key)):
        return
    if where is not None:
        _unname(rows, source, where[:INODE_LEN], own)
        rows.delete("directories", key)
    rows.delete("detached", key)


def _unname(rows: Writer, source: bytes, inode: bytes, directory: bytes) -> None:
    if rows.get("inodes", source + inode) == directory:
        rows.delete("inodes", source + inode)


def parted(raw: bytes) -> tuple[int, bytes, bytes]:
    """(inode number, parent's directory id, name) of a row of `directories`."""
    at = INODE_LEN + DIR_ID_LEN
    return int.from_bytes(raw[:INODE_LEN], "little"), raw[INODE_LEN:at], raw[at:]
