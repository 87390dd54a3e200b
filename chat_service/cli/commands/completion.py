"""`chat completion`: prints the script that lets a shell complete commands and options."""

import click
from click.shell_completion import get_completion_class

from chat_service.cli.exit_codes import ExitCode


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]), metavar="SHELL")
def completion(shell: str) -> int:
    """Print the completion script for SHELL (bash, zsh or fish).

    \b
    Examples:
      eval "$(chat completion bash)"
      chat completion zsh > ~/.zfunc/_chat
      chat completion fish > ~/.config/fish/completions/chat.fish
    """
    context = click.get_current_context()
    made = get_completion_class(shell)
    assert made is not None
    source = made(context.find_root().command, {}, "chat", "_CHAT_COMPLETE").source()
    if shell == "fish":
        # click's script cuts descriptions at their first comma.
        source = source.replace('string split "," $completion', 'string split -m 1 "," $completion')
    click.echo(source)
    return ExitCode.DONE
