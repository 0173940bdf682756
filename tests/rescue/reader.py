#!/usr/bin/env python3
"""Reads a vault from its store directory, without contbak: written from docs/format.md alone.

    python reader.py STORE CODE                    list the history
    python reader.py STORE CODE COMMIT             list what a commit holds (the first digits of its id will do)
    python reader.py STORE CODE COMMIT DIRECTORY   restore it there

CODE is the recovery code, or the name of a file that holds it.  Needs pynacl, blake3 and zstandard.  It is simple
rather than quick, never writes to the store, and takes nothing as true that it has not verified; what is damaged it
names, and goes on.  Sockets and devices are listed, not made; owners are not restored.
"""

from __future__ import annotations

import hashlib
import os
import struct
import sys
import zlib
from collections import OrderedDict
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import nacl.bindings as sodium
import nacl.exceptions
import nacl.signing
import zstandard
from blake3 import blake3

CONTEXT = "contbak 2026-11 "
ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
DATA, NODE, RUN, COPY = range(4)
FRAME = struct.Struct("<8sBBBBHHII8s32s32s")
TRAILER = struct.Struct("<8sBBHQQII32sI")
DIRECTORY_ROW = struct.Struct("<IIIBBH")
PLAIN_MAX, HEADER_MAX, BODY_MAX = 64 << 20, 4 << 20, 128 << 20
TOP = bytes(8)


class Damaged(Exception):
    """These bytes are not what they should be."""


def need(condition: object, what: str) -> None:
    if not condition:
        raise Damaged(what)


def u32(raw: bytes, at: int) -> int:
    need(0 <= at <= len(raw) - 4, "cut short")
    return int.from_bytes(raw[at : at + 4], "little")


# -- MessagePack ------------------------------------------------------------------------------------------------


class Unpacker:
    """nil, booleans, integers, text, bytes and arrays, each in its shortest form."""

    def __init__(self, raw: bytes) -> None:
        self.raw, self.at = raw, 0

    def take(self, length: int) -> bytes:
        need(length <= len(self.raw) - self.at, "a record is cut short")
        self.at += length
        return self.raw[self.at - length : self.at]

    def number(self, width: int, least: int) -> int:
        value = int.from_bytes(self.take(width), "big")
        need(value >= least, "a record is not in its shortest form")
        return value

    def negative(self, width: int, most: int) -> int:
        value = int.from_bytes(self.take(width), "big", signed=True)
        need(value < most, "a record is not in its shortest form")
        return value

    def array(self, count: int, depth: int) -> list:
        need(count <= len(self.raw) - self.at and depth < 20, "a record claims too much")
        return [self.value(depth + 1) for _ in range(count)]

    def text(self, length: int) -> str:
        try:
            return self.take(length).decode()
        except UnicodeDecodeError:
            raise Damaged("a record holds text that is none") from None

    def value(self, depth: int = 0) -> object:
        tag = self.take(1)[0]
        if tag < 0x80 or tag >= 0xE0:
            return tag if tag < 0x80 else tag - 256
        if 0x90 <= tag < 0xC0:
            return self.array(tag & 15, depth) if tag < 0xA0 else self.text(tag & 31)
        constants = {0xC0: None, 0xC2: False, 0xC3: True}
        if tag in constants:
            return constants[tag]
        if 0xC4 <= tag <= 0xC6:
            return self.take(self.number(1 << tag - 0xC4, (0, 1 << 8, 1 << 16)[tag - 0xC4]))
        if 0xCC <= tag <= 0xCF:
            return self.number(1 << tag - 0xCC, (1 << 7, 1 << 8, 1 << 16, 1 << 32)[tag - 0xCC])
        if 0xD0 <= tag <= 0xD3:
            return self.negative(1 << tag - 0xD0, (-(1 << 5), -(1 << 7), -(1 << 15), -(1 << 31))[tag - 0xD0])
        if 0xD9 <= tag <= 0xDB:
            return self.text(self.number(1 << tag - 0xD9, (32, 1 << 8, 1 << 16)[tag - 0xD9]))
        if tag in (0xDC, 0xDD):
            return self.array(self.number(2 if tag == 0xDC else 4, 16 if tag == 0xDC else 1 << 16), depth)
        raise Damaged("a record holds something that no record does")


def unpack(raw: bytes, length: int) -> list:
    """The array of `length` elements that `raw` is."""
    reader = Unpacker(raw)
    record = reader.value()
    need(reader.at == len(raw) and isinstance(record, list) and len(record) == length, "a record of another shape")
    return record


# -- keys -------------------------------------------------------------------------------------------------------


def derive(purpose: str, key: bytes) -> bytes:
    return blake3(key, derive_key_context=CONTEXT + purpose).digest()


def root_of(code: str) -> bytes:
    """The root secret in a recovery code."""
    symbols = "".join(each for each in code.upper() if each.isalnum()).translate(str.maketrans("OIL", "011"))
    symbols = symbols[3:] if len(symbols) == 63 and symbols.startswith("CB1") else symbols
    need(len(symbols) == 60 and set(symbols) <= set(ALPHABET), "this is no recovery code")
    number = 0
    for symbol in symbols:
        number = number * 32 + ALPHABET.index(symbol)
    root = (number >> 44).to_bytes(32, "big")
    check = hashlib.blake2b(root, digest_size=8, person=b"contbak-code-1").digest()
    need(number % (1 << 44) == int.from_bytes(check, "big") >> 20, "the recovery code is mistyped")
    return root


class Keys:
    """What is derived from the root secret, and what it opens."""

    def __init__(self, root: bytes) -> None:
        self.read_secret = derive("read secret x25519", root)
        self.read_public = sodium.crypto_scalarmult_base(self.read_secret)
        self.admin_public = admin_public = bytes(nacl.signing.SigningKey(derive("admin seed ed25519", root)).verify_key)
        self.psk = derive("psk", root)
        self.chunk_id_key = derive("chunk id", root)
        self.node_id_key = derive("node id", self.chunk_id_key)
        self.vault = derive("vault id", self.read_public + admin_public)[:16]

    def open(self, suite: int, ephemeral: bytes, nonce: bytes, associated: bytes, sealed: bytes, most: int) -> bytes:
        """The payload of a sealed body, decompressed."""
        decrypt, length = {
            1: (sodium.crypto_aead_xchacha20poly1305_ietf_decrypt, 24),
            2: (sodium.crypto_aead_aegis256_decrypt, 32),
        }.get(suite) or (None, 0)
        need(decrypt, "an unknown suite: a newer program wrote this")
        try:
            shared = sodium.crypto_scalarmult(self.read_secret, ephemeral)
            key = derive("frame encryption", derive("pack key", shared + self.psk + ephemeral + self.read_public))
            plain = decrypt(sealed, self.vault + associated, nonce[:length], key)
        except nacl.exceptions.CryptoError:
            raise Damaged("something sealed does not open") from None
        size = u32(plain, 1)
        need(5 + size <= len(plain) and plain[0] in (0, 2), "a body of another shape")
        payload = plain[5 : 5 + size]
        return payload if plain[0] == 0 else decompressed(payload, most)

    def chunk_id(self, kind: int, refs: list[bytes], payload: bytes) -> bytes:
        if kind == DATA:
            return blake3(payload, key=self.chunk_id_key).digest()
        return blake3(struct.pack("<I", len(refs)) + b"".join(refs) + payload, key=self.node_id_key).digest()


def decompressed(data: bytes, most: int) -> bytes:
    try:
        need(0 <= zstandard.frame_content_size(data) <= most, "a compressed body claims too much")
        return zstandard.ZstdDecompressor().decompress(data, max_output_size=most)
    except zstandard.ZstdError:
        raise Damaged("a compressed body is damaged") from None


# -- frames and packs -------------------------------------------------------------------------------------------


class Header(NamedTuple):
    suite: int
    kind: int
    ids: list[bytes]
    refs: list[list[bytes]]
    body_len: int
    ephemeral: bytes
    nonce: bytes
    raw: bytes


def parse_header(raw: bytes) -> Header:
    """The frame header that `raw` begins with."""
    need(len(raw) >= FRAME.size, "a frame is cut short")
    magic, version, suite, kind, flags, epoch, n, size, body_len, _, ephemeral, nonce = FRAME.unpack_from(raw)
    need(magic == b"\xf0CBKFRM1", "no frame")
    need(version == 1 and not flags and not epoch and kind <= COPY, "a frame that a newer program wrote")
    need(FRAME.size + 4 < size <= min(len(raw), HEADER_MAX) and 1 <= n <= 256, "a frame header is damaged")
    head = raw[:size]
    need(zlib.crc32(head[:-4]) == u32(head, size - 4), "a frame header is damaged")
    at, ids, refs = FRAME.size, [], []
    for _ in range(n):
        count = u32(head, at + 32) if kind in (NODE, RUN) else 0
        ids.append(head[at : at + 32])
        at += 36 if kind in (NODE, RUN) else 32
        need(at + 32 * count <= size - 4, "a frame header is damaged")
        refs.append([head[at + 32 * i : at + 32 * i + 32] for i in range(count)])
        at += 32 * count
    need(at == size - 4, "a frame header is damaged")
    return Header(suite, kind, ids, refs, body_len, ephemeral, nonce, head)


def directory_of(raw: bytes) -> list[tuple[int, int, int, list[bytes]]]:
    """(offset, length, kind, ids) of every frame of a pack, from the end of its file."""
    need(len(raw) >= TRAILER.size, "a pack is cut short")
    magic, version, log2, _, body_len, offset, length, count, root, crc = TRAILER.unpack(raw[-TRAILER.size :])
    need(magic == b"\xf2CBKEND1" and zlib.crc32(raw[-TRAILER.size : -4]) == crc, "a pack's end is damaged")
    need(version == 1, "a pack that a newer program wrote")
    need(len(raw) == body_len + 32 * count + TRAILER.size and offset + length == body_len, "a pack is cut short")
    facts = struct.pack("<QQIB", body_len, offset, length, log2)
    need(derive("pack root", raw[body_len : -TRAILER.size] + facts) == root, "a pack's hash list is damaged")
    directory = raw[offset:body_len]
    need(directory.startswith(b"\xf1CBKDIR1") and len(directory) >= 44, "a pack's directory is damaged")
    need(blake3(directory[:-32]).digest() == directory[-32:], "a pack's directory is damaged")
    rows, at = [], 12
    for _ in range(u32(directory, 8)):
        need(at + DIRECTORY_ROW.size <= len(directory) - 32, "a pack's directory is damaged")
        start, header_len, body, kind, _, n = DIRECTORY_ROW.unpack_from(directory, at)
        at += DIRECTORY_ROW.size
        need(at + 32 * n <= len(directory) - 32, "a pack's directory is damaged")
        rows.append((start, header_len + body, kind, [directory[at + 32 * i : at + 32 * i + 32] for i in range(n)]))
        at += 32 * n
    return rows


def search(raw: bytes) -> list[tuple[int, int, int, list[bytes]]]:
    """The same, by looking for frames."""
    rows, at = [], raw.find(b"\xf0CBKFRM1")
    while at >= 0:
        length = 1
        with suppress(Damaged):
            header = parse_header(raw[at : at + HEADER_MAX])
            length = len(header.raw) + header.body_len + 4
            rows.append((at, length, header.kind, header.ids))
        at = raw.find(b"\xf0CBKFRM1", at + length)
    return rows


# -- a vault ----------------------------------------------------------------------------------------------------


class Commit(NamedTuple):
    id: bytes
    device: bytes
    sequence: int
    previous: bytes
    time_ms: int
    source: bytes
    base: bytes | None
    runs: list[bytes]
    details: list


class Entry(NamedTuple):
    kind: str
    mode: int
    uid: int
    gid: int
    user: str
    group: str
    size: int
    mtime: int
    ctime: int
    dir: bytes
    target: bytes
    rdev: list[int] | None
    xattrs: list[list[bytes]]
    extents: list[list[int]] | None
    link: bytes
    content: list | None
    flags: int


class Vault:
    """A vault in a store directory.  `problems` collects what is damaged."""

    def __init__(self, store: Path, code: str) -> None:
        self.keys = Keys(root_of(code))
        self.top = store / self.keys.vault.hex()
        need(self.top.is_dir(), "the store does not hold the vault of this recovery code")
        self.problems: list[str] = []
        self.places: dict[bytes, list[tuple[Path, int, int, int]]] = {}
        self.frames: OrderedDict[tuple[Path, int], list] = OrderedDict()
        self.records: dict[bytes, bytes] = {}
        for path in sorted(self.top.glob("packs/*/*")):
            self._index(path)
        for path in sorted(self.top.glob("commits/*/*")):
            raw = path.read_bytes()
            self.records.setdefault(blake3(raw).digest(), raw)

    def _index(self, path: Path) -> None:
        raw = path.read_bytes()[: BODY_MAX + HEADER_MAX]
        try:
            rows = directory_of(raw)
        except Damaged as error:
            self.problems.append(f"{path.name}: {error}")
            rows = search(raw)
        for offset, length, kind, ids in rows:
            for ordinal, id_ in enumerate(ids):
                self.places.setdefault(id_, []).append((path, offset, length, ordinal))
            if kind == COPY:
                with suppress(Damaged):
                    header = parse_header(raw[offset : offset + length])
                    record = raw[offset + len(header.raw) :][: header.body_len]
                    need(blake3(record).digest() == header.ids[0], "a copy of a commit is damaged")
                    self.records[header.ids[0]] = record

    def history(self) -> list[Commit]:
        """All commits: in the order of their acceptance, those of unknown order last."""
        order = {}
        for path in self.top.glob("order/*"):
            raw = path.read_bytes()
            if len(raw) == 44 and zlib.crc32(raw[:40]) == u32(raw, 40):
                order[raw[:32]] = int(path.name, 16)
        found = []
        for raw in self.records.values():
            try:
                found.append(self._commit(raw))
            except Damaged as error:
                self.problems.append(f"a commit record: {error}")
        return sorted(found, key=lambda one: (order.get(one.id, 1 << 64), one.device, one.sequence))

    def _commit(self, raw: bytes) -> Commit:
        need(raw.startswith(b"\xf3CBKCMT1") and 80 <= len(raw) <= 1 << 16, "no commit record")
        end = 12 + u32(raw, 8)
        need(len(raw) == end + 68 and zlib.crc32(raw[:-4]) == u32(raw, len(raw) - 4), "damaged")
        _, vault, device, _, sequence, previous, time_ms, source, base, runs, _, vouch, sealed = unpack(raw[12:end], 13)
        need(raw[13] == 1, "a newer program wrote it")
        try:
            signed = CONTEXT.encode() + b"commit\0" + raw[:end]
            nacl.signing.VerifyKey(device).verify(signed, raw[end:-4])
        except (nacl.exceptions.CryptoError, ValueError, TypeError):
            raise Damaged("its signature is wrong") from None
        need(vault == self.keys.vault, "it is of another vault")
        try:
            vouched = CONTEXT.encode() + b"enroll\0" + vault + device
            nacl.signing.VerifyKey(self.keys.admin_public).verify(vouched, vouch)
        except (nacl.exceptions.CryptoError, ValueError, TypeError):
            raise Damaged("its device is not one of the owner's") from None
        suite, ephemeral, nonce, body = sealed
        details = unpack(self.keys.open(suite, ephemeral, nonce, b"details", body, 1 << 16), 11)
        id_ = blake3(raw).digest()
        return Commit(id_, device, sequence, previous, time_ms, source, base, runs, details)

    # -- chunks ---------------------------------------------------------------------------------------------

    def chunk(self, id_: bytes) -> tuple[list[bytes], bytes]:
        """(references, payload) of a chunk, from any sound copy."""
        for path, offset, length, ordinal in self.places.get(id_, []):
            try:
                found, refs, payload = self._frame(path, offset, length)[ordinal]
                need(found == id_, "a pack's directory and its frame differ")
                return refs, payload
            except (Damaged, IndexError, OSError) as error:
                self.problems.append(f"{path.name} at {offset}: {error}")
        raise Damaged(f"chunk {id_.hex()} is lost")

    def _frame(self, path: Path, offset: int, length: int) -> list[tuple[bytes, list[bytes], bytes]]:
        found = self.frames.get((path, offset))
        if found is None:
            with path.open("rb") as file:
                file.seek(offset)
                raw = file.read(min(length, BODY_MAX))
            found = self.frames[path, offset] = self._opened(raw)
            if len(self.frames) > 16:
                self.frames.popitem(last=False)
        return found

    def _opened(self, raw: bytes) -> list[tuple[bytes, list[bytes], bytes]]:
        head = parse_header(raw)
        body, crc = raw[len(head.raw) : -4], u32(raw, len(raw) - 4)
        need(len(body) == head.body_len and zlib.crc32(body) == crc, "a frame is damaged")
        payload = self.keys.open(head.suite, head.ephemeral, head.nonce, head.raw, body, PLAIN_MAX)
        n, chunks = len(head.ids), []
        lengths = [u32(payload, 4 * i) for i in range(n)]
        at = 4 * n
        need(at + sum(lengths) == len(payload), "a frame of another shape")
        for id_, refs, length in zip(head.ids, head.refs, lengths, strict=True):
            piece = payload[at : at + length]
            at += length
            need(self.keys.chunk_id(head.kind, refs, piece) == id_, "a chunk is not what its id says")
            chunks.append((id_, refs, piece))
        return chunks

    def node(self, id_: bytes) -> tuple[list[bytes], int, list]:
        """(references, kind, items) of a node."""
        refs, payload = self.chunk(id_)
        version, kind, items = unpack(payload, 3)
        need(version == 1, "a node that a newer program wrote")
        return refs, kind, items

    # -- trees ----------------------------------------------------------------------------------------------

    def rows(self, root: bytes):
        """((directory id, name), entry or None) of everything beneath `root`; what is lost is left out."""
        try:
            refs, kind, items = self.node(root)
        except Damaged as error:
            self.problems.append(f"part of a tree: {error}")
            return
        if kind:
            for _, _, index, _ in items:
                yield from self.rows(refs[index])
            return
        for dir_id, names in items:
            for name, raw in names:
                if raw is not None and raw[15] is not None:
                    length, digest, inline, level, chunks = raw[15]
                    raw[15] = [length, digest, inline, level, [refs[index] for index in chunks]]
                yield (dir_id, name), None if raw is None else Entry(*raw)

    def paths(self, commit: Commit):
        """(path, entry) of everything in a commit, directories first."""
        state: dict[tuple[bytes, bytes], Entry | None] = {}
        for root in [commit.base, *commit.runs] if commit.base else commit.runs:
            state.update(self.rows(root))
        within: dict[bytes, list[tuple[bytes, Entry]]] = {}
        for (dir_id, name), entry in sorted(state.items()):
            if entry is not None and b"/" not in name and b"\0" not in name and name not in (b".", b".."):
                within.setdefault(dir_id, []).append((name, entry))
        pending, entered = [(b"", TOP)], {TOP}
        while pending:
            above, dir_id = pending.pop()
            for name, entry in within.get(dir_id, []):
                path = above + b"/" + name if above else name
                yield path, entry
                if entry.kind == "d" and entry.dir not in entered:
                    entered.add(entry.dir)
                    pending.append((path, entry.dir))

    def data(self, entry: Entry):
        """The data of a file piece by piece, without its holes.  Raises Damaged at the end if they do not fit."""
        length, digest, inline, level, ids = entry.content
        hasher, came = blake3(), 0
        for piece in [inline] if inline is not None else self._pieces(level, ids):
            hasher.update(piece)
            came += len(piece)
            yield piece
        need(came == length and hasher.digest() == digest, "the data does not fit its hash")

    def _pieces(self, level: int, ids: list[bytes]):
        for id_ in ids:
            if level == 0:
                yield self.chunk(id_)[1]
            else:
                refs, kind, items = self.node(id_)
                need(kind == 63 + level, "a list node of another level")
                yield from self._pieces(level - 1, [refs[index] for index, _ in items])

    # -- restoring ------------------------------------------------------------------------------------------

    def restore(self, commit: Commit, target: Path) -> None:
        """Writes a commit's files to `target`, a directory that is not there yet."""
        target.mkdir(parents=True)
        links: dict[bytes, bytes] = {}
        made: list[tuple[bytes, Entry]] = []
        for path, entry in self.paths(commit):
            place = os.path.join(os.fsencode(target), path) if path else os.fsencode(target)
            try:
                self._make(place, entry, links)
                made.append((place, entry))
            except (Damaged, OSError) as error:
                self.problems.append(f"{path!r}: {error}")
        for place, entry in reversed(made):  # a directory after what is in it
            attributes(place, entry)

    def _make(self, place: bytes, entry: Entry, links: dict[bytes, bytes]) -> None:
        if entry.kind == "d":
            os.makedirs(place, exist_ok=True)
        elif entry.kind == "l":
            os.symlink(entry.target, place)
        elif entry.kind == "p":
            os.mkfifo(place)
        elif entry.kind == "f" and entry.link in links:
            os.link(links[entry.link], place)
        elif entry.kind == "f":
            with open(place, "xb") as file:
                self._fill(file, entry)
            if entry.link:
                links[entry.link] = place
        else:
            raise Damaged("sockets and devices are not made")

    def _fill(self, file, entry: Entry) -> None:
        extents = entry.extents if entry.extents is not None else [[0, entry.size]]
        file.truncate(entry.size)
        turn = iter(extents)
        left = 0
        for piece in self.data(entry):
            while piece:
                if not left:
                    offset, left = next(turn, (0, 0))
                    need(left, "more data than extents")
                    file.seek(offset)
                file.write(piece[:left])
                piece, left = piece[left:], left - min(left, len(piece))


def attributes(place: bytes, entry: Entry) -> None:
    if entry.kind != "l":
        os.chmod(place, entry.mode)
    for name, value in entry.xattrs:
        with suppress(OSError, AttributeError):
            os.setxattr(place, name, value, follow_symlinks=False)
    os.utime(place, ns=(entry.mtime, entry.mtime), follow_symlinks=False)


def main(arguments: list[str]) -> int:
    if not 2 <= len(arguments) <= 4:
        print(__doc__)
        return 2
    store, code, *rest = arguments
    vault = Vault(Path(store), Path(code).read_text() if Path(code).is_file() else code)
    history = vault.history()
    if not rest:
        for one in history:
            where = os.fsdecode(one.details[2])
            print(
                f"{one.id.hex()[:16]}  {one.time_ms / 1000:.0f}  {one.details[0]}  {where!r}  {one.details[4]} entries"
            )
    for one in [one for one in history if rest and one.id.hex().startswith(rest[0])]:
        if len(rest) == 2:
            vault.restore(one, Path(rest[1]))
        else:
            for path, entry in vault.paths(one):
                print(f"{entry.kind} {entry.mode:04o} {entry.size:12}  {os.fsdecode(path)!r}")
    for problem in dict.fromkeys(vault.problems):
        print(problem, file=sys.stderr)
    return 1 if vault.problems else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
