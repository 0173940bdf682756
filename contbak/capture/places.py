"""Where each watched directory is: watch descriptor to (parent's watch descriptor, name).

Rules: a directory is one row, so that renaming it, however much is below, changes one row and every path below
follows.  Rows form a tree under the top; a detached row (moved away, new place not known yet) keeps all that is
below it.  There are never two rows at one place, nor a cycle.  Pure bookkeeping: no system calls.
"""

from __future__ import annotations

_NOWHERE = -1


class Places:
    """The rows of one source.  `wd` is a watch descriptor: positive, and never used twice by the kernel."""

    def __init__(self, top: int) -> None:
        self.top = top
        self._rows: dict[int, tuple[int, bytes]] = {top: (_NOWHERE, b"")}
        self._children: dict[int, dict[bytes, int]] = {}

    def __contains__(self, wd: int) -> bool:
        return wd in self._rows

    def __len__(self) -> int:
        return len(self._rows)

    def all(self) -> list[int]:
        """Every row, also the detached ones."""
        return list(self._rows)

    def at(self, wd: int, parent: int, name: bytes) -> bool:
        """Whether `wd` is the row of `name` in `parent`."""
        return self._rows.get(wd) == (parent, name)

    def child(self, parent: int, name: bytes) -> int | None:
        """The row of `name` in `parent`, if it has one."""
        return self._children.get(parent, {}).get(name)

    def put(self, wd: int, parent: int, name: bytes) -> None:
        """Make or move the row of `wd`.  The place must be free and not be below `wd`."""
        self._unlink(wd)
        self._rows[wd] = (parent, name)
        self._children.setdefault(parent, {})[name] = wd

    def detach(self, wd: int) -> None:
        """Take the row out of the tree, with all that is below, without forgetting any of it."""
        self._unlink(wd)
        self._rows[wd] = (_NOWHERE, self._rows[wd][1])

    def detached(self, wd: int) -> bool:
        """Whether the row itself hangs nowhere."""
        return wd != self.top and wd in self._rows and self._rows[wd][0] == _NOWHERE

    def forget(self, wd: int) -> list[int]:
        """Remove the row; returns its children, which are now detached."""
        self._unlink(wd)
        del self._rows[wd]
        left = list(self._children.pop(wd, {}).values())
        for child in left:
            self._rows[child] = (_NOWHERE, self._rows[child][1])
        return left

    def relative(self, wd: int) -> bytes | None:
        """Path from the top (empty for the top itself), or None if the row or one above it is detached."""
        names: list[bytes] = []
        while wd != self.top:
            row = self._rows.get(wd)
            if row is None:
                return None
            wd, name = row
            names.append(name)
        return b"/".join(reversed(names))

    def step_below(self, wd: int, above: int) -> int | None:
        """The child of `above` on the way up from `wd`; `wd` itself if they are the same; None if not below."""
        below = wd
        while wd != above:
            row = self._rows.get(wd)
            if row is None:
                return None
            below, wd = wd, row[0]
        return below

    def subtree(self, wd: int) -> list[int]:
        """The row and all rows below it."""
        rows = [wd]
        for row in rows:
            rows.extend(self._children.get(row, {}).values())
        return rows

    def _unlink(self, wd: int) -> None:
        parent, name = self._rows.get(wd, (_NOWHERE, b""))
        siblings = self._children.get(parent)
        if siblings is not None and siblings.get(name) == wd:
            del siblings[name]
            if not siblings:
                del self._children[parent]
