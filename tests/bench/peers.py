"""The other backup tools, each with its default and its fastest compression, encryption always on."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.bench.measure import Command, Usage, environment, run
from tests.bench.tool import PASSWORD, Place, Tool


@dataclass
class Peer(Tool):
    """A tool in one program; `how`: the choice of compression in the tool's own words."""

    name: str
    program: str
    how: tuple[str, ...] = ()

    @property
    def env(self) -> dict[str, str]:
        """Its secrets and the places it may use."""
        return {"HOME": str(self.place.top), "XDG_CACHE_HOME": str(self.place.cache)}

    def call(self, *words: str, cwd: Path | None = None) -> Usage:
        """One measured command."""
        return run(Command([self.program, *words], self.env, cwd))

    def version(self) -> str:
        done = subprocess.run([self.program, "--version"], capture_output=True, text=True, check=False)
        return (done.stdout or done.stderr).strip().partition("\n")[0]

    def prepare(self, place: Place) -> None:
        self.place = place
        place.cache.mkdir(parents=True)
        self.init()

    def init(self) -> None:
        """Makes the repository."""
        raise NotImplementedError


class Restic(Peer):
    """restic; repository version 2."""

    def version(self) -> str:
        return subprocess.run([self.program, "version"], capture_output=True, text=True, check=False).stdout.strip()

    @property
    def env(self) -> dict[str, str]:
        return super().env | {
            "RESTIC_PASSWORD": PASSWORD, "RESTIC_REPOSITORY": str(self.place.repository),
            "RESTIC_CACHE_DIR": str(self.place.cache),
        }  # fmt: skip

    def init(self) -> None:
        self.call("init", "--quiet", "--repository-version", "2")

    def backup(self) -> Usage:
        return self.call("backup", "--quiet", *self.how, str(self.place.source))

    def restore(self, target: Path) -> Usage:
        return self.call("restore", "--quiet", "latest", "--target", str(target))

    def one(self, path: Path, target: Path) -> Usage:
        return self.call("restore", "--quiet", "latest", "--include", str(path), "--target", str(target))

    def verify(self) -> Usage:
        return self.call("check", "--quiet", "--read-data")


class Rustic(Peer):
    """rustic: restic's format, written in Rust."""

    @property
    def env(self) -> dict[str, str]:
        return super().env | {
            "RUSTIC_PASSWORD": PASSWORD, "RUSTIC_REPOSITORY": str(self.place.repository),
            "RUSTIC_CACHE_DIR": str(self.place.cache), "RUSTIC_NO_PROGRESS": "true",
        }  # fmt: skip

    def init(self) -> None:
        self.call("init", *self.how)

    def backup(self) -> Usage:
        return self.call("backup", str(self.place.source))

    def restore(self, target: Path) -> Usage:
        return self.call("restore", "latest", str(target))

    def one(self, path: Path, target: Path) -> Usage:
        return self.call("restore", f"latest:{path}", str(target / path.name))

    def verify(self) -> Usage:
        return self.call("check", "--read-data")


class Borg(Peer):
    """borg 1.4."""

    @property
    def env(self) -> dict[str, str]:
        return super().env | {
            "BORG_PASSPHRASE": PASSWORD, "BORG_BASE_DIR": str(self.place.cache),
            "BORG_REPO": str(self.place.repository),
        }  # fmt: skip

    def init(self) -> None:
        self.number = 0
        self.call("init", "--encryption", "repokey")

    def backup(self) -> Usage:
        self.number += 1
        return self.call("create", *self.how, f"::a{self.number}", str(self.place.source))

    def restore(self, target: Path) -> Usage:
        return self.call("extract", f"::a{self.number}", cwd=target)

    def one(self, path: Path, target: Path) -> Usage:
        return self.call("extract", f"::a{self.number}", str(path).lstrip("/"), cwd=target)

    def verify(self) -> Usage:
        return self.call("check", "--verify-data")


class Kopia(Peer):
    """kopia in a directory."""

    @property
    def env(self) -> dict[str, str]:
        return super().env | {
            "KOPIA_PASSWORD": PASSWORD, "KOPIA_CONFIG_PATH": str(self.place.top / "kopia.config"),
            "KOPIA_CACHE_DIRECTORY": str(self.place.cache), "KOPIA_LOG_DIR": str(self.place.top / "log"),
            "KOPIA_CHECK_FOR_UPDATES": "false",
        }  # fmt: skip

    def init(self) -> None:
        self.place.repository.mkdir()
        self.call("repository", "create", "filesystem", "--path", str(self.place.repository))
        if self.how:
            self.call("policy", "set", "--global", *self.how)

    def backup(self) -> Usage:
        return self.call("snapshot", "create", "--no-progress", str(self.place.source))

    def _latest(self) -> str:
        words = [self.program, "snapshot", "list", "--json", "--max-results", "1", str(self.place.source)]
        done = subprocess.run(words, env=environment(self.env), capture_output=True, text=True, check=True)
        return done.stdout.partition('"rootEntry"')[2].partition('"obj":"')[2].partition('"')[0]

    def restore(self, target: Path) -> Usage:
        return self.call("snapshot", "restore", "--no-progress", self._latest(), str(target))

    def restored(self, target: Path) -> Path:
        return target

    def one(self, path: Path, target: Path) -> Usage:
        inside = path.relative_to(self.place.source)
        return self.call("restore", "--no-progress", f"{self._latest()}/{inside}", str(target / path.name))

    def verify(self) -> Usage:
        return self.call("snapshot", "verify", "--verify-files-percent=100")


def _restic_fastest(program: str) -> tuple[str, ...]:
    """Newer ones have a fastest compression; before that there is only none."""
    said = subprocess.run([program, "backup", "--help"], capture_output=True, text=True, check=False).stdout
    return ("--compression", "fastest" if "fastest" in said else "off")


VARIANTS: dict[str, dict[str, Callable[[str], Tool]]] = {
    "restic": {
        "restic": lambda program: Restic("restic", program, ("--compression", "auto")),
        "restic-fast": lambda program: Restic("restic-fast", program, _restic_fastest(program)),
    },
    "rustic": {
        "rustic": lambda program: Rustic("rustic", program),
        "rustic-fast": lambda program: Rustic("rustic-fast", program, ("--set-compression=-7",)),
    },
    "borg": {
        "borg": lambda program: Borg("borg", program, ("--compression", "lz4")),
        "borg-zstd": lambda program: Borg("borg-zstd", program, ("--compression", "zstd,1")),
        "borg-none": lambda program: Borg("borg-none", program, ("--compression", "none")),
    },
    "kopia": {
        "kopia": lambda program: Kopia("kopia", program),
        "kopia-fast": lambda program: Kopia("kopia-fast", program, ("--compression", "s2-default")),
    },
}
"""Program -> variants that it can run."""
