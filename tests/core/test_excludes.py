"""Excludes against git itself, and where it differs on purpose."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st

from contbak.core.errors import UsageError
from contbak.core.excludes import Excludes

NAMES = ["a", "b", "ab", "a.c", ".c", "a-", "]b", "*", "b*", "a b", "a!", "\\a", "[a]", "B1"]

# git cuts plain characters off the front before it looks for `**`, so that `a**/b` matches `ab` and `a/x/b`, against
# its own manual.  Here such stars are a plain star, which leaves out less.
OFF_THE_MANUAL = re.compile(r"!?[^*?\\\[]*[^*?\\\[/!]\*\*+/")


def outcome(excludes: Excludes, relative: str, is_dir: bool) -> bool:
    """As a walker asks: a path is out if it or a directory above it is."""
    parts = relative.split("/")
    for depth in range(1, len(parts)):
        if excludes.excluded("/".join(parts[:depth]).encode(), True):
            return True
    return excludes.excluded(relative.encode(), is_dir)


class Checkout:
    """A git work tree with a fixed set of paths."""

    def __init__(self, top: Path) -> None:
        self.top = top
        subprocess.run(["git", "init", "-q", str(top)], check=True)
        self.paths: dict[str, bool] = {}
        for index, name in enumerate(NAMES):
            self._directory(name)
            for inner in NAMES[: 6 if index < 6 else 2]:
                if (index + len(inner)) % 2:
                    self._directory(f"{name}/{inner}")
                    for leaf in ("a", "b", "a.c"):
                        self._file(f"{name}/{inner}/{leaf}")
                else:
                    self._file(f"{name}/{inner}")
        for name in ("c", "abc", "x.c", "b "):
            self._file(name)
        self._asked = b"".join(path.encode() + b"\0" for path in self.paths)

    def _directory(self, relative: str) -> None:
        (self.top / relative).mkdir()
        self.paths[relative] = True

    def _file(self, relative: str) -> None:
        (self.top / relative).touch()
        self.paths[relative] = False

    def ignored(self, patterns: list[str]) -> set[str]:
        (self.top / ".git/info/exclude").write_text("".join(line + "\n" for line in patterns))
        command = ["git", "-c", "core.excludesFile=/dev/null", "check-ignore", "--no-index", "--stdin", "-z"]
        done = subprocess.run(command, cwd=self.top, input=self._asked, capture_output=True)
        assert done.returncode in (0, 1), done.stderr
        return {path.decode() for path in done.stdout.split(b"\0") if path}


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Checkout]:
    yield Checkout(tmp_path_factory.mktemp("checkout"))


pieces = st.sampled_from(
    ["a", "b", "c", ".c", "*", "**", "?", "/", "/", "\\*", "\\a", "\\[", "-", " ", "!", "**/", "/**", "B1"]
    + ["[ab]", "[!a]", "[^b.]", "[a-c]", "[]b]", "[[:alpha:]]", "[a/b]", "[[:upper:]]"]
    + ["[z-a]", "[]-a]", "[a\\]]", "[+--]", "[[:]"]
)
marks = st.sampled_from(["", "", "!", "/"])
patterns = st.builds(lambda mark, body: mark + "".join(body), marks, st.lists(pieces, max_size=5))


@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(lines=st.lists(patterns, min_size=1, max_size=6))
@example(lines=["*", "!*/", "!a.c"])
@example(lines=["a/**", "!a/b"])
@example(lines=["**/b/a", "!/a/b/a"])
@example(lines=["b\\ "])
@example(lines=["a/***/b"])
@example(lines=["a**b", "a/b**"])
@example(lines=["/a*/**", "a/**b/a"])
def test_agrees_with_git(checkout: Checkout, lines: list[str]) -> None:
    assume(not any(OFF_THE_MANUAL.match(line) for line in lines))
    try:
        excludes = Excludes(lines)
    except UsageError:
        assume(False)
    ours = {path for path, is_dir in checkout.paths.items() if outcome(excludes, path, is_dir)}
    assert ours == checkout.ignored(lines)


@pytest.mark.parametrize("line", ["[a", "a[!", "x\\", "[[:nope:]]", "[a\\", "[[:alpha:]", "a\0b", "[a-"])
def test_what_can_never_match_is_refused(line: str) -> None:
    with pytest.raises(UsageError):
        Excludes([line])


def test_last_match_decides_across_kinds_of_rules() -> None:
    excludes = Excludes(["*.o", "!keep.o", "k[e]ep.o", "!/top/keep.o"])
    assert excludes.excluded(b"x.o", False)
    assert excludes.excluded(b"keep.o", False)
    assert not excludes.excluded(b"top/keep.o", False)
    assert excludes.excluded(b"top/x.o", False)


def test_directory_rules_leave_files_alone() -> None:
    excludes = Excludes(["cache/", "/build/"])
    assert excludes.excluded(b"a/cache", True)
    assert not excludes.excluded(b"a/cache", False)
    assert excludes.excluded(b"build", True)
    assert not excludes.excluded(b"a/build", True)


@given(relative=st.binary(min_size=1).filter(lambda raw: b"\0" not in raw), is_dir=st.booleans())
def test_any_bytes_are_names(relative: bytes, is_dir: bool) -> None:
    Excludes(["*.o", "a", "/x/**/y", "[!a]?\udcff"]).excluded(relative, is_dir)


def test_names_that_are_no_text() -> None:
    assert Excludes(["\udcff\udcfe*"]).excluded(b"\xff\xfe\n", False)
    assert Excludes(["\udcff?"]).excluded(b"a/\xff\n", True)


def test_comments_blank_lines_and_the_top() -> None:
    excludes = Excludes(["", "# *", "   ", "/", "!", "\\#x"])
    assert not excludes.excluded(b"x", False)
    assert excludes.excluded(b"#x", False)
    assert not Excludes(["*"]).excluded(b"", True)


def test_places_are_left_out_whatever_the_patterns_say() -> None:
    for patterns in ([], ["!*"], ["!/a/b/"]):
        excludes = Excludes(patterns, [b"a/b", b"c"])
        assert excludes.excluded(b"a/b", True) and excludes.excluded(b"c", False)
        assert not excludes.excluded(b"a", True) and not excludes.excluded(b"b", True)


def test_where_no_rule_reaches_nobody_asks() -> None:
    excludes = Excludes(["# nothing", ""], [b"a/b", b"c"])
    assert [excludes.reach(path) for path in (b"", b"a", b"a/b", b"b")] == [True, True, False, False]
    assert Excludes(["*.o"]).reach(b"any/where") and not Excludes([]).reach(b"")


def test_many_rules_stay_quick_to_ask() -> None:
    excludes = Excludes([f"name{number}" for number in range(5000)] + [f"*.e{number}" for number in range(5000)])
    assert excludes.excluded(b"a/b/name4999", False)
    assert excludes.excluded(b"a/b/x.e4999", False)
    assert not excludes.excluded(b"a/b/other", False)
