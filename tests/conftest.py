"""What holds for every test: no setting of the person who runs them is read, and chance comes from one seed.

The seed is CONTBAK_TEST_SEED, or chosen and printed; `CONTBAK_TEST_SEED=N` repeats a run.
"""

import os
import random
import shutil
import tempfile
import zlib

import pytest
from hypothesis import HealthCheck, settings

_home = None
SWITCHES = ("CONTBAK_TEST_SEED", "CONTBAK_FULL", "CONTBAK_KILLS")
"""What tests themselves read."""

# A busy machine is slow, and that is no finding.
settings.register_profile("contbak", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("contbak")


def pytest_configure(config):
    """Point every place that contbak looks at (home, XDG, CONTBAK_*) to an empty directory."""
    global _home
    seed = os.environ.get("CONTBAK_TEST_SEED") or str(random.SystemRandom().randrange(2**32))
    for name in [name for name in os.environ if name.startswith(("CONTBAK_", "XDG_"))]:
        if name not in SWITCHES:
            del os.environ[name]
    os.environ["CONTBAK_TEST_SEED"] = seed  # workers of pytest-xdist inherit it
    _home = tempfile.mkdtemp(prefix="contbak-test-home-")
    os.environ["HOME"] = _home


def pytest_unconfigure(config):
    if _home is not None:
        shutil.rmtree(_home, ignore_errors=True)


def pytest_report_header(config):
    return f"CONTBAK_TEST_SEED={os.environ['CONTBAK_TEST_SEED']}"


@pytest.fixture
def seed(request):
    """A number for this test that follows from CONTBAK_TEST_SEED and the test's name."""
    return zlib.crc32(f"{os.environ['CONTBAK_TEST_SEED']} {request.node.nodeid}".encode())
