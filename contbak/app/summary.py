"""The last word of a backup, as a message."""

from __future__ import annotations

from contbak.app.batch import Tally
from contbak.app.config import Source
from contbak.app.control import Message
from contbak.app.names import shown
from contbak.core.names import CommitId


def summary(source: Source, tally: Tally, head: CommitId | None, seconds: float, sent: int) -> Message:
    """Counts of names, bytes of file content and of the line.  `head`: the source's newest snapshot."""
    return {
        "message_type": "summary",
        "source": source.name,
        "new": tally.new,
        "changed": tally.changed,
        "gone": tally.gone,
        "unchanged": tally.unchanged,
        "failed": len(tally.failed),
        "torn": tally.torn,
        "errors": [{**shown(path), "reason": reason} for path, reason in sorted(tally.failed.items())],
        "bytes_read": tally.read_bytes,
        "bytes_stored": tally.new_bytes,
        "bytes_sent": sent,
        "seconds": round(seconds, 3),
        "snapshot": head.hex() if head is not None else None,
    }
