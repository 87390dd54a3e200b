"""Finds the command, runs it, and turns what it raises into a line on stderr and an exit code.

Called by `chat`, which pyproject.toml installs, and by `python -m chat_service`.
"""

import sys
from collections.abc import Sequence
from importlib import import_module

import click
from click.shell_completion import CompletionItem

from chat_service import __version__
from chat_service.cli.exit_codes import (
    ExitCode,
    Failed,
    Unwritten,
    open_closed_streams,
    say,
    write_no_more,
)

#: By section: each command, its file, and what it does in short. None of the files is imported
#: before its command is asked for.
_SECTIONS: dict[str, dict[str, tuple[str, str]]] = {
    "Messages": {
        "send": ("commands.send", "post a message, or one for each line"),
        "read": ("commands.read", "take what is unread"),
        "watch": ("commands.watch", "show what comes, as it comes"),
        "count": ("commands.read", "say how many are unread; changes nothing"),
    },
    "Leases": {
        "lease": ("commands.leases", "take what is unread on loan"),
        "ack": ("commands.leases", "acknowledge: read, and gone"),
        "release": ("commands.leases", "give back: unread again, at once"),
        "extend": ("commands.leases", "keep a lease for longer"),
    },
    "Receipts": {
        "status": ("commands.receipts", "say what became of a message"),
        "revoke": ("commands.receipts", "take a message back while it is unread"),
    },
    "The service": {
        "serve": ("commands.serve", "serve until SIGTERM or SIGINT"),
        "doctor": ("doctor.command", "look for what is wrong, and say what to do"),
        "load": ("commands.load", "press a service and measure it"),
        "healthcheck": ("commands.probes", "exit 0 where the service on this port is ready"),
        "mongo-uri": ("commands.probes", "print the connection string of the database in use"),
        "completion": ("commands.completion", "print the completion script of a shell"),
    },
}
_COMMANDS = {name: file for section in _SECTIONS.values() for name, (file, _) in section.items()}
#: What `chat_service.supervisor` starts; no command for people.
_COMMANDS["process"] = "commands.serve"

#: Options that nearly every command has, and `chat` itself has not.
_BEHIND_COMMANDS = ("--url", "--json", "--text")

_HELP = """A chat inbox over HTTP, and all that one can ask of it.

\b
Examples:
  chat serve                          serve on http://127.0.0.1:8080
  chat send bob 'lunch?'              post a message
  chat read bob --wait 30s            take what is unread, or wait for it
  chat watch bob                      show what comes, until Ctrl-C

Commands that speak to a service find it by --url or the environment's CHAT_URL. On a terminal they
write for people, else a JSON object on each line; --json and --text choose.
"""
_EXIT_CODES = """\b
Exit codes:
  0    done
  1    nothing there, not ready, or too late
  2    bad arguments or settings, or refused by the service
  3    the address to listen on is taken, or is none of this machine
  4    no database
  5    the data directory cannot be used
  6    the service was not reached
  7    it is unknown what became of it; where a key settles it, the line names it
  8    the output could not be written; the line says how to have it again
  129  SIGHUP: the terminal is gone
  130  Ctrl-C
  141  whoever read the output has gone
  143  SIGTERM
"""


class _Commands(click.Group):
    """A group whose commands are imported when they are called."""

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
            # click offers what is near of those that it has, and it has none before it asks.
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
    """All commands."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; gives the process's exit code."""
    open_closed_streams()
    try:
        code = chat.main(arguments, prog_name="chat", standalone_mode=False)
        sys.stdout.flush()
        return int(code or 0)
    except Failed as failed:
        for line in failed.lines:
            say(line)
        return failed.code
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        return ExitCode.REFUSED
    except click.UsageError as error:
        command = error.ctx.command_path if error.ctx else "chat"
        hint = ""
        if isinstance(error, click.NoSuchOption) and error.option_name in _BEHIND_COMMANDS:
            hint = " It goes behind the command."
        # click has lists over several lines, and not always a full stop.
        reason = " ".join(error.format_message().split())
        stop = "" if reason.endswith((".", "?")) else "."
        say(f"{reason}{stop}{hint} See: {command} --help")
        return ExitCode.REFUSED
    except (click.Abort, KeyboardInterrupt):
        return ExitCode.INTERRUPTED
    except OSError as error:
        if error.filename is not None:
            say(f"{error.filename}: {error.strerror}")
            return ExitCode.REFUSED
        # Texts such as help are written directly.
        write_no_more()
        unwritten = Unwritten(error)
        for line in unwritten.lines:
            say(line)
        return unwritten.code
    except SystemExit as error:
        if error.code != 1:
            return int(error.code or 0)
        # What click makes of a broken pipe.
        write_no_more()
        return ExitCode.UNHEARD
