"""How cost grows: python -m tests.bench.scale [--files 100000] [--mb 1000] [--json FILE] [--plot FILE]

Trees of 1,000 to `--files` files of 100 bytes, and one file of 100 to `--mb` MB (half text, half noise), each ten times
the one before.  For each: a first backup, one without change, and a verify of the relay: seconds, CPU, peak memory.
Cost should grow as the size does, and memory should not.  The full range is --files 1000000 --mb 10000.
"""

from __future__ import annotations

import argparse
import importlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tests.bench.contbak_tool import Contbak
from tests.bench.material import NOISE, TEXT, Mixture
from tests.bench.measure import Usage, warm
from tests.bench.notes import Figures, note_into, write_json
from tests.bench.tool import Place

_PIECE = 1_000_000


def tens(first: int, last: int) -> Iterator[int]:
    """`first`, ten times that, and so on up to `last`."""
    while first <= last:
        yield first
        first *= 10


def make_files(top: Path, count: int) -> None:
    """Files of 100 bytes, 100 in a directory, 100 directories in a directory."""
    for first in range(0, count, 100):
        folder = top / f"d{first // 10_000}" / f"e{first // 100}"
        folder.mkdir(parents=True)
        for number in range(first, first + 100):
            with open(folder / f"f{number}", "wb", buffering=0) as file:
                file.write(b"%099d\n" % number)


def make_bytes(top: Path, count: int) -> None:
    """One file of `count` MB."""
    top.mkdir()
    mixture = Mixture(count)
    with open(top / "file", "wb") as file:
        for number in range(count):
            file.write(mixture.take((TEXT, NOISE)[number % 2], _PIECE))


def of_usage(used: Usage) -> dict[str, float]:
    """Figures of one step."""
    return {
        "seconds": used.wall_s, "cpu_s": used.cpu_s, "relay_cpu_s": used.server_cpu_s, "peak_mib": used.peak_mib,
        "relay_peak_mib": used.server_peak_mib,
    }  # fmt: skip


def measure(top: Path, source: Path) -> Figures:
    """The steps on one source."""
    tool = Contbak()
    try:
        tool.prepare(Place(top, source))
        warm(source)
        return {
            "first": of_usage(tool.backup()), "no change": of_usage(tool.backup()), "verify": of_usage(tool.verify()),
        }  # fmt: skip
    finally:
        tool.close()
        shutil.rmtree(top, ignore_errors=True)


def main() -> None:
    """Measures, prints, draws."""
    options = argparse.ArgumentParser(prog="python -m tests.bench.scale")
    options.add_argument("--files", type=int, default=100_000, help="the largest tree")
    options.add_argument("--mb", type=int, default=1_000, help="the largest file")
    options.add_argument("--work", type=Path)
    options.add_argument("--json", type=Path)
    options.add_argument("--plot", type=Path, help="needs matplotlib")
    asked = options.parse_args()
    plot = importlib.import_module("tests.bench.plot") if asked.plot else None
    top = Path(tempfile.mkdtemp(prefix="contbak-scale-", dir=asked.work))
    found: Figures = {}
    note = note_into(found)
    try:
        for unit, make, sizes in (
            ("files", make_files, tens(1_000, asked.files)), ("MB", make_bytes, tens(100, asked.mb)),
        ):  # fmt: skip
            for size in sizes:
                make(top / "source", size)
                for step, figures in measure(top / "contbak", top / "source").items():
                    note(f"{unit} {size} {step}", figures)
                shutil.rmtree(top / "source")
    finally:
        shutil.rmtree(top, ignore_errors=True)
    write_json(asked.json, found)
    if plot is not None:
        plot.draw_growth(found, asked.plot)


if __name__ == "__main__":
    main()
