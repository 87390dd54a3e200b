"""A service, and a folder with the generators, for the tests of generated clients."""

import os
import shutil
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.support.npm import NoNpm, copy_and_install, installed
from tests.support.server import Server

_HERE = Path(__file__).parent
_TOKEN = "cht_generated"
_ACCESS = f"""\
[[token]]
name = "generated"
sha256 = "{sha256(_TOKEN.encode()).hexdigest()}"
send = ["*"]
read = ["*"]
"""


class Served(NamedTuple):
    """A running service, and a token that it takes."""

    base: str
    token: str


def _install(folder: Path) -> None:
    copy_and_install([_HERE / "package.json", _HERE / "package-lock.json"], folder)


@pytest.fixture(scope="session")
def packages() -> Path:
    """Install openapi-typescript, openapi-fetch and TypeScript. Return the folder.

    Skip the tests if a developer's machine has no npm.
    """
    files = [_HERE / "package.json", _HERE / "package-lock.json"]
    try:
        return installed("generators", files, _install)
    except NoNpm as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(f"{error}, from which openapi-typescript comes")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return the folder of a user's project, with the programs that use the clients."""
    for program in _HERE.glob("uses_*"):
        shutil.copy(program, tmp_path)
    return tmp_path


@pytest.fixture(params=["off", "tokens"])
def served(
    request: pytest.FixtureRequest, mongo_uri: str, database: str, tmp_path: Path
) -> Iterator[Served]:
    """Start a service without and with access control. Its inboxes are soon full."""
    file = tmp_path / "access.toml"
    file.write_text(_ACCESS, encoding="utf-8")
    environ = {"CHAT_MONGO_DATABASE": database, "CHAT_INBOX_MESSAGES_MAX": "5"}
    if request.param != "off":
        environ |= {"CHAT_ACCESS": request.param, "CHAT_ACCESS_FILE": str(file)}
    with Server(tmp_path, "--mongo-uri", mongo_uri, port=0, **environ) as server:
        yield Served(server.base, _TOKEN)
