"""Verifies the file of an lmdb environment byte by byte, without lmdb: `python -m contbak.store.kvcheck DIRECTORY`.

lmdb keeps no checksums and trusts its file: one flipped bit makes it return wrong data or die.  So a child process runs
this before lmdb opens it: plain Python over a map of the file; should the disk fail, only the child dies.  Checked:

    meta pages   magic, version, page size, parity of the transaction numbers
    tip          the file is not older than the last transaction that was told to anyone
    pages        each is reached once, carries its own number, is packed without holes; the page counts are right;
                 every key lies between the separators above it, so that what the walk sees a search finds
    free list    disjoint from what is reached, so that no later write lands on live rows
    rows         the CRC of every row; per table the number of rows and their sum (vanished and stale rows)

A second argument leaves out tables of more rows.  The answer is the exit code (SOUND, DAMAGED, NEVER_BORN) and a line
of text.  It changes nothing.  The layout is that of lmdb 0.9 on a 64-bit machine; any other counts as damaged.
"""

from __future__ import annotations

import mmap
import os
import struct
import sys
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

from contbak.store.kvform import (
    DAMAGED,
    DATA_FILE,
    NEVER_BORN,
    ROW_SUM,
    SOUND,
    SUMS,
    TIP_FILE,
    TXN,
    TXN_KEY,
    parse_tip,
    row_seed,
)

_MAGIC = 0xBEEFC0DE
_VERSION = 1
_NONE = (1 << 64) - 1
_BRANCH, _LEAF, _OVERFLOW, _META = 1, 2, 4, 8
_BIG, _TREE = 1, 2
_INTEGER_KEY = 8
_HEADER_LEN = 16
_NODE_LEN = 8
_MAX_DEPTH = 32
_ALL = 1 << 64

_HEADER = struct.Struct("=QHHHH")  # page number, pad, flags, end of the pointers, begin of the nodes
_PAGE_COUNT = struct.Struct("=12xI")  # of an overflow page, in the place of the last two
_NODE = struct.Struct("=HHHH")  # data length low and high half, flags, key length
_MAX_MAP = 1 << 44
_META_HEAD = struct.Struct("=IIQQ")  # magic, version, address, map size
_TREE_RECORD = struct.Struct("=IHHQQQQQ")  # pad, flags, depth, branch, leaf, overflow pages, entries, root
_META_TAIL = struct.Struct("=QQ")  # last page, transaction
_NUMBER = struct.Struct("=Q")


class Damaged(Exception):
    """The file is not what lmdb and contbak wrote."""


class NeverBorn(Exception):
    """The file holds no transaction."""


@dataclass(frozen=True, slots=True)
class Tree:
    """What lmdb records about one of its trees."""

    pad: int
    flags: int
    depth: int
    branches: int
    leaves: int
    overflows: int
    entries: int
    root: int

    @classmethod
    def at(cls, raw: bytes, offset: int) -> Tree:
        return cls(*_TREE_RECORD.unpack_from(raw, offset))


@dataclass(slots=True)
class Walked:
    """What the walk over one tree found."""

    branches: int = 0
    leaves: int = 0
    overflows: int = 0
    entries: int = 0
    depth: int = 0
    total: int = 0
    small: dict[bytes, bytes] = field(default_factory=dict)
    """The rows themselves, of the trees that are small."""


class Examination:
    """One pass over one file.  `run` raises Damaged or NeverBorn, and otherwise returns the number of rows."""

    def __init__(self, file: mmap.mmap, tip: int | None, limit: int = _ALL) -> None:
        self.file, self.tip, self.limit = file, tip, limit
        self.page_len, self.last_page, self.seen = 0, 0, bytearray()

    def run(self) -> int:
        free, main, txn = self._newest_meta()
        if self.tip is not None and txn < self.tip:
            raise Damaged(f"transaction {self.tip} was written, but the newest there is {txn}")
        self.seen = bytearray(self.last_page + 1)
        self.seen[0] = self.seen[1] = 1
        names = self._walk(main, b"main", _TREE, keep=True).small
        tables = {name: Tree.at(record, 0) for name, record in names.items()}
        sums = self._walk(tables.pop(SUMS), SUMS, 0, keep=True).small if SUMS in tables else {}
        if sums.pop(TXN_KEY, TXN.pack(0)) != TXN.pack(txn):
            raise Damaged(f"the content is not that of transaction {txn}")
        rows = self._check_tables(tables, sums)
        self._check_free(self._walk(free, b"free", None, keep=True).small)
        return rows

    def _check_tables(self, tables: dict[bytes, Tree], sums: dict[bytes, bytes]) -> int:
        if not sums.keys() <= tables.keys():
            raise Damaged("a table has vanished")
        rows = 0
        for name, tree in tables.items():
            told = ROW_SUM.unpack(sums.get(name, bytes(ROW_SUM.size)))
            if tree.entries == told[0] > self.limit:
                continue
            walked = self._walk(tree, name, 0, keep=False)
            if (walked.entries, walked.total) != told:
                raise Damaged(f"table {name.decode(errors='replace')}: rows have vanished or are stale")
            rows += walked.entries
        return rows

    # Meta pages

    def _newest_meta(self) -> tuple[Tree, Tree, int]:
        if len(self.file) < 2 * _HEADER_LEN + _META_HEAD.size:
            raise NeverBorn("the file has no meta page")
        size_at = _HEADER_LEN + _META_HEAD.size  # the free tree's pad is the page size
        self.page_len = struct.unpack_from("=I", self.file, size_at)[0]
        if self.page_len not in (4096, 8192, 16384, 32768) or len(self.file) < 2 * self.page_len:
            raise NeverBorn("the meta pages are not whole")
        metas = [self._meta(number) for number in (0, 1)]
        free, main, last_page, txn = max(metas, key=lambda meta: meta[3])
        if abs(metas[0][3] - metas[1][3]) != 1 and txn != 0:
            raise Damaged("the numbers of the last two transactions do not follow each other")
        if txn == 0:
            raise NeverBorn("there is no transaction")
        if not 1 <= last_page < max(len(self.file) // self.page_len, 2) + (1 << 20):
            raise Damaged("the last page lies far outside the file")
        self.last_page = last_page
        return free, main, txn

    def _meta(self, number: int) -> tuple[Tree, Tree, int, int]:
        page = self.file[number * self.page_len : (number + 1) * self.page_len]
        its_number, _, flags, _, _ = _HEADER.unpack_from(page)
        magic, version, _, map_len = _META_HEAD.unpack_from(page, _HEADER_LEN)
        free_at = _HEADER_LEN + _META_HEAD.size
        if (its_number, flags, magic, version) != (number, _META, _MAGIC, _VERSION):
            raise Damaged(f"meta page {number} is not one of lmdb 0.9")
        main_at = free_at + _TREE_RECORD.size
        last_page, txn = _META_TAIL.unpack_from(page, main_at + _TREE_RECORD.size)
        free, main = Tree.at(page, free_at), Tree.at(page, main_at)
        if free.pad != self.page_len or (txn and txn % 2 != number) or map_len > _MAX_MAP:
            raise Damaged(f"meta page {number} contradicts itself")
        return free, main, last_page, txn

    # Trees

    def _walk(self, tree: Tree, name: bytes, kind: int | None, *, keep: bool) -> Walked:
        """Walks a tree whose nodes are `kind`: 0 sealed rows, _TREE records of trees, None the free list."""
        walked = Walked()
        if tree.root != _NONE:
            leaf = _Leaf(self, walked, row_seed(name), kind, keep)
            for page, low, high in self._leaves(tree, walked, native=kind is None):
                leaf.check(page, low, high)
        found = (walked.depth, walked.branches, walked.leaves, walked.overflows, walked.entries)
        told = (tree.depth, tree.branches, tree.leaves, tree.overflows, tree.entries)
        settings = (self.page_len, _INTEGER_KEY) if kind is None else (0, 0)
        if found != told or settings != (tree.pad, tree.flags):
            raise Damaged(f"table {name.decode(errors='replace')}: its record does not fit its pages")
        return walked

    def _leaves(self, tree: Tree, walked: Walked, *, native: bool) -> Iterator[tuple[bytes, bytes, bytes | None]]:
        """The leaf pages in order, each with the lowest key it may hold and the lowest it may not (None: no end)."""
        stack: list[tuple[int, bytes, bytes | None, int]] = [(tree.root, b"", None, 1)]
        while stack:
            number, low, high, depth = stack.pop()
            page = self.page(number)
            flags = _HEADER.unpack_from(page)[2]
            if depth > _MAX_DEPTH or flags not in (_BRANCH, _LEAF) or (flags == _LEAF and depth != tree.depth):
                raise Damaged(f"page {number} is not what belongs there")
            if flags == _LEAF:
                walked.leaves += 1
                walked.depth = depth
                yield page, low, high
                continue
            walked.branches += 1
            keys, children = self._branch(page, number, native)
            bounds = [low, *keys]
            if any(a >= b for a, b in pairwise(bounds)) or (high is not None and bounds[-1] >= high):
                raise Damaged(f"page {number}: its keys are out of order")
            ends = [*keys, high]
            stack.extend(
                (child, bounds[at], ends[at], depth + 1) for at, child in reversed(list(enumerate(children)))
            )

    def _branch(self, page: bytes, number: int, native: bool) -> tuple[list[bytes], list[int]]:
        """The separators and the children of a branch page; there is one child more."""
        keys, children, used = [], [], 0
        for at in node_offsets(page, number):
            low, high, top, key_len = _node(page, at)
            children.append(low | high << 16 | top << 32)
            key = page[at + _NODE_LEN : at + _NODE_LEN + key_len]
            keys.append(key[::-1] if native and sys.byteorder == "little" else key)
            used += _NODE_LEN + key_len + (key_len & 1)
        if not children or used != self.page_len - _HEADER.unpack_from(page)[4]:
            raise Damaged(f"page {number} has holes")
        return keys[1:], children  # the first separator is never looked at

    def page(self, number: int) -> bytes:
        """A page of a tree, which must not have been reached before."""
        self.claim(number, 1)
        page = self.file[number * self.page_len : (number + 1) * self.page_len]
        if len(page) != self.page_len or _HEADER.unpack_from(page)[0] != number:
            raise Damaged(f"page {number} is missing or another's")
        return page

    def claim(self, number: int, count: int) -> None:
        """Marks pages as taken; no page is taken twice."""
        if number < 2 or count < 1 or number + count > self.last_page + 1:
            raise Damaged(f"page {number} lies outside the file")
        if any(self.seen[number : number + count]):
            raise Damaged(f"page {number} is in use twice")
        self.seen[number : number + count] = b"\1" * count

    def overflow(self, number: int, length: int) -> tuple[bytes, int]:
        """The `length` bytes that begin on an overflow page, and the pages they take."""
        at = number * self.page_len
        if at + _HEADER_LEN + length > len(self.file):
            raise Damaged(f"page {number} lies outside the file")
        its_number, _, flags, _, _ = _HEADER.unpack_from(self.file, at)
        count = _PAGE_COUNT.unpack_from(self.file, at)[0]
        if its_number != number or flags != _OVERFLOW or count * self.page_len < _HEADER_LEN + length:
            raise Damaged(f"page {number} is not the overflow page that belongs there")
        self.claim(number, count)
        return self.file[at + _HEADER_LEN : at + _HEADER_LEN + length], count

    def _check_free(self, lists: dict[bytes, bytes]) -> None:
        """lmdb will write on the pages in the free list: none may be in use or there twice."""
        for raw in lists.values():
            numbers = [number for (number,) in _NUMBER.iter_unpack(raw[: len(raw) // 8 * 8])]
            if not numbers or len(raw) != 8 * len(numbers) or numbers[0] != len(numbers) - 1:
                raise Damaged("the free list is cut short")
            if any(a <= b for a, b in pairwise(numbers[1:])):
                raise Damaged("the free list is out of order")
            for number in numbers[1:]:
                self.claim(number, 1)


_node = _NODE.unpack_from


def node_offsets(page: bytes, number: int) -> tuple[int, ...]:
    """Where the nodes of a tree page begin, in the order of their keys."""
    _, _, _, lower, upper = _HEADER.unpack_from(page)
    if not _HEADER_LEN <= lower <= upper <= len(page):
        raise Damaged(f"page {number}: its header contradicts itself")
    offsets = struct.unpack_from(f"={(lower - _HEADER_LEN) // 2}H", page, _HEADER_LEN)
    if offsets and not upper <= min(offsets) <= max(offsets) <= len(page) - _NODE_LEN:
        raise Damaged(f"page {number}: a row lies outside of it")
    return offsets


class _Leaf:
    """Checks leaf pages of one tree and adds them up.  Its loop is what the time of an examination goes into."""

    def __init__(self, whole: Examination, walked: Walked, seed: int, kind: int | None, keep: bool) -> None:
        self.whole = whole
        self.walked = walked
        self.seed = seed
        self.kind = kind
        self.small = walked.small if keep else None

    def check(self, page: bytes, low: bytes, high: bytes | None) -> None:
        number, _, _, _, upper = _HEADER.unpack_from(page)
        offsets = node_offsets(page, number)
        if self.kind == 0:
            used, last = self._rows(page, number, offsets, low)
        else:
            used, last = self._records(page, number, offsets, low)
        if high is not None and offsets and last >= high:
            raise Damaged(f"page {number}: a key is beyond its page")
        if used != len(page) - upper or not offsets:
            raise Damaged(f"page {number} has holes")
        self.walked.entries += len(offsets)

    def _rows(self, page: bytes, number: int, offsets: tuple[int, ...], low: bytes) -> tuple[int, bytes]:
        """Rows that end in the CRC of themselves; returns the bytes they take and the last key."""
        crc32, from_bytes, seed, small = zlib.crc32, int.from_bytes, self.seed, self.small
        used = total = 0
        last = b""
        for at in offsets:
            short, long, flags, key_len = _node(page, at)
            begin = at + 8
            middle = begin + key_len
            key = page[begin:middle]
            if key <= last or key < low:
                raise Damaged(f"page {number}: its keys are out of order")
            last = key
            if flags or long:
                sealed = key + self._big(page, middle, short | long << 16, flags)
                size = key_len + 8
            else:
                size = key_len + short
                sealed = page[begin : begin + size]
            if crc32(sealed, seed) != 0x2144DF1C:  # kvform.SEALED; a global costs time here
                raise Damaged(f"page {number}: the checksum of a row is wrong")
            crc = from_bytes(sealed[-4:], "little")
            total ^= crc * crc  # kvform.fingerprint
            used += 8 + size + (size & 1)
            if small is not None:
                small[key] = sealed[key_len:-4]
        self.walked.total ^= total
        return used, last

    def _big(self, page: bytes, at: int, length: int, flags: int) -> bytes:
        """The data of a node that lies on overflow pages; their number is all that follows the key."""
        if flags != _BIG:
            raise Damaged("a row has flags that contbak does not use")
        (first,) = _NUMBER.unpack_from(page + bytes(8), at)
        raw, count = self.whole.overflow(first, length)
        self.walked.overflows += count
        return raw

    def _records(self, page: bytes, number: int, offsets: tuple[int, ...], low: bytes) -> tuple[int, bytes]:
        """Records of trees, or parts of the free list, which have no checksum."""
        used, last = 0, b""
        for at in offsets:
            short, long, flags, key_len = _node(page, at)
            middle = at + _NODE_LEN + key_len
            stored = page[at + _NODE_LEN : middle]
            key = stored[::-1] if self.kind is None and sys.byteorder == "little" else stored
            if key <= last or key < low:
                raise Damaged(f"page {number}: its keys are out of order")
            last = key
            length = short | long << 16
            if self.kind is None and flags == _BIG:
                raw, length_here = self._big(page, middle, length, flags), _NUMBER.size
            else:
                raw, length_here = page[middle : middle + length], length
                if flags != (self.kind or 0) or (self.kind == _TREE and length != _TREE_RECORD.size):
                    raise Damaged(f"page {number}: a record is not what belongs there")
            size = key_len + length_here
            used += _NODE_LEN + size + (size & 1)
            if self.small is not None:
                self.small[key] = raw
        return used, last


def examine(directory: Path, limit: int = _ALL) -> int:
    """Rows examined in `directory`, of tables up to `limit` rows; raises Damaged, NeverBorn, OSError."""
    with open(directory / DATA_FILE, "rb") as file:
        if os.fstat(file.fileno()).st_size == 0:
            raise NeverBorn("the file is empty")
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_WILLNEED)
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as whole:
            return Examination(whole, _tip(directory), limit).run()


def _tip(directory: Path) -> int | None:
    try:
        return parse_tip((directory / TIP_FILE).read_bytes())
    except FileNotFoundError:
        return None


def main() -> int:
    """Says on one line what was found; returns the exit code."""
    try:
        rows = examine(Path(sys.argv[1]), *map(int, sys.argv[2:]))
    except NeverBorn as error:
        code, text = NEVER_BORN, str(error)
    except (Damaged, ArithmeticError, LookupError, ValueError, OverflowError, struct.error) as error:
        code, text = DAMAGED, str(error)
    else:
        code, text = SOUND, f"{rows} rows"
    sys.stdout.write(text + "\n")
    return code


if __name__ == "__main__":
    sys.exit(main())
