"""start, stop, status: what is asked of the daemon or of the state that it left.  Loads neither."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from typing import Any

import click

from contbak.app import keyfile
from contbak.app.cli_show import age_of, say, size_of
from contbak.app.client import Daemon as Running
from contbak.app.home import find_home
from contbak.app.standing import describe_stopped
from contbak.core.errors import ContbakError, Refused

Message = dict[str, Any]
_START_S = 60.0


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
