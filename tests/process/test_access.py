"""Access control of whole servers: how they start, refuse to start, and follow their file."""

import json
import signal
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest

from tests.support.access import asked, everybody, write
from tests.support.server import Server
from tests.support.waiting import PATIENCE, eventually


@pytest.fixture
def access_file(tmp_path: Path) -> Path:
    """The access file, with all holders."""
    file = tmp_path / "access.toml"
    write(file, everybody())
    return file


def server_of(
    folder: Path, mongo_uri: str, database: str, *arguments: str, **environ: str
) -> Server:
    """Return a server with these arguments and settings, which is not started yet."""
    given = ("--mongo-uri", mongo_uri, *arguments)
    server = Server(folder, *given, CHAT_MONGO_DATABASE=database)
    server.environ.update(environ)
    return server


def tokens_of(file: Path) -> dict[str, str]:
    """Return the settings for an access file."""
    return {"CHAT_ACCESS": "tokens", "CHAT_ACCESS_FILE": str(file)}


def status(server: Server, name: str) -> int:
    """Return the status of a read with a holder's token, on a connection of its own."""
    asking = Request(f"{server.base}/chat/{name}", headers=dict(asked(name)))
    try:
        with urlopen(asking, timeout=20 * PATIENCE) as answer:
            return int(answer.status)
    except HTTPError as error:
        with error:
            return error.code


def refusal(server: Server) -> tuple[int, list[str]]:
    """Start a server that cannot start. Return its exit code and what it has said."""
    with pytest.raises(AssertionError):
        server.start()
    return server.wait(), server.errors().strip().splitlines()


async def test_every_process_follows_the_file(
    tmp_path: Path, access_file: Path, mongo_uri: str, database: str
) -> None:
    given = ("--processes", "2")
    settings = tokens_of(access_file)
    with server_of(tmp_path, mongo_uri, database, *given, **settings) as server:
        assert {status(server, "bob") for _ in range(20)} == {200}
        write(access_file, everybody(bob="-"))

        async def all_refuse() -> bool:
            return {status(server, "bob") for _ in range(20)} == {401}

        await eventually(all_refuse)
        assert {status(server, "alice") for _ in range(20)} == {200}


@pytest.mark.parametrize("processes", ["1", "2"])
def test_a_broken_file_is_one_line_at_the_start(
    processes: str, tmp_path: Path, access_file: Path, mongo_uri: str, database: str
) -> None:
    write(access_file, everybody(bob='read = ["a*b"]'))
    given, settings = ("--processes", processes), tokens_of(access_file)
    code, lines = refusal(server_of(tmp_path, mongo_uri, database, *given, **settings))
    assert code == 2
    said = [line for line in lines if str(access_file) in line]
    assert len(said) == 1
    assert "[[token]] 2 ('bob'): read: 'a*b': may have one * only, at its end" in said[0]


def test_a_missing_file_is_named_at_the_start(
    tmp_path: Path, mongo_uri: str, database: str
) -> None:
    settings = tokens_of(tmp_path / "none.toml")
    code, lines = refusal(server_of(tmp_path, mongo_uri, database, **settings))
    assert code == 2
    assert "none.toml: cannot be read: No such file" in lines[-1]


@pytest.mark.parametrize(
    ("host", "access", "is_warned"),
    [("127.0.0.1", "off", False), ("0.0.0.0", "off", True), ("0.0.0.0", "tokens", False)],
)
def test_an_open_service_warns_once(
    host: str,
    access: str,
    is_warned: bool,
    tmp_path: Path,
    access_file: Path,
    mongo_uri: str,
    database: str,
) -> None:
    given = ("--host", host, "--processes", "2")
    settings = {} if access == "off" else tokens_of(access_file)
    with server_of(tmp_path, mongo_uri, database, *given, **settings) as server:
        server.signal(signal.SIGTERM)
        assert server.wait() == 0
        assert server.errors().count("access is off") == is_warned


def test_the_log_warns_of_a_file_that_all_users_can_read(
    tmp_path: Path, access_file: Path, mongo_uri: str, database: str
) -> None:
    access_file.chmod(0o644)
    settings = tokens_of(access_file)
    with server_of(tmp_path, mongo_uri, database, **settings) as server:
        lines = [json.loads(line) for line in server.errors().splitlines()]
        (line,) = [each for each in lines if "can read the access file" in each["event"]]
        assert line["level"] == "warning"
        assert line["path"] == str(access_file)
