"""The command line's side of the control socket.  Only the standard library: `status` must be quick to start."""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from contbak.core.errors import ContbakError

Message = dict[str, Any]


class DaemonError(ContbakError):
    """What the daemon answered; carries its exit code."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path, timeout: float | None) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        try:
            self.sock.connect(str(self._path))
        except OSError:
            self.sock.close()
            raise


class Daemon:
    """A running daemon."""

    def __init__(self, socket_path: Path) -> None:
        self._socket = socket_path

    def running(self) -> bool:
        """Whether a daemon answers."""
        try:
            probe = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            with probe:
                probe.settimeout(5)
                probe.connect(str(self._socket))
            return True
        except OSError:
            return False

    def status(self) -> Message:
        """Its status document."""
        return self._call("GET", "/status", timeout=30)

    def reload(self) -> None:
        """It reads its configuration again."""
        self._call("POST", "/reload", timeout=60)

    def stop(self) -> None:
        """It ends in order."""
        self._call("POST", "/stop", timeout=30)

    def backup(self, paths: list[str], wait: str) -> Iterator[Message]:
        """Asks for a backup; yields its messages, the last of which is a summary.  Raises DaemonError."""
        connection = _UnixConnection(self._socket, None)
        try:
            connection.request("POST", "/backup", json.dumps({"paths": paths, "wait": wait}))
            for line in connection.getresponse():
                message = json.loads(line)
                if message.get("message_type") == "error" and "exit_code" in message:
                    raise DaemonError(message["error"], message["exit_code"])
                yield message
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise ContbakError(f"the daemon went away: {error}; the journal keeps what is to be done") from None
        finally:
            connection.close()

    def _call(self, method: str, path: str, timeout: float) -> Message:
        connection = _UnixConnection(self._socket, timeout)
        try:
            connection.request(method, path)
            response = connection.getresponse()
            answer: Message = json.loads(response.read() or b"{}")
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise ContbakError(f"the daemon does not answer: {error}") from None
        finally:
            connection.close()
        if response.status != 200:
            raise DaemonError(answer.get("error", "the daemon refused"), answer.get("exit_code", 1))
        return answer
