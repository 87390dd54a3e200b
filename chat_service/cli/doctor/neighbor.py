"""Finds out whether the service at the configured address uses the data directory of a command.

Without `--data-dir`, a command looks at the default directory. It may hold the messages of an
earlier start, while the service of today uses another one.
"""

import os
import re
from contextlib import suppress
from pathlib import Path

from chat_service.cli.doctor.service import find_service

#: A line of /proc/PID/net/tcp about a listening socket: its port in hexadecimal, and its inode.
_LISTENING = re.compile(
    r"^ *\d+: [0-9A-F]+:([0-9A-F]{4}) [0-9A-F]+:0000 0A (?:\S+ +){5}(\d+)", re.MULTILINE
)
_ADVICE = (
    "name the service's directory with --data-dir, or its database with --mongo-uri; if you mean "
    "another service, name its --port; or add --port 0 to look at this directory all the same"
)


async def other_service(
    data_dir: Path, owner: str | None, host: str, port: int, scheme: str
) -> str:
    """Return what is wrong if the service at an address does not use a data directory.

    `owner` is the id of the process that uses the directory, if any. The result is empty if nothing
    is wrong, or if it cannot be found out.
    """
    if not port or (owner is not None and _listens(owner, port) is not False):
        return ""
    url = await find_service(host, port, scheme)
    return "" if url is None else f"the service at {url} does not use {data_dir}: {_ADVICE}"


def _listens(process: str, port: int) -> bool | None:
    """Return whether a process listens on a port, or None if that is unknown."""
    inodes: set[str] = set()
    try:
        for name in ("tcp", "tcp6"):
            text = Path("/proc", process, "net", name).read_text(encoding="ascii")
            inodes |= {
                inode for number, inode in _LISTENING.findall(text) if int(number, 16) == port
            }
        files = list(Path("/proc", process, "fd").iterdir())
    except OSError:
        return None
    for file in files:
        with suppress(OSError):
            if os.readlink(file).removeprefix("socket:[").removesuffix("]") in inodes:
                return True
    return False
