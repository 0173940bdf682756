"""The recovery code: the 32-byte root secret of a vault as text that a person can copy by hand.

    CB1-XXXXX-XXXXX-XXXXX-XXXXX-XXXXX-XXXXX-XXXXX-XXXXX-XXXXX-XXXXX-XXXXX-XXXXX

`CB1` names the format.  The 12 groups of 5 are Crockford base32 (no I, L, O, U) of 300 bits: the 256 bits of
the secret, then 44 bits of BLAKE2b over it.  A mistyped code passes that check once in 2**44 tries.

Rules: reading forgives case, blanks, dashes of any kind, a missing `CB1`, O for 0, and I or L for 1.  A wrong
code is never repaired silently; the error says where the mistake is if one character or one neighbouring swap
explains it.  Errors do not quote the code, because errors end up in logs.

Not here: how the secret is made or kept, and what is derived from it.
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Iterator

from contbak.core.errors import WrongKey

ROOT_LEN = 32
"""Bytes of the root secret."""

PREFIX = "CB1"
ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
GROUP = 5
GROUPS = 12

_SYMBOLS = GROUP * GROUPS
_CHECK_BITS = 5 * _SYMBOLS - 8 * ROOT_LEN
_VALUES = {symbol: value for value, symbol in enumerate(ALPHABET)}
_FORGIVEN = str.maketrans("OIL", "011")
_BLANK_CATEGORIES = frozenset(("Cc", "Cf", "Pd", "Zl", "Zp", "Zs"))  # controls, dashes, blanks
_MINUS_SIGN = "\u2212"  # looks like a dash and is none to Unicode


def encode(root: bytes) -> str:
    """The recovery code of `root` (32 bytes): 75 characters of capital letters, digits and dashes."""
    if len(root) != ROOT_LEN:
        raise ValueError(f"a root secret has {ROOT_LEN} bytes, not {len(root)}")
    number = int.from_bytes(root, "big") << _CHECK_BITS | _check(root)
    symbols = "".join(ALPHABET[number >> 5 * place & 31] for place in reversed(range(_SYMBOLS)))
    return "-".join((PREFIX, *_groups(symbols)))


def decode(text: str) -> bytes:
    """The root secret (32 bytes) that `text` spells.

    Raises WrongKey, with a hint at the place if there is one, for anything but a whole and correct code.
    """
    symbols = _symbols(text)
    root = _root(symbols)
    if root is None:
        raise WrongKey(f"the recovery code has a mistake: {_hint(symbols)}")
    return root


def _check(root: bytes) -> int:
    """The checksum of `root`, as a number of _CHECK_BITS bits."""
    digest = hashlib.blake2b(root, digest_size=8, person=b"contbak-code-1").digest()
    return int.from_bytes(digest, "big") >> 64 - _CHECK_BITS


def _groups(symbols: str) -> list[str]:
    return [symbols[start : start + GROUP] for start in range(0, len(symbols), GROUP)]


def _symbols(text: str) -> str:
    """The 60 symbols of `text`, cleaned and without the prefix; raises WrongKey if they cannot be had."""
    words = _words(text)
    symbols = "".join(words)
    if symbols.startswith(PREFIX) and len(symbols) != _SYMBOLS:
        symbols = symbols[len(PREFIX) :]
        words = [word for word in (words[0][len(PREFIX) :], *words[1:]) if word]
    elif len(symbols) == _SYMBOLS + len(PREFIX):
        raise WrongKey(f"the recovery code has to begin with {PREFIX}; this one may be mistyped there, or be newer")
    if len(symbols) != _SYMBOLS:
        raise WrongKey(
            f"the recovery code has to have {_SYMBOLS} characters after {PREFIX}, "
            f"and this has {len(symbols)}{_odd_group(words)}"
        )
    for place, symbol in enumerate(symbols):
        if symbol not in _VALUES:
            raise WrongKey(f"group {place // GROUP + 1} of the recovery code has a character that no code contains")
    return symbols


def _words(text: str) -> list[str]:
    """The runs of characters between blanks and dashes: capitals, look-alikes replaced."""
    separated = (
        " " if mark == _MINUS_SIGN or unicodedata.category(mark) in _BLANK_CATEGORIES else mark for mark in text
    )
    return "".join(separated).upper().translate(_FORGIVEN).split()


def _odd_group(words: list[str]) -> str:
    """Which group is too short or too long, if `words` still shows the groups."""
    odd = [place for place, word in enumerate(words, start=1) if len(word) != GROUP]
    if len(words) == GROUPS and len(odd) == 1:
        return f" (look at group {odd[0]})"
    return ""


def _root(symbols: str) -> bytes | None:
    """The secret in 60 valid symbols, or None if the checksum denies it."""
    number = 0
    for symbol in symbols:
        number = number << 5 | _VALUES[symbol]
    root = (number >> _CHECK_BITS).to_bytes(ROOT_LEN, "big")
    return root if number & (1 << _CHECK_BITS) - 1 == _check(root) else None


def _hint(symbols: str) -> str:
    """Where one small mistake would explain `symbols`, as the end of a sentence."""
    for place, candidate in _near(symbols):
        if _root(candidate) is not None:
            return f"look at group {place // GROUP + 1}"
    return "more than one character is wrong, or it is not a recovery code"


def _near(symbols: str) -> Iterator[tuple[int, str]]:
    """Every code that is one swap of neighbours or one character away, with the place of the difference."""
    for place in range(_SYMBOLS - 1):
        first, second = symbols[place], symbols[place + 1]
        yield place, symbols[:place] + second + first + symbols[place + 2 :]
    for place in range(_SYMBOLS):
        for symbol in ALPHABET:
            yield place, symbols[:place] + symbol + symbols[place + 1 :]
