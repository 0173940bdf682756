"""The directories in which a relay keeps packs and commits.

    STORE/contbak-store                      says that this is a store
    STORE/<vault>/vault                      the vault's public keys
    STORE/<vault>/packs/<aa>/<root>          a pack
    STORE/<vault>/commits/<device>/<sequence>-<commit>
    STORE/<vault>/order/<position>           which commit was accepted when
    STORE/incoming/<vault>-<root>.part       a pack that is arriving, and .plan beside it

Rules: a directory without its marker is never written to (its disk may not be mounted) and the others go on
without it.  New objects go where there is most space.  An object is looked for everywhere, so a store may be moved.
Does not know what the bytes mean.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from contbak.core.errors import AlreadyExists, NotFound, Refused, StoreError, StoreFull
from contbak.core.names import VAULT_ID_LEN, PackId, VaultId
from contbak.store.posix import PosixStore, replace_file, translated

MARKER = "contbak-store"
_MARKER_TEXT = b"contbak store 1\n"
_VAULT_LEN = 2 * VAULT_ID_LEN


def pack_name(vault: VaultId, root: PackId) -> str:
    """The name of a pack in a store."""
    text = root.hex()
    return f"{vault.hex()}/packs/{text[:2]}/{text}"


def create(directory: Path) -> None:
    """Makes `directory` a store; does nothing if it is one.  Raises Refused if it holds other things."""
    try:
        directory.mkdir(0o700, parents=True, exist_ok=True)
        if _is_store(directory):
            return
        others = [path.name for path in directory.iterdir() if path.name != "lost+found"]
    except OSError as error:
        raise translated(error, str(directory)) from error
    if others:
        raise Refused(f"{directory} is not empty; give the store a directory of its own")
    replace_file(directory / MARKER, _MARKER_TEXT)


def _is_store(directory: Path) -> bool:
    try:
        return (directory / MARKER).read_bytes() == _MARKER_TEXT
    except (FileNotFoundError, NotADirectoryError):
        return False


@dataclass(frozen=True, slots=True)
class Space:
    """What is said of one store: where it is, bytes free and in all, why it is not in use ("" if it is)."""

    path: str
    free: int | None
    problem: str


class Stores:
    """All stores of a relay; all methods may be called from any thread."""

    def __init__(self, directories: tuple[str, ...], reserve: int) -> None:
        self._reserve = reserve
        self._directories = directories
        self._open: dict[str, PosixStore] = {}
        self.reload(directories)

    def reload(self, directories: tuple[str, ...]) -> None:
        """Opens those that are there; forgets none that is open."""
        opened = dict(self._open)
        for directory in directories:
            if directory not in opened and _is_store(Path(directory)):
                opened[directory] = PosixStore(Path(directory))
        self._directories = directories
        self._open = opened

    def all(self) -> list[PosixStore]:
        """Those that are in use."""
        return list(self._open.values())

    def roomy(self, size: int) -> list[PosixStore]:
        """The stores that have room for `size` bytes, most free space first.  Raises StoreFull if there are none."""
        found = []
        for store in self.all():
            if not _is_store(store.root):
                continue
            free = store.free()
            if free is None or free - size >= self._reserve:
                found.append((-(free or 0), str(store.root), store))
        if not found:
            raise StoreFull("no store of this relay has room")
        return [store for _, _, store in sorted(found, key=lambda row: row[:2])]

    def put_new(self, name: str, data: bytes) -> None:
        """Keeps a small object in the store with most space; AlreadyExists if any store has it."""
        if self.find(name) is not None:
            raise AlreadyExists(f"{name} is already there")
        for store in self.roomy(len(data)):
            try:
                store.put_new(name, data)
                return
            except StoreFull:
                continue
        raise StoreFull("no store of this relay has room")

    def find(self, name: str) -> PosixStore | None:
        """The store that has the object."""
        for store in self.all():
            try:
                store.size(name)
                return store
            except (NotFound, StoreError):
                continue
        return None

    def path_of(self, name: str) -> Path:
        """Where the object is.  Raises NotFound."""
        store = self.find(name)
        if store is None:
            raise NotFound(f"there is no {name}")
        return store.path_of(name)

    def get(self, name: str) -> bytes:
        """The object.  Raises NotFound."""
        store = self.find(name)
        if store is None:
            raise NotFound(f"there is no {name}")
        return store.get(name)

    def objects(self, prefix: str) -> Iterator[tuple[str, int, PosixStore]]:
        """(name, bytes, store) of every object below `prefix`, store by store."""
        for store in self.all():
            for name, size in store.list(prefix):
                yield name, size, store

    def vaults(self) -> set[VaultId]:
        """Every vault of which some store has a folder."""
        found = set()
        for store in self.all():
            for path in store.root.iterdir():
                if len(path.name) == _VAULT_LEN and path.is_dir():
                    try:
                        found.add(VaultId(bytes.fromhex(path.name)))
                    except ValueError:
                        continue
        return found

    def complete(self) -> bool:
        """Whether all of them are there."""
        return not any(space.problem for space in self.spaces())

    def spaces(self) -> list[Space]:
        """What there is to say of each directory."""
        found = []
        for directory in self._directories:
            store = self._open.get(directory)
            if store is None or not _is_store(Path(directory)):
                found.append(Space(directory, None, f"{MARKER} is not there; is the disk mounted?"))
            else:
                found.append(Space(directory, store.free(), ""))
        return found
