"""snapshots, ls, diff, versions, restore, dump, check."""

from __future__ import annotations

import json
import os
import stat
import sys
from collections.abc import Callable, Iterable
from typing import Any

import click

from contbak.app.cli_show import Line, document, iso_of, progress, say, size_of, table, time_of
from contbak.app.home import find_home
from contbak.app.names import shown, text_of
from contbak.app.reading import moment, vault_of
from contbak.core.entry import DIRECTORY, SYMLINK, TORN, Entry
from contbak.core.errors import ContbakError, Partial, UsageError
from contbak.core.timespec import Latest
from contbak.recall.check import CheckReport, check
from contbak.recall.opening import Vault
from contbak.recall.report import Report
from contbak.recall.restore import dump, restore, wanted
from contbak.recall.snapshots import Located, Snapshot
from contbak.recall.versions import versions

_AT = click.option("--at", default="latest", show_default=True, metavar="T",
                   help="latest, latest~2, a snapshot's id, 2026-03-01, 'yesterday 18:00', '2 hours ago'.")  # fmt: skip
_DEVICE = click.option("--device", help="Name or id of a device, where several have the path.")
_JSON = click.option("--json", "as_json", is_flag=True, help="JSON.")


@click.command("snapshots")
@click.option("--source", help="Only of this source.")
@_DEVICE
@_JSON
def snapshots_command(source: str | None, device: str | None, as_json: bool) -> None:
    """Lists the snapshots, oldest first."""
    with vault_of(find_home()) as vault:
        _warn(vault)
        found = [
            one for one in vault.history.snapshots
            if source in (None, one.source_name) and device in (None, one.device_name, one.device.hex())
        ]  # fmt: skip
    if as_json:
        document([_snapshot_json(one) for one in found])
        return
    table(
        ("ID", "TIME", "SOURCE", "DEVICE", "FILES", "SIZE", "CHANGES"),
        [
            (
                one.hex[:12], time_of(one.time_ms), one.source_name, one.device_name, str(one.files), size_of(one.size),
                f"+{one.new} ~{one.changed} -{one.gone}" + ("" if one.complete else " (first scan under way)"),
            )
            for one in found
        ],
    )  # fmt: skip


def _snapshot_json(one: Snapshot) -> dict[str, Any]:
    return {
        "id": one.hex,
        "time": iso_of(one.time_ms),
        "source": one.source_name,
        "device": one.device_name,
        "files": one.files,
        "bytes": one.size,
        "level": one.level,
        "parent": one.parent.hex() if one.parent is not None else None,
        "new": one.new,
        "changed": one.changed,
        "gone": one.gone,
        "complete": one.complete,
        **shown(one.path),
    }


@click.command("ls")
@click.argument("path", default="/")
@_AT
@_DEVICE
@click.option("-r", "--recursive", is_flag=True, help="Everything beneath, too.")
@_JSON
def ls_command(path: str, at: str, device: str | None, recursive: bool, as_json: bool) -> None:
    """Lists a directory as it was.

    \b
    contbak ls ~/Documents --at yesterday
    """
    with vault_of(find_home()) as vault:
        for place in _locate(vault, path, at, device):
            view = vault.history.view(place.snapshot)
            found = view.resolve(place.path)
            assert found is not None
            entry = found[0]
            base = place.absolute
            if entry.kind != DIRECTORY:
                _show_entry(base, entry, place.snapshot, as_json)
            elif recursive:
                for name, child in view.walk(entry.dir, place.path):
                    if name:
                        _show_entry(os.path.join(place.snapshot.path, name), child, place.snapshot, as_json)
            else:
                for name, child in view.directory(entry.dir):
                    if name:
                        _show_entry(os.path.join(base, name), child, place.snapshot, as_json)


def _show_entry(path: bytes, entry: Entry, snapshot: Snapshot, as_json: bool) -> None:
    if as_json:
        document({
            **shown(path), "type": entry.kind, "size": entry.size, "mtime_ns": entry.mtime,
            "mode": entry.mode, "uid": entry.uid, "gid": entry.gid, "user": entry.user, "group": entry.group,
            "torn": bool(entry.flags & TORN), "snapshot": snapshot.hex, "deleted": False,
        })  # fmt: skip
        return
    kinds = {DIRECTORY: stat.S_IFDIR, SYMLINK: stat.S_IFLNK, "p": stat.S_IFIFO, "s": stat.S_IFSOCK,
             "c": stat.S_IFCHR, "b": stat.S_IFBLK}  # fmt: skip
    mode = stat.filemode(entry.mode | kinds.get(entry.kind, stat.S_IFREG))
    name = text_of(path) + (f" -> {text_of(entry.target)}" if entry.kind == SYMLINK else "")
    owner = f"{entry.user or entry.uid}:{entry.group or entry.gid}"
    click.echo(f"{mode}  {owner:<14} {entry.size:>13}  {time_of(entry.mtime // 1_000_000)}  {name}")


@click.command("diff")
@click.argument("a")
@click.argument("b")
@click.argument("path", required=False)
@_DEVICE
@_JSON
def diff_command(a: str, b: str, path: str | None, device: str | None, as_json: bool) -> None:
    """What changed between two moments: + new, ~ changed, - gone.

    \b
    contbak diff yesterday latest
    contbak diff latest~3 latest ~/Documents
    """
    with vault_of(find_home()) as vault:
        old = {(one.device, one.source): one for one in vault.history.choose(moment(a), None, device)}
        new = {(one.device, one.source): one for one in vault.history.choose(moment(b), None, device)}
        for key, after in new.items():
            before = old.get(key)
            if before is None:
                continue
            say(f"{after.source_name}: {time_of(before.time_ms)} to {time_of(after.time_ms)}")
            _show_diff(vault, before, after, None if path is None else os.fsencode(os.path.abspath(path)), as_json)


def _show_diff(vault: Vault, before: Snapshot, after: Snapshot, below: bytes | None, as_json: bool) -> None:
    for path, old, new in vault.history.view(before).diff(vault.history.view(after)):
        absolute = os.path.join(after.path, path) if path else after.path
        if below is not None and absolute != below and not absolute.startswith(below.rstrip(b"/") + b"/"):
            continue
        sign = "+" if old is None else "-" if new is None else "~"
        if as_json:
            entry = new or old
            assert entry is not None
            document({"change": {"+": "new", "-": "gone", "~": "changed"}[sign], **shown(absolute), "type": entry.kind})
        else:
            click.echo(f"{sign} {text_of(absolute)}")


@click.command("versions")
@click.argument("path")
@_DEVICE
@_JSON
def versions_command(path: str, device: str | None, as_json: bool) -> None:
    """Every state that a file had, newest first."""
    with vault_of(find_home()) as vault:
        found = list(versions(vault.history, _absolute(path), device))
        if not found:
            raise UsageError(f"{path} is in no snapshot; give the path that it had")
        for version in found:
            entry = version.entry
            if as_json:
                document({
                    **shown(os.path.join(version.last.path, version.path)),
                    "type": entry.kind if entry else None, "size": entry.size if entry else None,
                    "mtime_ns": entry.mtime if entry else None, "snapshot": version.last.hex,
                    "first_snapshot": version.first.hex, "time": iso_of(version.first.time_ms),
                    "deleted": entry is None and version.error is None,
                    "error": str(version.error) if version.error else None,
                })  # fmt: skip
            elif version.error is not None:
                click.echo(f"{time_of(version.first.time_ms)}  {version.first.hex[:12]}  unreadable: {version.error}")
            elif entry is None:
                click.echo(f"{time_of(version.first.time_ms)}  {version.first.hex[:12]}  gone")
            else:
                click.echo(
                    f"{time_of(version.first.time_ms)}  {version.first.hex[:12]}  {entry.size:>13}  "
                    f"modified {time_of(entry.mtime // 1_000_000)}" + ("  torn" if entry.flags & TORN else "")
                )


@click.command("restore")
@click.argument("paths", nargs=-1, required=True, metavar="PATH...")
@_AT
@_DEVICE
@click.option("--to", "target", metavar="DIR", help="Where to: as 'cp -a PATH DIR/' would.")
@click.option("--in-place", is_flag=True, help="Where it was.")
@click.option("--overwrite", type=click.Choice(["never", "if-changed", "always"]), default="never", show_default=True)
@_JSON
@click.option("-q", "--quiet", is_flag=True)
def restore_command(
    paths: tuple[str, ...], at: str, device: str | None, target: str | None, in_place: bool, overwrite: Any,
    as_json: bool, quiet: bool,
) -> None:  # fmt: skip
    """Brings files back as they were at a moment.

    \b
    contbak restore ~/Documents/thesis.odt --at yesterday --to /tmp
    contbak restore ~/Documents --in-place --overwrite if-changed
    """
    if (target is None) == (not in_place):
        raise UsageError("say where to: --to DIR, or --in-place")
    with vault_of(find_home()) as vault, progress(quiet or as_json) as line:
        _warn(vault)
        places = [place for path in paths for place in _locate(vault, path, at, device)]
        into = b"/" if target is None else os.path.abspath(os.fsencode(target))
        report = restore(vault.chunks, wanted(places, in_place), into, overwrite, _written_on(line))
    _conclude(report, as_json, quiet)


def restore_all(target: str) -> None:
    """The newest state of every source, each in a directory of its name."""
    with vault_of(find_home()) as vault, progress(False) as line:
        places = [Located(one, b"") for one in vault.history.choose(Latest(0))]
        into = os.path.abspath(os.fsencode(target))
        report = restore(vault.chunks, wanted(places), into, "never", _written_on(line))
    _conclude(report, False, False)


def _written_on(line: Line) -> Callable[[Report], None]:
    return lambda report: line.show(f"{report.restored} files, {size_of(report.written)} written")


def _conclude(report: Report, as_json: bool, quiet: bool) -> None:
    _show_report(report, as_json, quiet)
    if not report.complete:
        raise Partial("not everything was restored; what was kept, failed or damaged is named above")


def _show_report(report: Report, as_json: bool, quiet: bool) -> None:
    if as_json:
        document({
            "message_type": "summary", "restored": report.restored, "directories": report.directories,
            "others": report.others, "same": report.same, "bytes": report.written, "stopped": report.stopped,
            "kept": [shown(path) for path in report.kept],
            "failed": [{**shown(item.path), "reason": item.reason} for item in report.failed],
            "damaged": [{**shown(item.path), "lost": item.lost} for item in report.damaged],
            "notes": [{**shown(item.path), "reason": item.reason} for item in report.notes],
        })  # fmt: skip
        return
    _say_all(f"kept, it exists: {text_of(path)}" for path in report.kept)
    _say_all(f"not restored: {text_of(item.path)}: {item.reason}" for item in report.failed)
    _say_all(f"restored with holes: {text_of(item.path)}: lost {_ranges(item.lost)}" for item in report.damaged)
    _say_all(f"note: {text_of(item.path)}: {item.reason}" for item in report.notes)
    if report.stopped:
        say(f"stopped: {report.stopped}")
    if not quiet:
        click.echo(f"{report.restored} files, {report.directories} directories, {report.others} others restored, "
                   f"{report.same} were there already; {size_of(report.written)} written")  # fmt: skip


def _ranges(lost: tuple[tuple[int, int], ...]) -> str:
    shown_ = ", ".join(f"{length} bytes at {offset}" for offset, length in lost[:5])
    return shown_ + (f" and {len(lost) - 5} more ranges" if len(lost) > 5 else "")


def _say_all(lines: Iterable[str]) -> None:
    for number, text in enumerate(lines):
        if number == 20:
            say("... and more; --json has them all")
            return
        say(text)


@click.command("dump")
@click.argument("path")
@_AT
@_DEVICE
def dump_command(path: str, at: str, device: str | None) -> None:
    """Writes one file, as it was, to standard output."""
    with vault_of(find_home()) as vault:
        places = _locate(vault, path, at, device)
        if len(places) != 1:
            raise UsageError(f"{path} is not one file")
        dump(vault.chunks, vault.history.view(places[0].snapshot), places[0].path, sys.stdout.buffer)
        sys.stdout.buffer.flush()


class _Share(click.ParamType[float]):
    name = "N%"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        try:
            share = float(str(value).removesuffix("%")) / 100
        except ValueError:
            share = -1.0
        if not 0 <= share <= 1:
            self.fail("say a share like 5% or 100%", param, ctx)
        return share


@click.command("check")
@click.option("--read-data", type=_Share(), is_flag=False, flag_value="100%", default="0%",
              help="Read, decrypt and verify this share of the packs, too; alone: all.")  # fmt: skip
@_JSON
@click.option("-q", "--quiet", is_flag=True)
def check_command(read_data: float, as_json: bool, quiet: bool) -> None:
    """Verifies what is kept for this vault, end to end."""
    with vault_of(find_home()) as vault, progress(quiet or as_json) as line:
        report = check(
            vault.history, read_data, int.from_bytes(os.urandom(4), "little"),
            lambda r: line.show(f"{r.nodes} nodes, {r.chunks} chunks, {size_of(r.read_bytes)} read"),
        )  # fmt: skip
    _show_check(report, as_json, quiet)
    if report.problem_count:
        raise ContbakError(f"{report.problem_count} problems were found")


def _show_check(report: CheckReport, as_json: bool, quiet: bool) -> None:
    if as_json:
        click.echo(json.dumps({
            "message_type": "summary", "snapshots": report.snapshots, "nodes": report.nodes, "chunks": report.chunks,
            "packs": report.packs, "pack_bytes": report.pack_bytes, "packs_read": report.read_packs,
            "bytes_read": report.read_bytes, "seed": report.seed, "problems": report.problems,
        }))  # fmt: skip
        return
    _say_all(report.problems)
    if not quiet:
        click.echo(f"{report.snapshots} snapshots, {report.nodes} nodes, {report.chunks} references and "
                   f"{report.packs} packs ({size_of(report.pack_bytes)}) are "
                   f"{'sound' if not report.problem_count else 'NOT all sound'}; "
                   f"{report.read_packs} packs ({size_of(report.read_bytes)}) were read whole")  # fmt: skip


def _locate(vault: Vault, path: str, at: str, device: str | None) -> list[Located]:
    places = vault.history.locate(_absolute(path), moment(at), device)
    for snapshot in {place.snapshot.id: place.snapshot for place in places}.values():
        say(f"{snapshot.source_name} as of {time_of(snapshot.time_ms)} (snapshot {snapshot.hex[:12]})")
    return places


def _absolute(path: str) -> bytes:
    """As the history knows it: absolute, or SOURCE:path."""
    raw = os.fsencode(path)
    if b":" in raw.split(b"/", 1)[0] and not os.path.lexists(raw):
        return raw
    return os.path.abspath(raw)


def _warn(vault: Vault) -> None:
    for problem in vault.problems[:20]:
        say(f"contbak: {problem}")


