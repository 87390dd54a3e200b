"""The token of a client command: from the environment or a file, never from an argument.

Arguments are visible to every user of the machine, in `ps` and in the shell's history.
"""

import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from chat_inbox.credentials import PlainHttpRefused, TokenSource, check_address, check_token
from chat_service.cli.exit_codes import CommandError, ExitCode

_VARIABLE, _FILE_VARIABLE = "CHAT_TOKEN", "CHAT_TOKEN_FILE"
_DEFAULT_FILE = "~/.config/chat/token"
#: The longest file that is read, in bytes. A token has at most 4 KiB.
_LONGEST_FILE = 1 << 16
#: What to do without a token.
HOW_TO_GIVE_ONE = f"set {_VARIABLE} or {_FILE_VARIABLE}, or write it to {_DEFAULT_FILE}"


class UserToken(NamedTuple):
    """The token of the user who runs a command, and what it was read from, in words."""

    value: str
    origin: str
    #: The file that may have another token later.
    file: Path | None = None

    def source(self) -> TokenSource:
        """Return what a client needs.

        A file is read again when the service refuses the token, because another program may have
        renewed it.
        """
        file = self.file
        if file is None:
            return self.value

        def read_again() -> str:
            return _read_file(file, self.origin).value

        return read_again

    def check_address(self, url: str, allow_plain_http: bool) -> None:
        """Raise `CommandError` if the token must not be sent to this address."""
        try:
            check_address(url, allow_plain_http)
        except ValueError as error:
            advice = ""
            if isinstance(error, PlainHttpRefused):
                advice = "; use https, or --insecure if nobody can listen"
            reason = f"the token from {self.origin} is not sent: {error}{advice}"
            raise CommandError(ExitCode.REFUSED, reason) from None


def find_token(environ: Mapping[str, str]) -> UserToken | None:
    """Return the user's token, or None if there is none. Raise `CommandError` if it is unusable."""
    if token := environ.get(_VARIABLE):
        return UserToken(_checked(token, _VARIABLE), _VARIABLE)
    if named := environ.get(_FILE_VARIABLE):
        return _read_file(Path(named), f"{named} ({_FILE_VARIABLE})")
    folder = environ.get("XDG_CONFIG_HOME", "")
    file = Path(folder, "chat", "token") if os.path.isabs(folder) else _home_file()
    if file is None or not os.path.exists(file):
        return None
    return _read_file(file, str(file), must_be_private=True)


def _home_file() -> Path | None:
    """Return the file in the user's home directory, or None for a user without one."""
    try:
        return Path(_DEFAULT_FILE).expanduser()
    except RuntimeError:
        return None


def _read_file(path: Path, origin: str, *, must_be_private: bool = False) -> UserToken:
    """Read a token from a file.

    The user's own file must be private. A file that a variable names need not be: the secrets of
    containers can be read by every user of the container.
    """
    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            if must_be_private and status.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
                reason = f"other users can read or change {path}; run: chmod 600 {path}"
                raise CommandError(ExitCode.REFUSED, reason)
            content = file.read(_LONGEST_FILE)
    except OSError as error:
        reason = f"the token in {origin} cannot be read: {error.strerror}"
        raise CommandError(ExitCode.REFUSED, reason) from None
    token = _checked(content.decode("utf-8-sig", "replace").strip(), origin)
    # A pipe has no second token.
    return UserToken(token, origin, path if stat.S_ISREG(status.st_mode) else None)


def _checked(token: str, origin: str) -> str:
    try:
        return check_token(token)
    except ValueError as error:
        raise CommandError(ExitCode.REFUSED, f"{origin}: {error}") from None
