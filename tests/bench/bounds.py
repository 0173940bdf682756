"""What physics allows on this machine: reading everything, asking for every stat, copying everything."""

from __future__ import annotations

from pathlib import Path

from tests.bench.measure import Command, Usage, run
from tests.bench.tool import Place, Tool


class Bounds(Tool):
    """`tar | cat` for a backup, `find` with stat for one without change, `cp -a` and `sync -f` for a restore."""

    name = "bound"

    def __init__(self) -> None:
        self.again = False

    def version(self) -> str:
        return "tar | cat, find -printf, cp -a + sync -f"

    def prepare(self, place: Place) -> None:
        self.place = place
        place.repository.mkdir(parents=True)
        self.again = False

    def backup(self) -> Usage:
        if self.again:
            return self._shell('find "$1" -printf "%s %C@ %i\\n" >/dev/null')
        self.again = True
        return self._shell('tar cf - -C "$1" . | cat >/dev/null')

    def restore(self, target: Path) -> Usage:
        return self._shell('cp -a "$1" "$2" && sync -f "$2"', target)

    def restored(self, target: Path) -> Path:
        return target / self.place.source.name

    def one(self, path: Path, target: Path) -> Usage:
        return run(Command(["cp", "-a", str(path), str(target)]))

    def verify(self) -> None:
        return None

    def _shell(self, line: str, target: Path | None = None) -> Usage:
        return run(Command(["sh", "-c", line, "sh", str(self.place.source), str(target)]))
