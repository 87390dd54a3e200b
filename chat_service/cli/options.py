"""The options of commands that read the service's settings, and the settings they make."""

import json
import os
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any, Concatenate, ParamSpec

import click

from chat_service.cli.exit_codes import ExitCode, Failed
from config import Settings, SettingsError, load_settings
from config.load import describe

P = ParamSpec("P")

EPILOG = "Every setting of docs/settings.md can be given as CHAT_<NAME> in the environment."
#: What a shell completes them with.
_PATHS = {"config": click.Path(dir_okay=False), "data_dir": click.Path(file_okay=False)}
_OPTIONS = {
    "config": ("FILE", "A TOML file of settings (CHAT_CONFIG)."),
    "host": ("HOST", "Address to listen on (127.0.0.1)."),
    "port": ("PORT", "Port to listen on, 0 picks one (8080)."),
    "mongo_uri": ("URI", "A MongoDB replica set; none: private."),
    "data_dir": ("DIR", "Data of the private mongod (data, in the checkout)."),
    "processes": ("N", "Processes, 0 for one per core (1)."),
}


def with_settings(command: Callable[Concatenate[Settings, P], int]) -> Callable[..., int]:
    """Give a command the options that make settings, and the `Settings` made of them.

    With `--print-config` it prints them instead. Bad settings end it, each one named.
    """

    @click.option("--print-config", is_flag=True, help="Print the settings and exit.")
    @wraps(command)
    def settled(*args: Any, print_config: bool, **options: Any) -> int:
        given = {name: options.pop(name) for name in _OPTIONS}
        try:
            settings = settings_of(given)
        except SettingsError as error:
            problems = (f"bad setting: {problem}" for problem in error.problems)
            raise Failed(ExitCode.REFUSED, *problems) from None
        if print_config:
            # ASCII, since a path may have bytes that are not UTF-8.
            click.echo(json.dumps(describe(settings), indent=2))
            return ExitCode.DONE
        return command(settings, *args, **options)

    return with_options(settled)


def with_options(command: Callable[..., int]) -> Callable[..., int]:
    """Give a command the options themselves, each a word or None."""
    for name, (metavar, text) in reversed(_OPTIONS.items()):
        flag = f"--{name.replace('_', '-')}"
        option = click.option(flag, metavar=metavar, help=text, type=_PATHS.get(name))
        command = option(command)
    return command


def settings_of(given: dict[str, str | None]) -> Settings:
    """The settings in force, with these words of the command line. Raises `SettingsError`."""
    words = {name: word for name, word in given.items() if word is not None}
    config = words.pop("config", None) or os.environ.get("CHAT_CONFIG")
    return load_settings(words, os.environ, Path(config) if config else None)


def words_of(context: click.Context) -> list[str]:
    """The words of a command's options as they were given, for another command that has them."""
    return [
        f"--{name.replace('_', '-')}={context.params[name]}"
        for name in _OPTIONS
        if context.params[name] is not None
    ]
