"""What contbak is held to, line by line: a share of the best other tool, of a physical bound, or seconds."""

from __future__ import annotations

from dataclasses import dataclass

from tests.bench.tool import AGAIN, CHANGED, FIRST, ONE, RESTORE

BEST, BOUND, ALONE = "of the best other", "of the bound", "s"
WALL, BYTES, GROWTH = "wall", "bytes", "growth"


@dataclass(frozen=True)
class Target:
    """At most `limit` times what `against` names (or, ALONE, at most that many seconds)."""

    set: str
    step: str
    metric: str
    limit: float
    against: str = BEST
    tool: str = ""
    """Against this tool alone."""

    def __str__(self) -> str:
        if self.against == ALONE:
            return f"<= {self.limit:g} s"
        return f"<= {self.limit:g} x {self.tool or {BEST: 'best', BOUND: 'bound'}[self.against]}"


TARGETS = (
    Target("home", FIRST, WALL, 0.45),
    Target("small", FIRST, WALL, 0.6),
    Target("disk", FIRST, WALL, 0.4),
    Target("many", AGAIN, WALL, 0.4),
    Target("many", AGAIN, WALL, 4.0, BOUND),
    *(Target(name, CHANGED, WALL, 0.5) for name in ("home", "small")),
    *(Target(name, RESTORE, WALL, 0.7) for name in ("home", "small", "disk")),
    *(Target(name, ONE, WALL, 0.5, ALONE) for name in ("home", "small")),
    *(Target(name, FIRST, BYTES, 1.02, BEST, "restic") for name in ("home", "small", "disk")),
    Target("disk", CHANGED, GROWTH, 0.4),
)
