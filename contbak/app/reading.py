"""Opens the vault of this machine for reading, wherever it is kept."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from contbak.app import keyfile
from contbak.app.config import load_relay
from contbak.app.home import Home
from contbak.app.secrets import owner_keys
from contbak.app.serving import serving
from contbak.core.errors import NotInitialised
from contbak.core.timespec import When, parse
from contbak.recall.opening import Vault, open_directory, open_relay, open_vault


@contextmanager
def vault_of(home: Home) -> Iterator[Vault]:
    """The open vault.  Raises NotInitialised, Refused (write-only device), WrongKey, Unreachable."""
    keys = keyfile.load(home.keys)
    owner = owner_keys(keys)
    relay = load_relay(home)
    if relay is None:
        raise NotInitialised("there is no vault here yet; start with 'contbak init' or 'contbak up DIR'")
    if relay.directory:
        with open_vault(open_directory(Path(relay.directory), owner), owner) as vault:
            yield vault
    elif relay.embedded:
        with serving(home), open_vault(open_relay(relay.address(home), owner, keys.device_seed), owner) as vault:
            yield vault
    else:
        with open_vault(open_relay(relay.address(home), owner, keys.device_seed), owner) as vault:
            yield vault


def moment(text: str) -> When:
    """What `--at TEXT` means, by this machine's clock and zone.  Raises UsageError."""
    zone = datetime.now().astimezone().tzinfo
    assert zone is not None
    return parse(text, time.time_ns(), zone)
