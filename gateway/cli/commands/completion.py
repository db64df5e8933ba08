"""`csm completion`."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from gateway.cli.options import HELP


@click.command("completion", context_settings=HELP)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def command(ctx: click.Context, shell: str) -> int:
    """Print a script that completes csm's commands and options in SHELL.

    \b
      bash   eval "$(csm completion bash)"      in ~/.bashrc
      zsh    eval "$(csm completion zsh)"       in ~/.zshrc
      fish   csm completion fish | source       in ~/.config/fish/config.fish
    """
    kind = get_completion_class(shell)
    assert kind is not None
    click.echo(kind(ctx.find_root().command, {}, "csm", "_CSM_COMPLETE").source())
    return 0
