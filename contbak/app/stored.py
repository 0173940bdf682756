"""What the newest acknowledged commit of a source holds under single names, from the agent's own copy of its tree."""

from __future__ import annotations

from contbak.core.entry import Entry
from contbak.core.errors import FormatError, NotFound
from contbak.core.names import SourceId
from contbak.core.view import View
from contbak.upload.chain import Ledger


class Stored:
    """Looks names up; the tree is opened at the first one, and again after each commit."""

    def __init__(self, ledger: Ledger, source: SourceId) -> None:
        self._ledger = ledger
        self._source = source
        self._roots: tuple[bytes | None, ...] = ()
        self._view = View((), ledger.node)

    def entry(self, dir_id: bytes, name: bytes) -> Entry | None:
        """None if there is none, or if the copy of the tree is damaged (its next commit will find that out)."""
        state = self._ledger.state(self._source)
        roots = (state.base, *state.runs)
        if roots != self._roots:
            self._roots, self._view = roots, View(roots, self._ledger.node)
        try:
            return self._view.lookup(dir_id, name)
        except (NotFound, FormatError):
            return None
