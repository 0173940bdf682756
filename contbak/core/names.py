"""The typed names of things, and how they are written and read as text.

All are raw bytes of a fixed length; text is lower-case hex.  A name is checked once, where it enters.
"""

from __future__ import annotations

from typing import NewType

from contbak.core.errors import FormatError

VaultId = NewType("VaultId", bytes)
"""16 bytes, derived from the vault's public keys."""
DeviceId = NewType("DeviceId", bytes)
"""32 bytes: the device's Ed25519 public key."""
ChunkId = NewType("ChunkId", bytes)
"""32 bytes: keyed BLAKE3 of a chunk's plaintext."""
PackId = NewType("PackId", bytes)
"""32 bytes: root over the hashes of a pack's segments."""
CommitId = NewType("CommitId", bytes)
"""32 bytes: BLAKE3 of a commit record; its hex is what a user knows as the snapshot id."""
SourceId = NewType("SourceId", bytes)
"""8 random bytes that tell one source of a device from another without naming it."""
DirId = NewType("DirId", bytes)
"""8 bytes: a directory within a source; kept when the directory is renamed.  The source's top is eight zeros."""

VAULT_ID_LEN = 16
SOURCE_ID_LEN = 8
DIR_ID_LEN = 8
ID_LEN = 32
TOP_DIR = DirId(bytes(DIR_ID_LEN))


def from_hex(text: str, length: int, what: str) -> bytes:
    """The `length` bytes that `text` spells in lower-case hex.

    Raises FormatError, naming `what`, for any other text.
    """
    if len(text) != 2 * length or text.lower() != text:
        raise FormatError(f"{what} must be {2 * length} lower-case hex digits")
    try:
        raw = bytes.fromhex(text)
    except ValueError:
        raise FormatError(f"{what} must be {2 * length} lower-case hex digits") from None
    if len(raw) != length:  # fromhex skips blanks
        raise FormatError(f"{what} must be {2 * length} lower-case hex digits")
    return raw


def checked(raw: bytes, length: int, what: str) -> bytes:
    """`raw` if it is `length` bytes long; raises FormatError, naming `what`, if not."""
    if len(raw) != length:
        raise FormatError(f"{what} must be {length} bytes, not {len(raw)}")
    return raw
