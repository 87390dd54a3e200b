"""Finds and runs a command, and turns its errors into a line on stderr and an exit code.

Called by `chat`, which pyproject.toml installs, and by `python -m chat_service`.
"""

import sys
from collections.abc import Sequence
from importlib import import_module

import click
from click.shell_completion import CompletionItem

from chat_service import __version__
from chat_service.cli.exit_codes import (
    CommandError,
    ExitCode,
    OutputError,
    discard_stdout,
    open_closed_streams,
    print_error,
)

#: By section: each command, its module, and a short description. A module is imported only when
#: its command is used.
_SECTIONS: dict[str, dict[str, tuple[str, str]]] = {
    "Messages": {
        "send": ("commands.send", "post a message, or one per line"),
        "read": ("commands.read", "read and consume the unread messages"),
        "watch": ("commands.watch", "stream new messages"),
        "count": ("commands.read", "count the unread messages; changes nothing"),
    },
    "Leases": {
        "lease": ("commands.leases", "lease the unread messages"),
        "ack": ("commands.leases", "acknowledge leased messages, which consumes them"),
        "release": ("commands.leases", "make leased messages unread again, at once or later"),
        "extend": ("commands.leases", "prolong a lease"),
        "dead": ("commands.dead", "list messages that were leased too often, or return them"),
    },
    "Receipts": {
        "status": ("commands.receipts", "show the status of a message"),
        "revoke": ("commands.receipts", "revoke an unread message"),
    },
    "The service": {
        "serve": ("commands.serve", "run the service until SIGTERM or SIGINT"),
        "token": ("commands.token", "make tokens, and check the access file"),
        "doctor": ("doctor.command", "find problems, and say how to fix them"),
        "inspect": ("commands.inspect", "show the state of an inbox, and its hash in the logs"),
        "migrate": ("commands.migrate", "change the schema of the database in use"),
        "load": ("commands.load", "load-test a service"),
        "capacity": ("commands.capacity", "compute what a load needs, and what is full first"),
        "healthcheck": ("commands.probes", "exit 0 if the service on this port is ready"),
        "mongo-uri": ("commands.probes", "print the connection string of the database in use"),
        "completion": ("commands.completion", "print the completion script for a shell"),
    },
}
_COMMANDS = {
    name: module for section in _SECTIONS.values() for name, (module, _) in section.items()
}
#: Internal: `chat_service.supervisor` starts its processes with this command.
_COMMANDS["process"] = "commands.serve"

#: Options of nearly every command, but not of `chat` itself.
_COMMAND_OPTIONS = ("--url", "--json", "--text", "--insecure")

_HELP = """Run a chat inbox over HTTP, and send requests to it.

\b
Examples:
  chat serve                          serve on http://127.0.0.1:8080
  chat send bob 'lunch?'              post a message
  chat read bob --wait 30s            read the unread messages, or wait for one
  chat watch bob                      stream new messages until Ctrl-C

Client commands find the service by --url or the environment variable CHAT_URL, and a token in
CHAT_TOKEN, in the file that CHAT_TOKEN_FILE names, or in ~/.config/chat/token. They print text for
people on a terminal, and otherwise one JSON object per line. --json and --text override this.
"""
_EXIT_CODES = """\b
Exit codes:
  0    done
  1    nothing found, not ready, or too late
  2    bad arguments or settings, or refused by the service
  3    the address to listen on is taken, or is not an address of this machine
  4    the database cannot be used
  5    the data directory cannot be used
  6    the service cannot be reached, or limits this client; nothing was done
  7    the outcome is unknown; if a key makes a retry safe, the error names it
  8    the output cannot be written; the error says how to get it again
  9    the service needs a token, does not accept this one, or the token lacks a right
  129  SIGHUP: the terminal was closed
  130  Ctrl-C
  141  the reader of the output has exited
  143  SIGTERM
"""


class _Commands(click.Group):
    """A group that imports a command when it is used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [name for section in _SECTIONS.values() for name in section]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        module = import_module(f"chat_service.cli.{_COMMANDS[cmd_name]}")
        command = getattr(module, cmd_name.replace("-", "_"))
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        try:
            return super().resolve_command(ctx, args)
        except click.exceptions.NoSuchCommand as error:
            # click suggests only commands that are registered, and these are loaded on demand.
            names = self.list_commands(ctx)
            raise click.exceptions.NoSuchCommand(
                error.command_name, possibilities=names, ctx=ctx
            ) from None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for title, section in _SECTIONS.items():
            with formatter.section(title):
                formatter.write_dl([(name, text) for name, (_, text) in section.items()])

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        names = [
            CompletionItem(name, help=text)
            for section in _SECTIONS.values()
            for name, (_, text) in section.items()
            if name.startswith(incomplete)
        ]
        return names or click.Command.shell_complete(self, ctx, incomplete)


@click.group(
    cls=_Commands,
    help=_HELP,
    epilog=_EXIT_CODES,
    context_settings={"max_content_width": 100, "help_option_names": ["-h", "--help"]},
)
@click.version_option(__version__, message="%(version)s")
def chat() -> None:
    """Hold the commands; `_HELP` is the help text."""


def _hint(error: click.NoSuchOption) -> str:
    """Return what to do instead of giving an option that a command does not have."""
    command = error.ctx.command if error.ctx else chat
    if command is chat:
        return " Put it after the command." if error.option_name in _COMMAND_OPTIONS else ""
    uses_database = any(each.name == "mongo_uri" for each in command.params)
    if error.option_name == "--url" and uses_database:
        return (
            " This command asks the database: name the --port of the service, its --data-dir or "
            "its --mongo-uri."
        )
    return ""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return the exit code of the process."""
    open_closed_streams()
    try:
        code = chat.main(arguments, prog_name="chat", standalone_mode=False)
        sys.stdout.flush()
        return int(code or 0)
    except CommandError as failed:
        for line in failed.lines:
            print_error(line)
        return failed.code
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        return ExitCode.REFUSED
    except click.UsageError as error:
        command = error.ctx.command_path if error.ctx else "chat"
        hint = _hint(error) if isinstance(error, click.NoSuchOption) else ""
        # click's messages may span several lines, and may lack a full stop.
        reason = " ".join(error.format_message().split())
        stop = "" if reason.endswith((".", "?")) else "."
        print_error(f"{reason}{stop}{hint} See: {command} --help")
        return ExitCode.REFUSED
    except (click.Abort, KeyboardInterrupt):
        return ExitCode.INTERRUPTED
    except OSError as error:
        if error.filename is not None:
            print_error(f"{error.filename}: {error.strerror}")
            return ExitCode.REFUSED
        # click writes some texts, such as help, to stdout itself.
        discard_stdout()
        failure = OutputError(error)
        for line in failure.lines:
            print_error(line)
        return failure.code
    except SystemExit as error:
        if error.code != 1:
            return int(error.code or 0)
        # click exits with 1 on a broken pipe.
        discard_stdout()
        return ExitCode.BROKEN_PIPE
