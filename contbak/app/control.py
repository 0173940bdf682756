"""The daemon's control socket: how the command line talks to a running daemon.

HTTP over a unix socket of mode 0600; `GET /status`, `POST /backup` (JSON lines until it is done), `POST /reload`,
`POST /stop`.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aiohttp import web

from contbak.core.errors import ContbakError

Message = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Verbs:
    """What the daemon can be asked for."""

    status: Callable[[], Awaitable[Message]]
    backup: Callable[[list[str], str], AsyncIterator[Message]]
    reload: Callable[[], Awaitable[None]]
    stop: Callable[[], None]


class Control:
    """The server side."""

    def __init__(self, socket: Path, verbs: Verbs) -> None:
        self._socket = socket
        self._verbs = verbs
        self._runner: web.AppRunner | None = None

    async def start(self) -> None:
        """Listens; a socket that a dead daemon left is replaced (the caller holds the agent's lock)."""
        app = web.Application()
        app.router.add_get("/status", self._status)
        app.router.add_post("/backup", self._backup)
        app.router.add_post("/reload", self._reload)
        app.router.add_post("/stop", self._stop)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=5.0)
        await self._runner.setup()
        self._socket.unlink(missing_ok=True)
        before = os.umask(0o177)
        try:
            await web.UnixSite(self._runner, str(self._socket)).start()
        finally:
            os.umask(before)

    async def stop(self) -> None:
        """Ends all connections and removes the socket."""
        if self._runner is not None:
            await self._runner.cleanup()
        self._socket.unlink(missing_ok=True)

    async def _status(self, request: web.Request) -> web.Response:
        return web.json_response(await self._verbs.status())

    async def _reload(self, request: web.Request) -> web.Response:
        try:
            await self._verbs.reload()
        except ContbakError as error:
            return web.json_response(as_message(error), status=400)
        return web.json_response({})

    async def _stop(self, request: web.Request) -> web.Response:
        asyncio.get_running_loop().call_later(0.05, self._verbs.stop)
        return web.json_response({})

    async def _backup(self, request: web.Request) -> web.StreamResponse:
        asked = json.loads(await request.read() or b"{}")
        response = web.StreamResponse(headers={"Content-Type": "application/x-ndjson"})
        await response.prepare(request)
        try:
            async for message in self._verbs.backup(asked.get("paths", []), asked.get("wait", "relay")):
                await response.write(json.dumps(message).encode() + b"\n")
        except ContbakError as error:
            await response.write(json.dumps(as_message(error)).encode() + b"\n")
        await response.write_eof()
        return response


def as_message(error: ContbakError) -> Message:
    """An error as the other side of the socket shows it."""
    return {"message_type": "error", "error": str(error), "exit_code": error.exit_code}
