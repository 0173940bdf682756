"""The benchmark runs and counts right; how fast anything is, is not judged here."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.bench import __main__ as bench
from tests.bench import install, measure, sets
from tests.bench.rounds import Record, compare
from tests.bench.table import Figures, bytes_table, main_table
from tests.bench.tool import AGAIN, CHANGED, FIRST, STEPS

ROOT = Path(__file__).resolve().parents[1]
SPIN = "import time\nend = time.process_time() + 0.2\nwhile time.process_time() < end: pass\n"


def python(code: str) -> measure.Command:
    return measure.Command([sys.executable, "-c", code])


def test_cpu_of_children_and_of_orphans_counts():
    alone = measure.run(python("pass"))
    code = f"import os, subprocess, sys\nspin = [sys.executable, '-c', {SPIN!r}]\n"
    waited = measure.run(python(code + "subprocess.run(spin)"))
    left = measure.run(python(code + "subprocess.Popen(spin)\nimport time; time.sleep(0.15)"))
    assert waited.user_s + waited.sys_s > alone.user_s + alone.sys_s + 0.15
    assert left.user_s + left.sys_s > alone.user_s + alone.sys_s + 0.15


def test_cpu_of_servers_counts_apart():
    with subprocess.Popen([sys.executable, "-c", "input()\n" + SPIN], stdin=subprocess.PIPE) as server:
        command = measure.Command(["sh", "-c", f"echo > /proc/{server.pid}/fd/0; sleep 0.4"], beside=[server.pid])
        used = measure.run(command)
    assert used.server_cpu_s >= 0.15
    assert used.user_s + used.sys_s < 0.15
    assert used.cpu_s >= used.server_cpu_s


def test_peak_is_of_the_whole_tree_and_of_anonymous_memory():
    hold = "import time; x = bytearray(b'x') * (64 << 20); time.sleep(0.3)"
    code = f"import subprocess, sys\n{hold}\nsubprocess.run([sys.executable, '-c', {hold!r}])"
    assert 128 <= measure.run(python(code)).peak_mib < 250


def test_a_failure_says_what_the_command_said():
    with pytest.raises(measure.CommandFailed, match="exit 3: so it is"):
        measure.run(measure.Command(["sh", "-c", "echo so it is; exit 3"]))


@pytest.mark.parametrize("name", sets.MAKERS)
def test_sets_follow_from_the_seed(tmp_path, name):
    one, other = (sets.make(name, tmp_path / place, 0.002) for place in ("a", "b"))
    compare(one.top, other.top)
    before = {path: path.read_bytes() for path in sets.files_of(one.top)}
    for data in (one, other):
        data.change(1)
    compare(one.top, other.top)
    after = {path: path.read_bytes() for path in sets.files_of(one.top)}
    changed = [path for path in before if before[path] != after[path]]
    assert after.keys() == before.keys()
    assert len(changed) == (2 if name == "disk" else len(before) // 100 or 1)


def test_the_disk_image_has_holes_and_one_percent_of_it_changes(tmp_path):
    data = sets.make("disk", tmp_path / "d", 0.02)
    image, shift = data.top / "vm.img", data.top / "shift.bin"
    assert 0.35 < image.stat().st_blocks * 512 / image.stat().st_size < 0.45
    before, length = image.read_bytes(), shift.stat().st_size
    data.change(1)
    after = image.read_bytes()
    blocks = len(before) // 4096
    different = sum(before[at : at + 4096] != after[at : at + 4096] for at in range(0, len(before), 4096))
    assert different == blocks // 100
    assert shift.stat().st_size == length + 2_000_000
    data.rewind()
    assert shift.stat().st_size == length


def test_a_wrong_restore_is_seen(tmp_path):
    data = sets.make("small", tmp_path / "a", 0.0005)
    other = sets.make("small", tmp_path / "b", 0.0005)
    path = sets.files_of(other.top)[7]
    times = path.stat()
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    with pytest.raises(measure.CommandFailed):
        compare(data.top, other.top)
    path.unlink()
    with pytest.raises(measure.CommandFailed):
        compare(data.top, other.top)


def record(tool: str, step: str, wall: float, number: int = 1, stored: float = 0, name: str = "home") -> Record:
    return Record(name, number, tool, step, measure.Usage(wall, wall, 0, 10), 0.0, int(stored * 1e6))


def test_medians_ratios_and_verdicts():
    records = [record("contbak", FIRST, wall, stored=101) for wall in (9.0, 4.0, 1.0)]
    records += [record("restic", FIRST, 10.0, stored=100), record("borg", FIRST, 20.0, stored=90)]
    records += [record("bound", FIRST, 0.5)]
    figures = Figures(records)
    line = next(line for line in main_table(figures).splitlines() if "first backup" in line)
    assert [cell.strip() for cell in line.split("|")][3:7] == ["4.00", "10.00 restic", "0.40", "0.50"]
    assert "<= 0.45 x best: met" in line
    assert "<= 1.02 x restic: met" in bytes_table(figures)
    figures = Figures([*records, *(record("rustic", FIRST, 8.0) for _ in range(3))])
    assert "<= 0.45 x best: missed" in main_table(figures)


def test_growth_is_from_the_state_before():
    records = [
        record(tool, step, 1.0, number, stored, "disk")
        for tool, sizes in (("contbak", (100, 110, 150)), ("restic", (90, 95, 195)))
        for step, stored in zip((FIRST, AGAIN, CHANGED), sizes, strict=True) for number in (1, 2)
    ]  # fmt: skip
    line = next(line for line in bytes_table(Figures(records)).splitlines() if "grown" in line)
    assert "| 40.0 " in line and "100.0 restic" in line and "<= 0.4 x best: met" in line


@pytest.mark.slow
def test_a_tiny_run_of_everything_that_is_here(tmp_path, capsys):
    out = tmp_path / "out.json"
    words = ["--sets", "home", "--runs", "1", "--scale", "0.002", "--work", str(tmp_path / "work"), "--json", str(out)]
    assert bench.main([*words, "--tools", "contbak,restic"]) == 0, capsys.readouterr().err
    found = json.loads(out.read_text())
    steps = {entry["step"] for entry in found["records"] if entry["tool"] == "contbak"}
    assert steps == set(STEPS)
    assert all(entry["cpu_s"] > 0 for entry in found["records"] if entry["tool"] == "contbak")
    printed = capsys.readouterr().out
    assert all(f"| home | {step} " in printed for step in STEPS)
    assert list((tmp_path / "work").iterdir()) == []


def test_a_program_is_found_where_it_was_installed_before_where_the_path_says(tmp_path):
    assert install.find("sh", tmp_path) == shutil.which("sh")
    program = tmp_path / "bin" / "sh"
    program.parent.mkdir()
    program.touch(0o755)
    assert install.find("sh", tmp_path) == str(program)
    assert install.find("no-such-tool", tmp_path) is None


def test_what_cannot_be_installed_is_left_out_with_the_reason(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    said = []
    assert install.install("rustic", tmp_path, said.append) is None
    assert said == ["rustic is left out (cargo is not here)"]


def test_a_run_can_be_read_again(tmp_path, capsys):
    records = [record("contbak", FIRST, 2.0), record("borg", FIRST, 4.0)]
    facts = {"scale": 1, "runs": 1, "machine": {"cores": 2}, "tools": {"borg": "1.4"}}
    bench.save(tmp_path / "out.json", facts, records)
    assert bench.main(["report", "--json", str(tmp_path / "out.json")]) == 0
    assert "4.00 borg" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize(("name", "words", "figure"), [
    ("fleet", "--devices 4 --vaults 2 --every 1 --seconds 2", "commit_p99_ms"),
    ("idle", "--directories 20 --seconds 1", "cpu_percent"),
    ("relay_bulk", "--mb 4 --chunks 400 --clients 2", "relay_cpu_s_per_GB"),
    ("scale", "--files 1000 --mb 0", "peak_mib"),
])  # fmt: skip
def test_a_tiny_run_of_the_others(tmp_path, name, words, figure):
    out = tmp_path / "out.json"
    places = ["--work", str(tmp_path), "--json", str(out)]
    done = subprocess.run(
        [sys.executable, "-m", f"tests.bench.{name}", *words.split(), *places], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert any(figure in figures for figures in json.loads(out.read_text()).values())
    assert list(tmp_path.iterdir()) == [out]
