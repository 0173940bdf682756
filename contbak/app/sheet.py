"""The recovery sheet: one printed page that brings a vault back after everything else is gone.

Rules: one HTML file that needs nothing else (its style and the QR code are inside), fits one A4 page, and can
be read by somebody who has never heard of contbak.  It holds the recovery code, so it is written with mode
0600, whole or not at all, and never through a link that was already there.

Not here: where the facts come from, and whether the user may see the code.
"""

from __future__ import annotations

import html
import io
import os
import secrets
from dataclasses import dataclass

import segno

from contbak.core.errors import ContbakError


@dataclass(frozen=True, slots=True)
class SheetFacts:
    """What the page says.

    code     the recovery code, as core.recovery.encode writes it
    vault    id of the vault, hex
    device   name of the machine that printed it
    date     when, as it shall be read: "2026-07-30 18:00 CEST"
    relays   addresses or directories that hold copies, the best first; may be empty
    head     id of this device's newest commit at `date`, hex, or "" if there is none
    """

    code: str
    vault: str
    device: str
    date: str
    relays: tuple[str, ...]
    head: str


_STYLE = """
@page { size: A4; margin: 15mm }
body { font: 10pt/1.3 sans-serif; color: #000; background: #fff; max-width: 180mm; margin: 0 auto }
h1 { font-size: 20pt; margin: 0 0 2mm } h2 { font-size: 13pt; margin: 5mm 0 1mm }
p { margin: 1mm 0 } ol { margin: 1mm 0; padding-left: 6mm } li { margin: 1mm 0 }
.code { display: flex; gap: 8mm; align-items: center; border: 0.5mm solid #000; padding: 4mm; margin: 3mm 0 }
.code svg { width: 45mm; height: 45mm; flex: none }
.groups { display: grid; grid-template-columns: repeat(4, auto); gap: 3mm 5mm; font: bold 15pt monospace }
.groups .format { grid-column: 1 / -1 }
.groups small { font: 7pt sans-serif; display: block; color: #444 }
table { border-collapse: collapse; width: 100% } td { padding: 0.7mm 2mm 0.7mm 0; vertical-align: top }
td:first-child { white-space: nowrap } td:last-child, .shell { font-family: monospace; overflow-wrap: anywhere }
.shell { display: block; font-size: 9pt }
"""

_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="robots" content="noindex">
<title>contbak recovery sheet</title>
<style>{style}</style>
</head>
<body>
<h1>contbak recovery sheet</h1>
<p>This page opens a backup. Whoever has it and can reach one copy of the backup can read every file in it.
Print it, keep it where you keep your passport, and delete the file. A second print in another building is wise.</p>
<div class="code">
{qr}
<div class="groups">
{groups}
</div>
</div>
<p>The code has no letters I, L, O and U: what looks like O is a zero, what looks like I is a one.
Capitals, blanks and dashes do not matter. The QR code says the same.</p>
<h2>What it opens</h2>
<table>
{facts}
</table>
<h2>If your computer is lost, stolen or broken</h2>
<ol>
<li>Nothing has to be done in a hurry. The copies named above stay as they are; a thief who has the computer
cannot delete them.</li>
<li>Take any Linux computer with Python 3.11 or later and install contbak as its README says.</li>
<li>Type the code above into a file named code.txt, then, with the place of one copy, run
<span class="shell">contbak recover --from {place} --code-file code.txt</span>
If the code has a typing mistake, contbak says so and names the group.</li>
<li>See what is there, and bring back what you need, named as the list shows it:
<span class="shell">contbak ls</span>
<span class="shell">contbak restore PATH --to restored</span></li>
<li>Compare: the history that you see has to contain the newest snapshot named above. If it does not, the copy
is older than this sheet; look for a newer one before you trust it.</li>
<li>Delete code.txt.</li>
</ol>
<h2>If this sheet is lost or was seen by others</h2>
<p>Lost: print it again with <span class="shell">contbak recovery sheet FILE</span>
Seen: make a new vault with a new code; whoever saw the old code can read the old copies for as long as they exist.</p>
</body>
</html>
"""


def sheet(facts: SheetFacts) -> str:
    """The page as HTML."""
    rows = [
        ("Vault", facts.vault),
        ("Device", facts.device),
        ("Printed", facts.date),
        *(("Copy of the backup", relay) for relay in facts.relays or ("write the place of a copy here: ____________",)),
        ("Newest snapshot", facts.head or "none yet"),
    ]
    return _PAGE.format(
        style=_STYLE,
        qr=_qr(facts.code),
        groups="\n".join(_groups(facts.code)),
        facts="\n".join(f"<tr><td>{html.escape(name)}</td><td>{html.escape(value)}</td></tr>" for name, value in rows),
        place=html.escape(facts.relays[0] if facts.relays else "PLACE"),
    )


def write_sheet(path: str, facts: SheetFacts) -> None:
    """Write the page to `path`, replacing what is there; readable by the owner only.

    Raises ContbakError if it cannot be written.
    """
    partial = f"{path}.{secrets.token_hex(4)}.partial"
    try:
        handle = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(sheet(facts))
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, path)
        except BaseException:
            os.unlink(partial)
            raise
    except OSError as error:
        raise ContbakError(f"the recovery sheet could not be written to {path}: {error.strerror}") from error


def _groups(code: str) -> list[str]:
    """The parts of `code` as cells, numbered as the messages of core.recovery number them."""
    prefix, *groups = code.split("-")
    cells = [f'<span class="format">{html.escape(prefix)}-</span>']
    cells += [
        f"<span><small>{number}</small>{html.escape(group)}</span>" for number, group in enumerate(groups, start=1)
    ]
    return cells


def _qr(text: str) -> str:
    """A QR code of `text` as an SVG element; a quarter of it may be damaged."""
    picture = io.BytesIO()
    code = segno.make_qr(text, error="q")
    code.save(picture, kind="svg", xmldecl=False, svgns=True, omitsize=True, border=4, title="recovery code")
    return picture.getvalue().decode("utf-8").strip()
