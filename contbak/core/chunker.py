"""Chunks: content-defined ones by FastCDC, aligned blocks for disk images; the only door to fastcdc.

Rules: a cut is accepted only with `max` bytes in sight or the end reached, so the cuts are those of the whole
stream however the windows fall.  A path is never handed to fastcdc: it would map the file, and the process
dies when a live file shrinks.  Source of the algorithm: Xia et al., "FastCDC", USENIX ATC 2016.
"""

from __future__ import annotations

import sys
from contextlib import redirect_stdout
from dataclasses import dataclass

from contbak.core.crypto import derive
from contbak.core.errors import ContbakError

IMAGE_ENDINGS = (b".img", b".raw", b".qcow", b".qcow2", b".vmdk", b".vdi", b".vhd", b".vhdx", b".hdd")
"""Names of disk images end so, in small or capital letters."""
IMAGE_MIN = 1 << 20
"""Bytes below which an image is a file like any other."""
_BLOCKS = ((64 << 30, 16 << 10), (1 << 40, 64 << 10))
_BLOCK_MAX = 256 << 10

try:
    with redirect_stdout(sys.stderr):  # the package greets on standard output when its extension is missing
        from fastcdc.fastcdc_cy import fastcdc_cy
except ImportError:
    fastcdc_cy = None


@dataclass(frozen=True, slots=True)
class ChunkSizes:
    """Bytes: no chunk but a file's last is shorter than `min`, none is longer than `max`."""

    min: int = 16 << 10
    avg: int = 64 << 10
    max: int = 256 << 10

    def jittered(self, chunker_key: bytes) -> ChunkSizes:
        """`min` and `max` moved by up to an eighth as the vault's key says, so that no table fits all vaults."""
        noise = derive("chunk sizes", chunker_key)
        low = int.from_bytes(noise[:4], "little") % (self.min // 4) - self.min // 8
        high = int.from_bytes(noise[4:8], "little") % (self.max // 8)
        return ChunkSizes(self.min + low, self.avg, self.max - high)


def check_engine() -> None:
    """Raises ContbakError if fastcdc's compiled extension is missing: without it a backup would crawl."""
    if fastcdc_cy is None:
        raise ContbakError(
            "the compiled part of the package fastcdc is missing; "
            "install it with Python 3.11 or 3.12 on x86-64, or with a C compiler present"
        )


class Chunker:
    """Cuts a stream, that is shown window by window, where its content says."""

    def __init__(self, sizes: ChunkSizes) -> None:
        check_engine()
        self._sizes = sizes
        self.one_chunk = sizes.min
        """Bytes up to which a whole stream is one chunk."""

    def cuts(self, window: memoryview, final: bool) -> list[int]:
        """Lengths of the chunks at the start of `window`, in order.

        `final`: the stream ends with this window; then the lengths add up to all of it.  Otherwise what is left
        (at most `max` - 1 bytes) must be shown again at the start of the next window.
        """
        sizes = self._sizes
        if final and len(window) <= sizes.min:
            return [len(window)] if len(window) else []
        if not final and len(window) < sizes.max:
            return []
        lengths = []
        last = len(window) - sizes.max
        for chunk in fastcdc_cy(window, sizes.min, sizes.avg, sizes.max, False, None):
            if not final and chunk.offset > last:
                break
            lengths.append(chunk.length)
        return lengths


class Blocks:
    """Cuts a stream into blocks of `size` bytes, where what is changed in place leaves all other chunks as they are."""

    def __init__(self, size: int) -> None:
        self._size = size

    def cuts(self, window: memoryview, final: bool) -> list[int]:
        """As Chunker.cuts; what is left of a window is shorter than a block."""
        whole, rest = divmod(len(window), self._size)
        return [self._size] * whole + ([rest] if final and rest else [])


def is_image(name: bytes) -> bool:
    """Whether a file of this name, or path, is taken for a disk image."""
    return name.lower().endswith(IMAGE_ENDINGS)


def block_size(size: int) -> int:
    """The block size for a disk image of `size` bytes; 0: content decides of its chunks, as for any file.

    16 KiB: a file system writes 4 KiB here and there, and each costs a block.  Larger ones for very large images, whose
    lists of blocks would else grow out of hand.
    """
    if size < IMAGE_MIN:
        return 0
    return next((block for limit, block in _BLOCKS if size <= limit), _BLOCK_MAX)
