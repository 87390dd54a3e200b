"""`chat completion`: the script by which a shell completes commands and options."""

import click
from click.shell_completion import get_completion_class

from chat_service.cli.ends import End


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> int:
    """Print the completion script of a shell, to be read by it.

    \b
    Examples:
      eval "$(chat completion bash)"
      chat completion zsh > ~/.zfunc/_chat
      chat completion fish > ~/.config/fish/completions/chat.fish
    """
    context = click.get_current_context()
    made = get_completion_class(shell)
    assert made is not None
    click.echo(made(context.find_root().command, {}, "chat", "_CHAT_COMPLETE").source())
    return End.DONE
