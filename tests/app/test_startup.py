"""What a command loads before it does anything: a quick one may not load what only the daemon needs."""

import subprocess
import sys

import pytest

HEAVY = ("aiohttp", "asyncio", "watchdog", "tenacity", "rich", "segno", "cryptography", "fastcdc")


def loaded(statement):
    """The modules that are loaded after `statement` in a new process."""
    code = f"{statement}\nimport sys\nprint(' '.join(sys.modules))"
    return set(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split())


@pytest.mark.parametrize("module", ["cli_history", "cli_status", "cli_completion"])
def test_commands_that_read_load_no_daemon(module):
    found = loaded(f"import contbak.app.cli, contbak.app.{module}")
    assert f"contbak.app.{module}" in found
    assert sorted(found.intersection(HEAVY)) == []


def test_the_version_loads_nothing_of_ours_but_the_command_line():
    found = {name for name in loaded("import contbak.app.cli") if name.startswith("contbak.")}
    assert found == {"contbak.app", "contbak.app.cli", "contbak.app.names", "contbak.core", "contbak.core.errors"}
