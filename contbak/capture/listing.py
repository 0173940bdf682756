"""What a directory on disk holds, and whether it asks to be left out.

Rules: a listing is whole or an error, so that what is not in it is gone; a directory that is marked is left out but
for the marker, which is kept so that a restored directory is marked too.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable

CACHEDIR_TAG = b"CACHEDIR.TAG"
CACHEDIR_SIGNATURE = b"Signature: 8a477f597d28d172789f06886806bc55"
NOBACKUP = b".nobackup"
MARKERS = frozenset((CACHEDIR_TAG, NOBACKUP))
_OPEN = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_DIRECTORY | os.O_NOFOLLOW


def opened(path: bytes) -> int:
    """A descriptor of a directory, to be listed by `listed` and closed.  Raises OSError, also where a link is."""
    return os.open(path, _OPEN)


def listed(path: bytes, descriptor: int) -> list[tuple[bytes, os.DirEntry[str]]]:
    """The names in a directory that count: all, or if one of them is a marker, that one alone.  Raises OSError.

    `path` is that of the open directory `descriptor`, through which the entries are looked at: while it is open.
    """
    with os.scandir(descriptor) as found:
        entries = list(found)
    if not entries:
        return []
    blob = os.fsencode("\0".join([entry.name for entry in entries]))
    named = list(zip(blob.split(b"\0"), entries, strict=True))
    if NOBACKUP not in blob and CACHEDIR_TAG not in blob:  # quicker than a look at each name
        return named
    marker = marker_among(path, (name for name, _ in named))
    return named if marker is None else [(name, entry) for name, entry in named if name == marker]


def marker_in(path: bytes) -> bytes | None:
    """The marker in a directory, if there is one."""
    return marker_among(path, (name for name in MARKERS if os.path.lexists(os.path.join(path, name))))


def marker_among(path: bytes, names: Iterable[bytes]) -> bytes | None:
    """The one of `names` in the directory `path` that marks it."""
    found = MARKERS.intersection(names)
    if NOBACKUP in found:
        return NOBACKUP
    return CACHEDIR_TAG if found and _is_tag(os.path.join(path, CACHEDIR_TAG)) else None


def _is_tag(path: bytes) -> bool:
    """The standard (bford.info/cachedir) asks for an ordinary file; opening a pipe would wait for its writer."""
    try:
        if not stat.S_ISREG(os.lstat(path).st_mode):
            return False
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW), "rb") as tag:
            return tag.read(len(CACHEDIR_SIGNATURE)) == CACHEDIR_SIGNATURE
    except OSError:
        return False
