"""The status document of a running daemon: how safe everything is, right now (docs/commands.md)."""

from __future__ import annotations

import os
from functools import partial
from typing import Any

from contbak.app.agent import Agent
from contbak.app.lookout import Lookout
from contbak.app.standing import standing

Message = dict[str, Any]


async def describe(agent: Agent, lookout: Lookout) -> Message:
    """Of the running daemon."""
    line = agent.uplink.status()
    parts = []
    for source in list(lookout.sources.values()):
        unsettled = lookout.unsettled(source.name)
        ask = partial(standing, agent.journal, agent.ledger, source, agent.covered, unsettled)
        parts.append(await agent.run(ask))
    return {
        "daemon": {"running": True, "pid": os.getpid()},
        "sources": parts,
        "relays": [
            {
                "url": str(agent.address),
                "reachable": line.reachable,
                "lag_bytes": line.lag_bytes,
                "error": line.error,
            }
        ],
        "spool_bytes": await agent.run(agent.spool.size),
    }
