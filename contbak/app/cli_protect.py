"""run, backup."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Iterator
from typing import Any

import click

from contbak.app import keyfile
from contbak.app.cli_show import document, progress, say, size_of
from contbak.app.client import Daemon as Running
from contbak.app.daemon import serve as run_daemon
from contbak.app.home import Home, find_home
from contbak.app.oneshot import backup_once
from contbak.core.errors import Partial

Message = dict[str, Any]
_START_S = 60.0


@click.command("run")
def run_command() -> None:
    """The daemon, in the foreground, until Ctrl-C."""
    home = find_home()
    serve(home)


def serve(home: Home) -> None:
    """Runs the daemon."""
    asyncio.run(run_daemon(home, keyfile.load(home.keys), lambda text: say(f"contbak: {text}")))


@click.command("backup")
@click.argument("paths", nargs=-1, metavar="[PATH]...")
@click.option("--wait", type=click.Choice(["local", "relay"]), default="relay", show_default=True,
              help="Return when it is durable in this machine's spool, or on the relay's disk.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="JSON lines; the last is the summary.")
@click.option("-q", "--quiet", is_flag=True, help="No progress, no summary.")
def backup_command(paths: tuple[str, ...], wait: str, as_json: bool, quiet: bool) -> None:
    """Scans and commits now; returns when it is durable.

    \b
    contbak backup                      everything that is protected
    contbak backup ~/thesis             just this
    """
    home = find_home()
    keys = keyfile.load(home.keys)
    absolute = [os.path.abspath(path) for path in paths]
    running = Running(home.socket)
    if running.running():
        messages = running.backup(absolute, wait)
    else:
        messages = _synchronous(backup_once(home, keys, absolute, wait, lambda text: say(f"contbak: {text}")))
    failed = 0
    with progress(quiet or as_json) as line:
        for message in messages:
            if as_json:
                document(message)
            if message["message_type"] == "summary":
                failed += message["failed"]
                line.clear()
                if not as_json and not quiet:
                    _show_summary(message)
            else:
                line.show(_progress_text(message))
    if failed:
        raise Partial(f"{failed} files could not be saved; 'contbak status' names them")


def _synchronous(messages: AsyncIterator[Message]) -> Iterator[Message]:
    """An async iterator's items, driven by a loop of our own."""
    with asyncio.Runner() as runner:

        async def step() -> Message | None:
            return await anext(messages, None)

        try:
            while (message := runner.run(step())) is not None:
                yield message
        finally:

            async def close() -> None:
                await messages.aclose()  # type: ignore[attr-defined]

            runner.run(close())


def _progress_text(message: Message) -> str:
    text = f"{message['seen']} names, {message['files_read']} files read, {size_of(message['bytes_read'])}"
    if not message["reachable"]:
        return f"{text}; the relay is out of reach, waiting"
    return f"{text}, {size_of(message['bytes_sent'])} sent"


def _show_summary(message: Message) -> None:
    for error in message["errors"]:
        say(f"contbak: {error['path']}: {error['reason']}")
    snapshot = message["snapshot"]
    click.echo(
        f"{message['source']}: {message['new']} new, {message['changed']} changed, {message['gone']} gone, "
        f"{message['unchanged']} unchanged, {message['failed']} failed; {size_of(message['bytes_read'])} read, "
        f"{size_of(message['bytes_stored'])} new, {size_of(message['bytes_sent'])} sent in {message['seconds']:.1f} s"
        + (f"; snapshot {snapshot[:12]}" if snapshot else "")
    )
