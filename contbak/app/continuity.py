"""The end of this device's chain: what is known of it here, and whether the relay knows the same.

A chain that the relay knows otherwise (our state was lost or restored, this machine was cloned, the relay was set
back) is never argued with: a new incarnation begins on top of what the relay has, and everything is looked at again,
which costs reading and hardly any sending.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol, TypeVar

from contbak.app.carrier import Carrier
from contbak.capture import proofs as proof_tables
from contbak.core import commit as commits
from contbak.core.commit import NO_PREVIOUS, Signed, Witness
from contbak.core.errors import ContbakError, Unreachable
from contbak.core.messages import Head, Session
from contbak.store.kv import Kv
from contbak.upload.chain import Chain, Ledger
from contbak.upload.known import Known
from contbak.upload.uplink import Uplink

T = TypeVar("T")


class StartedOver(ContbakError):
    """The relay knows another history of this device than we do; everything will be looked at again."""


class Run(Protocol):
    """Runs a function in the agent's thread."""

    def __call__(self, function: Callable[[], T]) -> Awaitable[T]: ...


@dataclass(slots=True)
class Tables:
    """What the agent's state is kept in."""

    kv: Kv
    ledger: Ledger
    known: Known


class Continuity:
    """Made for one event loop.  `chain`: as the state has it, None on the first run or after the state was lost."""

    def __init__(
        self, tables: Tables, carrier: Carrier, uplink: Uplink, run: Run, alarm: Callable[[str], None],
        chain: Chain | None,
    ) -> None:  # fmt: skip
        self.chain = chain
        self._tables = tables
        self._carrier = carrier
        self._uplink = uplink
        self._run = run
        self._alarm = alarm
        self._recent: list[bytes] = [chain.head] if chain else []
        """Heads that our chain has had since `compare` last ran: a login since then saw one of them."""
        self._checked: Session | None = None

    async def end(self) -> Chain:
        """The end of our chain; asks the relay on the first run or after the state was lost."""
        if self.chain is None:
            session = await self._connected()
            head = session.head
            chain = self.chain = Chain(
                os.urandom(commits.INCARNATION_LEN),
                head.sequence if head else 0,
                head.commit if head else NO_PREVIOUS,
                packs=self._carrier.sealed,
            )
            self._checked, self._recent = session, [chain.head]
            await self._run(lambda: self._tables.ledger.save_chain(chain))
        return self.chain

    async def compare(self) -> None:
        """Finds out at a new login whether the relay's end of our chain is ours.  Raises StartedOver."""
        session = self._uplink.session
        if session is None or self.chain is None:
            return
        possible, self._recent = self._recent, [self.chain.head]
        if session is self._checked:
            return
        self._checked = session
        there = session.head.commit if session.head else NO_PREVIOUS
        if there not in possible:
            await self.start_over(session.head)

    async def start_over(self, head: Head | None) -> None:
        """A new incarnation on top of what the relay has.  Raises StartedOver, always."""
        self._alarm(
            "the relay's newest commit of this device is not the one known here (a restored or copied machine, or a "
            "relay that was set back): a new incarnation begins and everything is read again"
        )
        await self._run(lambda: self._forget(head))
        self._checked, self._recent = self._uplink.session, [head.commit if head else NO_PREVIOUS]
        raise StartedOver("the relay knows another history of this device; everything is read again")

    def advanced(self, signed: Signed) -> Chain:
        """The chain with one more acknowledged commit at its end; `settle` makes it ours."""
        assert self.chain is not None
        return Chain(self.chain.incarnation, self.chain.sequence, signed.id, signed.raw, self._carrier.sealed)

    def settle(self, chain: Chain) -> None:
        """The state has it."""
        self.chain = chain
        self._recent.append(chain.head)

    def withdraw(self) -> None:
        """The pending commit can never be accepted.  In the agent's thread."""
        assert self.chain is not None
        self._tables.ledger.withdraw(self.chain)

    def witnesses(self) -> tuple[Witness, ...]:
        """The newest commits of the vault's other devices, as of our login."""
        session = self._uplink.session
        heads = session.heads if session is not None else ()
        return tuple(Witness(head.device[:8], head.sequence, head.commit) for head in heads[: commits.WITNESSES_MAX])

    async def _connected(self) -> Session:
        wait = 0.2
        while True:
            try:
                return await self._uplink.connected()
            except Unreachable:
                await asyncio.sleep(wait)
                wait = min(wait * 2, 30.0)

    def _forget(self, head: Head | None) -> None:
        sequence = max(head.sequence if head else 0, self.chain.sequence if self.chain else 0)
        self._carrier.sealed = 0
        self.chain = Chain(os.urandom(commits.INCARNATION_LEN), sequence, head.commit if head else NO_PREVIOUS)
        self._tables.known.forget()
        self._tables.ledger.forget_trees()
        with self._tables.kv.write() as rows:
            for table in proof_tables.TABLES:
                rows.clear(table)
        self._tables.ledger.withdraw(self.chain)
