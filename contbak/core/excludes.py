"""Which paths a source leaves out: patterns in the language of gitignore(5).

Rules:
- One question concerns one path whose parent directories are all included: the caller walks down and does not
  enter what is excluded, so (as in git) nothing below an excluded directory can be included again.
- The last pattern that matches decides; `!` turns it round.
- Names are bytes and need not be text; matching is by byte and minds case.

Patterns are sorted into three tests, since most are plain: a table of whole names, a table of endings, and one
regular expression for the rest.  What git takes in silence as never matching (an unclosed `[`, a `\\` at the end,
an unknown `[:class:]`) is an error here: an exclude that does nothing is a surprise.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from contbak.core.errors import UsageError

_SPECIAL = frozenset(b"*?[\\")
_STAR, _QUESTION, _OPEN, _CLOSE, _ESCAPE, _DASH, _COLON, _SLASH = b"*?[]\\-:/"


@dataclass(frozen=True, slots=True)
class _Rule:
    """One pattern: `glob` without its marks; `anchored` means it is matched against the whole relative path."""

    text: str
    glob: bytes
    include: bool
    directories_only: bool
    anchored: bool


class Excludes:
    """A compiled list of patterns.

    `patterns` are lines of a gitignore file (empty lines and `#` comments are skipped; bytes that are no UTF-8
    come as surrogate escapes).  `places` are relative paths that are left out whatever the patterns say.  Raises
    UsageError for a pattern that cannot be compiled.
    """

    def __init__(self, patterns: Sequence[str], places: Collection[bytes] = ()) -> None:
        self._places = frozenset(places)
        self._parents = frozenset(place.rpartition(b"/")[0] for place in places)
        rules = [rule for rule in map(_parse, patterns) if rule is not None]
        self._include = [rule.include for rule in rules]
        numbered = list(enumerate(rules))
        self._directories = _Tests(numbered)
        self._files = _Tests([(number, rule) for number, rule in numbered if not rule.directories_only])

    def excluded(self, relative: bytes, is_dir: bool) -> bool:
        """Whether `relative` (from the top of the source, no leading slash) is left out.  The top never is."""
        if relative in self._places:
            return True
        number = (self._directories if is_dir else self._files).last(relative)
        return number >= 0 and not self._include[number]

    def reach(self, directory: bytes) -> bool:
        """Whether anything right in `directory` may be left out: else there is no need to ask for its names."""
        return bool(self._include) or directory in self._parents


class _Tests:
    """Finds the last of some numbered rules that matches."""

    def __init__(self, rules: list[tuple[int, _Rule]]) -> None:
        self._names: dict[bytes, int] = {}
        self._endings: dict[bytes, int] = {}
        expressions: list[bytes] = []
        self._numbers: list[int] = []
        for number, rule in reversed(rules):  # an alternation tries the left one first: let that be the last rule
            if not rule.anchored and not _SPECIAL.intersection(rule.glob):
                self._names.setdefault(rule.glob, number)
            elif not rule.anchored and rule.glob[0] == _STAR and not _SPECIAL.intersection(rule.glob[1:]):
                self._endings.setdefault(rule.glob[1:], number)
            else:
                expressions.append(b"(" + (b"" if rule.anchored else b"(?:.*/)?") + _translated(rule) + b")")
                self._numbers.append(number)
        self._lengths = sorted({len(ending) for ending in self._endings})
        self._match: Callable[[bytes], re.Match[bytes] | None] | None = None
        if expressions:
            self._match = re.compile(b"|".join(expressions), re.DOTALL).fullmatch

    def last(self, relative: bytes) -> int:
        """Number of the last rule that matches, or -1."""
        name = relative[relative.rfind(b"/") + 1 :]
        if not name:
            return -1
        best = self._names.get(name, -1)
        for length in self._lengths:
            if length > len(name):
                break
            best = max(best, self._endings.get(name[len(name) - length :], -1))
        if self._match is not None and self._numbers[0] > best:
            found = self._match(relative)
            if found is not None and found.lastindex is not None:
                best = max(best, self._numbers[found.lastindex - 1])
        return best


def _parse(text: str) -> _Rule | None:
    """The rule on one line, or None if there is none."""
    if "\0" in text or "\n" in text:
        raise UsageError(f"exclude pattern {text!r} holds a character that no file name has on one line")
    glob = _without_trailing_spaces(text).encode("utf-8", "surrogateescape")
    if not glob or glob.startswith(b"#"):
        return None
    include = glob.startswith(b"!")
    glob = glob[include:]
    directories_only = glob.endswith(b"/")
    glob = glob[: len(glob) - directories_only]
    anchored = b"/" in glob
    glob = glob.removeprefix(b"/")
    if not glob:
        return None
    return _Rule(text, glob, include, directories_only, anchored)


def _without_trailing_spaces(text: str) -> str:
    """`text` without the spaces at its end that no backslash protects."""
    kept = text.rstrip(" ")
    escapes = len(kept) - len(kept.rstrip("\\"))
    return kept + " " if escapes % 2 and len(kept) < len(text) else kept


def _translated(rule: _Rule) -> bytes:
    """The regular expression of a glob.  Slashes are matched by themselves and by `**` between slashes only."""
    glob, at, out = rule.glob, 0, bytearray()
    while at < len(glob):
        char = glob[at]
        if char == _STAR:
            at, part = _stars(glob, at, rule.anchored)
            out += part
            continue
        if char == _OPEN:
            at, part = _class(rule, at + 1)
            out += part
            continue
        if char == _ESCAPE:
            at += 1
            if at == len(glob):
                raise UsageError(f"exclude pattern {rule.text!r} ends in a single backslash")
            char = glob[at]
            out += re.escape(bytes((char,)))
        else:
            out += b"[^/]" if char == _QUESTION else re.escape(bytes((char,)))
        at += 1
    return bytes(out)


def _stars(glob: bytes, at: int, anchored: bool) -> tuple[int, bytes]:
    """Where the stars that begin at `at` end, and their expression; `**/` also takes the slash."""
    end = at
    while end < len(glob) and glob[end] == _STAR:
        end += 1
    bounded_left = at == 0 or glob[at - 1] == _SLASH
    bounded_right = end == len(glob) or glob[end] == _SLASH or glob[end : end + 2] == b"\\/"
    if end - at == 1 or not (anchored and bounded_left and bounded_right):
        return end, b"[^/]*"
    if end < len(glob) and glob[end] == _SLASH:
        return end + 1, b"(?:.*/)?"
    return end, b".*"


def _class(rule: _Rule, at: int) -> tuple[int, bytes]:
    """Where the bracket expression whose inside begins at `at` ends, and its expression.

    The order of cases is git's: it decides what odd classes such as `[]-a]` or `[z-a]` mean.
    """
    glob = rule.glob
    negated = glob[at : at + 1] in (b"!", b"^")
    at += negated
    members: set[int] = set()
    previous, first = 0, True
    while first or glob[at : at + 1] != b"]":
        first = False
        char = _inside(rule, at)
        if char == _ESCAPE:
            at += 1
            char = _inside(rule, at)
            members.add(char)
        elif char == _DASH and previous and glob[at + 1 : at + 2] not in (b"", b"]"):
            at += 2 if glob[at + 1] == _ESCAPE else 1
            members.update(range(previous, _inside(rule, at) + 1))
            char = 0
        elif char == _OPEN and glob[at + 1 : at + 2] == b":" and (named := _named_class(rule, at + 2)) is not None:
            at, more = named
            members |= more
            char = 0
        else:
            members.add(char)
        previous = char
        at += 1
    chosen = (set(range(256)) - members if negated else members) - {_SLASH}
    if not chosen:
        return at + 1, b"(?!)"
    return at + 1, b"[" + b"".join(b"\\x%02x" % char for char in sorted(chosen)) + b"]"


def _inside(rule: _Rule, at: int) -> int:
    if at >= len(rule.glob):
        raise UsageError(f"exclude pattern {rule.text!r} opens a [ that it does not close")
    return rule.glob[at]


def _named_class(rule: _Rule, at: int) -> tuple[int, set[int]] | None:
    """Where the `]` of `[:name:]` is and what it holds, or None if these characters are an ordinary set."""
    close = rule.glob.find(b"]", at)
    if close < 0:
        raise UsageError(f"exclude pattern {rule.text!r} opens a [ that it does not close")
    if close == at or rule.glob[close - 1] != _COLON:
        return None
    name = rule.glob[at : close - 1]
    if name not in _CLASSES:
        raise UsageError(f"exclude pattern {rule.text!r} names a class of characters that does not exist")
    return close, _CLASSES[name]


def _ascii(test: Callable[[str], bool]) -> set[int]:
    return {code for code in range(128) if test(chr(code))}


_CLASSES: dict[bytes, set[int]] = {
    b"alnum": _ascii(str.isalnum),
    b"alpha": _ascii(str.isalpha),
    b"blank": set(b" \t"),
    b"cntrl": {*range(32), 127},
    b"digit": set(b"0123456789"),
    b"graph": set(range(33, 127)),
    b"lower": _ascii(str.islower),
    b"print": set(range(32, 127)),
    b"punct": {code for code in range(33, 127) if not chr(code).isalnum()},
    b"space": set(b" \t\n\r\f\v"),
    b"upper": _ascii(str.isupper),
    b"xdigit": set(b"0123456789abcdefABCDEF"),
}
