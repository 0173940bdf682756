"""Settings, sources and the paired relay: TOML files, checked strictly.

Precedence: option, environment (CONTBAK_<SETTING> in capitals), file, default.  An unknown key, a wrong type or a
bad value is a ConfigError that names it.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from contbak.app.home import Home
from contbak.core.errors import ConfigError, FormatError, UsageError
from contbak.core.excludes import Excludes
from contbak.core.invite import Address
from contbak.core.names import ID_LEN, SOURCE_ID_LEN, SourceId, from_hex
from contbak.store.posix import replace_file

PRIORITIES = ("high", "normal", "low")
T = TypeVar("T", bound=msgspec.Struct)


class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """contbak.toml.

    settle_s     seconds without an event after which a changed file is read (0 to 3600)
    max_wait_s   seconds after which a file that is written all the time is read anyway
    rescan_s     seconds between slow scans of everything
    workers      processes that read and seal; 0: one per core
    spool_mib    MiB of sealed packs that may wait for the relay
    nice         how far the workers step back for other programs (0 to 19)
    name         what this device is called; empty: the host's name
    """

    settle_s: float = 2.0
    max_wait_s: float = 30.0
    rescan_s: float = 3600.0
    workers: int = 0
    spool_mib: int = 10_240
    nice: int = 5
    name: str = ""


class Source(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """sources/NAME.toml: one protected directory.

    `id`: 16 hex digits that tell it apart in the history without naming it.  `path_b64` is not used in files that
    people write: `path` holds any path, bytes that are no UTF-8 written as \\xNN by surrogateescape.
    """

    id: str
    name: str
    path: str
    exclude: list[str] = []
    priority: str = "normal"

    @property
    def source_id(self) -> SourceId:
        return SourceId(from_hex(self.id, SOURCE_ID_LEN, "a source's id"))

    @property
    def top(self) -> bytes:
        """The absolute path as the file system knows it."""
        return _unescape(self.path)


class RelayFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """relay.toml: where the vault is kept.

    relay      hex of the relay's public key; empty if the place is a bare store directory
    embedded   the relay's process is ours, and it listens on a socket of ours
    directory  a bare store directory that the vault was recovered from; it can only be read
    read_only  this machine was set up by 'contbak recover' and has not been adopted as a writer
    """

    relay: str = ""
    embedded: bool = False
    directory: str = ""
    read_only: bool = False
    host: str = ""
    port: int = 0
    cert: str = ""
    socket: str = ""

    def address(self, home: Home) -> Address:
        """Where it is."""
        try:
            relay = from_hex(self.relay, ID_LEN, "relay")
            if self.embedded:
                return Address(relay, socket=str(home.relay_socket))
            if self.socket:
                return Address(relay, socket=self.socket)
            return Address(relay, self.host, self.port, from_hex(self.cert, ID_LEN, "cert"))
        except FormatError as error:
            raise ConfigError(f"{home.relay_file}: {error}") from None


def load_settings(home: Home) -> Settings:
    """The settings in force.  Raises ConfigError."""
    settings = _load(home.settings_file, Settings) if home.settings_file.exists() else Settings()
    changes: dict[str, Any] = {}
    for field in Settings.__struct_fields__:
        variable = f"CONTBAK_{field.upper()}"
        if variable in os.environ:
            kind = Settings.__annotations__[field]
            changes[field] = _converted(os.environ[variable], kind, variable)
    settings = msgspec.structs.replace(settings, **changes)
    _check(settings)
    return settings


def load_sources(home: Home) -> list[Source]:
    """The protected sources, the important ones first."""
    found = [_load(path, Source) for path in sorted(home.sources.glob("*.toml"))]
    for source in found:
        check_source(source)
    return sorted(found, key=lambda source: PRIORITIES.index(source.priority))


def save_source(home: Home, source: Source) -> None:
    """Writes sources/NAME.toml, durably."""
    check_source(source)
    replace_file(home.sources / f"{source.name}.toml", msgspec.toml.encode(source))


def remove_source(home: Home, name: str) -> None:
    """Ends the protection of a source; its history stays."""
    path = home.sources / f"{name}.toml"
    if not re.fullmatch(r"[\w.@-]+", name) or not path.exists():
        raise UsageError(f"there is no source called {name!r}; 'contbak sources' lists them")
    path.unlink()


def new_source(home: Home, path: str, name: str | None, exclude: list[str], priority: str) -> Source:
    """A source for `path` with a free name.  Raises UsageError."""
    top = os.path.realpath(os.path.expanduser(path))
    if not os.path.isdir(top):
        raise UsageError(f"{path} is not a directory; name one that exists")
    sources = load_sources(home)
    for other in sources:
        if other.top == os.fsencode(top):
            raise UsageError(f"{path} is protected already, as {other.name!r}")
    taken = {other.name for other in sources}
    if name is not None and name in taken:
        raise UsageError(f"there is a source called {name!r} already; choose another --name")
    wanted = name or re.sub(r"[^\w.@-]+", "-", os.path.basename(top)).strip("-.") or "source"
    free = wanted
    number = 2
    while free in taken:
        free, number = f"{wanted}-{number}", number + 1
    source = Source(os.urandom(SOURCE_ID_LEN).hex(), free, _escape(os.fsencode(top)), exclude, priority)
    check_source(source)
    return source


def check_source(source: Source) -> None:
    """Raises ConfigError for values that cannot be used."""
    if source.priority not in PRIORITIES:
        raise ConfigError(f"priority {source.priority!r} must be one of {', '.join(PRIORITIES)}")
    if not re.fullmatch(r"[\w@][\w.@-]*", source.name):
        raise ConfigError(f"a source cannot be called {source.name!r}; use letters, digits, and . @ - _")
    try:
        from_hex(source.id, SOURCE_ID_LEN, "id")
    except FormatError as error:
        raise ConfigError(f"source {source.name}: {error}") from None
    Excludes(source.exclude)


def load_relay(home: Home) -> RelayFile | None:
    """The paired relay, None if there is none yet."""
    return _load(home.relay_file, RelayFile) if home.relay_file.exists() else None


def save_relay(home: Home, relay: RelayFile) -> None:
    """Writes relay.toml, durably."""
    replace_file(home.relay_file, msgspec.toml.encode(relay))


def _load(path: Path, kind: type[T]) -> T:
    try:
        return msgspec.toml.decode(path.read_bytes(), type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, ValueError) as error:
        raise ConfigError(f"{path}: {error}; correct the file") from None
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from None


def _converted(text: str, kind: Any, variable: str) -> Any:
    try:
        return msgspec.convert(text, eval_kind(kind), strict=False)
    except msgspec.ValidationError:
        raise ConfigError(f"the environment variable {variable} must be a {eval_kind(kind).__name__}") from None


def eval_kind(kind: Any) -> Any:
    """The type that an annotation of Settings names."""
    return {"float": float, "int": int, "str": str}.get(kind, kind)


def _check(settings: Settings) -> None:
    ranges = {
        "settle_s": (0.0, 3600.0),
        "max_wait_s": (0.0, 86_400.0),
        "rescan_s": (1.0, 1e9),
        "workers": (0, 256),
        "spool_mib": (64, 1 << 30),
        "nice": (0, 19),
    }
    for field, (low, high) in ranges.items():
        if not low <= getattr(settings, field) <= high:
            raise ConfigError(f"{field} must be between {low} and {high}")


def _escape(path: bytes) -> str:
    return path.decode("utf-8", "backslashreplace") if b"\\" not in path else _all_escaped(path)


def _all_escaped(path: bytes) -> str:
    return path.replace(b"\\", b"\\x5c").decode("utf-8", "backslashreplace")


def _unescape(text: str) -> bytes:
    return re.sub(rb"\\x([0-9a-f]{2})", lambda m: bytes.fromhex(m[1].decode()), text.encode())
