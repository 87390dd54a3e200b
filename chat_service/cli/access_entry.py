"""Writes entries of the access file. Used by `chat token`."""

import fcntl
import json
import os
import tempfile
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path

from chat_service.cli.exit_codes import CommandError, ExitCode

#: The mode of a new file. It has no secrets, but names and rights are nobody else's business.
_MODE = 0o600


def entry_of(
    name: str,
    sha256: str,
    send: Sequence[str],
    read: Sequence[str],
    ops: bool,
    until: datetime | None,
) -> str:
    """Return the TOML of one token's entry. `sha256` is in hexadecimal digits."""
    lines = ["[[token]]", f"name = {_quoted(name)}", f'sha256 = "{sha256}"']
    lines += [f"send = [{', '.join(map(_quoted, send))}]"] if send else []
    lines += [f"read = [{', '.join(map(_quoted, read))}]"] if read else []
    lines += ["ops = true"] if ops else []
    lines += [f"until = {until.isoformat().replace('+00:00', 'Z')}"] if until else []
    return "\n".join(lines) + "\n"


def read_text(path: Path) -> str:
    """Return the text of an access file. Raise `CommandError` if it cannot be read."""
    try:
        # Editors on Windows may begin a file with a byte order mark.
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise CommandError(ExitCode.REFUSED, f"{path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise CommandError(ExitCode.REFUSED, f"{path}: is not UTF-8, as TOML must be") from None


def add_entry(path: Path, entry: str, check: Callable[[str], object]) -> None:
    """Append an entry to an access file in one step, or create the file.

    `check` raises if the service would refuse a text; then the file is not changed. The service
    never sees a part of the entry, and of two commands at once, neither undoes the other.
    """
    # If it is a link, replace what it points to.
    path = path.resolve()
    try:
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(folder, fcntl.LOCK_EX)
            before = read_text(path) if path.exists() else ""
            check(before)
            after = f"{before.rstrip()}\n\n{entry}" if before.strip() else entry
            check(after)
            _replace(path, after)
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        raise CommandError(ExitCode.REFUSED, f"{path}: {error.strerror}") from None


def _replace(path: Path, text: str) -> None:
    """Replace a file in one step. It keeps its mode and, as far as permitted, its owner."""
    written, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(written, "w", encoding="utf-8") as file:
            file.write(text)
            if path.exists():
                status = path.stat()
                if (status.st_uid, status.st_gid) != (os.getuid(), os.getgid()):
                    os.fchown(file.fileno(), status.st_uid, status.st_gid)
                os.fchmod(file.fileno(), status.st_mode & 0o777)
            else:
                os.fchmod(file.fileno(), _MODE)
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise


def _quoted(text: str) -> str:
    """Return a TOML string. JSON's escapes are TOML's, but for DEL."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007F")
