"""Secrets come from files, commands or prompts, never from the command line."""

from __future__ import annotations

import getpass
import os
import subprocess
import sys

from contbak.app.keyfile import Keys
from contbak.core.crypto import OwnerKeys
from contbak.core.errors import ConfigError, UsageError


def passphrase(prompt: str | None = None) -> bytes | None:
    """From CONTBAK_PASSWORD_FILE, CONTBAK_PASSWORD_COMMAND, or a prompt (if one is given and there is a terminal)."""
    file, command = os.environ.get("CONTBAK_PASSWORD_FILE"), os.environ.get("CONTBAK_PASSWORD_COMMAND")
    if file:
        try:
            with open(file, "rb") as source:
                return source.readline().rstrip(b"\r\n")
        except OSError as error:
            raise ConfigError(f"CONTBAK_PASSWORD_FILE: {file} cannot be read: {error.strerror}") from None
    if command:
        done = subprocess.run(command, shell=True, capture_output=True, check=False)
        if done.returncode:
            raise ConfigError(f"CONTBAK_PASSWORD_COMMAND failed with status {done.returncode}")
        return done.stdout.split(b"\n", 1)[0].rstrip(b"\r")
    if prompt is not None and sys.stdin.isatty():
        return getpass.getpass(prompt).encode()
    return None


def owner_keys(keys: Keys) -> OwnerKeys:
    """The keys to read with; asks for the passphrase if there is one.  Raises Refused, WrongKey."""
    return keys.owner(passphrase("Passphrase of the vault: ") if keys.needs_passphrase else None)


def code_from(file: str | None) -> str:
    """A recovery code from a file ("-": standard input) or a prompt.  Raises UsageError if there is none."""
    if file == "-":
        return sys.stdin.readline()
    if file is not None:
        try:
            with open(file, encoding="utf-8") as source:
                return source.read(4096)
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"the recovery code cannot be read from {file}: {error}") from None
    if not sys.stdin.isatty():
        raise UsageError("give the recovery code with --code-file FILE")
    return getpass.getpass("Recovery code: ")
