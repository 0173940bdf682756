"""Where the sources stand, from the agent's state alone: what is not yet durable, gaps, errors, the newest snapshot.

Without the daemon this is the status document (docs/commands.md).  It loads nothing that talks to a relay, so that
`contbak status` is quick.
"""

from __future__ import annotations

import os
import socket
import time
from typing import Any

from contbak.app.config import RelayFile, Source, load_relay, load_sources
from contbak.app.home import Home, locked
from contbak.app.names import shown
from contbak.app.tables import TABLES, TRUST_S
from contbak.capture.journal import Journal
from contbak.store.kv import Kv
from contbak.upload.chain import Ledger
from contbak.upload.spool import Spool

Message = dict[str, Any]


def describe_stopped(home: Home) -> Message:
    """The same with no daemon; the state is opened for a moment.  Raises Refused if a process works on it."""
    relay = load_relay(home)
    with locked(home, patience_s=0.0):
        kv = Kv.open(home.journal, TABLES, trust_s=TRUST_S)
        try:
            journal, ledger = Journal(kv), Ledger(kv)
            parts = [standing(journal, ledger, source) for source in load_sources(home)]
        finally:
            kv.close()
        spooled = Spool(home.spool, 0).size() if home.spool.is_dir() else 0
    url = "" if relay is None else relay.directory or str(relay.address(home))
    return {
        "daemon": {"running": False, "pid": None},
        "sources": parts,
        "relays": [{"url": url, "reachable": _answers(relay, home), "lag_bytes": spooled, "error": ""}],
        "spool_bytes": spooled,
    }


def _answers(relay: RelayFile | None, home: Home) -> bool:
    """Whether something listens where the relay should be."""
    if relay is None or relay.directory:
        return relay is not None and os.path.isdir(relay.directory)
    at = relay.address(home)
    try:
        with socket.socket(socket.AF_UNIX if at.socket else socket.AF_INET, socket.SOCK_STREAM) as probe:
            if at.socket:
                probe.settimeout(2)
                probe.connect(at.socket)
                return True
        socket.create_connection((at.host, at.port), 2).close()
    except OSError:
        return False
    return True


def standing(
    journal: Journal, ledger: Ledger, source: Source,
    covered: frozenset[tuple[bytes, int]] = frozenset(), unsettled: tuple[int, float | None] = (0, None),
) -> Message:  # fmt: skip
    """Where one source stands.

    covered     changes, as (path, generation), that a commit on its way covers
    unsettled   changes not written down yet: how many, and the age of the oldest in s
    """
    id_, now = source.source_id, time.time() * 1000
    count, oldest_ms = journal.count(id_)
    _, uncovered_ms = journal.count(id_, covered)
    open_gaps = [gap for gap in journal.gaps(id_) if not gap.quiet]
    since = [(now - gap.since_ms) / 1000 for gap in open_gaps]
    waiting, age = unsettled
    count += waiting
    since += [] if age is None else [age]
    state, pending = ledger.state(id_), ledger.pending()
    sent = [(now - pending.since_ms) / 1000] if pending is not None and pending.source == id_ else []
    return {
        "name": source.name,
        **shown(source.top),
        "pending_changes": count,
        "oldest_unprotected_s": {
            "local": _oldest(since, uncovered_ms, now),
            "relay": _oldest(since + sent, oldest_ms, now),
            "cloud": None,
        },
        "gaps": [{**shown(gap.path), "since": _iso(gap.since_ms), "reason": gap.reason} for gap in open_gaps],
        "last_snapshot": {"id": state.commit.hex(), "time": _iso(state.time_ms)} if state.commit else None,
        "errors": [
            {**shown(problem.path), "reason": problem.reason, "since": _iso(problem.since_ms)}
            for problem in journal.problems(id_)
        ],
    }


def _oldest(ages_s: list[float], since_ms: int | None, now_ms: float) -> float:
    ages_s = ages_s if since_ms is None else [*ages_s, (now_ms - since_ms) / 1000]
    return max(0.0, round(max(ages_s, default=0.0), 3))


def _iso(ms: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(ms / 1000))
