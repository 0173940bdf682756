"""The history of a vault: its commits as snapshots, verified and in order; what a user's words for them mean.

Rules: only records count that carry a right signature and whose sealed details open with the vault's keys: the
relay can make neither.  A chain with a gap or a fork, a number that falls, and a commit that another device has
seen and that is not here are problems, each told in a sentence; what is there stays usable.

Time: a snapshot's time is the device's clock, but not later than the moment the relay received it.  Order: by
time, and never against a device's own chain, so a clock that was set back does not shuffle its history.

Paths: a user names a file by its absolute path on the device it comes from, or as SOURCE:path.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from contbak.core import commit
from contbak.core.commit import Details, Signed
from contbak.core.errors import FormatError, NotFound, UsageError, WrongKey
from contbak.core.messages import DeviceInfo, Listed
from contbak.core.names import CommitId, DeviceId, SourceId
from contbak.core.timespec import Latest, Moment, Prefix, When
from contbak.core.tree import Lost
from contbak.core.view import View
from contbak.recall.chains import Link, in_order, problems_of
from contbak.recall.chunks import Chunks
from contbak.recall.place import Place

_MS = 1_000_000
_LIST = 8
"""How many names an error message lists at most."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One commit as the user sees it.

    time_ms, received_ms   since 1970; received_ms is 0 if that is not known
    level                  1: durable at the relay, 2: with a target
    path                   where the source lies on the device, raw
    files, size            regular files in it, and the bytes of their content
    entries                names of any kind
    new, changed, gone     entries that this commit added, replaced, removed
    parent                 id of the same source's snapshot before, None for its first
    roots                  for View: the base (or None), then the runs, oldest first
    """

    id: CommitId
    time_ms: int
    received_ms: int
    position: int
    level: int
    device: DeviceId
    device_name: str
    source: SourceId
    source_name: str
    path: bytes
    files: int
    entries: int
    size: int
    new: int
    changed: int
    gone: int
    complete: bool
    parent: CommitId | None
    roots: tuple[bytes | None, ...]

    @property
    def hex(self) -> str:
        """The id as the user types it."""
        return self.id.hex()


class Located(NamedTuple):
    """A path of a user in one snapshot: `path` is relative to the source's top, b"" the top itself."""

    snapshot: Snapshot
    path: bytes

    @property
    def absolute(self) -> bytes:
        """The path on the device."""
        return b"/".join(part for part in (self.snapshot.path.rstrip(b"/"), self.path) if part) or b"/"


class History:
    """All snapshots of the vault at `place`, which `chunks` reads, oldest first.  Reads all records when it is made.

    snapshots   oldest first
    problems    what is wrong with the history, one sentence each

    Raises Unreachable, and WrongKey if the place keeps another vault than the keys open.
    """

    def __init__(self, place: Place, chunks: Chunks) -> None:
        self.place = place
        self.chunks = chunks
        self.problems: list[str] = []
        vault = chunks.opener.writer.vault
        info = place.vault()
        if info.vault != vault:
            raise WrongKey(f"{place.label} holds another vault than this key opens")
        self.devices: dict[bytes, DeviceInfo] = {device.device: device for device in info.devices}
        links = [link for listed in place.commits() if (link := self._checked(listed)) is not None]
        self.problems += problems_of(links)
        self.snapshots = self._made(in_order(links))

    # -- choosing -----------------------------------------------------------------------------------------------

    def sources(self) -> list[Snapshot]:
        """The newest snapshot of every source, by device and name."""
        newest = {(one.device, one.source): one for one in self.snapshots}
        return sorted(newest.values(), key=lambda one: (one.device_name, one.source_name, one.source))

    def of_source(self, one: Snapshot) -> list[Snapshot]:
        """All snapshots of the source of `one`, oldest first."""
        return [other for other in self.snapshots if (other.device, other.source) == (one.device, one.source)]

    def choose(self, when: When, source: str | None = None, device: str | None = None) -> list[Snapshot]:
        """For each source the snapshot that `when` means; an id means one snapshot.

        source   name of a source, or its id in hex; device: name or the begin of the id in hex
        Raises NotFound if there is none, UsageError for an id or name that fits several or nothing.
        """
        among = self._among(source, device)
        if isinstance(when, Prefix):
            return [self._by_prefix(when.hex, among)]
        groups: dict[tuple[bytes, bytes], list[Snapshot]] = {}
        for one in among:
            groups.setdefault((one.device, one.source), []).append(one)
        found = [meant for group in groups.values() if (meant := _chosen(group, when)) is not None]
        if not found:
            raise NotFound(_none_of(when))
        return sorted(found, key=lambda one: (one.device_name, one.source_name, one.source))

    def locate(self, path: bytes, when: When, device: str | None = None) -> list[Located]:
        """Where `path`, as a user gives it, is at that moment: its one place, or the tops of all sources below it.

        Of sources within each other the innermost that has the path is meant.  `device` (name or id) says whose
        path it is; without it, a path that several devices have is a UsageError that names them.
        Raises NotFound if it is nowhere, and for a source whose tree is damaged on the way FormatError.
        """
        found, damage = [], None
        inner = sorted(self.candidates(path, self._scope(path, when, device)), key=lambda at: -len(at.snapshot.path))
        for at in inner:
            try:
                if self.view(at.snapshot).resolve(at.path) is not None:
                    found.append(at)
            except (FormatError, NotFound) as error:
                damage = error
        if not found:
            raise damage or NotFound(f"{_shown(path)} was not there at that moment; try 'versions' or 'find'")
        names = sorted({at.snapshot.device_name for at in found})
        if len({at.snapshot.device for at in found}) > 1:
            raise UsageError(f"{_shown(path)} is on several devices ({', '.join(names[:_LIST])}); say which one")
        within = [at for at in found if at.path]
        return within[:1] or found

    def candidates(self, path: bytes, among: Iterable[Snapshot]) -> list[Located]:
        """`path` relative to each of `among` that it can be in; sources that lie below it with b"".

        Does not look whether it is there.
        """
        name, colon, rest = path.partition(b":")
        if colon and not path.startswith(b"/"):
            text = name.decode("utf-8", "surrogateescape")
            return [Located(one, _clean(rest)) for one in among if text in (one.source_name, one.source.hex())]
        if not path.startswith(b"/"):
            raise UsageError(f"{_shown(path)} must be an absolute path or SOURCE:path")
        wanted = b"/" + _clean(path)
        out = []
        for one in among:
            top = b"/" + _clean(one.path)
            below = top.rstrip(b"/") + b"/"
            if wanted == top or wanted.startswith(below):
                out.append(Located(one, wanted[len(below) :]))
            elif top.startswith(wanted.rstrip(b"/") + b"/"):
                out.append(Located(one, b""))
        return out

    # -- reading ------------------------------------------------------------------------------------------------

    def view(self, snapshot: Snapshot, lost: Lost | None = None) -> View:
        """The tree of a snapshot; with `lost` it is read past damage, which `lost` is told of."""
        return View(snapshot.roots, self.chunks.node, lost)

    # -- inside -------------------------------------------------------------------------------------------------

    def _checked(self, listed: Listed) -> Link | None:
        """The record with its details, or None and a problem."""
        try:
            one = commit.decode(listed.record)
        except FormatError as error:
            self.problems.append(f"commit number {listed.position} of the relay was left out: {error}")
            return None
        opener = self.chunks.opener
        if one.commit.vault != opener.writer.vault:
            self.problems.append(f"commit {one.id.hex()} belongs to another vault and was left out")
            return None
        try:
            commit.check_vouched(one, opener.writer.admin_public)
            return Link(one, commit.open_details(one.commit.sealed, opener), listed)
        except FormatError:
            self.problems.append(f"commit {one.id.hex()} was not made with the keys of this vault and was left out")
            return None

    def _made(self, links: Sequence[Link]) -> list[Snapshot]:
        parents: dict[tuple[bytes, bytes], CommitId] = {}
        out = []
        for link in links:
            key = (link.signed.device, link.signed.source)
            name = self._device_name(link.signed, link.details)
            out.append(_snapshot(link, name, parents.get(key)))
            parents[key] = link.signed.id
        return out

    def _device_name(self, signed: Signed, details: Details) -> str:
        known = self.devices.get(signed.device)
        return known.name if known is not None and known.name else details.host

    def _among(self, source: str | None, device: str | None) -> list[Snapshot]:
        among = self.snapshots
        if device is not None:
            among = _named(among, device, lambda one: (one.device_name, one.device.hex()), "device")
        if source is not None:
            among = _named(among, source, lambda one: (one.source_name, one.source.hex()), "source")
        return among

    def _scope(self, path: bytes, when: When, device: str | None) -> list[Snapshot]:
        """The snapshots that a path is looked for in."""
        if isinstance(when, Prefix):
            return self.choose(when)
        name, colon, _ = path.partition(b":")
        if colon and not path.startswith(b"/"):
            return self.choose(when, name.decode("utf-8", "surrogateescape"), device)
        return self.choose(when, None, device)

    def _by_prefix(self, hex_: str, among: Sequence[Snapshot]) -> Snapshot:
        found = [one for one in among if one.hex.startswith(hex_)]
        if not found:
            raise NotFound(f"no snapshot has an id that begins with {hex_}")
        if len(found) > 1:
            ids = ", ".join(one.hex[: len(hex_) + 4] for one in found[:_LIST])
            raise UsageError(f"{len(found)} snapshots begin with {hex_}: {ids}; give more digits")
        return found[0]


def _snapshot(link: Link, device_name: str, parent: CommitId | None) -> Snapshot:
    signed, details, listed = link
    record = signed.commit
    return Snapshot(
        signed.id, link.time_ms, listed.received_ms, listed.position, listed.level, signed.device, device_name,
        signed.source, details.source_name, details.path, details.files, details.entries, details.size,
        details.new, details.changed, details.gone, details.complete, parent, (record.base, *record.runs),
    )  # fmt: skip


def _chosen(group: Sequence[Snapshot], when: When) -> Snapshot | None:
    """The one of a source's snapshots, oldest first, that `when` means."""
    if isinstance(when, Latest):
        return group[-1 - when.back] if when.back < len(group) else None
    assert isinstance(when, Moment)
    return next((one for one in reversed(group) if one.time_ms * _MS <= when.ns), None)


def _none_of(when: When) -> str:
    if isinstance(when, Latest) and when.back == 0:
        return "there are no snapshots yet"
    return "there is no snapshot as old as that; 'snapshots' lists all"


def _named(
    among: Sequence[Snapshot], text: str, names: Callable[[Snapshot], tuple[str, str]], what: str
) -> list[Snapshot]:
    """Those of a name, or else those whose id in hex begins with `text` (8 digits or more)."""
    found = [one for one in among if names(one)[0] == text]
    if not found and len(text) >= 8:
        found = [one for one in among if names(one)[1].startswith(text.lower())]
    if not found:
        known = sorted({names(one)[0] for one in among})
        raise UsageError(f"there is no {what} {text!r}; there are: {', '.join(known[:_LIST]) or 'none'}")
    return found


def _clean(path: bytes) -> bytes:
    """The path without a leading slash, `.`, `..` and slashes too many; symlinks are not looked at."""
    out: list[bytes] = []
    for part in path.split(b"/"):
        if part == b"..":
            del out[-1:]
        elif part not in (b"", b"."):
            out.append(part)
    return b"/".join(out)


def _shown(path: bytes) -> str:
    return path.decode("utf-8", "backslashreplace")
