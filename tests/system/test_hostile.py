"""One entry that cannot be kept does not stop the others, and the command says so."""

from __future__ import annotations

import os
from pathlib import Path

from tests.system.world import ROOT, World

HUGE = """
import os
list_real, get_real = os.listxattr, os.getxattr

def name(path):
    return os.path.basename(os.fsencode(os.readlink(f"/proc/self/fd/{path}") if isinstance(path, int) else path))

def listxattr(path=None, **how):
    return ["user.huge"] if name(path).startswith(b"huge") else list_real(path, **how)

def getxattr(path, attribute, **how):
    return bytes(3 << 20) if name(path).startswith(b"huge") else get_real(path, attribute, **how)

os.listxattr, os.getxattr = listxattr, getxattr
"""


def test_huge_attributes_are_named_and_the_others_saved(tmp_path: Path) -> None:
    """As some file systems allow them: of a file, a link and a directory."""
    lies = tmp_path / "lies"
    lies.mkdir()
    (lies / "sitecustomize.py").write_text(HUGE)
    world, source = World(tmp_path, PYTHONPATH=f"{lies}{os.pathsep}{ROOT}"), tmp_path / "source"
    for folder in ("huge folder", "folder"):
        (source / folder).mkdir(parents=True)
        (source / folder / "file").write_text(folder)
    (source / "huge file").write_text("content")
    (source / "huge link").symlink_to("anywhere")
    (source / "file").write_text("content")
    world.init()
    world.run("add", str(source))
    world.run("backup", code=3)
    found = {line["path"] for line in world.lines("ls", "-r", str(source))}
    wrong = {str(source / name) for name in ("huge folder", "huge file", "huge link")}
    assert {path.rpartition("/")[2] for path in found} >= {"file", "folder"} and not found & wrong
    errors = {one["path"]: one["reason"] for one in world.json("status")["sources"][0]["errors"]}
    assert {os.path.basename(path) for path in errors} == {os.path.basename(path) for path in wrong}
    assert all("extended attributes take more than" in reason for reason in errors.values())
    (lies / "sitecustomize.py").write_text("")
    world.run("backup")
    assert not world.json("status")["sources"][0]["errors"]
