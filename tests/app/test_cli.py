"""The contract of the command line: exit codes, JSON, silence, and never a trace."""

import base64
import os
import pty
import re
import select
import shutil
import signal
import subprocess
import sys
import time
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from tests.system.world import Failed, Relay, World

COMMANDS = (
    "init", "up", "add", "remove", "sources", "run", "start", "stop", "backup", "status", "snapshots", "ls", "diff",
    "versions", "restore", "dump", "check", "recovery", "recover", "devices", "relays", "completion",
)  # fmt: skip
READING = (
    ("snapshots",), ("ls",), ("ls", "/x"), ("diff", "latest~1", "latest"), ("versions", "/x"), ("dump", "/x"),
    ("restore", "/x", "--to", "/tmp/nowhere"), ("check",), ("devices",),
)  # fmt: skip


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A vault with three snapshots of a small tree; not to be changed."""
    top = tmp_path_factory.mktemp("saved")
    world, source = World(top), top / "source"
    (source / "folder").mkdir(parents=True)
    (source / "file").write_text("first")
    Path(os.fsdecode(os.fsencode(source) + b"/odd \xff")).write_text("odd")
    world.code = world.init("--recovery-file", str(top / "code"))
    world.run("add", str(source), "--exclude", "*.o")
    world.source = source
    world.summaries = [world.lines("backup")[-1]]
    (source / "file").write_text("second")
    world.summaries.append(world.lines("backup")[-1])
    (source / "file").unlink()
    (source / "new").write_text("new")
    world.summaries.append(world.lines("backup")[-1])
    return world


# -- exit codes --------------------------------------------------------------------------------------------------


def test_help_of_each_command_has_an_example(saved):
    assert set(re.findall(r"^  ([a-z]+)  ", saved.run("--help"), re.M)) == set(COMMANDS)
    for command in COMMANDS:
        text = saved.run(command, "--help")
        plain = {"remove", "sources", "run", "start", "stop", "status", "devices", "relays", "snapshots"}
        assert f"contbak {command} " in text or command in plain | {"versions", "dump", "check", "recovery"}, command
        assert "Traceback" not in text


def test_wrong_usage_is_2(saved, tmp_path):
    source = str(saved.source)
    for words in (
        ("frobnicate",), ("backup", "--wait", "moon"), ("restore", source), ("restore",),
        ("restore", source, "--to", "x", "--in-place"),
        ("dump",), ("add", "/does/not/exist"), ("add", source), ("remove", "nothing"), ("remove", "../x"),
        ("ls", "--at", "the day after never"), ("ls", "--at", ""), ("diff", "latest"),
        ("check", "--read-data=200%"), ("check", "--read-data=x"), ("backup", str(tmp_path)), ("completion", "tcsh"),
        ("add", str(tmp_path), "--priority", "urgent"), ("add", str(tmp_path), "--name", "a/b"),
        ("versions", source + "/never there"),
        ("recover", "--from", "nonsense", "--code-file", str(saved.top / "code")),
    ):  # fmt: skip
        saved.run(*words, code=2)
        assert saved.err.strip(), words


def test_nothing_initialised_is_10(tmp_path):
    world = World(tmp_path)
    for words in (("status",), ("backup",), ("run",), ("start",), ("add", str(tmp_path)), ("relays",),
                  ("recovery", "show"), *READING):  # fmt: skip
        world.run(*words, code=10)
        assert "contbak init" in world.err or "contbak up" in world.err, words
        assert world.err.count("\n") == 1
    assert "not running" in (world.run("stop"), world.err)[1]
    assert world.json("sources") == []


def test_a_wrong_code_is_12(saved, tmp_path):
    other = World(tmp_path / "other").init()
    (tmp_path / "code").write_text(other)
    store = saved.home / "data" / "relay" / "store"
    world = World(tmp_path / "new")
    world.run("recover", "--from", str(store), "--code-file", str(tmp_path / "code"), code=12)
    (tmp_path / "typo").write_text(saved.code.replace(saved.code[8], "0" if saved.code[8] != "0" else "1", 1))
    world.run("recover", "--from", str(store), "--code-file", str(tmp_path / "typo"), code=None)
    assert "group" in world.err or "code" in world.err
    saved.run("recovery", "verify", "--code-file", str(tmp_path / "code"), code=12)
    assert "right" in saved.run("recovery", "verify", "--code-file", "-", data=saved.code.lower().encode())
    assert not (world.home / "data" / "keys" / "vault").exists()


def test_refusals_are_13(saved, tmp_path):
    saved.run("init", code=13)
    saved.run("recovery", "sheet", str(saved.top / "code"), code=13)
    reader = World(tmp_path / "reader")
    store = saved.home / "data" / "relay" / "store"
    reader.run("recover", "--from", str(store), "--code-file", str(saved.top / "code"))
    assert [one["id"] for one in reader.snapshots()] == [one["id"] for one in saved.snapshots()]
    reader.run("add", str(tmp_path / "reader"))
    reader.run("backup", code=13)
    assert "--adopt" in reader.err
    reader.run("recover", "--from", str(store), "--code-file", str(saved.top / "code"), "--adopt", code=2)


def test_files_that_are_kept_are_3(saved, tmp_path):
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "new").write_text("mine")
    summary = saved.lines("restore", str(saved.source), "--to", str(tmp_path), code=3)[-1]
    assert [Path(one["path"]).name for one in summary["kept"]] == ["new"]
    assert (tmp_path / "source" / "new").read_text() == "mine"
    saved.run("restore", str(saved.source), "--to", str(tmp_path), "--overwrite", "if-changed")
    assert (tmp_path / "source" / "new").read_text() == "new"
    assert saved.lines("restore", str(saved.source), "--to", str(tmp_path), "--overwrite", "always")[-1]["failed"] == []


def test_a_store_that_is_gone_is_11(saved, tmp_path):
    relay = Relay(tmp_path / "nas")
    world = World(tmp_path / "one")
    world.run("init", "--relay", relay.invite("--new-vault", "x"), code=11)
    assert not list((world.home / "data" / "keys").glob("*")), "a vault that was not paired does not exist"
    with relay:
        world.init("--relay", relay.invite("--new-vault", "x"))
        world.run("init", "--relay", relay.invite("--new-vault", "y"), code=13)
    world.run("snapshots", code=11)


# -- JSON --------------------------------------------------------------------------------------------------------


def test_json_of_status(saved):
    status = saved.json("status")
    assert set(status) == {"daemon", "sources", "relays", "spool_bytes"}
    assert status["daemon"] == {"running": False, "pid": None}
    (source,) = status["sources"]
    assert set(source) == {
        "name", "path", "pending_changes", "oldest_unprotected_s", "gaps", "last_snapshot", "errors",
    }  # fmt: skip
    assert source["name"] == "source" and source["path"] == str(saved.source) and source["pending_changes"] == 0
    assert source["oldest_unprotected_s"] == {"local": 0, "relay": 0, "cloud": None}
    assert set(source["last_snapshot"]) == {"id", "time"} and source["gaps"] == source["errors"] == []
    (relay,) = status["relays"]
    assert set(relay) >= {"url", "reachable", "lag_bytes"} and relay["lag_bytes"] == 0 == status["spool_bytes"]


def test_json_of_snapshots(saved):
    found = saved.snapshots()
    keys = {"id", "time", "source", "device", "files", "bytes", "level", "parent"}
    assert all(keys <= set(one) for one in found)
    assert [one["time"] for one in found] == sorted(one["time"] for one in found)
    assert [one["parent"] for one in found] == [None, *(one["id"] for one in found[:-1])]
    assert [one["files"] for one in found] == [2, 2, 2] and found[0]["level"] == 1
    assert [one["id"] for one in found] == [one["snapshot"] for one in saved.summaries]


def test_json_of_backup(saved):
    keys = {"message_type", "new", "changed", "unchanged", "failed", "bytes_read", "bytes_stored", "bytes_sent",
            "seconds", "snapshot"}  # fmt: skip
    first, second, third = saved.summaries
    assert all(keys <= set(one) and one["message_type"] == "summary" for one in saved.summaries)
    assert (first["new"], first["changed"], first["gone"], first["failed"]) == (4, 0, 0, 0)
    assert second["new"] == 0 and second["bytes_read"] >= len("second")
    assert (third["new"], third["gone"]) == (1, 1)


def test_json_of_ls_and_versions(saved, tmp_path):
    rows = saved.lines("ls", str(saved.source))
    assert all({"path", "type", "size", "mtime_ns", "snapshot", "deleted"} <= set(row) for row in rows)
    odd = next(row for row in rows if "path_b64" in row)
    assert base64.b64decode(odd["path_b64"]) == os.fsencode(saved.source) + b"/odd \xff"
    assert {row["path"] for row in rows if "path_b64" not in row} == {str(saved.source / n) for n in ("folder", "new")}
    states = saved.lines("versions", str(saved.source / "file"))
    assert [state["deleted"] for state in states] == [True, False, False]
    assert [state["size"] for state in states] == [None, 6, 5]
    assert all({"path", "type", "size", "mtime_ns", "snapshot", "deleted"} <= set(state) for state in states)
    summary = saved.lines("restore", str(saved.source), "--to", str(tmp_path))[-1]
    assert summary["message_type"] == "summary" and summary["restored"] == 2 and summary["failed"] == []
    assert saved.json("sources")[0]["name"] == "source"
    assert saved.json("check", "--read-data")["problems"] == []
    assert saved.json("devices")[0]["this"] and saved.json("relays")[0]["kind"] == "embedded"
    assert [row["change"] for row in saved.lines("diff", "latest~1", "latest")].count("gone") == 1


# -- moments -----------------------------------------------------------------------------------------------------


def test_forms_of_at(saved):
    path, ids = str(saved.source / "file"), [one["id"] for one in saved.snapshots()]
    for form, wanted in (("latest~1", "second"), ("latest~2", "first"), (ids[0], "first"), (ids[1][:8], "second"),
                         (ids[0][:12].upper(), "first")):  # fmt: skip
        assert saved.run("dump", path, "--at", form) == wanted, form
        assert "as of 2" in saved.err, "the resolved time is told"
    later = (datetime.now() + timedelta(days=1)).strftime("%Y-%m-%d")
    for form in ("latest", later, f"{later} 18:00", "0 minutes ago"):
        assert "new" in saved.run("ls", str(saved.source), "--at", form), form
    for form in ("yesterday", "2 hours ago", "3d", "2001-01-01", "yesterday 18:00"):
        assert saved.run("ls", str(saved.source), "--at", form, code=None) == ""  # there was no vault then
        assert saved.err.count("\n") == 1


# -- manners -----------------------------------------------------------------------------------------------------


def test_pipes_are_quiet_and_plain(saved, tmp_path):
    for words in (("status",), ("snapshots",), ("ls", "-r"), ("check",), ("backup",), ("sources",)):
        out = saved.run(*words)
        assert "\x1b" not in out + saved.err and "\r" not in out + saved.err
    assert saved.run("backup", "--quiet") == "" and saved.err == ""
    assert saved.run("restore", str(saved.source), "--to", str(tmp_path), "-q") == ""


def test_a_closed_pipe_is_no_trace(saved):
    words = [sys.executable, "-m", "contbak.app.cli", "ls", "-r"]
    with subprocess.Popen(words, env=saved.env, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        assert b"Traceback" not in process.stderr.read()


def test_no_color_on_a_terminal(saved):
    out = on_terminal(saved, ["status"], NO_COLOR="1")
    assert b"\x1b[3" not in out and b"\x1b[1m" not in out


def on_terminal(world, words, **settings):
    """Everything that a command writes to a terminal."""
    leader, follower = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "contbak.app.cli", *words], env=world.env | settings, stdin=follower, stdout=follower,
        stderr=follower, close_fds=True,
    )  # fmt: skip
    os.close(follower)
    out = b""
    while select.select([leader], [], [], 60)[0]:
        try:
            part = os.read(leader, 65536)
        except OSError:
            break
        if not part:
            break
        out += part
    os.close(leader)
    process.wait()
    return out


def test_completion_scripts(saved):
    for shell in ("bash", "zsh", "fish"):
        script = saved.run("completion", shell)
        assert "_CONTBAK_COMPLETE" in script
        if shutil.which(shell):
            subprocess.run([shell, "-n"], input=script.encode(), check=True)
    saved.env["_CONTBAK_COMPLETE"] = "bash_complete"
    try:
        saved.env |= {"COMP_WORDS": "contbak sna", "COMP_CWORD": "1"}
        out = subprocess.run(
            [sys.executable, "-c", "import sys; sys.argv[0]='contbak'; from contbak.app.cli import main; main()"],
            env=saved.env, capture_output=True, check=False,
        )  # fmt: skip
        assert b"snapshots" in out.stdout, out
    finally:
        for name in ("_CONTBAK_COMPLETE", "COMP_WORDS", "COMP_CWORD"):
            saved.env.pop(name, None)


def test_interrupted_is_130_and_goes_on(tmp_path, seed):
    world, source = World(tmp_path), tmp_path / "source"
    source.mkdir()
    with open(source / "large", "wb") as file:
        for _ in range(400):  # seconds of work, and half of one has gone by when the first line comes
            file.write(os.urandom(1 << 20))
    world.init()
    world.run("add", str(source))
    with subprocess.Popen(
        [sys.executable, "-m", "contbak.app.cli", "backup", "--json"], env=world.env, cwd=tmp_path,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    ) as process:  # fmt: skip
        process.stdout.readline()  # it is at work
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and b"Traceback" not in err, err
    assert world.relay_pid() is None
    world.run("backup")
    assert world.snapshots()[-1]["complete"]
    world.run("check", "--read-data")


# -- garbage -----------------------------------------------------------------------------------------------------


@pytest.fixture
def small(tmp_path):
    """A vault that may be broken."""
    world = World(tmp_path)
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "file").write_text("text")
    world.init()
    world.run("add", str(tmp_path / "source"))
    return world


def test_garbage_in_the_configuration(small):
    config = small.home / "config"
    relay = (config / "relay.toml").read_bytes()
    files = (config / "contbak.toml", config / "relay.toml", config / "sources" / "source.toml")
    for file in files:
        good = file.read_bytes() if file.exists() else None
        for garbage in (b"\0\xff\xfe", b"[", b"unheard_of = 1\n", b"id = 7\nname=\"x\"\n", b"settle_s = 'x'\n"):
            file.write_bytes(garbage)
            words = "backup" if garbage != b"[" else "run"
            small.run(words, code=2)
            assert file.name in small.err, (garbage, words, small.err)
        file.unlink()
        if good is not None:
            file.write_bytes(good)
    for garbage in (b'embedded = true\nrelay = "zz"\n', b'relay = ""\n', b'host = "x"\nport = -1\nrelay = "00"\n', b""):
        files[1].write_bytes(garbage)
        for words in (("backup",), ("status",)):
            small.run(*words, code=None)
            assert small.err.count("\n") <= 2 and "internal" not in small.err, (garbage, small.err)
    files[1].write_bytes(relay)
    (config / "contbak.toml").write_text("spool_mib = 1\n")
    small.run("backup", code=2)
    assert "spool_mib" in small.err


def test_garbage_in_the_environment(small):
    for name, value in (("CONTBAK_SETTLE_S", "soon"), ("CONTBAK_WORKERS", "1.5"), ("CONTBAK_NICE", "-3"),
                        ("CONTBAK_SETTLE_S", "nan"), ("CONTBAK_RESCAN_S", "inf")):  # fmt: skip
        small.env[name] = value
        small.run("backup", code=2)
        assert name in small.err or name.removeprefix("CONTBAK_").lower() in small.err
        del small.env[name]
    small.env["CONTBAK_NICE"] = "0"
    small.run("backup")


def test_garbage_in_the_keys(small):
    for name in ("vault", "vault.copy"):
        (small.home / "data" / "keys" / name).write_bytes(os.urandom(400))
    for words in (("backup",), ("status",), ("snapshots",)):
        small.run(*words, code=1)
        assert "recover" in small.err and "internal" not in small.err


@pytest.mark.skipif(os.geteuid() == 0 and not shutil.which("setpriv"), reason="root writes everywhere")
def test_a_home_that_cannot_be_written(small, tmp_path):
    if os.geteuid() == 0:
        small.prefix = ("setpriv", "--bounding-set=-dac_override,-dac_read_search")
    for folder in ("data", "state"):
        (small.home / folder).chmod(0o500)
    try:
        for words in (("backup",), ("status",), ("run",)):
            small.run(*words, code=None)
            assert "internal" not in small.err, small.err
        small.home.chmod(0)
        for words in (("backup",), ("status",), ("init",)):
            small.run(*words, code=None)
            assert small.err and "internal" not in small.err, small.err
    finally:
        small.home.chmod(0o700)
        for folder in ("data", "state"):
            (small.home / folder).chmod(0o700)
    small.run("backup")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount")
@pytest.mark.parametrize("part", ["agent", "store"])
def test_a_full_disk(tmp_path, part):
    disk = tmp_path / "disk"
    disk.mkdir()
    size = {"agent": 24, "store": 280}[part]  # MiB; a relay leaves the last 256 alone
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}m", "contbak-test", str(disk)]
    if subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("nothing can be mounted here")
    try:
        world = World(tmp_path / "one")
        store = tmp_path / "store"
        if part == "agent":
            world.home = disk / "home"
            world.env["CONTBAK_HOME"] = str(world.home)
        else:
            store = disk / "store"
        world.init("--store", str(store))
        source = tmp_path / "one" / "source"
        source.mkdir()
        (source / "small").write_text("small")
        world.run("add", str(source))
        world.run("backup")
        (source / "large").write_bytes(os.urandom(60 << 20))
        world.run("backup", code=None if part == "agent" else 11)
        print(part, world.err)
        assert "internal" not in world.err
        assert world.run("dump", str(source / "small")) == "small"
        subprocess.run(["mount", "-o", f"remount,size={size + 200}m", str(disk)], check=True)
        world.run("backup")
        assert world.raw("dump", str(source / "large")) == (source / "large").read_bytes()
        world.run("check", "--read-data")
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def test_start_and_stop(small):
    small.run("start")
    try:
        assert "running already" in (small.run("start"), small.err)[1]
        small.run("run", code=13)
        small.until(small.safe)
        pid = small.json("status")["daemon"]["pid"]
        assert Path("/proc", str(pid)).exists()
        small.run("remove", "source")
        assert small.json("status")["sources"] == []
        small.run("backup", code=2)
        small.run("add", str(small.top / "source"))
        small.until(small.safe)
    finally:
        small.run("stop")
    small.run("stop")
    deadline = time.monotonic() + 30
    while Path("/proc", str(pid)).exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    with pytest.raises(Failed):
        small.run("stop", code=1)
