"""``completion``: the script that makes a shell complete verbs, options and GPU classes."""

import click
from click.shell_completion import get_completion_class


@click.command("completion")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion_command(ctx: click.Context, shell: str) -> None:
    """Print the completion script of SHELL.

    \b
    Example:
      source <(engineroom completion bash)
    """  # noqa: D301
    kind = get_completion_class(shell)
    assert kind is not None, "click has all three"
    click.echo(kind(ctx.find_root().command, {}, "engineroom", "_ENGINEROOM_COMPLETE").source())
