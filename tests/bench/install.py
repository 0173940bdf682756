"""Finds the other tools, or installs each with its own ecosystem's command.

A program is looked for in DIR, then on PATH.  How the newest is installed into DIR:

    restic   go install, else Debian's package
    kopia    go install
    rustic   cargo install
    borg     pip, into an environment of its own in DIR (needs the headers of OpenSSL, lz4, zstd, xxhash and libacl)

What cannot be had is left out, and the reason is said.  Nothing is installed unless it is asked for.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

_RECIPES: dict[str, Callable[[Path], list[list[str]]]] = {
    "restic": lambda top: [["go", "install", "github.com/restic/restic/cmd/restic@latest"]],
    "kopia": lambda top: [["go", "install", "github.com/kopia/kopia@latest"]],
    "rustic": lambda top: [["cargo", "install", "--locked", "--root", str(top), "rustic-rs"]],
    "borg": lambda top: [
        [sys.executable, "-m", "venv", str(top / "borg")],
        [str(top / "borg" / "bin" / "pip"), "install", "--quiet", "borgbackup>=1.4,<2"],
    ],
}
_DEBIAN = {"restic": "restic"}
"""Program to the Debian package that is taken where its own command fails."""


def find(program: str, top: Path | None) -> str | None:
    """The path of a program: what was installed into `top` before what is on PATH."""
    return (top and _installed(program, top)) or shutil.which(program)


def _installed(program: str, top: Path) -> str | None:
    places = (top / "bin", top / program / "bin")
    return next((found for place in places if (found := shutil.which(program, path=str(place)))), None)


def install(program: str, top: Path, say: Callable[[str], None]) -> str | None:
    """Installs the newest into `top` unless one is there; else takes what is on PATH, else Debian's.

    Its path, or None after saying why it cannot be had.
    """
    reason = "" if _installed(program, top) else _follow(_RECIPES[program](top), top)
    if reason and not shutil.which(program) and program in _DEBIAN and os.geteuid() == 0:
        _follow([["apt-get", "install", "-y", "-qq", "--no-install-recommends", _DEBIAN[program]]], top)
    here = find(program, top)
    because = f" ({reason})" if reason else ""
    say(f"{program}: {here}{because}" if here else f"{program} is left out{because}")
    return here


def _follow(recipe: list[list[str]], top: Path) -> str:
    """Runs the commands; "" or why one failed."""
    env = os.environ | {"GOBIN": str(top / "bin"), "DEBIAN_FRONTEND": "noninteractive"}
    for words in recipe:
        if shutil.which(words[0]) is None:
            return f"{words[0]} is not here"
        done = subprocess.run(words, env=env, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)
        if done.returncode:
            lines = [line.strip() for line in (done.stderr or done.stdout).splitlines() if line.strip()]
            telling = [line for line in lines if "rror" in line or "orbidden" in line or "could not" in line.lower()]
            return f"{' '.join(words[:3])}: {(telling or lines or ['failed'])[-1][:200]}"
    return ""


def install_all(top: Path) -> None:
    """Everything that can be had, into `top`."""
    top.mkdir(parents=True, exist_ok=True)
    for program in _RECIPES:
        install(program, top.absolute(), lambda text: print(text, flush=True))
