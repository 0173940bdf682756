"""Hostile directory trees for tests: `make_tree` makes one from a seed, `same_tree` compares two completely.

A tree has what a restore gets wrong: names of any bytes, holes at every place, hard links across directories,
links to nowhere, special files, ACLs, binary attributes, odd modes and owners, times with ns before and after 1970.
"""

import errno
import hashlib
import os
import random
import stat
import struct
from contextlib import suppress

NAMES = (
    b"plain.txt",
    b"with space",
    b" leading and trailing ",
    b"-rf",
    b"--help",
    b"line\nbreak",
    b"back\\slash",
    b"tab\tand\x1b[31mescape",
    b"\xff\xfe not utf-8 \x80",
    "ünïcödé 文件 🗂".encode(),
    "e\u0301 decomposed".encode(),
    "é composed".encode(),
    b"n" * 255,
    b"...",
    b"*?[glob]",
    b"$(true)`true`;'\"",
    b".contbak-0.part.kept",
    b".hidden",
)
SIZES = (0, 1, 255, 256, 257, 4095, 4096, 4097, 16384, 65536, 65537, 262144, 1 << 20, (1 << 20) + 1)
BLOCK = 4096
HOLES = (  # size, (offset, length) of data
    (1 << 20, ()),
    (1 << 20, ((0, BLOCK),)),
    (1 << 20, ((1 << 19, BLOCK),)),
    ((1 << 20) + 5, (((1 << 20) - BLOCK, BLOCK + 5),)),
    (3 << 20, ((BLOCK, BLOCK), (3 * BLOCK, BLOCK), (1 << 20, 70_000), (2 << 20, 1))),
    (BLOCK, ()),
    (5 << 30, ((4 << 30, 3),)),
)
ROOT = os.geteuid() == 0


def make_tree(root, seed, files=40):
    """Fill the new directory `root` with at least `files` files and one of everything that can be made here."""
    chance = random.Random(seed)
    root = os.fsencode(root)
    os.makedirs(root)
    folders = _make_folders(root, chance)
    made = []
    for number in range(files):
        path = _name(folders, chance, number)
        with open(path, "xb") as file:
            file.write(_data(chance, chance.choice(SIZES) if number >= len(SIZES) else SIZES[number]))
        made.append(path)
    for number, (size, data) in enumerate(HOLES):
        made.append(make_sparse(os.path.join(chance.choice(folders), b"sparse %d" % number), size, data, chance))
    _make_links(folders, made, chance)
    _make_special(folders, chance)
    everything = list_tree(root)
    for path in everything:
        _decorate(path, chance)
    for path in reversed(everything):  # what is in a directory moves its times
        ns = chance.choice((chance.randrange(1 << 60), -chance.randrange(1 << 60), 0, 1, 1_700_000_000_123_456_789))
        os.utime(path, ns=(ns, ns), follow_symlinks=False)


def make_sparse(path, size, data, chance):
    """A file of `size` bytes with random data at the (offset, length) pairs `data` and holes elsewhere."""
    with open(path, "xb") as file:
        file.truncate(size)
        for offset, length in data:
            file.seek(offset)
            file.write(_data(chance, length))
    return path


def acl(*entries):
    """The raw value of system.posix_acl_*: `entries` are (tag, permissions, id)."""
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


NOBODY = 0xFFFFFFFF
ACL = acl((1, 6, NOBODY), (2, 4, 12345), (4, 4, NOBODY), (8, 6, 54321), (16, 6, NOBODY), (32, 0, NOBODY))
FOLDER_ACL = acl((1, 7, NOBODY), (2, 5, 12345), (4, 5, NOBODY), (16, 7, NOBODY), (32, 0, NOBODY))


def list_tree(root):
    """Every path below `root`, raw, parents first."""
    found = []
    pending = [os.fsencode(root)]
    while pending:
        with os.scandir(pending.pop()) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                found.append(entry.path)
                if entry.is_dir(follow_symlinks=False):
                    pending.append(entry.path)
    return found


def same_tree(a, b, ignore=()):
    """Every difference between the trees `a` and `b`, one line each; [] if there is none.

    ignore   names of facts not to compare: kind mode owner mtime size content target rdev xattrs holes links
    The attributes of `a` and `b` themselves are not compared, nor atime and ctime.
    """
    left, right = _facts(a), _facts(b)
    differences = [f"{path!r}: only in the first" for path in sorted(left.keys() - right.keys())]
    differences += [f"{path!r}: only in the second" for path in sorted(right.keys() - left.keys())]
    for path in sorted(left.keys() & right.keys()):
        for what in sorted(left[path].keys() | right[path].keys()):
            one, other = left[path].get(what), right[path].get(what)
            if what not in ignore and one != other:
                differences.append(f"{path!r}: {what} {_short(one)} is {_short(other)}")
    return differences


def extents_of(path):
    """Where the file has data: (offset, length) pairs in whole blocks, the last one cut at the end of the file."""
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    try:
        size, end, found = os.fstat(fd).st_size, 0, []
        while end < size:
            try:
                start = os.lseek(fd, end, os.SEEK_DATA)
            except OSError as error:
                if error.errno != errno.ENXIO:
                    raise
                break  # a hole up to the end
            end = os.lseek(fd, start, os.SEEK_HOLE)
            first, last = start // BLOCK * BLOCK, min(size, -(-end // BLOCK) * BLOCK)
            if found and found[-1][1] >= first:
                first = found.pop()[0]
            found.append((first, last))
        return tuple((start, end - start) for start, end in found)
    finally:
        os.close(fd)


def _facts(root):
    """Relative path to {name of fact: value}."""
    root = os.fsencode(root)
    facts, names = {}, {}
    for path in list_tree(root):
        st = os.lstat(path)
        relative = os.path.relpath(path, root)
        fact = facts[relative] = {
            "kind": stat.S_IFMT(st.st_mode),
            "mode": stat.S_IMODE(st.st_mode),
            "owner": (st.st_uid, st.st_gid),
            "mtime": st.st_mtime_ns,
            "xattrs": {name: os.getxattr(path, name, follow_symlinks=False) for name in _xattrs(path)},
        }
        if stat.S_ISLNK(st.st_mode):
            fact["target"] = os.readlink(path)
        if stat.S_ISCHR(st.st_mode) or stat.S_ISBLK(st.st_mode):
            fact["rdev"] = (os.major(st.st_rdev), os.minor(st.st_rdev))
        if stat.S_ISREG(st.st_mode):
            fact["size"] = st.st_size
            names.setdefault((st.st_dev, st.st_ino), []).append(relative)
            with suppress(PermissionError):
                fact["holes"] = extents_of(path)
                fact["content"] = _hash(path, fact["holes"])
    for group in names.values():
        for relative in group:
            facts[relative]["links"] = sorted(group)
    return facts


def _hash(path, extents):
    """Of what a reader of the file gets; runs of zeros are all one, so that holes of any size are quick."""
    digest = hashlib.blake2b()
    with open(path, "rb", buffering=0) as file:
        for offset, length in extents:
            for start in range(offset, offset + length, BLOCK):
                file.seek(start)
                block = file.read(min(BLOCK, offset + length - start))
                if block.strip(b"\0"):
                    digest.update(b"%d %d " % (start, len(block)) + block)
    return digest.hexdigest()


def _xattrs(path):
    try:
        return os.listxattr(path, follow_symlinks=False)
    except OSError:
        return []


def _short(value):
    text = repr(value)
    return text if len(text) < 200 else text[:200] + "..."


def _make_folders(root, chance):
    folders = [root]
    for number in range(8):
        folders.append(_name(folders, chance, number))
        os.mkdir(folders[-1])
    os.mkdir(os.path.join(root, b"empty"))
    deep = root
    for depth in range(40):
        deep = os.path.join(deep, b"deep%d" % depth)
        os.mkdir(deep)
    return [*folders, deep]


def _name(folders, chance, number):
    path = os.path.join(chance.choice(folders), NAMES[number % len(NAMES)])
    while os.path.lexists(path):
        path = os.path.join(chance.choice(folders), chance.choice(NAMES)[:200] + b"%d" % chance.randrange(10**6))
    return path


def _data(chance, length):
    kind = chance.randrange(3)
    if kind == 0:
        return chance.randbytes(length)
    if kind == 1:
        return bytes(length)  # zeros that are data, not holes
    return (chance.randbytes(97) * (length // 97 + 1))[:length]


def _make_links(folders, files, chance):
    for number in range(8):
        os.link(chance.choice(files), os.path.join(chance.choice(folders), b"hard %d" % number))
    targets = (b"nowhere", b"/", b"loop", b".", b"..", b"\xff\n\x01", b"../" * 20 + b"etc", b"t" * 4000)
    for number, target in enumerate(targets):
        os.symlink(target, os.path.join(chance.choice(folders), b"soft %d" % number))
    os.symlink(b"loop", os.path.join(folders[0], b"loop"))
    os.symlink(chance.choice(folders), os.path.join(folders[0], b"to a directory"))


def _make_special(folders, chance):
    os.mkfifo(os.path.join(chance.choice(folders), b"fifo"))
    with suppress(PermissionError, FileNotFoundError):
        os.mknod(os.path.join(chance.choice(folders), b"socket"), stat.S_IFSOCK | 0o755)
    with suppress(PermissionError):
        os.mknod(os.path.join(chance.choice(folders), b"null"), stat.S_IFCHR | 0o666, os.makedev(1, 3))
        os.mknod(os.path.join(chance.choice(folders), b"block"), stat.S_IFBLK | 0o600, os.makedev(259, 70000))


def _decorate(path, chance):
    """Owner, attributes, ACL and mode at random, as far as this user and file system go."""
    st = os.lstat(path)
    if ROOT:
        os.chown(path, chance.choice((0, 1, 1000, 65534, 1 << 30)), chance.choice((0, 4, 70000)), follow_symlinks=False)
    if stat.S_ISLNK(st.st_mode):
        return
    plain = stat.S_ISREG(st.st_mode) or stat.S_ISDIR(st.st_mode)
    with suppress(OSError):  # a file system without them
        if plain and chance.random() < 0.4:
            os.setxattr(path, b"user.binary", chance.randbytes(chance.choice((0, 1, 20, 500))))
            os.setxattr(path, b"user.\xc3\xa9 name", b"\0\xff")
        if ROOT and chance.random() < 0.2:
            os.setxattr(path, b"trusted.contbak-test", b"\0")
        if plain and chance.random() < 0.3:
            os.setxattr(path, b"system.posix_acl_access", FOLDER_ACL if stat.S_ISDIR(st.st_mode) else ACL)
        if stat.S_ISDIR(st.st_mode) and chance.random() < 0.5:
            os.setxattr(path, b"system.posix_acl_default", ACL)
    if chance.random() < 0.5:
        modes = (0o755, 0o1777, 0o2770, 0o700) if stat.S_ISDIR(st.st_mode) else (0o644, 0o4755, 0o2711, 0o1600, 0o400)
        if ROOT or not plain:
            modes += (0,)
        os.chmod(path, chance.choice(modes))
