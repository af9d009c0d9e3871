"""`completion`: the script that makes the shell complete commands and options."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from ai_worker.errors import UsageError


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print the completion script of a SHELL.

    \b
    bash:  ai-worker completion bash > ~/.local/share/bash-completion/completions/ai-worker
    zsh:   ai-worker completion zsh > ~/.zfunc/_ai-worker   (with ~/.zfunc in fpath)
    fish:  ai-worker completion fish > ~/.config/fish/completions/ai-worker.fish
    """
    found = get_completion_class(shell)
    if found is None:
        raise UsageError(f"there is no completion for {shell}")
    # The name of the console script, whatever this process was started as (`python -m ai_worker`).
    click.echo(found(ctx.find_root().command, {}, "ai-worker", "_AI_WORKER_COMPLETE").source())
