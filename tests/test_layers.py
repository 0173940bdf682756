"""The architecture as a test: who may import whom, what core may not touch, and which package has which door.

The rules are about rooms, so a new module needs no line here.  Each rule is a function from the modules of a
tree to its violations; the second half plants every kind of violation in a small tree and sees it caught.
"""

import ast
import sys
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parent.parent

MAY_IMPORT = {
    "contbak.core": set(),
    "contbak.store": {"contbak.core"},
    "contbak.capture": {"contbak.core", "contbak.store"},
    "contbak.upload": {"contbak.core", "contbak.store"},
    "contbak.recall": {"contbak.core", "contbak.store"},
    "contbak.app": {"contbak.core", "contbak.store", "contbak.capture", "contbak.upload", "contbak.recall"},
    "contbak": {"contbak.app"},  # contbak/__main__.py
    "relay": {"contbak.core", "contbak.store"},
}
"""Room to the rooms below it.  Every room may import itself, without cycles."""

CLI = ["contbak.app.cli", "contbak.app.cli[._]*", "relay.cli", "relay.cli[._]*"]
DOORS = {
    "aiohttp": ["contbak.app.control", "relay.web"],
    "blake3": ["contbak.core.crypto"],
    "click": CLI,
    "cryptography": ["relay.identity"],
    "fastcdc": ["contbak.core.chunker"],
    "lmdb": ["contbak.store.kv", "contbak.store.kvrows"],
    "msgspec": ["contbak.core.codec", "contbak.app.config", "relay.config"],
    "nacl": ["contbak.core.crypto"],
    "platformdirs": ["contbak.app.config", "contbak.app.home", "relay.config", "relay.home"],
    "rich": CLI,
    "segno": ["contbak.app.sheet"],
    "tenacity": ["contbak.upload.uplink", "relay.forward"],
    "watchdog": ["contbak.capture.watcher"],
    "zstandard": ["contbak.core.compress"],
}
"""Third-party package to the only modules that may import it.  A package without a door may not be imported."""

# fmt: off
IMPURE = {
    "_thread", "asyncio", "concurrent", "contextvars", "ctypes", "fcntl", "fileinput", "getpass", "glob", "http",
    "io", "locale", "logging", "mmap", "multiprocessing", "os", "pathlib", "platform", "queue", "random",
    "resource", "sched", "secrets", "select", "selectors", "shelve", "shutil", "signal", "socket", "socketserver",
    "sqlite3", "ssl", "subprocess", "tempfile", "threading", "time", "urllib", "uuid",
}
# fmt: on
PURE = {"urllib.parse"}
IMPURE_CALLS = {"open", "print", "input", "breakpoint", "exec", "eval"}
CLOCK_CALLS = {"now", "utcnow", "today"}
NO_NAMES = {"utils", "util", "helpers", "helper", "manager", "managers", "common", "misc"}


class Module(NamedTuple):
    name: str  # contbak.core.pack; a package is its __init__
    is_init: bool
    tree: ast.Module

    @property
    def room(self) -> str:
        parts = self.name.split(".")
        if parts[0] == "relay":
            return "relay"
        return ".".join(parts[:2]) if len(parts) > 2 or self.is_init else "contbak"


class Arrow(NamedTuple):
    module: Module
    target: str  # a module of ours, or what a foreign import names
    node: ast.stmt

    def __str__(self) -> str:
        return f"{self.module.name}:{self.node.lineno} -> {self.target}"


def modules(root: Path) -> list[Module]:
    found = []
    for top in ("contbak", "relay"):
        for path in sorted((root / top).rglob("*.py")):
            name = ".".join(path.relative_to(root).with_suffix("").parts)
            found.append(
                Module(name.removesuffix(".__init__"), path.name == "__init__.py", ast.parse(path.read_bytes()))
            )
    return found


def arrows(mods: list[Module]) -> list[Arrow]:
    """Every import, also those inside functions."""
    names = {module.name for module in mods}
    found = []
    for module in mods:
        for node in ast.walk(module.tree):
            if isinstance(node, ast.Import):
                found += [Arrow(module, alias.name, node) for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                for alias in node.names:
                    full = f"{node.module}.{alias.name}"
                    found.append(Arrow(module, full if full in names else str(node.module), node))
    return found


def is_ours(target: str) -> bool:
    return target.split(".")[0] in ("contbak", "relay")


def room_of(target: str, mods: list[Module]) -> str:
    rooms = {module.name: module.room for module in mods}
    return rooms.get(target, target)


# --- the rules ------------------------------------------------------------------------------------------------


def imports_point_down(mods: list[Module]) -> Iterator[str]:
    for arrow in arrows(mods):
        if is_ours(arrow.target):
            here, there = arrow.module.room, room_of(arrow.target, mods)
            if there != here and there not in MAY_IMPORT.get(here, set()):
                yield f"{arrow}: {here} may not import {there}"


def every_module_has_a_room(mods: list[Module]) -> Iterator[str]:
    for module in mods:
        if module.room not in MAY_IMPORT:
            yield f"{module.name}: there is no room {module.room}"
        elif module.room == "contbak" and module.name not in ("contbak", "contbak.__main__"):
            yield f"{module.name}: belongs into a room"


def each_package_has_its_door(mods: list[Module]) -> Iterator[str]:
    for arrow in arrows(mods):
        package = arrow.target.split(".")[0]
        if is_ours(arrow.target) or package in sys.stdlib_module_names:
            continue
        if not any(fnmatchcase(arrow.module.name, door) for door in DOORS.get(package, [])):
            yield f"{arrow}: the door of {package} is {DOORS.get(package, 'nowhere')}"


def core_is_pure(mods: list[Module]) -> Iterator[str]:
    core = [module for module in mods if module.room == "contbak.core"]
    for arrow in arrows(core):
        if arrow.target.split(".")[0] in IMPURE and arrow.target not in PURE:
            yield f"{arrow}: core touches nothing but its arguments"
    for module in core:
        for node in ast.walk(module.tree):
            where = f"{module.name}:{getattr(node, 'lineno', 0)}"
            if isinstance(node, ast.AsyncFunctionDef | ast.Await | ast.AsyncFor | ast.AsyncWith):
                yield f"{where}: core is synchronous"
            elif isinstance(node, ast.Call):
                call = ast.unparse(node.func)
                owner, _, name = call.rpartition(".")
                if call in IMPURE_CALLS or (owner.split(".")[-1] in ("datetime", "date") and name in CLOCK_CALLS):
                    yield f"{where}: core does not call {call}()"


COMMAND_ROOTS = ("contbak.app.cli", "relay.cli")
"""They load a command's module when it is asked for, so that quick commands start quickly; nothing imports them."""


def imports_stand_at_the_top(mods: list[Module]) -> Iterator[str]:
    for module in mods:
        for outer in ast.walk(module.tree):
            if not isinstance(outer, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Lambda):
                continue
            for node in ast.walk(outer):
                if isinstance(node, ast.Import | ast.ImportFrom):
                    yield f"{module.name}:{node.lineno}: an import inside a function or class hides an arrow"
        if module.name in COMMAND_ROOTS:
            continue
        for node in ast.walk(module.tree):
            if isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in ("import_module", "__import__"):
                yield f"{module.name}:{node.lineno}: {ast.unparse(node.func)}() hides an arrow"


def imports_are_absolute_and_named(mods: list[Module]) -> Iterator[str]:
    for module in mods:
        for node in ast.walk(module.tree):
            if isinstance(node, ast.ImportFrom) and node.level:
                yield f"{module.name}:{node.lineno}: write an absolute import"
            if isinstance(node, ast.ImportFrom) and any(alias.name == "*" for alias in node.names):
                yield f"{module.name}:{node.lineno}: import * hides what is used"


def inits_are_empty(mods: list[Module]) -> Iterator[str]:
    return (f"{module.name}/__init__.py is not empty" for module in mods if module.is_init and module.tree.body)


def names_say_something(mods: list[Module]) -> Iterator[str]:
    return (f"{module.name}: says nothing" for module in mods if NO_NAMES & set(module.name.split(".")))


def no_cycles(mods: list[Module]) -> Iterator[str]:
    names = {module.name for module in mods}
    below: dict[str, set[str]] = {name: set() for name in names}
    for arrow in arrows(mods):
        if arrow.target in names:
            below[arrow.module.name].add(arrow.target)
    while leaves := {name for name, targets in below.items() if not targets}:
        below = {name: targets - leaves for name, targets in below.items() if name not in leaves}
    if below:  # what is left is a cycle or stands above one; walk down until a name comes again
        path = [min(below)]
        while path.count(path[-1]) == 1:
            path.append(min(below[path[-1]]))
        yield " -> ".join(path[path.index(path[-1]) :])


RULES = [
    imports_point_down,
    every_module_has_a_room,
    each_package_has_its_door,
    core_is_pure,
    imports_stand_at_the_top,
    imports_are_absolute_and_named,
    inits_are_empty,
    names_say_something,
    no_cycles,
]


@pytest.mark.parametrize("rule", RULES)
def test_rule(rule):
    assert list(rule(modules(ROOT))) == []


def test_the_rules_see_the_code():
    mods = modules(ROOT)
    assert len([module for module in mods if module.room == "contbak.core"]) > 5
    assert any(is_ours(arrow.target) for arrow in arrows(mods))


# --- the rules are tested: a sound skeleton passes, every planted violation is caught by its rule ---------------

SOUND = {
    "contbak/__main__.py": "from contbak.app.cli import main\n\nmain()\n",
    "contbak/core/codec.py": "import hashlib\nimport msgspec\nimport urllib.parse\nfrom contbak.core import errors\n",
    "contbak/core/errors.py": "class Oops(Exception):\n    pass\n",
    "contbak/core/crypto.py": "import blake3\nfrom nacl import bindings\nfrom datetime import datetime\n",
    "contbak/store/kv.py": "import os\nimport lmdb\nfrom contbak.core import codec\n",
    "contbak/capture/watcher.py": "import watchdog.events\nfrom contbak.store.kv import open_kv\n",
    "contbak/upload/line.py": "import http.client\n",
    "contbak/upload/uplink.py": "import tenacity\nfrom contbak.store import kv\nfrom contbak.upload import line\n",
    "contbak/recall/find.py": "from contbak.core.codec import decode\n",
    "contbak/app/cli.py": "import click\nfrom contbak.app.daemon import run\nfrom contbak.recall.find import find\n",
    "contbak/app/cli_show.py": "import rich.table\n",
    "contbak/app/daemon.py": "import asyncio\nfrom contbak.upload import uplink\nfrom contbak.capture import watcher\n",
    "relay/intake.py": "from contbak.store.kv import x\nfrom relay.stores import y\n",
    "relay/web.py": "import aiohttp.web\nfrom relay.intake import x\n",
    "relay/stores.py": "from contbak.core.codec import decode\n",
    "relay/cli.py": "import click\nfrom relay.intake import serve\n",
}

PLANTS = [
    (imports_point_down, "contbak/core/pack.py", "from contbak.store.kv import x"),
    (imports_point_down, "contbak/core/pack.py", "import contbak.app.daemon"),
    (imports_point_down, "contbak/core/pack.py", "from contbak.app import daemon"),
    (imports_point_down, "contbak/core/pack.py", "from contbak.app.daemon import run"),
    (imports_point_down, "contbak/store/posix.py", "from contbak.upload import uplink"),
    (imports_point_down, "contbak/store/posix.py", "import relay.stores"),
    (imports_point_down, "contbak/store/posix.py", "from contbak import app"),
    (imports_point_down, "contbak/capture/scan.py", "from contbak.upload.uplink import send"),
    (imports_point_down, "contbak/upload/spool.py", "from contbak.recall.find import find"),
    (imports_point_down, "contbak/recall/restore.py", "from contbak.capture.watcher import x"),
    (imports_point_down, "contbak/recall/restore.py", "def f():\n    from contbak.app.daemon import run"),
    (imports_point_down, "contbak/core/__init__.py", "from contbak.store.kv import x"),
    (imports_point_down, "contbak/app/config.py", "from relay.config import x"),
    (imports_point_down, "relay/scrub.py", "from contbak.upload.uplink import send"),
    (imports_point_down, "relay/scrub.py", "from contbak.app import daemon"),
    (imports_point_down, "relay/deep/scrub.py", "import contbak.capture.watcher"),
    (every_module_has_a_room, "contbak/daemon.py", ""),
    (every_module_has_a_room, "contbak/cellar/wine.py", ""),
    (each_package_has_its_door, "contbak/upload/spool.py", "import lmdb"),
    (each_package_has_its_door, "contbak/upload/uplink.py", "import aiohttp"),
    (each_package_has_its_door, "contbak/recall/remote.py", "import aiohttp"),
    (each_package_has_its_door, "contbak/core/frame.py", "from nacl.bindings import x"),
    (each_package_has_its_door, "contbak/app/daemon.py", "import click"),
    (each_package_has_its_door, "contbak/app/client.py", "import click"),
    (each_package_has_its_door, "relay/stores.py", "def f():\n    import lmdb"),
    (each_package_has_its_door, "relay/stores.py", "import requests"),
    (core_is_pure, "contbak/core/pack.py", "import os"),
    (core_is_pure, "contbak/core/pack.py", "import os.path"),
    (core_is_pure, "contbak/core/pack.py", "import urllib.request"),
    (core_is_pure, "contbak/core/pack.py", "from time import monotonic"),
    (core_is_pure, "contbak/core/pack.py", "from random import randrange"),
    (core_is_pure, "contbak/core/pack.py", "from concurrent.futures import ThreadPoolExecutor"),
    (core_is_pure, "contbak/core/pack.py", "def f():\n    return open('x')"),
    (core_is_pure, "contbak/core/pack.py", "print(1)"),
    (core_is_pure, "contbak/core/pack.py", "async def f():\n    pass"),
    (core_is_pure, "contbak/core/pack.py", "from datetime import datetime\nx = datetime.now()"),
    (core_is_pure, "contbak/core/pack.py", "import datetime\nx = datetime.date.today()"),
    (imports_stand_at_the_top, "contbak/app/daemon.py", "def f():\n    import json"),
    (imports_stand_at_the_top, "contbak/app/daemon.py", "async def f():\n    if 1:\n        from json import loads"),
    (imports_stand_at_the_top, "contbak/app/daemon.py", "class A:\n    import json"),
    (imports_stand_at_the_top, "relay/stores.py", "import importlib\nx = importlib.import_module('json')"),
    (imports_stand_at_the_top, "relay/stores.py", "x = __import__('json')"),
    (imports_are_absolute_and_named, "contbak/app/daemon.py", "from . import cli"),
    (imports_are_absolute_and_named, "relay/stores.py", "from .intake import serve"),
    (imports_are_absolute_and_named, "relay/stores.py", "from contbak.core.errors import *"),
    (inits_are_empty, "contbak/core/__init__.py", "X = 1"),
    (inits_are_empty, "relay/__init__.py", '"""The relay."""'),
    (names_say_something, "contbak/core/utils.py", ""),
    (names_say_something, "relay/common/thing.py", ""),
    (names_say_something, "contbak/app/helpers.py", ""),
    (no_cycles, "contbak/core/errors.py", "from contbak.core.codec import decode"),
    (no_cycles, "relay/stores.py", "from relay import intake"),
    (no_cycles, "relay/stores.py", "import relay.stores"),
    (no_cycles, "contbak/app/daemon.py", "def f():\n    from contbak.app.cli import main"),
]


def build(root: Path, files: dict[str, str]) -> list[Module]:
    rooms = [*(room.replace(".", "/") for room in MAY_IMPORT)]
    for name, text in {**{f"{room}/__init__.py": "" for room in rooms}, **SOUND, **files}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return modules(root)


def test_a_sound_skeleton_passes(tmp_path):
    mods = build(tmp_path, {})
    assert [line for rule in RULES for line in rule(mods)] == []


@pytest.mark.parametrize(("rule", "name", "text"), PLANTS)
def test_a_planted_violation_is_caught(rule, name, text, tmp_path):
    assert list(rule(build(tmp_path, {name: text})))
