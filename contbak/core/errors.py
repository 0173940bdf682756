"""Every way in which contbak says no.

    ContbakError                 exit 1
    ├── UsageError               exit 2   the command or its options are wrong
    │   └── ConfigError          exit 2   a configuration file or the environment is wrong
    ├── NotInitialised           exit 10  there is no vault here yet
    ├── Unreachable              exit 11  relay or store out of reach; retry
    ├── WrongKey                 exit 12  key, recovery code or passphrase does not fit
    ├── Refused                  exit 13  refused for safety; the message names the option that allows it
    ├── Partial                  exit 3   done, but for what is named
    ├── FormatError              exit 1   stored bytes are damaged or not ours
    ├── PeerError                exit 1   the other side broke the protocol
    ├── SourceError              exit 3   one file of a source could not be read
    │   ├── Vanished                      it is not there any more
    │   └── Unsettled                     it kept changing while it was read
    └── StoreError               exit 1   a store could not do what was asked
        ├── NotFound                      no such object
        ├── AlreadyExists                 an object of that name is there
        └── StoreFull                     no space, or over quota; retry

The message of each is one sentence for a person: what is wrong and what to do.
`retry` says whether the same call may succeed later; loops read that and nothing else.
"""

from __future__ import annotations


class ContbakError(Exception):
    """Base of everything that contbak raises on purpose."""

    exit_code = 1
    retry = False


class UsageError(ContbakError):
    """The command line or a value in it cannot be used."""

    exit_code = 2


class ConfigError(UsageError):
    """A configuration file or an environment variable cannot be used."""


class NotInitialised(ContbakError):
    """There is no vault on this machine yet."""

    exit_code = 10


class Unreachable(ContbakError):
    """The relay or the store cannot be reached at the moment."""

    exit_code = 11
    retry = True


class WrongKey(ContbakError):
    """A key, recovery code or passphrase does not open this vault."""

    exit_code = 12


class Refused(ContbakError):
    """Possible, but refused for safety."""

    exit_code = 13


class Partial(ContbakError):
    """Done but for some named items."""

    exit_code = 3


class FormatError(ContbakError):
    """Bytes at rest or from the network are damaged, cut short or not ours."""


class PeerError(ContbakError):
    """The other side broke the protocol."""


class SourceError(ContbakError):
    """One path of a source could not be read.  Attributes: path (raw bytes), reason (text)."""

    exit_code = 3
    retry = True

    def __init__(self, path: bytes, reason: str) -> None:
        super().__init__(path, reason)  # both, or it could not be pickled
        self.path = path
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.path.decode('utf-8', 'backslashreplace')}: {self.reason}"


class Vanished(SourceError):
    """The path was there a moment ago and is not any more."""


class Unsettled(SourceError):
    """The file changed each time it was read."""


class StoreError(ContbakError):
    """A store could not do what was asked."""


class NotFound(StoreError):
    """No object of that name."""


class AlreadyExists(StoreError):
    """An object of that name is already there; objects are never overwritten."""


class StoreFull(StoreError):
    """No space left, or the quota is used up."""

    retry = True
