"""Which files hold chunks that the relay has lost."""

from __future__ import annotations

from collections.abc import Callable, Collection

from contbak.core.entry import FILE
from contbak.core.errors import FormatError, NotFound
from contbak.core.node import Node
from contbak.core.view import View
from contbak.upload.chain import SourceState


def paths_of(state: SourceState, node: Callable[[bytes], Node], ids: Collection[bytes]) -> list[bytes]:
    """Paths of `state` whose content needs one of `ids`.

    A file so large that its chunks are listed in nodes of their own is named whenever ids remain that no smaller
    file explains, because the agent does not keep those lists.
    """
    wanted = set(ids)
    explained: set[bytes] = set()
    paths, large = [], []
    try:
        for path, entry in View((state.base, *state.runs), node).walk():
            if entry.kind != FILE or entry.content is None:
                continue
            hit = wanted.intersection(entry.content.chunks)
            explained |= hit
            if hit:
                paths.append(path)
            elif entry.content.level:
                large.append(path)
    except (NotFound, FormatError):
        return [b""]
    return paths if wanted <= explained else paths + large
