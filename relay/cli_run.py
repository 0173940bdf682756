"""The command `contbak-relay run`, apart from the others because of what it loads."""

from __future__ import annotations

import os

import click

from relay import config, daemon


@click.command()
@click.option("--socket", "socket_path", default="", type=click.Path(), help="Serve on this unix socket only.")
@click.option("--exit-with-stdin", is_flag=True, help="End when standard input ends.")
@click.option("--wait", "wait_s", default=10.0, help="Seconds to wait for another relay of this home to end.")
def run(socket_path: str, exit_with_stdin: bool, wait_s: float) -> None:
    """Serves in the foreground until SIGTERM or SIGINT."""
    path = os.path.abspath(socket_path) if socket_path else ""
    daemon.run(config.home(), daemon.Options(path, exit_with_stdin, wait_s))
