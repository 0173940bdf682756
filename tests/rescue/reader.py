"""A second reader of the formats at rest, written from docs/format.md alone: nothing of contbak is imported.

    python tests/rescue/reader.py STORE CODE-FILE OUT [COMMIT]

writes the newest state of every source (or the one of a commit) of the vault in the store directory STORE to
OUT/<source name>/.  CODE-FILE holds the recovery code.  It needs blake3, PyNaCl and zstandard and nothing else.

It is small before it is fast: it restores names, content, holes, symlinks, modes and times, reads the tails of
packs or searches for frames, and stops at the first thing that is wrong.
"""

import hashlib
import os
import struct
import sys
import zlib
from pathlib import Path

import nacl.bindings as sodium
import nacl.signing
import zstandard
from blake3 import blake3

DIGITS = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
TOP = bytes(8)


def need(true, what):
    if not true:
        raise SystemExit(f"damaged: {what}")


# -- MessagePack, as much of it as the formats use ----------------------------------------------------------------


def unpack(raw):
    """The one value that `raw` encodes."""
    value, at = _value(raw, 0)
    need(at == len(raw), "bytes after a record")
    return value


def _value(raw, at):
    first, at = raw[at], at + 1
    if first < 0x80:
        return first, at
    if first >= 0xE0:
        return first - 0x100, at
    if 0x90 <= first < 0xA0:
        return _array(raw, at, first & 15)
    if 0xA0 <= first < 0xC0:
        return raw[at : at + (first & 31)].decode(), at + (first & 31)
    if first in (0xC0, 0xC2, 0xC3):
        return {0xC0: None, 0xC2: False, 0xC3: True}[first], at
    numbers = {0xCC: ">B", 0xCD: ">H", 0xCE: ">I", 0xCF: ">Q", 0xD0: ">b", 0xD1: ">h", 0xD2: ">i", 0xD3: ">q"}
    if first in numbers:
        size = struct.calcsize(numbers[first])
        return struct.unpack_from(numbers[first], raw, at)[0], at + size
    lengths = {0xC4: ">B", 0xC5: ">H", 0xC6: ">I", 0xD9: ">B", 0xDA: ">H", 0xDB: ">I", 0xDC: ">H", 0xDD: ">I"}
    need(first in lengths, f"MessagePack type {first:#x}")
    length = struct.unpack_from(lengths[first], raw, at)[0]
    at += struct.calcsize(lengths[first])
    if first >= 0xDC:
        return _array(raw, at, length)
    piece = bytes(raw[at : at + length])
    need(len(piece) == length, "a record is cut short")
    return (piece.decode() if first >= 0xD9 else piece), at + length


def _array(raw, at, count):
    out = []
    for _ in range(count):
        value, at = _value(raw, at)
        out.append(value)
    return out, at


# -- keys ---------------------------------------------------------------------------------------------------------


def derive(purpose, key):
    return blake3(key, derive_key_context="contbak 2026-11 " + purpose).digest()


def root_of(code):
    """The root secret of a recovery code."""
    text = code.upper().translate(str.maketrans("OIL", "011")).replace("-", "")
    text = "".join(text.split()).removeprefix("CB1")
    need(len(text) == 60 and set(text) <= set(DIGITS), "the recovery code")
    number = 0
    for letter in text:
        number = number << 5 | DIGITS.index(letter)
    root = (number >> 44).to_bytes(32, "big")
    check = hashlib.blake2b(root, digest_size=8, person=b"contbak-code-1").digest()
    need(number & (1 << 44) - 1 == int.from_bytes(check, "big") >> 20, "the recovery code has a mistake")
    return root


class Keys:
    def __init__(self, root):
        self.read_secret = derive("read secret x25519", root)
        self.read_public = sodium.crypto_scalarmult_base(self.read_secret)
        admin_public = bytes(nacl.signing.SigningKey(derive("admin seed ed25519", root)).verify_key)
        self.psk = derive("psk", root)
        self.chunk_id_key = derive("chunk id", root)
        self.node_id_key = derive("node id", self.chunk_id_key)
        self.vault = derive("vault id", self.read_public + admin_public)[:16]

    def open(self, suite, ephemeral, nonce, sealed, data):
        """The plaintext of what was sealed with `data` bound to it."""
        shared = sodium.crypto_scalarmult(self.read_secret, ephemeral)
        key = derive("frame encryption", derive("pack key", shared + self.psk + ephemeral + self.read_public))
        if suite == 1:
            decrypt, length = sodium.crypto_aead_xchacha20poly1305_ietf_decrypt, 24
        else:
            need(suite == 2, f"suite {suite}")
            decrypt, length = sodium.crypto_aead_aegis256_decrypt, 32
        plain = decrypt(sealed, self.vault + data, nonce[:length], key)
        codec, size = struct.unpack_from("<BI", plain)
        payload = plain[5 : 5 + size]
        need(codec in (0, 2), f"compression {codec}")
        return zstandard.ZstdDecompressor().decompress(payload, max_output_size=64 << 20) if codec else payload


# -- frames and packs ---------------------------------------------------------------------------------------------


def frame_header(raw):
    """(suite, kind, ids, refs of each, body length, ephemeral, nonce, header) of the frame at the start of `raw`."""
    magic, version, suite, kind, _, _, n, header_len, body_len, _, ephemeral, nonce = struct.unpack_from(
        "<8sBBBBHHII8s32s32s", raw
    )
    need(magic == b"\xf0CBKFRM1" and version == 1, "no frame")
    header = bytes(raw[:header_len])
    need(struct.unpack("<I", header[-4:])[0] == zlib.crc32(header[:-4]), "a frame header")
    ids, refs, at = [], [], 96
    for _ in range(n):
        ids.append(header[at : at + 32])
        at += 32
        own = []
        if kind in (1, 2):
            count = struct.unpack_from("<I", header, at)[0]
            own = [header[at + 4 + 32 * i : at + 36 + 32 * i] for i in range(count)]
            at += 4 + 32 * count
        refs.append(own)
    need(at == header_len - 4, "a frame's table")
    return suite, kind, ids, refs, body_len, ephemeral, nonce, header


def frame_chunks(raw, keys):
    """{id: (refs, chunk)} of a frame, every id computed again."""
    suite, kind, ids, refs, body_len, ephemeral, nonce, header = frame_header(raw)
    sealed = bytes(raw[len(header) : len(header) + body_len])
    need(struct.unpack_from("<I", raw, len(header) + body_len)[0] == zlib.crc32(sealed), "a frame body")
    if kind == 3:
        need(blake3(sealed).digest() == ids[0], "the copy of a commit")
        return {ids[0]: ([], sealed)}
    payload = keys.open(suite, ephemeral, nonce, sealed, header)
    out, at = {}, 4 * len(ids)
    for number, length in enumerate(struct.unpack_from(f"<{len(ids)}I", payload)):
        chunk = payload[at : at + length]
        at += length
        if kind == 0:
            found = blake3(chunk, key=keys.chunk_id_key).digest()
        else:
            own = refs[number]
            found = blake3(struct.pack("<I", len(own)) + b"".join(own) + chunk, key=keys.node_id_key).digest()
        need(found == ids[number], "a chunk")
        out[ids[number]] = (refs[number], chunk)
    return out


def pack_frames(raw):
    """(offset, length, kind, ids) of every frame of a pack: from its directory, or else by searching."""
    try:
        return list(_directory(raw))
    except (SystemExit, struct.error, IndexError):
        return list(_search(raw))


def _directory(raw):
    magic, _, _, _, body_len, offset, length, count, root, crc = struct.unpack("<8sBBHQQII32sI", raw[-72:])
    need(magic == b"\xf2CBKEND1" and crc == zlib.crc32(raw[-72:-4]), "a trailer")
    hashes = raw[-72 - 32 * count : -72]
    facts = struct.pack("<QQIB", body_len, offset, length, raw[-63])
    need(derive("pack root", hashes + facts) == root, "a hash list")
    directory = raw[offset : offset + length]
    need(directory[:8] == b"\xf1CBKDIR1" and blake3(directory[:-32]).digest() == directory[-32:], "a directory")
    at = 12
    for _ in range(struct.unpack_from("<I", directory, 8)[0]):
        start, header_len, body_len, kind, _, n = struct.unpack_from("<IIIBBH", directory, at)
        at += 16
        yield start, header_len + body_len, kind, [directory[at + 32 * i : at + 32 * i + 32] for i in range(n)]
        at += 32 * n


def _search(raw):
    at = raw.find(b"\xf0CBKFRM1")
    while at >= 0:
        try:
            _, kind, ids, _, body_len, _, _, header = frame_header(raw[at:])
            yield at, len(header) + body_len + 4, kind, ids
        except (SystemExit, struct.error, IndexError):
            pass
        at = raw.find(b"\xf0CBKFRM1", at + 1)


# -- the vault ----------------------------------------------------------------------------------------------------


class Vault:
    """One vault of a store directory, every frame's place in memory."""

    def __init__(self, store, keys):
        self.keys = keys
        self.top = Path(store) / keys.vault.hex()
        self.places, self.records = {}, {}
        self.last = (None, {})
        for path in sorted((self.top / "packs").glob("*/*")):
            for offset, length, kind, ids in pack_frames(path.read_bytes()):
                for id_ in ids:
                    self.places.setdefault(id_, []).append((path, offset, length))
                if kind == 3:
                    self._record(self.chunk(ids[0])[1])
        for path in (self.top / "commits").glob("*/*"):
            self._record(path.read_bytes())

    def _record(self, raw):
        length = struct.unpack_from("<I", raw, 8)[0] if raw[:8] == b"\xf3CBKCMT1" else -1
        if len(raw) != length + 80 or zlib.crc32(raw[:-4]) != struct.unpack("<I", raw[-4:])[0]:
            return  # damaged; a copy may be in a pack
        body = unpack(raw[12 : 12 + length])
        signed = b"contbak 2026-11 commit\0" + raw[: 12 + length]
        nacl.signing.VerifyKey(body[2]).verify(signed, raw[12 + length : -4])
        need(body[0] == 1 and body[1] == self.keys.vault, "a record of another vault")
        suite, ephemeral, nonce, sealed = body[11]
        details = unpack(self.keys.open(suite, ephemeral, nonce, sealed, b"details"))
        self.records[blake3(raw).digest()] = (body, details)

    def chunk(self, id_):
        """(refs, bytes) of a chunk, from the first sound copy."""
        for place in self.places.get(id_, ()):
            if self.last[0] != place:
                path, offset, length = place
                with open(path, "rb") as file:
                    file.seek(offset)
                    self.last = (place, frame_chunks(file.read(length), self.keys))
            if id_ in self.last[1]:
                return self.last[1][id_]
        raise SystemExit(f"chunk {id_.hex()} is not there")

    def newest(self):
        """The newest record of each source: {(device, source): (body, details)}."""
        followed = {body[5] for body, _ in self.records.values()}
        out = {}
        for device in {body[2] for body, _ in self.records.values()}:
            own = {id_: one for id_, one in self.records.items() if one[0][2] == device}
            id_ = next(iter(own.keys() - followed), None)
            while id_ in own:
                body, details = own[id_]
                out.setdefault((device, body[7]), (body, details))
                id_ = body[5]
        return out

    def entries(self, body):
        """{(directory id, name): entry} of the state that a record names."""
        state = {}
        for root in ([body[8]] if body[8] is not None else []) + body[9]:
            for key, entry in self._rows(root):
                state[key] = entry
        return {key: entry for key, entry in state.items() if entry is not None}

    def _rows(self, id_):
        refs, raw = self.chunk(id_)
        version, level, items = unpack(raw)
        need(version == 1 and level < 64, "a node")
        for item in items:
            if level:
                yield from self._rows(refs[item[2]])
                continue
            for name, entry in item[1]:
                if entry is not None and entry[15] is not None:
                    entry[15][4] = [refs[index] for index in entry[15][4]]
                yield (item[0], name), entry

    def data(self, content):
        """The bytes of a file, in pieces."""
        length, whole, inline, level, ids = content
        hasher = blake3()
        count = 0
        for piece in [inline] if inline is not None else (self.chunk(id_)[1] for id_ in self._ids(level, ids)):
            hasher.update(piece)
            count += len(piece)
            yield piece
        need((hasher.digest(), count) == (whole, length), "the data of a file")

    def _ids(self, level, ids):
        for id_ in ids:
            if level == 0:
                yield id_
                continue
            refs, raw = self.chunk(id_)
            version, mark, items = unpack(raw)
            need((version, mark) == (1, 63 + level), "a list node")
            yield from self._ids(level - 1, [refs[index] for index, _ in items])


def restore(vault, body, out):
    """Writes the state that a record names into the new directory `out`; returns how many entries."""
    names = {}
    entries = vault.entries(body)
    for (directory, name), entry in entries.items():
        names.setdefault(directory, []).append((name, entry))
    pending, later = [(TOP, os.fsencode(out))], []
    if (TOP, b"") in entries:
        later.append((os.fsencode(out), entries[TOP, b""]))
    os.makedirs(out)
    while pending:
        directory, path = pending.pop()
        for name, entry in sorted(names.get(directory, ())):
            if name:
                _write(vault, os.path.join(path, name), entry)
                if entry[0] == "d":
                    pending.append((entry[9], os.path.join(path, name)))
                later.append((os.path.join(path, name), entry))
    for path, entry in reversed(later):
        if os.path.lexists(path):
            if entry[0] != "l":
                os.chmod(path, entry[1])
            os.utime(path, ns=(entry[7], entry[7]), follow_symlinks=False)
    return len(entries)


def _write(vault, path, entry):
    if entry[0] == "d":
        os.mkdir(path)
    elif entry[0] == "l":
        os.symlink(entry[10], path)
    elif entry[0] == "f":
        data = b"".join(vault.data(entry[15]))
        with open(path, "xb") as file:
            at = 0
            for offset, length in entry[13] if entry[13] is not None else [(0, len(data))]:
                file.seek(offset)
                file.write(data[at : at + length])
                at += length
            file.truncate(entry[6])


def main(store, code_file, out, commit=""):
    vault = Vault(store, Keys(root_of(Path(code_file).read_text())))
    chosen = vault.newest().values()
    if commit:
        chosen = [one for id_, one in vault.records.items() if id_.hex().startswith(commit)]
    for body, details in chosen:
        target = Path(out) / details[1]
        print(f"{target}: {restore(vault, body, target)} entries of {details[0]}:{os.fsdecode(details[2])}")


if __name__ == "__main__":
    main(*sys.argv[1:])
