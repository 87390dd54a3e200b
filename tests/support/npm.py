"""Packages of npm for tests. Only the standard library is needed.

Versions and hashes are pinned in a package-lock.json beside the tests that use them.
"""

import fcntl
import hashlib
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

_TOX = Path(__file__).resolve().parents[2] / ".tox"
#: npm gives up when the network is slow, instead of waiting.
_TRIES = 3


class NoNpm(Exception):
    """This machine has no npm."""


def npm() -> list[str | Path]:
    """Return the command of this machine's npm. Raise `NoNpm` if there is none."""
    found = shutil.which("npm")
    if found is None:
        raise NoNpm("npm is not installed")
    return [found]


def copy_and_install(
    files: Sequence[Path], folder: Path, *options: str, command: Sequence[str | Path] = ()
) -> None:
    """Copy package.json, package-lock.json and other files to a folder, and install the packages.

    `command` runs another npm than this machine's.
    """
    for file in files:
        shutil.copy(file, folder)
    run = [*(command or npm()), "ci", "--ignore-scripts", "--no-audit", "--no-fund", *options]
    for tries_left in range(_TRIES - 1, -1, -1):
        done = subprocess.run(
            [*run, "--loglevel=error"],
            cwd=folder,
            stdin=subprocess.DEVNULL,
            check=not tries_left,
        )
        if not done.returncode:
            break


def installed(name: str, files: Sequence[Path], install: Callable[[Path], None]) -> Path:
    """Return a folder of tox in which `install` has run for these versions of the files.

    Safe in several processes at a time: one installs, the others wait.
    """
    digest = hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()
    folder = _TOX / f"{name}-{digest[:12]}"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w", encoding="ascii") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "installed").exists():
            install(folder)
            (folder / "installed").touch()
    return folder
