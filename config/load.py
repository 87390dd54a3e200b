"""Fills a `Settings` from its sources: defaults < file < environment < command line.

Called once, by `chat_service.cli`. Reports every error at once, each with the source that it came
from, so that a bad deployment is mended in one go.
"""

import math
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args, get_origin

import msgspec

from config.environment import from_environment
from config.settings import SECRETS, Settings

_FIELDS = {field.name: field for field in msgspec.structs.fields(Settings)}
#: The databases that MongoDB keeps for itself, and why no messages can be in them.
_MONGODBS_OWN = {
    "admin": "where MongoDB keeps its users and roles",
    "config": "where MongoDB keeps what sessions and shards need",
    "local": "which MongoDB does not replicate",
}


class SettingsError(Exception):
    """One or more settings are wrong; `problems` holds a line for each."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


def load_settings(
    arguments: Mapping[str, str],
    environ: Mapping[str, str],
    file: Path | None = None,
) -> Settings:
    """The settings in force.

    `arguments` maps setting names to the command line's words, `environ` is the process
    environment (`CHAT_PORT`, `CHAT_MONGO_URI_FILE`, ...), `file` a TOML file with the settings'
    names as keys. Raises `SettingsError` with every problem found.
    """
    problems: list[str] = []
    values: dict[str, Any] = {}
    sources = (
        *_from_file(file, problems),
        *from_environment(environ, problems),
        *((name, value, "--" + name.replace("_", "-")) for name, value in arguments.items()),
    )
    for name, value, source in sources:
        try:
            values[name] = _convert(name, value)
        except (msgspec.ValidationError, ValueError):
            shown = "" if name in SECRETS else f", not {value!r}"
            problems.append(f"{source}: must be {_with_article(in_words(name))}{shown}")
    if not problems:
        problems += _contradictions(Settings(**values))
    if problems:
        raise SettingsError(problems)
    return Settings(**values)


def plain_type(name: str) -> Any:
    """A setting's type without its bounds."""
    kind = _FIELDS[name].type
    return get_args(kind)[0] if hasattr(kind, "__metadata__") else kind


def in_words(name: str) -> str:
    """What a setting may be, bounds included."""
    kind = plain_type(name)
    if get_origin(kind) is tuple:
        return "comma-separated list"
    if choices := get_args(kind):
        return ", ".join(f"`{choice}`" for choice in choices)
    meta = _FIELDS[name].type.__metadata__[0]
    word = {int: "integer", float: "number", str: "text", Path: "path"}[kind]
    if meta.gt is not None:
        word += f" above {meta.gt}"
    elif meta.ge is not None:
        word += f" from {meta.ge}"
    return f"{word} to {meta.le}" if meta.le is not None else word


def _with_article(words: str) -> str:
    articles = {"integer": "an ", "number": "a ", "path": "a ", "comma-separated": "a "}
    return articles.get(words.split(" ", 1)[0], "") + words


def describe(settings: Settings) -> dict[str, Any]:
    """The settings as plain JSON values, secrets masked."""
    plain = msgspec.to_builtins(settings, enc_hook=str)
    return {name: "***" if name in SECRETS and value else value for name, value in plain.items()}


def _from_file(file: Path | None, problems: list[str]) -> list[tuple[str, Any, str]]:
    if file is None:
        return []
    try:
        # Windows' editors begin a file with a byte order mark.
        entries = tomllib.loads(file.read_text(encoding="utf-8-sig"))
    except OSError as error:
        problems.append(f"{file}: cannot be read: {error.strerror}")
        return []
    except UnicodeDecodeError:
        problems.append(f"{file}: is not UTF-8, and so not TOML")
        return []
    except tomllib.TOMLDecodeError as error:
        problems.append(f"{file}: is not TOML: {error}")
        return []
    except RecursionError:
        problems.append(f"{file}: is not TOML: it is nested too deeply")
        return []
    problems += [f"{file}: there is no setting {name!r}" for name in entries.keys() - _FIELDS]
    return [(name, value, f"{file}: {name}") for name, value in entries.items() if name in _FIELDS]


def _convert(name: str, value: Any) -> Any:
    if get_origin(plain_type(name)) is tuple and isinstance(value, str):
        value = [item.strip() for item in value.split(",") if item.strip()]
    # Words of the environment are text: "8080" is the integer 8080, but a boolean is not.
    if isinstance(value, bool):
        raise ValueError("Expected `number` or `text`, got `bool`")
    if isinstance(value, str) and plain_type(name) is not Path:
        # Bytes of the environment that are not UTF-8 are lone surrogates here.
        value.encode()
    converted = msgspec.convert(value, _FIELDS[name].type, strict=False, dec_hook=_path)
    if isinstance(converted, float) and not math.isfinite(converted):
        raise ValueError("Expected a finite number")
    return converted


def _path(kind: type, value: Any) -> Any:
    if kind is Path and isinstance(value, str) and value:
        return Path(value).expanduser().absolute()
    raise ValueError("Expected a path")


def _contradictions(settings: Settings) -> list[str]:
    problems = []
    if settings.default_timeout_s > settings.max_timeout_s:
        problems.append("default_timeout_s: is longer than max_timeout_s")
    if settings.max_body_bytes < settings.max_text_bytes:
        problems.append("max_body_bytes: is shorter than max_text_bytes")
    if settings.bodies_max_bytes < 2 * max(settings.max_body_bytes, settings.max_batch_bytes):
        problems.append("bodies_max_bytes: is less than twice max_body_bytes or max_batch_bytes")
    if settings.mongo_timeout_s > settings.deadline_s:
        problems.append("mongo_timeout_s: is longer than deadline_s")
    if reason := _MONGODBS_OWN.get(settings.mongo_database.lower()):
        problems.append(
            f"mongo_database: must not be {settings.mongo_database!r}, {reason}; the default "
            "is 'chat'"
        )
    if settings.mongo_uri and not settings.mongo_uri.startswith(("mongodb://", "mongodb+srv://")):
        problems.append("mongo_uri: starts with neither mongodb:// nor mongodb+srv://")
    return problems
