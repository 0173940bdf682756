"""app.sheet: the page says everything, needs nothing, and nobody else can read the file."""

import os
import re
import stat
from html.parser import HTMLParser

import pytest
import segno

from contbak.app.sheet import SheetFacts, sheet, write_sheet
from contbak.core import recovery
from contbak.core.errors import ContbakError

ROOT = bytes(range(32))
FACTS = SheetFacts(
    code=recovery.encode(ROOT),
    vault="a1" * 16,
    device="<laptop> & co",
    date="2026-07-30 18:00 CEST",
    relays=("contbak://nas.example:7421/abc?x=1&y=2", "/srv/backup"),
    head="b2" * 32,
)


class Reader(HTMLParser):
    """Tags that are open, and the text outside of style."""

    VOID = frozenset(("meta", "path"))

    def __init__(self, page):
        super().__init__()
        self.open, self.text, self.attributes = [], [], []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.attributes += attrs
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert tag in self.VOID or self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.text.append(data)


def test_the_page_says_everything():
    reader = Reader(sheet(FACTS))
    text = " ".join(" ".join(reader.text).split())
    for fact in (FACTS.vault, FACTS.device, FACTS.date, FACTS.head, *FACTS.relays):
        assert fact in text
    assert "recover --from contbak://nas.example:7421/abc?x=1&y=2 --code-file" in text
    assert reader.open == []


def test_the_code_on_the_page_is_the_code():
    reader = Reader(sheet(FACTS))
    text = " ".join(reader.text)
    cells = re.findall(r"\b[0-9A-HJKMNP-TV-Z]{5}\b", text[text.index("CB1-") : text.index("The code has no letters")])
    assert recovery.decode("".join(cells)) == ROOT


def test_the_qr_code_is_the_code():
    drawn = re.search(r'<path [^>]*\bd="([^"]+)"', sheet(FACTS)).group(1)
    wanted = segno.make_qr(FACTS.code, error="q").svg_inline(omitsize=True, border=4)
    assert drawn == re.search(r'\bd="([^"]+)"', wanted).group(1)


def test_the_page_needs_nothing_from_elsewhere():
    page = sheet(FACTS)
    assert not re.search(r"<(script|link|img|iframe)|url\(|@import", page)
    values = [value for name, value in Reader(page).attributes if name in ("src", "href", "xlink:href")]
    assert values == []


def test_a_vault_without_relay_or_snapshot():
    text = " ".join(Reader(sheet(SheetFacts(FACTS.code, "a1", "d", "today", (), ""))).text)
    assert "none yet" in text
    assert "recover --from PLACE" in text


def test_the_file_is_for_the_owner_only_and_replaces_a_link(tmp_path):
    other = tmp_path / "other"
    other.write_text("untouched")
    path = tmp_path / "sheet.html"
    path.symlink_to(other)
    before = os.umask(0)
    try:
        write_sheet(str(path), FACTS)
    finally:
        os.umask(before)
    assert path.read_text(encoding="utf-8") == sheet(FACTS)
    assert stat.S_IMODE(path.lstat().st_mode) == 0o600
    assert other.read_text() == "untouched"
    assert sorted(os.listdir(tmp_path)) == ["other", "sheet.html"]


def test_what_cannot_be_written_is_said_and_leaves_nothing(tmp_path):
    with pytest.raises(ContbakError, match="could not be written"):
        write_sheet(str(tmp_path / "no" / "sheet.html"), FACTS)
    (tmp_path / "dir").mkdir()
    with pytest.raises(ContbakError, match="could not be written"):
        write_sheet(str(tmp_path / "dir"), FACTS)
    assert os.listdir(tmp_path) == ["dir"]
