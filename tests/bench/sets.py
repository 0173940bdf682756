"""The data sets of the benchmark, and the seeded changes of each.

    home    2 GB in 20,000 files of log-normal sizes in 1,200 directories: 60 % text, 20 % programs, 20 % noise
    small   200,000 files of 1 to 8 KB in 4,000 directories; 85 % text, 15 % noise
    disk    vm.img, 4 GiB with 60 % holes, 20 % text, 20 % noise, and shift.bin, 1 GiB mixed as home
    many    1,000,000 files of 10 bytes in 20,000 directories

A change of a tree takes 1 % of its files: of half of them a window of a tenth is overwritten, the others get new
content.  A change of `disk` overwrites 1 % of all 4 KiB blocks of vm.img, wherever they are, with noise, and inserts
100 MB of noise in the middle of shift.bin.  A scale below 1 makes everything smaller but the single file.

Changes add up: what one round has changed is where the next begins.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from tests.bench.material import NOISE, PROGRAM, TEXT, Mixture

SEED = 20_260
MB = 1_000_000
_BLOCK = 4096
_EXTENT = 1 << 20
_PIECE = 8 << 20
_SIGMA = 2.0
_LARGEST = 200 * MB
_WANTED_ONE = 30_000
"""Bytes of the file that is restored alone."""


@dataclass(frozen=True)
class DataSet:
    """A set that was made below `top`."""

    name: str
    top: Path
    scale: float

    def change(self, number: int) -> None:
        """The change of round `number`."""
        chance = random.Random(f"{self.name} {SEED} {number}")
        if self.name == "disk":
            _change_disk(self.top, self.scale, chance)
        else:
            _change_tree(self.top, chance, number)

    def rewind(self) -> None:
        """Cuts off by how much the last change made the set longer."""
        if self.name == "disk":
            os.truncate(self.top / "shift.bin", _shift_size(self.scale))

    def one(self) -> Path:
        """The file whose size is nearest to 30 KB."""
        return min(sorted(files_of(self.top)), key=lambda path: abs(path.stat().st_size - _WANTED_ONE))


def make(name: str, top: Path, scale: float) -> DataSet:
    """Makes a set in `top`, which must not exist."""
    top.mkdir(parents=True)
    MAKERS[name](top, scale)
    return DataSet(name, top, scale)


def bytes_needed(name: str, scale: float, tools: int) -> int:
    """About what a round of that many tools occupies: the set, what each restores, and each's repository."""
    sizes = {"home": (2_050, 1_600), "small": (1_250, 800), "disk": (2_900, 2_400), "many": (4_300, 300)}
    tree, repository = sizes[name]
    return int((tree * (1 + tools) + repository * tools) * MB * scale)


def files_of(top: Path) -> list[Path]:
    """Every file below `top`."""
    return [Path(folder, name) for folder, _, names in os.walk(top) for name in names]


def _make_home(top: Path, scale: float) -> None:
    chance = random.Random(f"home {SEED}")
    count, total = max(20, int(20_000 * scale)), int(2_000 * MB * scale)
    raw = [chance.lognormvariate(0, _SIGMA) for _ in range(count)]
    sizes = [min(int(size * total / sum(raw)) + 1, _LARGEST) for size in raw]
    kinds = _shares(sizes, {TEXT: 0.6, PROGRAM: 0.2, NOISE: 0.2})
    folders = _folders(top, max(3, int(1_200 * scale)), chance)
    mixture = Mixture(SEED)
    for number, (size, kind) in enumerate(zip(sizes, kinds, strict=True)):
        path = chance.choice(folders) / f"{kind}-{number}"
        path.write_bytes(mixture.take(kind, size))


def _make_small(top: Path, scale: float) -> None:
    chance, mixture = random.Random(f"small {SEED}"), Mixture(SEED + 1)

    def content(_: int) -> bytes:
        kind = TEXT if chance.random() < 0.85 else NOISE
        return mixture.take(kind, chance.randint(1_000, 8_000))

    _make_flat(top, max(100, int(200_000 * scale)), content)


def _make_many(top: Path, scale: float) -> None:
    _make_flat(top, max(100, int(1_000_000 * scale)), lambda number: b"%09d\n" % number)


def _make_flat(top: Path, count: int, content: Callable[[int], bytes]) -> None:
    """`count` files, 50 in a directory, 50 directories in a directory."""
    for first in range(0, count, 50):
        folder = top / f"d{first // 2_500}" / f"e{first // 50}"
        folder.mkdir(parents=True)
        for number in range(first, min(first + 50, count)):
            with open(folder / f"f{number}", "wb", buffering=0) as file:
                file.write(content(number))


def _make_disk(top: Path, scale: float) -> None:
    chance, mixture = random.Random(f"disk {SEED}"), Mixture(SEED + 2)
    extents = max(20, int(4096 * scale))
    kinds = [None] * (extents * 6 // 10) + [TEXT] * (extents * 2 // 10) + [NOISE] * (extents * 2 // 10)
    chance.shuffle(kinds)
    with open(top / "vm.img", "wb") as file:
        file.truncate(extents * _EXTENT)
        for number, kind in enumerate(kinds):
            if kind is not None:
                file.seek(number * _EXTENT)
                file.write(mixture.take(kind, _EXTENT))
    with open(top / "shift.bin", "wb") as file:
        while file.tell() < _shift_size(scale):
            kind = chance.choices((TEXT, PROGRAM, NOISE), (6, 2, 2))[0]
            file.write(mixture.take(kind, min(_EXTENT, _shift_size(scale) - file.tell())))


def _shift_size(scale: float) -> int:
    return int((1 << 30) * scale)


def _shares(sizes: Sequence[int], shares: dict[str, float]) -> list[str]:
    """A kind for each size, so that the sums are as `shares` says: the largest first, each to who lacks most."""
    left = {kind: share * sum(sizes) for kind, share in shares.items()}
    kinds = [""] * len(sizes)
    for place in sorted(range(len(sizes)), key=lambda place: -sizes[place]):
        kinds[place] = max(left, key=lambda kind: left[kind])
        left[kinds[place]] -= sizes[place]
    return kinds


def _folders(top: Path, count: int, chance: random.Random) -> list[Path]:
    folders = [top]
    for number in range(count - 1):
        parent = chance.choice(folders)
        if len(parent.parts) - len(top.parts) > 6:
            parent = top
        folders.append(parent / f"dir-{number}")
        folders[-1].mkdir()
    return folders


def _change_tree(top: Path, chance: random.Random, number: int) -> None:
    paths = sorted(files_of(top))
    mixture = Mixture(SEED + 100 + number)
    for place, path in enumerate(chance.sample(paths, max(1, len(paths) // 100))):
        size = path.stat().st_size
        kind = path.name.partition("-")[0] if "-" in path.name else TEXT
        if place % 2:
            path.write_bytes(mixture.take(kind, size))
        else:
            window = max(1, size // 10)
            with open(path, "r+b") as file:
                file.seek(chance.randrange(max(1, size - window)))
                file.write(mixture.take(kind, window))


def _change_disk(top: Path, scale: float, chance: random.Random) -> None:
    with open(top / "vm.img", "r+b") as file:
        blocks = file.seek(0, os.SEEK_END) // _BLOCK
        for block in sorted(chance.sample(range(blocks), blocks // 100)):
            file.seek(block * _BLOCK)
            file.write(chance.randbytes(_BLOCK))
    shift = top / "shift.bin"
    middle = shift.stat().st_size // 2 + 1234
    with open(shift, "rb") as old, open(top / "new", "wb") as new:
        _copy(old, new, middle)
        left = int(100 * MB * scale)
        while left > 0:
            new.write(chance.randbytes(min(_PIECE, left)))
            left -= _PIECE
        _copy(old, new, -1)
    os.replace(top / "new", shift)


def _copy(old: BinaryIO, new: BinaryIO, count: int) -> None:
    """The next `count` bytes; -1: all that are left."""
    while count and (piece := old.read(min(_PIECE, count) if count > 0 else _PIECE)):
        new.write(piece)
        count -= len(piece) if count > 0 else 0


MAKERS: dict[str, Callable[[Path, float], None]] = {
    "home": _make_home, "small": _make_small, "disk": _make_disk, "many": _make_many,
}  # fmt: skip
