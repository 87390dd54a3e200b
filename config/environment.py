"""Finds the settings in a process's environment: `CHAT_PORT`, `CHAT_MONGO_URI_FILE`, and so on.

Operators are not the only ones who set variables. Kubernetes and Docker add variables for each
service, and for a service named `chat` or `chat-ops` they begin with `CHAT_`, for example
`CHAT_PORT=tcp://10.0.0.1:8080`. Such variables are ignored. Other `CHAT_*` variables that are not
settings may be typos: they are ignored as well, but `unknown_variables` reports them.

Used by `config.load`, and by the commands that print these warnings.
"""

import difflib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from config.settings import SECRETS, Settings

ENV_PREFIX = "CHAT_"
#: Names of variables that are not settings: the settings file, the address of the service and the
#: token for clients, and what docker-compose.yml publishes and builds.
_NOT_SETTINGS = frozenset({"config", "url", "token", "token_file", "publish", "requirements"})
_NAMES = Settings.__struct_fields__
#: Matches the variables of Kubernetes and Docker, except `<NAME>_PORT`: only the value
#: distinguishes that one from the setting.
_SERVICE_LINK = re.compile(
    r"_SERVICE_(HOST|PORT|PORT_\w+)$|_PORT_[0-9]+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?$"
)
_LINK_ADDRESS = re.compile(r"(tcp|udp|sctp)://")


def from_environment(environ: Mapping[str, str], problems: list[str]) -> list[tuple[str, str, str]]:
    """Return the name, value and variable of each setting. Add errors to `problems`."""
    found = []
    for variable, name in _ours(environ):
        value = environ[variable]
        secret = name.removesuffix("_file")
        if name != secret and secret in SECRETS:
            if ENV_PREFIX + secret.upper() in environ:
                other = ENV_PREFIX + secret.upper()
                problems.append(f"{variable}: {other} is set, too; unset one of them")
            try:
                # Editors on Windows may begin a file with a byte order mark.
                value = Path(value).read_text(encoding="utf-8-sig").strip()
            except OSError as error:
                problems.append(f"{variable}: {value} cannot be read: {error.strerror}")
                continue
            except UnicodeDecodeError:
                problems.append(f"{variable}: {value} is not UTF-8")
                continue
            name = secret
        if name in _NAMES:
            found.append((name, value, variable))
    return found


def unknown_variables(environ: Mapping[str, str]) -> list[str]:
    """Return a line about each `CHAT_*` variable that is neither a setting nor a service link."""
    lines = []
    for variable, name in _ours(environ):
        secret = name.removesuffix("_file")
        if name in _NAMES or (name != secret and secret in SECRETS):
            continue
        if name != secret and secret in _NAMES:
            advice = f"only secrets can be read from files; set {ENV_PREFIX}{secret.upper()}"
        elif near := difflib.get_close_matches(name, _NAMES, 1, 0.7):
            advice = f"did you mean {ENV_PREFIX}{near[0].upper()}?"
        else:
            advice = "unset it unless another program needs it"
        lines.append(f"{variable} is ignored: there is no setting {name!r}; {advice}")
    return lines


def setting_variables(environ: Mapping[str, str]) -> list[str]:
    """Return the variables from which settings are read, sorted."""
    return sorted(variable for _, _, variable in from_environment(environ, []))


def _ours(environ: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Yield each variable that may be intended as a setting, and the setting's name."""
    for variable in sorted(environ):
        if not variable.startswith(ENV_PREFIX):
            continue
        name = variable.removeprefix(ENV_PREFIX).lower()
        if name in _NOT_SETTINGS:
            continue
        is_link = variable.endswith("_PORT") and _LINK_ADDRESS.match(environ[variable])
        if not is_link and (name in _NAMES or not _SERVICE_LINK.search(variable)):
            yield variable, name
