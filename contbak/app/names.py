"""How a name of any bytes is shown: as text for people, exactly in JSON."""

from __future__ import annotations

import base64
import re

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")


def text_of(path: bytes) -> str:
    """For a terminal: what is no UTF-8, and what would move the cursor, is written as \\xNN."""
    return _CONTROL.sub(lambda m: f"\\x{ord(m[0]):02x}", path.decode("utf-8", "backslashreplace"))


def shown(path: bytes, key: str = "path") -> dict[str, str]:
    """For JSON: `path`, and `path_b64` too if the text is only an approximation."""
    try:
        return {key: path.decode("utf-8")}
    except UnicodeDecodeError:
        return {key: path.decode("utf-8", "replace"), f"{key}_b64": base64.b64encode(path).decode()}
