"""The relay's places and settings: RELAY_HOME/config.toml.

Rules: an unknown key or a wrong type is a ConfigError that names it; a value that is not there has a default.
Keys, devices and invites are not settings: they are in the registry and the identity.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path

import msgspec
import platformdirs

from contbak.core.errors import ConfigError, NotInitialised
from contbak.core.invite import PORT
from contbak.store.posix import replace_file

HOME_VARIABLE = "CONTBAK_RELAY_HOME"


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All settings.  Addresses are HOST:PORT, sizes bytes, ages days."""

    stores: tuple[str, ...] = ()
    """Directories in which packs and commits are kept."""
    listen: str = ""
    """Where to serve TLS, e.g. "0.0.0.0:7443"; empty: nowhere."""
    socket: str = ""
    """A unix socket to serve on, for this user only; empty: none."""
    host: str = ""
    """The name or address that invites tell; empty: this machine's name."""
    invite_days: float = 7.0
    """How long an invite is good."""
    reserve_bytes: int = 256 << 20
    """Space that is left free in every store."""


def home(environment: Mapping[str, str] = os.environ) -> Path:
    """Where everything of this relay is."""
    named = environment.get(HOME_VARIABLE)
    if named is not None and not Path(named).is_absolute():
        raise ConfigError(f"{HOME_VARIABLE} must be an absolute path, not {named!r}")
    return Path(named) if named else platformdirs.user_data_path("contbak-relay")


def load(top: Path) -> Config:
    """The settings of the relay at `top`.  Raises NotInitialised if there is none, ConfigError."""
    path = top / "config.toml"
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        raise NotInitialised(f"there is no relay at {top}; make one with 'contbak-relay init'") from None
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
    return parse(raw, str(path))


def parse(raw: bytes, what: str) -> Config:
    """The settings that a TOML text spells.  Raises ConfigError that names `what` and the key."""
    try:
        config = msgspec.toml.decode(raw, type=Config)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise ConfigError(f"{what}: {error}") from None
    for store in config.stores:
        if not Path(store).is_absolute():
            raise ConfigError(f"{what}: stores: {store!r} must be an absolute path")
    if config.socket and not Path(config.socket).is_absolute():
        raise ConfigError(f"{what}: socket: {config.socket!r} must be an absolute path")
    if config.listen:
        split_address(config.listen, f"{what}: listen")
    if config.invite_days <= 0 or config.reserve_bytes < 0:
        raise ConfigError(f"{what}: invite_days and reserve_bytes must not be negative")
    return config


def save(top: Path, config: Config) -> None:
    """Writes the settings for the first time."""
    lines = ["# Settings of this relay.  Restart it after a change."]
    for key, value in msgspec.structs.asdict(config).items():
        lines.append(f"{key} = {json.dumps(value, ensure_ascii=False)}")
    replace_file(top / "config.toml", ("\n".join(lines) + "\n").encode())


def add_store(top: Path, directory: Path) -> Config:
    """Adds a store to the file and leaves the rest of its text as it is."""
    config = load(top)
    stores = (*config.stores, str(directory))
    path = top / "config.toml"
    text = path.read_text(encoding="utf-8")
    line = f"stores = {json.dumps(stores, ensure_ascii=False)}"
    text, found = re.subn(r"(?ms)^[ \t]*stores[ \t]*=[ \t]*\[.*?\]", lambda _: line, text, count=1)
    if not found:
        text = f"{line}\n{text}"
    changed = parse(text.encode(), str(path))
    if changed != msgspec.structs.replace(config, stores=stores):
        raise ConfigError(f"{path}: add the store to its 'stores' by hand")
    replace_file(path, text.encode())
    return changed


def split_address(text: str, what: str) -> tuple[str, int]:
    """(host, port) of HOST:PORT, [HOST]:PORT or HOST; the port defaults to 7443.  Raises ConfigError."""
    match = re.fullmatch(r"(?:\[(?P<six>[0-9a-fA-F:.%]+)\]|(?P<host>[^:\s\[\]/]*))(?::(?P<port>[0-9]{1,5}))?", text)
    if match is None or int(match["port"] or PORT) > 65535:
        raise ConfigError(f"{what}: {text!r} is no HOST:PORT")
    return match["six"] or match["host"] or "", int(match["port"] or PORT)
