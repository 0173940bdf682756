"""Errors: the table at the head of the module is what the classes say, and errors travel between processes."""

from __future__ import annotations

import pickle
import re

import pytest

from contbak.core import errors
from contbak.core.errors import ContbakError, SourceError, Unsettled, Vanished

CLASSES = [each for each in vars(errors).values() if isinstance(each, type) and issubclass(each, ContbakError)]
RETRY = {"Unreachable", "SourceError", "Vanished", "Unsettled", "StoreFull"}


def made(kind):
    return kind(b"a/b", "went away") if issubclass(kind, SourceError) else kind("went away")


def test_the_table_names_every_class_with_its_exit_code():
    table = {name: int(code) for name, code in re.findall(r"(\w+)\s+exit (\d+)", errors.__doc__)}
    inherited = {name for name, rest in re.findall(r"── (\w+)(.*)", errors.__doc__) if "exit" not in rest}
    assert set(table) | inherited == {each.__name__ for each in CLASSES}
    for each in CLASSES:
        wanted = table.get(each.__name__) or table[each.__mro__[1].__name__]
        assert each.exit_code == wanted, each


def test_the_table_shows_who_comes_from_whom():
    above: list[str] = ["ContbakError"]
    for indent, name in re.findall(r"^    ([│ ]*[├└]── )(\w+)", errors.__doc__, re.MULTILINE):
        depth = len(indent) // 4
        above[depth:] = [name]
        assert vars(errors)[name].__mro__[1].__name__ == above[depth - 1]


@pytest.mark.parametrize("kind", CLASSES)
def test_retry(kind):
    assert kind.retry == (kind.__name__ in RETRY)


@pytest.mark.parametrize("kind", CLASSES)
def test_between_processes(kind):
    error = pickle.loads(pickle.dumps(made(kind)))
    assert type(error) is kind
    assert str(error) == str(made(kind))
    assert vars(error) == vars(made(kind))


def test_a_path_that_is_no_text():
    for kind in (SourceError, Vanished, Unsettled):
        error = kind(b"caf\xc3\xa9/\xff\n", "it went away")
        assert str(error) == "café/\\xff\n: it went away"
        assert (error.path, error.reason) == (b"caf\xc3\xa9/\xff\n", "it went away")
