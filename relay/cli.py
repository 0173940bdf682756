"""The command contbak-relay.

Rules: one sentence on standard error for what goes wrong, never a trace (but with CONTBAK_DEBUG=1); the exit code is
that of the error.  Files of the registry are the truth, so all commands work with the relay running or not.
"""

from __future__ import annotations

import importlib
import json
import logging
import os
import signal
import socket
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import click

from contbak.core.errors import ContbakError, FormatError, Refused, UsageError
from contbak.core.invite import Address, Invite
from contbak.core.names import VAULT_ID_LEN, from_hex
from relay import config as configs
from relay import identity, lock, status, stores, verify
from relay.registry import Registry


class _Group(click.Group):
    """Loads `run` only when it is asked for: the server takes longer to load than the other commands to work."""

    def list_commands(self, context: click.Context) -> list[str]:
        return sorted([*super().list_commands(context), "run"])

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        if name == "run":
            found = importlib.import_module("relay.cli_run").run
            return found if isinstance(found, click.Command) else None
        return super().get_command(context, name)


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("-v", "--verbose", count=True, help="Say more on standard error.")
@click.version_option(package_name="contbak")
def cli(verbose: int) -> None:
    """Receives, keeps and verifies the backups of your machines."""
    level = logging.INFO if verbose else logging.WARNING
    logging.basicConfig(level=level, format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr)


@cli.command()
@click.option("--store", "directories", multiple=True, type=click.Path(path_type=Path), help="Where to keep packs.")
@click.option("--listen", default="", metavar="ADDR:PORT", help="Where to serve; default 0.0.0.0:7443.")
@click.option("--socket", "socket_path", default="", type=click.Path(), help="A unix socket to serve on instead.")
@click.option("--host", default="", help="The name or address by which agents reach this relay.")
def init(directories: tuple[Path, ...], listen: str, socket_path: str, host: str) -> None:
    """Makes keys, certificate and stores.  Does nothing to what is there already."""
    top = configs.home()
    top.mkdir(0o700, parents=True, exist_ok=True)
    if (top / "config.toml").exists() and identity.exists(top):
        raise Refused(f"there is a relay at {top} already; 'contbak-relay store add' adds a store to it")
    places = tuple(os.path.abspath(path) for path in directories or (top / "store",))
    if not listen and not socket_path:
        listen = "0.0.0.0:7443"
    config = configs.Config(
        stores=places, listen=listen, socket=os.path.abspath(socket_path) if socket_path else "", host=host
    )
    if listen:
        configs.split_address(listen, "--listen")
    for place in places:
        stores.create(Path(place))
    if not identity.exists(top):
        identity.create(top, datetime.now(UTC))
    configs.save(top, config)
    click.echo(f"relay at {top}, stores: {', '.join(places)}", err=True)


@cli.command()
@click.option("--vault", default="", metavar="V", help="Admit to this vault only (its id or name).")
@click.option("--new-vault", default="", metavar="NAME", help="For a new vault; the name is for your own records.")
@click.option("--host", default="", help="The name or address that the invite tells.")
def invite(vault: str, new_vault: str, host: str) -> None:
    """Prints one line that pins this relay's keys and admits one device once."""
    if vault and new_vault:
        raise UsageError("--vault and --new-vault exclude each other")
    top = configs.home()
    config, who = configs.load(top), identity.load(top)
    registry = Registry(top)
    wanted = _find_vault(registry, vault) if vault else b""
    if config.listen:
        named, port = configs.split_address(config.listen, "listen")
        fits = named if named not in ("", "0.0.0.0", "::") else socket.gethostname()
        address = Address(who.public, host or config.host or fits, port, who.fingerprint)
    else:
        address = Address(who.public, socket=config.socket)
    expires_ms = int((time.time() + config.invite_days * 86_400) * 1000)
    click.echo(Invite(address, registry.invite(wanted, new_vault, expires_ms), wanted).line())


def _find_vault(registry: Registry, text: str) -> bytes:
    found = [v for v in registry.vaults() if v.name == text or (len(text) >= 4 and v.id.hex().startswith(text))]
    if len(found) == 1:
        return found[0].id
    try:
        return from_hex(text, VAULT_ID_LEN, "a vault")
    except FormatError:
        raise UsageError(f"{len(found) or 'no'} vaults match {text!r}; 'contbak-relay status' lists them") from None


@cli.command()
@click.option("--json", "as_json", is_flag=True)
def devices(as_json: bool) -> None:
    """Lists who may write."""
    rows = status.devices(configs.home(), configs.load(configs.home()))
    if as_json:
        click.echo(json.dumps(rows))
        return
    for row in rows:
        state = "" if row["enabled"] else "  DISABLED"
        click.echo(f"{str(row['id'])[:16]}  vault {str(row['vault'])[:8]}  {row['name']}{state}")


@cli.group()
def device() -> None:
    """Says which devices may write."""


@device.command()
@click.argument("id")
def disable(id: str) -> None:
    """Lets a device write no more, until it is enabled."""
    registry = _registry()
    registry.set_enabled(registry.find_device(id), False)


@device.command()
@click.argument("id")
def enable(id: str) -> None:
    """Lets a device write again."""
    registry = _registry()
    registry.set_enabled(registry.find_device(id), True)


@device.command()
@click.argument("id")
def remove(id: str) -> None:
    """Forgets a device; what it wrote stays.  It needs a new invite to come back."""
    registry = _registry()
    registry.remove_device(registry.find_device(id))


@cli.group()
def store() -> None:
    """Says where packs are kept."""


@store.command()
@click.argument("directory", type=click.Path(path_type=Path))
def add(directory: Path) -> None:
    """Adds a directory to keep packs in; a relay that runs uses it at once."""
    top = configs.home()
    path = Path(os.path.abspath(directory))
    if str(path) in configs.load(top).stores:
        return
    stores.create(path)
    configs.add_store(top, path)
    pid = lock.running(top)
    if pid is not None:
        os.kill(pid, signal.SIGHUP)


@cli.command(name="status")
@click.option("--json", "as_json", is_flag=True)
def show_status(as_json: bool) -> None:
    """Shows devices, stores and damage."""
    top = configs.home()
    found = status.status(top, configs.load(top))
    click.echo(json.dumps(found) if as_json else status.text(found))


@cli.command(name="rebuild-index")
def rebuild_index() -> None:
    """Throws the index away and makes it again from packs and records."""
    top = configs.home()
    verify.rebuild(top, configs.load(top), identity.load(top))


@cli.command(name="verify")
@click.option("--json", "as_json", is_flag=True)
def run_verify(as_json: bool) -> None:
    """Compares index and packs, and reads and hashes everything."""
    top = configs.home()
    report = verify.verify(top, configs.load(top))
    click.echo(json.dumps(report.as_json()) if as_json else report.text())
    if report.damage:
        sys.exit(1)


def _registry() -> Registry:
    configs.load(configs.home())
    return Registry(configs.home())


def main() -> None:
    """The command; ends the process with an exit code of the contract."""
    try:
        code = cli.main(standalone_mode=False)
        sys.exit(code if isinstance(code, int) else 0)
    except ContbakError as error:
        if os.environ.get("CONTBAK_DEBUG") == "1":
            raise
        click.echo(f"contbak-relay: {error}", err=True)
        sys.exit(error.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(2)
    except (click.Abort, KeyboardInterrupt):
        sys.exit(130)
    except Exception as error:
        if os.environ.get("CONTBAK_DEBUG") == "1":
            raise
        click.echo(f"contbak-relay: {error or type(error).__name__}", err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()


