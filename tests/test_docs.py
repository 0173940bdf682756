"""The documents keep up with the code: every command is described, links lead somewhere, no path is of one machine."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = [
    ROOT / "README.md",
    ROOT / "CHANGELOG.md",
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / "packaging").rglob("*.md")),
]
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
CODE = re.compile(r"```.*?```|`[^`\n]*`", re.DOTALL)
MACHINE_PATH = re.compile(r"(?<![\w.~$}/-])/(?:work|home|root|Users|opt/\w*venv)(?:/[\w.-]+)+")


def prose(page: Path) -> str:
    return CODE.sub("", page.read_text(encoding="utf-8"))


def headings(page: Path) -> set[str]:
    """Anchors as forges make them: lower case, blanks to dashes, other marks dropped."""
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    titles = re.findall(r"^#+ +(.+?) *$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def broken_links(page: Path) -> Iterator[str]:
    for link in LINK.findall(prose(page)):
        if re.match(r"[a-z]+:", link):
            continue
        name, _, anchor = link.partition("#")
        target = page.parent / name if name else page
        if not target.exists() or (anchor and anchor not in headings(target)):
            yield link


def commands(group: object, name: str) -> Iterator[str]:
    """`name` followed by each of its commands, also those of groups in groups."""
    for word, command in getattr(group, "commands", {}).items():
        if not command.hidden:
            yield f"{name} {word}"
            yield from commands(command, f"{name} {word}")


def is_described(command: str, text: str) -> bool:
    """Whether `contbak relays add` or the end of it after the program, in backticks, is in `text`."""
    words = r"\s+".join(map(re.escape, command.split()))
    rest = r"\s+".join(map(re.escape, command.split()[1:]))
    return re.search(rf"\b{words}\b|`{rest}\b", text) is not None


@pytest.mark.parametrize(("module", "program"), [("contbak.app.cli", "contbak"), ("relay.cli", "contbak-relay")])
def test_every_command_is_described(module, program):
    group = pytest.importorskip(module).main
    pages = [page for page in (ROOT / "README.md", ROOT / "docs/commands.md") if page.exists()]
    text = "\n".join(page.read_text(encoding="utf-8") for page in pages)
    names = list(commands(group, program))
    if not names:
        pytest.skip(f"{module}.main is no click group")
    assert [name for name in names if not is_described(name, text)] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page):
    assert list(broken_links(page)) == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_no_path_of_one_machine(page):
    text = "see /work/anna/x and /home/anna/y, not ~/work/x, https://x.y/home/z or DIR/root/a"
    assert MACHINE_PATH.findall(text) == ["/work/anna/x", "/home/anna/y"]
    assert is_described("contbak find", "| `find WORDS` |")
    assert is_described("contbak-relay device disable", "run `contbak-relay device disable ID`")
    assert not is_described("contbak find", "to find `restore`")
