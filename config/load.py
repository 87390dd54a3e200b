"""Loads the settings: the command line overrides the environment, then a file, then the defaults.

Called once, by `chat_service.cli`. Reports all errors at once, each with its source, so that a
deployment can be fixed in one step.
"""

import math
import re
import tomllib
from collections.abc import Mapping
from ipaddress import ip_network
from pathlib import Path
from typing import Any, get_args, get_origin

import msgspec

from config.environment import from_environment
from config.settings import SECRETS, Settings

_FIELDS = {field.name: field for field in msgspec.structs.fields(Settings)}
#: Settings that name a file; `jwt_keys` may also be a URL.
_FILES = {"access_file", "jwt_keys", "tls_certificate", "tls_key"}
_WEB_URL = re.compile(r"https?://[^/?#\s]+", re.IGNORECASE)
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
#: How many digits of its hash the name of a dead-letter inbox ends in that would be too long.
_HASH_DIGITS = 8
#: MongoDB's internal databases, and why they cannot hold messages.
_INTERNAL_DATABASES = {
    "admin": "which holds MongoDB's users and roles",
    "config": "which holds MongoDB's session and sharding metadata",
    "local": "which MongoDB does not replicate",
}


class SettingsError(Exception):
    """One or more settings are invalid. `problems` holds a line for each."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


def load_settings(
    arguments: Mapping[str, str],
    environ: Mapping[str, str],
    file: Path | None = None,
) -> Settings:
    """Return the settings in effect.

    `arguments` maps setting names to values from the command line. `environ` is the environment of
    the process (`CHAT_PORT`, `CHAT_MONGO_URI_FILE`, ...). `file` is a TOML file with setting names
    as keys. Raise `SettingsError` with all problems found.
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
    """Return the type of a setting without its bounds."""
    kind = _FIELDS[name].type
    return get_args(kind)[0] if hasattr(kind, "__metadata__") else kind


def in_words(name: str) -> str:
    """Describe the valid values of a setting, including its bounds."""
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
    """Return the settings as JSON values, with secrets masked."""
    plain = msgspec.to_builtins(settings, enc_hook=str)
    return {name: "***" if name in SECRETS and value else value for name, value in plain.items()}


def _from_file(file: Path | None, problems: list[str]) -> list[tuple[str, Any, str]]:
    if file is None:
        return []
    try:
        # Editors on Windows may begin a file with a byte order mark.
        entries = tomllib.loads(file.read_text(encoding="utf-8-sig"))
    except OSError as error:
        problems.append(f"{file}: cannot be read: {error.strerror}")
        return []
    except UnicodeDecodeError:
        problems.append(f"{file}: is not UTF-8, as TOML must be")
        return []
    except tomllib.TOMLDecodeError as error:
        problems.append(f"{file}: is not valid TOML: {error}")
        return []
    except RecursionError:
        problems.append(f"{file}: is not valid TOML: it is nested too deeply")
        return []
    problems += [f"{file}: there is no setting {name!r}" for name in entries.keys() - _FIELDS]
    return [(name, value, f"{file}: {name}") for name, value in entries.items() if name in _FIELDS]


def _convert(name: str, value: Any) -> Any:
    if get_origin(plain_type(name)) is tuple and isinstance(value, str):
        value = [item.strip() for item in value.split(",") if item.strip()]
    # A text such as "8080" is converted to an integer below. A boolean must not be.
    if isinstance(value, bool):
        raise ValueError("Expected `number` or `text`, got `bool`")
    if isinstance(value, str) and plain_type(name) is not Path:
        # Fail if the environment had bytes that are not UTF-8, which are lone surrogates here.
        value.encode()
    converted = msgspec.convert(value, _FIELDS[name].type, strict=False, dec_hook=_path)
    if isinstance(converted, float) and not math.isfinite(converted):
        raise ValueError("Expected a finite number")
    if name in _FILES and converted and "://" not in converted:
        # Errors then say where the service looked for the file.
        return str(Path(converted).expanduser().absolute())
    return converted


def _path(kind: type, value: Any) -> Any:
    if kind is Path and isinstance(value, str) and value:
        return Path(value).expanduser().absolute()
    raise ValueError("Expected a path")


def _contradictions(settings: Settings) -> list[str]:
    problems = []
    problems += _access_contradictions(settings)
    if settings.public_url and not _WEB_URL.match(settings.public_url):
        problems.append("public_url: must be a URL such as https://chat.example")
    if settings.default_timeout_s > settings.max_timeout_s:
        problems.append("default_timeout_s: must not exceed max_timeout_s")
    if settings.max_body_bytes < settings.max_text_bytes:
        problems.append("max_body_bytes: must not be less than max_text_bytes")
    if settings.bodies_max_bytes < 2 * max(settings.max_body_bytes, settings.max_batch_bytes):
        problems.append(
            "bodies_max_bytes: must be at least twice max_body_bytes and max_batch_bytes"
        )
    if settings.mongo_timeout_s > settings.deadline_s:
        problems.append("mongo_timeout_s: must not exceed deadline_s")
    if bool(settings.tls_certificate) != bool(settings.tls_key):
        problems.append("tls_certificate, tls_key: set both or neither")
    if reason := _INTERNAL_DATABASES.get(settings.mongo_database.lower()):
        problems.append(
            f"mongo_database: must not be {settings.mongo_database!r}, {reason}; the default "
            "is 'chat'"
        )
    if reason := _dead_letter_inbox_fault(settings):
        problems.append(f"dead_letter_inbox: {reason}")
    for network in settings.trusted_proxies:
        try:
            ip_network(network)
        except ValueError as error:
            problems.append(f"trusted_proxies: {error}")
    if settings.mongo_uri and not settings.mongo_uri.startswith(("mongodb://", "mongodb+srv://")):
        problems.append("mongo_uri: must begin with mongodb:// or mongodb+srv://")
    return problems


def _dead_letter_inbox_fault(settings: Settings) -> str:
    """Return why some inbox would have no valid dead-letter inbox of another name, or nothing."""
    template = settings.dead_letter_inbox
    if "{username}" not in template:
        return "must contain {username}, so that each inbox has its own"
    fixed = template.replace("{username}", "")
    if not fixed:
        return "must contain more than {username}, or a message would stay in its inbox"
    if _CONTROL.search(fixed):
        return "must not contain control characters"
    # A character of the username must fit, too.
    if settings.max_deliveries and len(fixed) + 1 + _HASH_DIGITS > settings.max_username_chars:
        return "must be shorter, or max_username_chars greater"
    return ""


def _access_contradictions(settings: Settings) -> list[str]:
    """Return what is missing or has no effect. An operator must not believe that it protects."""
    problems = []
    takes_tokens, takes_jwt = (settings.access in (each, "both") for each in ("tokens", "jwt"))
    if takes_tokens and not settings.access_file:
        problems.append(f"access_file: is required for access={settings.access}")
    if settings.access == "off" and settings.access_file:
        problems.append("access_file: has no effect with access=off; set access=tokens")
    for name in ("jwt_issuer", "jwt_audience", "jwt_keys"):
        is_set = bool(getattr(settings, name))
        if takes_jwt and not is_set and name != "jwt_keys":
            problems.append(f"{name}: is required for access={settings.access}")
        elif is_set and not takes_jwt:
            problems.append(f"{name}: has no effect with access={settings.access}")
    return problems
