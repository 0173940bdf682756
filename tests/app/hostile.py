"""A reader that finds impossible facts, for workers, which find it by name."""

import os

from contbak.capture.attributes import with_fields
from contbak.capture.reader import Reader

FACTS = {
    b"impossible time": {"mtime": 1 << 70},
    b"impossible user": {"user": "\udcff"},
    b"impossible link": {"link": b"odd"},
    b"impossible kind": {"kind": "?"},
}
"""What comes out for files with these names."""


class Hostile(Reader):
    """Changes what was read."""

    def read(self, path, consume, on_restart, **more):
        result = super().read(path, consume, on_restart, **more)
        facts = FACTS.get(os.path.basename(path))
        if facts:
            result = result._replace(entry=with_fields(result.entry, **facts))
        return result
