"""Readers that misbehave, for the tests of workers, which find them by name as the app's own."""

import os
import signal

from contbak.capture.reader import Reader
from contbak.core.errors import SourceError


class Killer(Reader):
    """Dies at a file that is called so, as a fault in a compiled library would."""

    def read(self, path, consume, on_restart, **more):
        if os.path.basename(path).startswith(b"deadly"):
            os.kill(os.getpid(), signal.SIGKILL)
        return super().read(path, consume, on_restart, **more)


class Restarting(Reader):
    """Begins again once, after it has handed over everything."""

    def read(self, path, consume, on_restart, **more):
        super().read(path, consume, on_restart, **more)
        on_restart()
        return super().read(path, consume, on_restart, **more)


class Unreadable(Reader):
    """Cannot read the files that are called as the environment says."""

    def read(self, path, consume, on_restart, **more):
        if os.path.basename(path) == os.environb[b"CONTBAK_TEST_UNREADABLE"]:
            raise SourceError(path, "input/output error")
        return super().read(path, consume, on_restart, **more)
