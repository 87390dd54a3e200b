"""Options that override settings, for commands that need the service's settings."""

import json
import os
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any, Concatenate, ParamSpec

import click

from chat_service.cli.exit_codes import CommandError, ExitCode
from config import Settings, SettingsError, load_settings
from config.load import describe

P = ParamSpec("P")

EPILOG = "Every setting in docs/settings.md can also be set as CHAT_<NAME> in the environment."
#: The types of options that a shell completes with paths.
_PATHS = {"config": click.Path(dir_okay=False), "data_dir": click.Path(file_okay=False)}
_OPTIONS = {
    "config": ("FILE", "TOML file with settings (CHAT_CONFIG)."),
    "host": ("HOST", "Address to listen on (127.0.0.1)."),
    "port": ("PORT", "Port to listen on; 0 picks a free one (8080)."),
    "mongo_uri": ("URI", "MongoDB replica set to use (an embedded one)."),
    "data_dir": (
        "DIR",
        "Data directory of the embedded MongoDB (data in a checkout, else "
        "~/.local/state/chat-inbox).",
    ),
    "processes": ("N", "Number of processes; 0 starts one per core (1)."),
}


def with_settings(command: Callable[Concatenate[Settings, P], int]) -> Callable[..., int]:
    """Add the setting options to a command, and pass it the resulting `Settings`.

    With `--print-config`, the settings are printed and the command does not run. Raise
    `CommandError` with a line for each invalid setting.
    """

    @click.option("--print-config", is_flag=True, help="Print the settings and exit.")
    @wraps(command)
    def wrapper(*args: Any, print_config: bool, **options: Any) -> int:
        given = {name: options.pop(name) for name in _OPTIONS}
        try:
            settings = settings_from(given)
        except SettingsError as error:
            problems = (f"bad setting: {problem}" for problem in error.problems)
            raise CommandError(ExitCode.REFUSED, *problems) from None
        if print_config:
            # As ASCII, because a path may contain bytes that are not UTF-8.
            click.echo(json.dumps(describe(settings), indent=2))
            return ExitCode.DONE
        return command(settings, *args, **options)

    return with_options(wrapper)


def with_options(command: Callable[..., int]) -> Callable[..., int]:
    """Add the setting options to a command. It receives each as given, or None."""
    for name, (metavar, text) in reversed(_OPTIONS.items()):
        flag = f"--{name.replace('_', '-')}"
        option = click.option(flag, metavar=metavar, help=text, type=_PATHS.get(name))
        command = option(command)
    return command


def settings_from(given: dict[str, str | None]) -> Settings:
    """Return the settings in effect with these options. Raise `SettingsError` if any is invalid."""
    arguments = {name: value for name, value in given.items() if value is not None}
    config = arguments.pop("config", None) or os.environ.get("CHAT_CONFIG")
    return load_settings(arguments, os.environ, Path(config) if config else None)


def options_given(context: click.Context) -> list[str]:
    """Return a command's setting options as arguments for another process."""
    return [
        f"--{name.replace('_', '-')}={context.params[name]}"
        for name in _OPTIONS
        if context.params[name] is not None
    ]


def address_of_directory(settings: Settings) -> tuple[str, int, str]:
    """Return host, port and scheme of the service that should be using the data directory.

    The port is 0 if none is meant: someone who names a directory and no port means that directory,
    and any other service may be at the default port.
    """
    defaults = Settings()
    is_named = settings.data_dir != defaults.data_dir and settings.port == defaults.port
    return settings.host, 0 if is_named else settings.port, settings.scheme
