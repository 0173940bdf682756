"""run, start, stop, backup, status."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import click

from contbak.app import keyfile
from contbak.app.cli_show import age_of, document, progress, say, size_of
from contbak.app.client import Daemon as Running
from contbak.app.daemon import serve as run_daemon
from contbak.app.home import Home, find_home
from contbak.app.oneshot import backup_once
from contbak.app.status import describe_stopped
from contbak.core.errors import ContbakError, Partial, Refused

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


@click.command("start")
def start_command() -> None:
    """Starts the daemon in the background."""
    home = find_home()
    keyfile.load(home.keys)
    running = Running(home.socket)
    if running.running():
        say("contbak is running already")
        return
    log = home.state / "daemon.log"
    with open(log, "ab") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "contbak.app.cli", "run"],
            stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True,
        )  # fmt: skip
    deadline = time.monotonic() + _START_S
    while not running.running():
        if process.poll() is not None or time.monotonic() > deadline:
            raise ContbakError(f"the daemon does not start; {log} says why")
        time.sleep(0.05)
    say(f"contbak runs in the background (process {process.pid}); 'contbak status' tells how it is doing")


@click.command("stop")
def stop_command() -> None:
    """Stops the daemon in order."""
    running = Running(find_home().socket)
    if not running.running():
        say("contbak is not running")
        return
    running.stop()
    deadline = time.monotonic() + _START_S
    while running.running():
        if time.monotonic() > deadline:
            raise ContbakError("the daemon does not stop; look at its log")
        time.sleep(0.05)
    say("contbak has stopped")


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


@click.command("status")
@click.option("--json", "as_json", is_flag=True, help="The whole document (docs/commands.md).")
def status_command(as_json: bool) -> None:
    """How safe everything is, right now."""
    home = find_home()
    keyfile.load(home.keys)
    running = Running(home.socket)
    if running.running():
        status = running.status()
    else:
        try:
            status = describe_stopped(home)
        except Refused:  # a one-shot backup, or a daemon that is just starting
            status = _wait_for(running)
    if as_json:
        click.echo(json.dumps(status, ensure_ascii=False))
    else:
        _show_status(status)


def _wait_for(running: Running) -> Message:
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        if running.running():
            return running.status()
        time.sleep(0.1)
    raise Refused("a backup is at work here; ask again when it is done")


def _show_status(status: Message) -> None:
    daemon = status["daemon"]
    click.echo(f"daemon: running (process {daemon['pid']})" if daemon["running"] else
               "daemon: NOT RUNNING; start it with 'contbak start'")  # fmt: skip
    for relay in status["relays"]:
        state = "reachable" if relay["reachable"] else f"out of reach ({relay['error'] or 'not asked'})"
        click.echo(f"relay {relay['url']}: {state}, {size_of(relay['lag_bytes'])} to send")
    if not status["sources"]:
        click.echo("nothing is protected yet; start with 'contbak add DIR'")
    for source in status["sources"]:
        _show_source(source)


def _show_source(source: Message) -> None:
    age = source["oldest_unprotected_s"]["relay"]
    safe = "everything is safe" if age == 0 else f"oldest unprotected change is {age_of(age)} old"
    last = source["last_snapshot"]
    click.echo(f"{source['name']} ({source['path']}): {safe}; {source['pending_changes']} changes pending; "
               + (f"last snapshot {last['id'][:12]} at {last['time']}" if last else "no snapshot yet"))  # fmt: skip
    for gap in source["gaps"]:
        click.echo(f"  to be scanned: {gap['path'] or 'everything'} since {gap['since']}: {gap['reason']}")
    for error in source["errors"]:
        click.echo(f"  not saved: {error['path']}: {error['reason']} (since {error['since']})")
