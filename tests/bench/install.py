"""Finds the other tools, or installs each with its own ecosystem's command.

A program is looked for in DIR/bin, then on PATH.  What can be installed how:

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
    """The path of a program."""
    places = [top / "bin", top / program / "bin"] if top is not None else []
    return next((found for place in places if (found := shutil.which(program, path=str(place)))), None) or shutil.which(
        program
    )


def install(program: str, top: Path, say: Callable[[str], None]) -> str | None:
    """Installs a program into `top` unless it is there; its path, or None after saying why not."""
    here = find(program, top)
    if here:
        say(f"{program}: {here}")
        return here
    top.mkdir(parents=True, exist_ok=True)
    reason = _follow(_RECIPES[program](top.absolute()), top.absolute())
    if reason and program in _DEBIAN and shutil.which("apt-get") and os.geteuid() == 0:
        say(f"{program}: {reason}; taking Debian's")
        reason = _follow([["apt-get", "install", "-y", "-qq", "--no-install-recommends", _DEBIAN[program]]], top)
    here = find(program, top)
    say(f"{program}: {here}" if here else f"{program} is left out: {reason or 'it was not found after installing'}")
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
    for program in _RECIPES:
        install(program, top, lambda text: print(text, flush=True))
