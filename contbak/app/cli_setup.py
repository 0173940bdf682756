"""init, up, add, remove, sources, recover, recovery, devices, relays."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time

import click

from contbak.app import keyfile
from contbak.app.cli_history import restore_all
from contbak.app.cli_protect import serve
from contbak.app.cli_show import document, say, table, time_of
from contbak.app.client import Daemon as Running
from contbak.app.config import (
    PRIORITIES,
    Source,
    load_relay,
    load_settings,
    load_sources,
    new_source,
    remove_source,
    save_source,
)
from contbak.app.home import Home, find_home
from contbak.app.names import shown, text_of
from contbak.app.reading import vault_of
from contbak.app.secrets import code_from, owner_keys, passphrase
from contbak.app.setup import Choices, host_name, initialise
from contbak.app.setup import recover as recover_vault
from contbak.app.sheet import SheetFacts, write_sheet
from contbak.core import recovery
from contbak.core.errors import NotInitialised, Refused, UsageError, WrongKey


@click.command("init")
@click.option("--relay", "invite", metavar="INVITE", help="Pair with a relay: the line of 'contbak-relay invite'.")
@click.option("--store", metavar="DIR", help="Keep the vault in DIR, served by an embedded relay.")
@click.option("--write-only", is_flag=True, help="Keep no key to read on this device: it can back up, and no more.")
@click.option("--passphrase", "with_passphrase", is_flag=True, help="Protect the reading key with a passphrase.")
@click.option("--recovery-file", metavar="F", help="Write the recovery code to F, too.")
@click.option("--name", default="", help="What this device is called; default: the host's name.")
def init_command(
    invite: str | None, store: str | None, write_only: bool, with_passphrase: bool, recovery_file: str | None, name: str
) -> None:
    """Makes the keypair and the recovery code, and pairs with a relay.

    \b
    contbak init                                embedded relay on this machine
    contbak init --store /mnt/disk/backup       the same, kept on another disk
    contbak init --relay contbak://nas:7443/... a relay elsewhere
    """
    home = find_home()
    if invite and store:
        raise UsageError("--relay and --store exclude each other")
    secret = None
    if with_passphrase:
        if write_only:
            raise UsageError("--write-only keeps nothing that a passphrase could protect")
        secret = passphrase("New passphrase: ")
        if not secret:
            raise UsageError("give a passphrase with CONTBAK_PASSWORD_FILE, CONTBAK_PASSWORD_COMMAND or at the prompt")
    name = host_name(name or load_settings(home).name)
    _initialise(home, Choices(name, invite, store, write_only, secret, recovery_file))


def _initialise(home: Home, choices: Choices) -> None:
    code = asyncio.run(initialise(home, choices))
    click.echo("Your recovery code, shown only now:\n")
    click.echo(f"    {code}\n")
    click.echo("Write it down or print it ('contbak recovery sheet FILE'), and keep it away from this machine:")
    click.echo("with it and one copy of the vault everything comes back; without it nobody can help you.")


@click.command("up")
@click.argument("paths", nargs=-1, metavar="[PATH]...")
@click.option("--exclude", multiple=True, metavar="PATTERN", help="Leave out, gitignore-style.")
def up_command(paths: tuple[str, ...], exclude: tuple[str, ...]) -> None:
    """The whole main job: set up if needed, protect each PATH, then run until Ctrl-C.

    \b
    contbak up ~/Documents ~/Pictures
    """
    home = find_home()
    settings = load_settings(home)
    try:
        keyfile.load(home.keys)
    except NotInitialised:
        _initialise(home, Choices(host_name(settings.name)))
    tops = {source.top for source in load_sources(home)}
    for path in paths:
        if os.fsencode(os.path.realpath(path)) not in tops:
            _add(home, new_source(home, path, None, list(exclude), "normal"))
    if not load_sources(home):
        raise UsageError("say what to protect: contbak up DIR")
    running = Running(home.socket)
    if running.running():
        running.reload()
        say("contbak is running already; it protects the new paths too")
        return
    say("contbak runs; stop it with Ctrl-C, or let 'contbak start' run it in the background")
    serve(home)


@click.command("add")
@click.argument("path")
@click.option("--name", help="What the source is called; default: its last name.")
@click.option("--exclude", multiple=True, metavar="PATTERN", help="Leave out, gitignore-style; may be repeated.")
@click.option("--priority", type=click.Choice(list(PRIORITIES)), default="normal", show_default=True)
def add_command(path: str, name: str | None, exclude: tuple[str, ...], priority: str) -> None:
    """Protects a directory tree.

    \b
    contbak add ~/Pictures --exclude '*.tmp' --exclude cache/
    """
    home = find_home()
    keyfile.load(home.keys)
    _add(home, new_source(home, path, name, list(exclude), priority))
    running = Running(home.socket)
    if running.running():
        running.reload()
    else:
        say("the daemon is not running; 'contbak start' starts it, 'contbak backup' saves once")


def _add(home: Home, source: Source) -> None:
    home.make()
    save_source(home, source)
    click.echo(f"{source.name}: {text_of(source.top)} is protected")


@click.command("remove")
@click.argument("name")
def remove_command(name: str) -> None:
    """Ends the protection of a source; its history stays."""
    home = find_home()
    remove_source(home, name)
    running = Running(home.socket)
    if running.running():
        running.reload()
    click.echo(f"{name} is not protected any more; what was saved stays")


@click.command("sources")
@click.option("--json", "as_json", is_flag=True)
def sources_command(as_json: bool) -> None:
    """Lists what is protected."""
    found = load_sources(find_home())
    if as_json:
        document([{"name": s.name, **shown(s.top), "exclude": s.exclude, "priority": s.priority} for s in found])
    else:
        table(("NAME", "PATH", "PRIORITY", "EXCLUDES"),
              [(s.name, text_of(s.top), s.priority, " ".join(s.exclude)) for s in found])  # fmt: skip


@click.command("recover")
@click.option("--from", "place", required=True, metavar="PLACE", help="A relay's invite, or a store directory.")
@click.option("--code-file", metavar="F", help="File with the recovery code; '-' reads standard input.")
@click.option("--to", "target", metavar="DIR", help="Restore the newest state of everything into DIR at once.")
@click.option("--adopt", is_flag=True, help="Make this machine a device of the vault, so that it can back up, too.")
@click.option("--name", default="", help="What this device is called; default: the host's name.")
def recover_command(place: str, code_file: str | None, target: str | None, adopt: bool, name: str) -> None:
    """Opens a vault on a machine that has nothing, with the recovery code.

    \b
    contbak recover --from contbak://nas:7443/... --code-file code.txt
    contbak recover --from /mnt/disk/backup --code-file code.txt --to /tmp/all
    """
    home = find_home()
    asyncio.run(recover_vault(home, place, code_from(code_file), host_name(name), adopt))
    with vault_of(home) as vault:
        for one in vault.history.sources():
            click.echo(f"{one.source_name} of {one.device_name}: {text_of(one.path)}, {one.files} files, "
                       f"newest snapshot {one.hex[:12]} at {time_of(one.time_ms)}")  # fmt: skip
    say("the vault is open here: 'contbak snapshots', 'contbak ls' and 'contbak restore' work now")
    if target is not None:
        restore_all(target)


@click.group("recovery")
def recovery_command() -> None:
    """The recovery code: show it, check it, print it."""


@recovery_command.command("show")
def show_command() -> None:
    """Prints the recovery code (not on a write-only device)."""
    click.echo(recovery.encode(_root()))


@recovery_command.command("verify")
@click.option("--code-file", metavar="F", help="File with the code; '-' reads standard input; else it is asked for.")
def verify_command(code_file: str | None) -> None:
    """Asks for the code and tells whether it is the right one."""
    keys = keyfile.load(find_home().keys)
    written = recovery.decode(code_from(code_file))
    if keyfile.opens(written, keys):
        click.echo("the recovery code is right")
    else:
        raise WrongKey("this is the recovery code of another vault")


@recovery_command.command("sheet")
@click.argument("file")
def sheet_command(file: str) -> None:
    """Writes a page to print: the code, a QR code, and what to do when everything is lost."""
    home = find_home()
    keys = keyfile.load(home.keys)
    if os.path.exists(file):
        raise Refused(f"{file} exists; name a new file")
    relay = load_relay(home)
    relays = (str(relay.address(home)),) if relay is not None and not relay.directory else ()
    write_sheet(file, SheetFacts(
        recovery.encode(_root()), keys.writer.vault.hex(), keys.device_name, time.strftime("%Y-%m-%d"), relays, ""
    ))  # fmt: skip
    click.echo(f"{file}: print it, keep it where this machine is not, then delete the file")


def _root() -> bytes:
    keys = keyfile.load(find_home().keys)
    owner_keys(keys)
    return keys.root(passphrase("Passphrase of the vault: ") if keys.needs_passphrase else None)


@click.command("devices")
@click.option("--json", "as_json", is_flag=True)
def devices_command(as_json: bool) -> None:
    """Lists who writes to the vault."""
    home = find_home()
    keys = keyfile.load(home.keys)
    with vault_of(home) as vault:
        newest = {bytes(one.device): one.time_ms for one in vault.history.snapshots}
        rows = [
            {
                "id": device.device.hex(), "name": device.name, "enabled": device.enabled,
                "this": device.device == keys.device, "last_snapshot_ms": newest.get(device.device),
            }
            for device in vault.history.devices.values()
        ]  # fmt: skip
    if as_json:
        click.echo(json.dumps(rows))
        return
    for row in rows:
        last = "never" if row["last_snapshot_ms"] is None else time_of(int(row["last_snapshot_ms"]))
        here = " (this machine)" if row["this"] else ""
        state = "" if row["enabled"] else ", disabled"
        click.echo(f"{row['name']}{here}{state}: {str(row['id'])[:16]}, last snapshot {last}")


@click.command("relays")
@click.option("--json", "as_json", is_flag=True)
def relays_command(as_json: bool) -> None:
    """Lists where the vault is kept."""
    home = find_home()
    relay = load_relay(home)
    if relay is None:
        raise NotInitialised("there is no vault here yet; start with 'contbak init' or 'contbak up DIR'")
    url = relay.directory or str(relay.address(home))
    kind = "directory" if relay.directory else "embedded" if relay.embedded else "relay"
    if as_json:
        document([{"url": url, "kind": kind, "read_only": relay.read_only}])
    else:
        click.echo(f"{url} ({kind}{', read only' if relay.read_only else ''})")
    sys.stdout.flush()
