"""A database with users: the role that the service needs, and the errors without it."""

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pymongo import MongoClient
from pymongo.errors import PyMongoError
from tornado.testing import bind_unused_port

from tests.support.client import ChatClient
from tests.support.code_path import CODE_PATH
from tests.support.server import Server
from workers.mongod import die_with_parent
from workers.mongod.embedded import find_mongod


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a replica set with users. Their password is `hush`."""
    folder = tmp_path_factory.mktemp("guarded")
    key, data = folder / "key", folder / "data"
    key.write_text("a" * 64, encoding="ascii")
    key.chmod(0o600)
    data.mkdir()
    sock, port = bind_unused_port()
    sock.close()
    process = subprocess.Popen(
        [
            *(
                sys.executable,
                "-I",
                "-S",
                die_with_parent.__file__,
                str(os.getpid()),
                find_mongod(""),
            ),
            *("--dbpath", str(data), "--port", str(port), "--bind_ip", "127.0.0.1"),
            *("--replSet", "guarded", "--keyFile", str(key), "--nounixsocket"),
            *("--wiredTigerCacheSizeGB", "0.25", "--logpath", str(folder / "log"), "--quiet"),
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    address = f"127.0.0.1:{port}"
    try:
        with MongoClient[dict[str, Any]](f"mongodb://{address}/?directConnection=true") as client:
            members = [{"_id": 0, "host": address}]
            eventually_done(
                lambda: client.admin.command(
                    "replSetInitiate", {"_id": "guarded", "members": members}
                )
            )
            # Before there are users, a local connection may create the first one.
            eventually_done(
                lambda: client.admin.command("createUser", "root", pwd="hush", roles=["root"])
            )
        with MongoClient[dict[str, Any]](f"mongodb://root:hush@{address}/") as client:
            for name, roles in (("writer", ["readWrite"]), ("reader", ["read"]), ("nobody", [])):
                granted = [{"role": role, "db": "chat"} for role in roles]
                client.admin.command("createUser", name, pwd="hush", roles=granted)
        yield address
    finally:
        process.kill()
        process.wait()


def eventually_done(attempt: Any, within_s: float = 60) -> None:
    """Retry until the call succeeds."""
    deadline = time.monotonic() + within_s
    while True:
        with contextlib.suppress(PyMongoError):
            attempt()
            return
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.mark.parametrize(
    ("user", "said"),
    [
        ("writer:wrong@", "the database refuses the user: Authentication failed; check name"),
        ("", "the database requires a user: name one in --mongo-uri"),
        ("nobody:hush@", "grant the user the role readWrite on the database chat"),
        ("reader:hush@", "grant the user the role readWrite on the database chat"),
    ],
)
def test_a_refusal_names_the_reason_and_the_role(
    guarded: str, tmp_path: Path, user: str, said: str
) -> None:
    uri = f"mongodb://{user}{guarded}/?replicaSet=guarded"
    environ = {**os.environ, "PYTHONPATH": CODE_PATH}
    for command, code in (("serve", 4), ("doctor", 1)):
        done = subprocess.run(
            [
                *(sys.executable, "-P", "-m", "chat_service", command),
                *("--port", "0", "--mongo-uri", uri),
            ],
            env=environ,
            capture_output=True,
            encoding="utf-8",
            check=False,
        )
        assert done.returncode == code, done.stderr
        assert said in done.stdout + done.stderr
        for part in ("signature", "clusterTime", "lsid", "wrong", "hush", "Traceback"):
            assert part not in done.stdout + done.stderr
    assert done.stderr == ""


async def test_the_role_read_write_on_its_database_is_enough(guarded: str, tmp_path: Path) -> None:
    uri = f"mongodb://writer:hush@{guarded}/?replicaSet=guarded"
    with Server(tmp_path, "--mongo-uri", uri) as server:
        chat = ChatClient(server.base)
        await chat.post("bob", "kept")
        assert [each.text for each in await chat.read("bob")] == ["kept"]
        ready = await chat.request("GET", "/readyz")
        assert ready.code == 200
        chat.close()
    warned = [line for line in server.errors().splitlines() if '"level": "warning"' in line]
    assert warned == []
