"""The way to the relay for packs and commits.  The agent's door to tenacity.

core.transfer decides what is sent; this carries it over upload/line and waits when the relay is away (see
docs/protocol.md).

Rules: a relay out of reach is a state, not an error: it is tried again for ever, with waits that grow and jitter, and
at once when there is new work.  Segments are compared with the plan before they leave, so a damaged spool is found here
and not at the relay.  Every request can be sent again.

It does not remove packs from the spool (the app does, with the receipt) and does not build commits.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import tenacity

from contbak.core import codec
from contbak.core.commit import Signed
from contbak.core.errors import ContbakError, FormatError, NotFound, Unreachable
from contbak.core.exchange import (
    Accepted,
    Answer,
    CommitRequest,
    Committed,
    Event,
    Missing,
    OtherHead,
    PlanRequest,
    Receipted,
    Refusal,
    Rejected,
    Request,
    Sealed,
    SegmentsRequest,
    WholeRequest,
)
from contbak.core.invite import Address
from contbak.core.messages import (
    WHOLE_MAX,
    PlanState,
    Session,
    bits,
    open_receipt,
)
from contbak.core.names import ChunkId, CommitId, PackId, VaultId
from contbak.core.pack import Plan
from contbak.core.problem import Problem
from contbak.core.transfer import HeadMismatch, MissingChunks, RejectedByPeer, Sender
from contbak.upload.answers import expect, refusal_of, understood
from contbak.upload.line import Line
from contbak.upload.segments import Segments, WholePack
from contbak.upload.spool import Spool
from contbak.upload.wire import Body

WAIT_MAX_S = 60.0
"""The longest wait between two attempts to reach a relay that is away."""
RENEW_S = 120.0
"""A token is renewed this long before it runs out."""
HAVE_PART = 16_384
"""Ids asked in one request: bodies stay below 1 MiB."""


@dataclass(frozen=True, slots=True)
class Credentials:
    """Who logs in where: the vault, the device's 32-byte signing seed."""

    vault: VaultId
    seed: bytes


@dataclass(frozen=True, slots=True)
class Status:
    """How the line is.

    reachable   whether the last exchange succeeded; `since` when that last changed (seconds since 1970)
    error       why it is not reachable, one sentence, "" if it is
    lag_bytes   bytes of offered packs that are not sealed
    bytes_sent  request bodies since the start, repeats counted
    """

    reachable: bool
    since: float
    error: str
    lag_bytes: int
    bytes_sent: int


class Uplink:
    """Carries packs and commits to one relay, whatever the line does.  For one event loop."""

    def __init__(self, address: Address, credentials: Credentials, spool: Spool) -> None:
        self.session: Session | None = None
        """The newest session; its `head` is that of its login."""
        self._line = Line(address)
        self._credentials = credentials
        self._spool = spool
        self._sender = Sender(whole_max=WHOLE_MAX)
        self._plans: dict[PackId, Plan] = {}
        self._sealing: dict[PackId, asyncio.Future[None]] = {}
        self._commit: tuple[Signed, asyncio.Future[bytes]] | None = None
        self._commit_turn = asyncio.Lock()
        self._login_turn = asyncio.Lock()
        self._renew_at = 0.0
        self._stir = asyncio.Event()
        """Something happened: new work, an answer, a reset."""
        self._flights: set[asyncio.Task[None]] = set()
        self._failure: Unreachable | None = None
        self._driver: asyncio.Task[None] | None = None
        self._error = "not connected yet"
        self._since = time.time()
        self._progress = 0

    async def start(self) -> None:
        """Starts to work, and returns without waiting for the relay."""
        self._driver = asyncio.create_task(self._drive(), name="uplink")
        self._driver.add_done_callback(self._ended)

    async def close(self) -> None:
        """Ends; what is under way is sent again the next time."""
        tasks = [*self._flights, *([self._driver] if self._driver else [])]
        for task in tasks:
            task.cancel()
        for result in await asyncio.gather(*tasks, return_exceptions=True):
            if isinstance(result, Exception):
                raise result
        for future in self._waiting():
            future.cancel()
        await self._line.close()

    def status(self) -> Status:
        """How the line is now."""
        lag = sum(plan.file_len for plan in self._plans.values())
        return Status(not self._error, self._since, self._error, lag, self._line.bytes_sent)

    async def reset(self) -> None:
        """After a suspend: drops connections that the other side has forgotten, and tries at once."""
        await self._line.close()
        self._stir.set()

    async def connected(self) -> Session:
        """The session; logs in if there is none.  Raises Unreachable, WrongKey, PeerError."""
        async with self._login_turn:
            if self.session is None or time.monotonic() >= self._renew_at:
                try:
                    self.session = await self._line.login(self._credentials.vault, self._credentials.seed)
                except ContbakError as error:
                    self._note(str(error))
                    raise
                self._renew_at = time.monotonic() + max(self.session.expires_s - RENEW_S, 1)
                self._note("")
            return self.session

    async def have(self, ids: Sequence[ChunkId]) -> list[bool]:
        """Which of the chunks the vault has at the relay: a hint.  Raises Unreachable, PeerError."""
        found: list[bool] = []
        for at in range(0, len(ids), HAVE_PART):
            part = ids[at : at + HAVE_PART]
            found += bits(expect(await self._request("POST", "/v1/have", b"".join(part))), len(part))
        return found

    async def receipt(self, commit: CommitId) -> bytes | None:
        """The receipt of a commit with its level of now; None if the relay does not know it.  Raises Unreachable."""
        answer = await self._request("GET", f"/v1/receipts/{commit.hex()}", b"")
        if isinstance(answer, Problem) and answer.status == 404:
            return None
        raw = expect(answer)
        open_receipt(raw, self._line.address.relay, commit)
        return raw

    def offer(self, root: PackId) -> None:
        """Has the spooled pack `root` sent; `sealed` tells when it is.  Raises NotFound, FormatError (damaged)."""
        if root not in self._plans:
            plan = self._spool.plan(root)
            self._plans[root] = plan
            self._sealing[root] = asyncio.get_running_loop().create_future()
            self._sender.offer(plan)
            self._stir.set()

    async def sealed(self, root: PackId) -> None:
        """Returns when the pack is durable at the relay (at once if it was not offered).

        Raises RejectedByPeer if the relay will never take it, or if its file in the spool is damaged.
        """
        future = self._sealing.get(root)
        if future is not None:
            await asyncio.shield(future)

    async def commit(self, signed: Signed, needs: Collection[PackId]) -> bytes:
        """Sends a commit when the packs `needs` are sealed; its receipt, checked.

        Those of `needs` that are in the spool are offered; the others count as sealed before.  Waits as long as it
        takes.  Raises MissingChunks, HeadMismatch, RejectedByPeer.
        """
        async with self._commit_turn:
            for root in needs:
                try:
                    self.offer(root)
                except NotFound:
                    continue
                except FormatError as error:
                    raise RejectedByPeer("lost", str(error)) from None
            future: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
            self._commit = (signed, future)
            self._sender.commit(signed, needs)
            self._stir.set()
            try:
                return await asyncio.shield(future)
            finally:
                self._commit = None
                self._sender.withdraw(signed.id)

    # -- driving ----------------------------------------------------------------------------------------------

    async def _drive(self) -> None:
        """Spells of work, and between them waits that grow as long as nothing succeeds."""
        while True:
            attempts = tenacity.AsyncRetrying(
                retry=tenacity.retry_if_exception_type(ContbakError),
                wait=tenacity.wait_random_exponential(multiplier=0.5, max=WAIT_MAX_S),
                stop=self._got_through(self._progress),  # then short waits again
                retry_error_callback=lambda _: None,
                sleep=self._sleep,
            )
            await attempts(self._spell)

    def _got_through(self, before: int) -> Callable[[tenacity.RetryCallState], bool]:
        return lambda _: self._progress != before

    async def _sleep(self, seconds: float) -> None:
        """Waits, but not longer than until there is new work."""
        self._stir.clear()
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):  # wait_for would lose a cancel that comes with the event
                await self._stir.wait()

    async def _spell(self) -> None:
        """Works as long as the relay answers.  Raises Unreachable and whatever else a retry may cure."""
        self._failure = None
        await self.connected()
        while self._failure is None:
            self._stir.clear()
            self._launch()
            await self._stir.wait()
        if self._flights:
            await asyncio.wait(self._flights)
        raise self._failure

    def _launch(self) -> None:
        self._report(self._sender.events())
        for request in self._sender.to_send(time.monotonic()):
            flight = asyncio.create_task(self._fly(request))
            self._flights.add(flight)
            flight.add_done_callback(self._landed)

    def _landed(self, flight: asyncio.Task[None]) -> None:
        self._flights.discard(flight)
        self._stir.set()

    async def _fly(self, request: Request) -> None:
        """One request there and its answer back into the machine."""
        try:
            answer = await self._carry(request)
            self._sender.receive(request, answer, time.monotonic())
            # A plan is no progress: a relay that is full answers plans, and would be asked without a pause.
            self._progress += not isinstance(request, PlanRequest) and not isinstance(answer, Refusal)
            self._note("")
        except (NotFound, FormatError) as error:
            self._sender.failed(request, time.monotonic())
            if not isinstance(request, CommitRequest):
                self._sender.drop(request.root, str(error))
        except ContbakError as error:
            self._sender.failed(request, time.monotonic())
            self._fail(error if isinstance(error, Unreachable) else Unreachable(str(error)))
        finally:
            self._report(self._sender.events())

    def _fail(self, error: Unreachable) -> None:
        self._failure = error
        self._note(str(error))

    async def _carry(self, request: Request) -> Answer:
        """The answer.  Raises Unreachable for what passes, NotFound or FormatError if the spool is damaged."""
        if isinstance(request, CommitRequest):
            return await self._carry_commit(request)
        path = f"/v1/packs/{request.root.hex()}"
        plan = self._plans.get(request.root)
        if plan is None:  # given up after this request was made and before it began
            raise NotFound("the pack was given up")
        if isinstance(request, PlanRequest):
            answer = await self._request("PUT", f"{path}/plan", plan.raw)
        elif isinstance(request, WholeRequest):
            return await self._carry_whole(path, plan)
        elif isinstance(request, SegmentsRequest):
            body = Segments(self._spool, plan, request.first, request.count)
            answer = await self._request("PUT", f"{path}/segments/{request.first}", body)
        else:
            answer = await self._request("POST", f"{path}/seal", b"")
        if isinstance(answer, Problem):
            return refusal_of(answer)
        if isinstance(request, PlanRequest):
            return understood(lambda: codec.decode(answer, PlanState, "the relay's answer to a plan"))
        return Accepted()

    async def _carry_whole(self, path: str, plan: Plan) -> Answer:
        try:
            answer = await self._request("PUT", path, WholePack(self._spool, plan))
        except NotFound:  # a pack leaves the spool when the relay has sealed it, and may have been offered since
            answer = await self._request("PUT", f"{path}/plan", plan.raw)
            if isinstance(answer, bytes):
                raw = answer
                if not understood(lambda: codec.decode(raw, PlanState, "the relay's answer to a plan")).sealed:
                    raise
        return refusal_of(answer) if isinstance(answer, Problem) else Accepted()

    async def _carry_commit(self, request: CommitRequest) -> Answer:
        if self._commit is None or self._commit[0].id != request.id:
            return Refusal("withdrawn")
        answer = await self._request("POST", "/v1/commits", self._commit[0].raw)
        if isinstance(answer, Problem):
            return refusal_of(answer)
        understood(lambda: open_receipt(answer, self._line.address.relay, request.id))
        return Receipted(answer)

    async def _request(self, method: str, path: str, body: Body) -> bytes | Problem:
        """An exchange within the session, with one new login if the relay has forgotten it."""
        session = await self.connected()
        answer = await self._line.request(method, path, body, session.token)
        if isinstance(answer, Problem) and answer.status == 401:
            if self.session is session:
                self.session = None
            session = await self.connected()
            answer = await self._line.request(method, path, body, session.token)
        return answer

    def _report(self, events: list[Event]) -> None:
        for event in events:
            if isinstance(event, Sealed):
                self._close_pack(event.root, None)
            elif isinstance(event, Rejected) and not isinstance(event.request, CommitRequest):
                self._close_pack(event.request.root, RejectedByPeer(event.kind, event.reason))
            else:
                self._close_commit(event)

    def _close_pack(self, root: PackId, error: ContbakError | None) -> None:
        self._plans.pop(root, None)
        self._sender.forget([root])
        future = self._sealing.pop(root, None)
        if future is not None and error is None and not future.done():
            future.set_result(None)
        elif future is not None and error is not None:
            _refuse(future, error)

    def _close_commit(self, event: Event) -> None:
        if self._commit is None or isinstance(event, Sealed):
            return
        signed, future = self._commit
        if isinstance(event, Committed) and event.id == signed.id:
            if not future.done():
                future.set_result(event.receipt)
        elif isinstance(event, Missing) and event.id == signed.id:
            _refuse(future, MissingChunks(event.ids))
        elif isinstance(event, OtherHead) and event.id == signed.id:
            _refuse(future, HeadMismatch(event.head))
        elif isinstance(event, Rejected) and event.request == CommitRequest(signed.id):
            _refuse(future, RejectedByPeer(event.kind, event.reason))

    def _ended(self, driver: asyncio.Task[None]) -> None:
        """The driver ends with `close` only; should it die of a fault, whoever waits is told."""
        error = None if driver.cancelled() else driver.exception()
        if error is not None:
            self._note(f"the uplink has failed: {error}")
            for future in self._waiting():
                _refuse(future, error)

    def _waiting(self) -> list[asyncio.Future[Any]]:
        """What callers wait for."""
        found: list[asyncio.Future[Any]] = list(self._sealing.values())
        return [*found, self._commit[1]] if self._commit else found

    def _note(self, error: str) -> None:
        if bool(error) != bool(self._error):
            self._since = time.time()
        self._error = error


def _refuse(future: asyncio.Future[Any], error: BaseException) -> None:
    """Ends the waiting with an error, which nobody has to look at."""
    if not future.done():
        future.set_exception(error)
        future.exception()
