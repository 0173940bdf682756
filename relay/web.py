"""The relay's endpoints: HTTP in, verbs of `service` and `intake` out (docs/protocol.md).  The door to aiohttp.

Rules: every body has a limit and may not trickle; every answer that refuses is problem+json; a trace is logged and
never sent; work that blocks runs in threads, commits and seals in threads of their own so that segments never wait
for them.
"""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import ssl
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

from aiohttp import ClientError, hdrs, web
from aiohttp.http import HttpProcessingError

from contbak.core import codec, commit, messages, pack
from contbak.core.errors import ContbakError, FormatError
from contbak.core.messages import HAVE_MAX, PUT_MAX, TOKEN_LEN, WHOLE_MAX
from contbak.core.names import ID_LEN, CommitId, PackId, from_hex
from relay import problem
from relay.body import BUFFER_LEN, Body, Buffers, too_large
from relay.door import Door
from relay.intake import Intake
from relay.problem import Problem, malformed
from relay.sending import TAKEN_S, Sealed, wanted
from relay.service import Service
from relay.session import Who

JOIN_MAX = 16 << 10
LOGIN_MAX = 1 << 10
IDS_MAX = HAVE_MAX * ID_LEN
_MSGPACK = "application/msgpack"
_BYTES = "application/octet-stream"
_SMALL = 64 << 10  # up to here a body needs no buffer
_THREADS = 6
_WAITING = 16  # seals and commits mostly wait for the disk, which syncs several at once
_BACKLOG = 256
_IDLE_S = 30.0  # for a connection without a request, also for one whose head does not come to an end
_LINGER_S = 2.0  # for a refused client to read why before the connection is gone

_log = logging.getLogger(__name__)
_http_log = logging.getLogger("relay.http")

P = ParamSpec("P")
T = TypeVar("T")

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Web:
    """The endpoints of one relay."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self.busy: set[object] = set()
        """The protocols of the connections on which a request is under way."""
        self._buffers = Buffers()
        self._quick = ThreadPoolExecutor(_THREADS, "quick")
        self._heavy = ThreadPoolExecutor(_WAITING, "heavy")

    def app(self) -> web.Application:
        """The application to serve."""
        app = web.Application(middlewares=[self._mark_busy, _answer_errors], client_max_size=IDS_MAX)
        app.router.add_routes(
            [
                web.post("/v1/join", self._join),
                web.post("/v1/challenge", self._challenge),
                web.post("/v1/session", self._session),
                web.post("/v1/have", self._have),
                web.put("/v1/packs/{root}/plan", self._plan),
                web.put("/v1/packs/{root}", self._whole),
                web.get("/v1/packs/{root}/plan", self._state, allow_head=False),
                web.put("/v1/packs/{root}/segments/{first}", self._segments),
                web.post("/v1/packs/{root}/seal", self._seal),
                web.post("/v1/commits", self._commit),
                web.get("/v1/receipts/{commit}", self._receipt),
                web.get("/v1/vault", self._vault),
                web.get("/v1/commits", self._listed),
                web.post("/v1/locate", self._locate),
                web.get("/v1/packs", self._packs),
                web.get("/v1/packs/{root}", self._pack),
            ]
        )
        return app

    def close(self) -> None:
        """Waits for the work that is under way."""
        self._quick.shutdown()
        self._heavy.shutdown()

    @web.middleware
    async def _mark_busy(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        connection = request.protocol
        self.busy.add(connection)
        try:
            return await handler(request)
        finally:
            self.busy.discard(connection)

    # -- admission

    async def _join(self, request: web.Request) -> web.Response:
        join = _decoded(await _body(request, JOIN_MAX), messages.Join, "a join")
        return _packed(await self._run(self._heavy, self._service.join, join))

    async def _challenge(self, request: web.Request) -> web.Response:
        device = await _body(request, ID_LEN)
        if len(device) != ID_LEN:
            raise malformed("a device key has 32 bytes")
        return _packed(self._service.challenge(device))

    async def _session(self, request: web.Request) -> web.Response:
        login = _decoded(await _body(request, LOGIN_MAX), messages.Login, "a login")
        return _packed(await self._run(self._quick, self._service.login, login))

    # -- writing

    async def _have(self, request: web.Request) -> web.Response:
        who = self._who(request)
        ids = _ids(await _body(request, IDS_MAX))
        found = await self._for(who, self._quick, lambda vault: vault.have(ids))
        return web.Response(body=messages.bitmap(found), content_type=_BYTES)

    async def _plan(self, request: web.Request) -> web.Response:
        who, root = self._who(request), _root(request)
        raw = await _body(request, pack.PLAN_MAX)
        return _packed(await self._for(who, self._quick, lambda vault: vault.plan(root, raw)))

    async def _whole(self, request: web.Request) -> web.Response:
        who, root = self._who(request), _root(request)
        raw = await _body(request, WHOLE_MAX)
        await self._for(who, self._heavy, lambda vault: vault.whole(root, raw, who.device))
        return web.Response(status=204)

    async def _state(self, request: web.Request) -> web.Response:
        who, root = self._who(request), _root(request)
        return _packed(await self._for(who, self._quick, lambda vault: vault.state(root)))

    async def _segments(self, request: web.Request) -> web.Response:
        who, root = self._who(request), _root(request)
        first = _number(request.match_info["first"], "the number of a segment")
        _check_length(request, PUT_MAX)
        if (request.content_length or BUFFER_LEN) <= _SMALL:
            await self._put(who, root, first, memoryview(await _body(request, _SMALL)))
            return web.Response(status=204)
        async with self._buffers.one() as buffer:
            body = Body(request.content, PUT_MAX)
            length = await body.fill(buffer)
            while True:
                first = await self._put(who, root, first, buffer[:length])
                length = await body.fill(buffer)
                if not length:
                    return web.Response(status=204)

    async def _put(self, who: Who, root: PackId, first: int, data: memoryview) -> int:
        return await self._for(who, self._quick, lambda vault: vault.segments(root, first, data))

    async def _seal(self, request: web.Request) -> web.Response:
        who, root = self._who(request), _root(request)
        await _body(request, 0)
        await self._for(who, self._heavy, lambda vault: vault.seal(root, who.device))
        return web.Response(status=204)

    async def _commit(self, request: web.Request) -> web.Response:
        who = self._who(request)
        raw = await _body(request, commit.RECORD_MAX)
        receipt = await self._for(who, self._heavy, lambda vault: vault.commit(raw, who.device))
        return web.Response(body=receipt, content_type=_MSGPACK)

    async def _receipt(self, request: web.Request) -> web.Response:
        who = self._who(request)
        id_ = CommitId(from_hex(request.match_info["commit"], ID_LEN, "a commit id"))
        receipt = await self._for(who, self._quick, lambda vault: vault.receipt(id_))
        return web.Response(body=receipt, content_type=_MSGPACK)

    # -- reading

    async def _vault(self, request: web.Request) -> web.Response:
        who = self._who(request)
        return _packed(await self._run(self._quick, self._service.vault_info, who.vault))

    async def _listed(self, request: web.Request) -> web.Response:
        who = self._who(request)
        after = _number(request.query.get("after", "0"), "after")
        return _packed(await self._for(who, self._quick, lambda vault: vault.listed(after)))

    async def _locate(self, request: web.Request) -> web.Response:
        who = self._who(request)
        ids = _ids(await _body(request, IDS_MAX))
        return _packed(await self._for(who, self._quick, lambda vault: vault.locate(ids)))

    async def _packs(self, request: web.Request) -> web.Response:
        who = self._who(request)
        after = request.query.get("after", "")
        root = from_hex(after, ID_LEN, "after") if after else b""
        return _packed(await self._for(who, self._quick, lambda vault: vault.packs(root)))

    async def _pack(self, request: web.Request) -> web.StreamResponse:
        who, root = self._who(request), _root(request)
        file = await self._for(who, self._quick, lambda vault: Sealed(vault.pack_path(root)))
        try:
            return await self._sent(request, file, f'"{root.hex()}"')
        finally:
            file.close()

    async def _sent(self, request: web.Request, file: Sealed, etag: str) -> web.StreamResponse:
        """Sends the file, or the range of it that is asked for; who does not take it is cut off."""
        asked = request.headers.get(hdrs.RANGE)
        headers = {hdrs.CONTENT_TYPE: _BYTES, hdrs.ACCEPT_RANGES: "bytes", hdrs.ETAG: etag}
        if asked is None or request.headers.get(hdrs.IF_RANGE, etag) != etag:
            status, start, end = 200, 0, file.size
        else:
            try:
                status, (start, end) = 206, wanted(asked, file.size)
            except ValueError:
                answer = _refusal(Problem(416, "range", f"the pack has {file.size} bytes"))
                answer.headers[hdrs.CONTENT_RANGE] = f"bytes */{file.size}"
                return answer
            headers[hdrs.CONTENT_RANGE] = f"bytes {start}-{end - 1}/{file.size}"
        response = web.StreamResponse(status=status, headers=headers)
        response.content_length = end - start
        await response.prepare(request)
        if request.method == hdrs.METH_HEAD:
            return response
        try:
            async for part in file.parts(start, end, self._quick):
                async with asyncio.timeout(TAKEN_S):
                    await response.write(part)
            await response.write_eof()
        except (TimeoutError, ContbakError) as error:  # the head is out: all that can be said is that it ends here
            _log.warning("a pack was not sent to its end: %s", str(error) or "it was not taken")
            if request.transport is not None:
                request.transport.abort()
        return response

    # -- all of them

    def _who(self, request: web.Request) -> Who:
        scheme, _, text = request.headers.get(hdrs.AUTHORIZATION, "").partition(" ")
        try:
            token = from_hex(text, TOKEN_LEN, "a token")
        except FormatError:
            token = b""
        if scheme != "Bearer" or not token:
            raise Problem(401, "token", "this needs a token; log in first")
        return self._service.who(token)

    async def _run(self, pool: ThreadPoolExecutor, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        return await asyncio.get_running_loop().run_in_executor(pool, lambda: call(*args, **kwargs))

    async def _for(self, who: Who, pool: ThreadPoolExecutor, verb: Callable[[Intake], T]) -> T:
        """Does a verb with the vault of the session."""
        return await self._run(pool, self._service.use, who.vault, verb)


class _Readable(logging.Filter):
    """Keeps out of the log what is no HTTP at all: anyone can send that, as often as they like."""

    def filter(self, record: logging.LogRecord) -> bool:
        return not (record.exc_info and isinstance(record.exc_info[1], HttpProcessingError))


class Server:
    """The endpoints, listening.  end_s: how long requests may take to end when it is closed."""

    def __init__(self, service: Service, end_s: float) -> None:
        self._web = Web(service)
        self._door: Door | None = None
        _http_log.addFilter(_Readable())
        self._runner = web.AppRunner(
            self._web.app(),
            logger=_http_log,
            access_log=None,
            auto_decompress=False,
            shutdown_timeout=end_s,
            keepalive_timeout=_IDLE_S,
            lingering_time=_LINGER_S,
        )

    async def listen_unix(self, bound: socket.socket) -> None:
        """Serves on a bound unix socket."""
        await self._start()
        await web.SockSite(self._runner, bound, backlog=_BACKLOG).start()

    async def listen_tls(self, host: str, port: int, context: ssl.SSLContext) -> list[str]:
        """Serves on a TCP port (0: a free one) and returns where.  Raises OSError."""
        await self._start()
        make = self._runner.server
        assert make is not None
        self._door = Door(make, self._web.busy, context)
        return [f"{address[0]}:{address[1]}" for address in await self._door.open(host, port, _BACKLOG)]

    async def close(self) -> None:
        """Lets requests end, then ends."""
        if self._door is not None:
            await self._door.close()
        await self._runner.cleanup()
        await asyncio.get_running_loop().run_in_executor(None, self._web.close)

    async def _start(self) -> None:
        if self._runner.server is None:
            await self._runner.setup()


@web.middleware
async def _answer_errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except ContbakError as error:
        answer = problem.of(error)
        if answer is None:
            _log.error("%s %s: %s", request.method, request.path, error)
            answer = Problem(500, "internal", str(error))
    except web.HTTPException as error:
        kind = "unknown" if error.status in (404, 405) else "malformed"
        answer = Problem(error.status, kind, error.reason)
    except (ConnectionError, ClientError):  # the client is gone, and nobody reads this
        answer = malformed("the connection was lost")
    except Exception:
        _log.exception("%s %s failed", request.method, request.path)
        answer = Problem(500, "internal", "the relay failed; its log says why")
    response = _refusal(answer)
    if not request.content.at_eof():  # what is left of the body is not worth reading
        response.force_close()
    return response


def _refusal(answer: Problem) -> web.Response:
    body = json.dumps(answer.members()).encode()
    return web.Response(status=answer.status, body=body, content_type="application/problem+json")


async def _body(request: web.Request, limit: int) -> bytes:
    """The whole body, at most `limit` bytes.  Raises Problem if it is larger or comes too slowly."""
    _check_length(request, limit)
    return await Body(request.content, limit).whole()


def _check_length(request: web.Request, limit: int) -> None:
    if (request.content_length or 0) > limit:
        raise too_large(limit)


def _decoded(raw: bytes, kind: type[T], what: str) -> T:
    return codec.decode(raw, kind, what)


def _packed(record: object) -> web.Response:
    return web.Response(body=codec.encode(record), content_type=_MSGPACK)


def _ids(raw: bytes) -> list[bytes]:
    if len(raw) % ID_LEN:
        raise malformed("ids have 32 bytes each")
    return [raw[at : at + ID_LEN] for at in range(0, len(raw), ID_LEN)]


def _root(request: web.Request) -> PackId:
    return PackId(from_hex(request.match_info["root"], ID_LEN, "a pack's id"))


def _number(text: str, what: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 18:
        raise malformed(f"{what} must be a number")
    return int(text)
