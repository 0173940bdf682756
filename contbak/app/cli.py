"""The command contbak: verbs, words, exit codes.  What the verbs do is elsewhere.

Rules (docs/commands.md): results on standard output, progress and errors on standard error; an error is one
sentence, a trace only with CONTBAK_DEBUG=1.  Subcommands are loaded when they are used, so that `status` is quick.
"""

from __future__ import annotations

import importlib
import logging
import os
import sys

import click

from contbak.app.names import text_of
from contbak.core.errors import ContbakError

_HOMES = {
    "cli_setup": ("init", "up", "add", "remove", "sources", "recover", "recovery", "devices", "relays"),
    "cli_protect": ("run", "backup"),
    "cli_status": ("start", "stop", "status"),
    "cli_history": ("snapshots", "ls", "diff", "versions", "restore", "dump", "check"),
    "cli_completion": ("completion",),
}
_MODULE_OF = {name: module for module, names in _HOMES.items() for name in names}


class Lazy(click.Group):
    """A group whose commands live in modules that are imported when asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_MODULE_OF)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        module = _MODULE_OF.get(cmd_name)
        if module is None:
            return None
        found = getattr(importlib.import_module(f"contbak.app.{module}"), f"{cmd_name}_command")
        assert isinstance(found, click.Command)
        return found


@click.group(cls=Lazy, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.option("-v", "--verbose", is_flag=True, help="Say more on standard error, such as what each commit held.")
@click.version_option(package_name="contbak")
def cli(verbose: bool) -> None:
    """Backs up what you save, as you save it, and brings back any file as of any moment.

    \b
    Start with:   contbak up ~/Documents
    Then:         contbak status
    And one day:  contbak restore ~/Documents/thesis.odt --at yesterday --to /tmp
    """
    logging.basicConfig(
        level=logging.INFO if verbose else logging.WARNING, format="contbak: %(message)s", stream=sys.stderr
    )


def main() -> None:
    """Runs the command line and exits with the documented code."""
    try:
        code = cli.main(standalone_mode=False)
        sys.stdout.flush()
    except click.exceptions.Abort:
        code = 130
    except click.ClickException as error:
        error.show()
        code = error.exit_code
    except KeyboardInterrupt:
        code = 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    except ContbakError as error:
        code = _report(error, error.exit_code, str(error))
    except OSError as error:  # a place of our own that cannot be read or written
        place = f"{text_of(os.fsencode(error.filename))}: " if isinstance(error.filename, (str, bytes)) else ""
        code = _report(error, 1, f"{place}{(error.strerror or str(error)).lower()}")
    except RecursionError as error:
        code = _report(error, 1, "internal error: too deeply nested data")
    except Exception as error:  # the last line of defence: no trace reaches a user
        code = _report(error, 1, f"internal error: {type(error).__name__}: {error} (CONTBAK_DEBUG=1 shows where)")
    sys.exit(code if isinstance(code, int) else 0)


def _report(error: BaseException, code: int, sentence: str) -> int:
    if os.environ.get("CONTBAK_DEBUG") == "1":
        raise error
    click.echo(f"contbak: {sentence}", err=True)
    return code


if __name__ == "__main__":
    main()
