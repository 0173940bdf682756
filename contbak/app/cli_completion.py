"""completion: what a shell needs to complete contbak's commands."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class


@click.command("completion")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion_command(ctx: click.Context, shell: str) -> None:
    """Prints the completion script for a shell.

    \b
    eval "$(contbak completion bash)"           in ~/.bashrc
    eval "$(contbak completion zsh)"            in ~/.zshrc
    contbak completion fish > ~/.config/fish/completions/contbak.fish
    """
    kind = get_completion_class(shell)
    assert kind is not None
    click.echo(kind(ctx.find_root().command, {}, "contbak", "_CONTBAK_COMPLETE").source())
