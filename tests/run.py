#!/usr/bin/env python3
"""Everything that a change has to pass: ruff, mypy and pytest, from a fresh clone, in one command.

    python3 tests/run.py                  all of it
    python3 tests/run.py -k recovery -x   what follows goes to pytest
    CONTBAK_TEST_SEED=7 python3 tests/run.py    repeat the run that printed this seed

Makes .venv-test beside pyproject.toml and keeps it up to date.  As root on Debian it also installs the
programs that some tests want; those tests are skipped where the programs are missing.
The exit code is 0 only if nothing failed.  Needs Python 3.11 and its standard library.
"""

import hashlib
import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv-test"
DEBIAN = {"acl": "setfacl", "attr": "setfattr", "strace": "strace", "iproute2": "ip", "nftables": "nft"}
"""Debian package to a program of it that tests call."""
WORKERS = "2"


def main(arguments):
    if sys.version_info < (3, 11):  # noqa: UP036 (it runs before anything has checked)
        print(f"contbak needs Python 3.11 or later, and this is {sys.version.split()[0]}", file=sys.stderr)
        return 2
    began = time.monotonic()
    add_debian_packages()
    if not prepare_venv():
        print("FAILED: the test environment could not be installed (see above)")
        return 1
    seed = os.environ.get("CONTBAK_TEST_SEED") or str(random.SystemRandom().randrange(2**32))
    print(f"CONTBAK_TEST_SEED={seed}", flush=True)
    environment = {**os.environ, "CONTBAK_TEST_SEED": seed, "PATH": f"{VENV / 'bin'}:{os.environ.get('PATH', '')}"}
    pytest = ["pytest", "-n", WORKERS, "--dist", "loadgroup", "-ra", f"--hypothesis-seed={seed}", *arguments]
    results = {
        "ruff": run(["ruff", "check", "."], environment),
        "mypy": run(["mypy"], environment),
        "pytest": run(pytest, environment),
    }
    failed = [name for name, code in results.items() if code]
    took = f"{time.monotonic() - began:.0f} s, CONTBAK_TEST_SEED={seed}"
    print(f"FAILED: {', '.join(failed)} ({took})" if failed else f"OK: {', '.join(results)} ({took})")
    return 1 if failed else 0


def run(words, environment):
    """Run a tool of the test environment as a module; its exit code."""
    print(f"\n== {' '.join(words)}", flush=True)
    return subprocess.run([VENV / "bin" / "python", "-m", *words], cwd=ROOT, env=environment, check=False).returncode


def add_debian_packages():
    """Install what is missing, if this is Debian and we may; never a reason to stop."""
    missing = [package for package, program in DEBIAN.items() if not shutil.which(program)]
    if not missing or os.geteuid() != 0 or not shutil.which("apt-get"):
        return
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "stdin": subprocess.DEVNULL, "check": False}
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    install = ["apt-get", "install", "-y", "-qq", "--no-install-recommends", *missing]
    try:
        if subprocess.run(install, env=environment, timeout=300, **quiet).returncode:
            subprocess.run(["apt-get", "update", "-qq"], env=environment, timeout=120, **quiet)
            subprocess.run(install, env=environment, timeout=300, **quiet)
    except (OSError, subprocess.TimeoutExpired):
        pass
    missing = [package for package, program in DEBIAN.items() if not shutil.which(program)]
    if missing:
        print(f"not installed, so some tests will be skipped: {' '.join(missing)}", flush=True)


def prepare_venv():
    """Make .venv-test fit pyproject.toml; whether it does now."""
    python = VENV / "bin" / "python"
    stamp = VENV / "fits"
    wanted = hashlib.sha256(f"{ROOT} {sys.version}".encode() + (ROOT / "pyproject.toml").read_bytes()).hexdigest()
    if stamp.is_file() and stamp.read_text() == wanted and python.exists():
        return True
    print(f"preparing {VENV.name}", flush=True)
    commands = [
        [sys.executable, "-m", "venv", "--clear", VENV],
        [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--editable", f"{ROOT}[dev]"],
    ]
    for command in commands:
        if subprocess.run(command, check=False).returncode:
            return False
    (VENV / ".gitignore").write_text("*\n")
    stamp.write_text(wanted)
    return True


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
