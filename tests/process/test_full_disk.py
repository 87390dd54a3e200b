"""A disk that messages or other files have filled: posts are refused, and reads free space."""

import asyncio
import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.client import ChatClient
from tests.support.server import Server, mongods_on
from tests.support.waiting import eventually

_DISK_MIB = 640


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A separate file system in memory, which only root can mount."""
    folder = tmp_path / "disk"
    folder.mkdir()
    options = f"size={_DISK_MIB}m,mode=0700"
    command = ["mount", "-t", "tmpfs", "-o", options, "chat-test", str(folder)]
    if os.getuid() != 0 or subprocess.run(command, capture_output=True).returncode != 0:
        pytest.skip("no file system can be mounted here")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.fixture(params=["1", "2"])
def server(tmp_path: Path, disk: Path, request: pytest.FixtureRequest) -> Iterator[Server]:
    """A server with its data on that disk."""
    arguments = ("--data-dir", str(disk / "data"), "--processes", request.param)
    with Server(tmp_path, *arguments) as started:
        yield started


def free_mib(disk: Path) -> int:
    """Return the free space, in MiB."""
    found = os.statvfs(disk)
    return found.f_bavail * found.f_frsize >> 20


class Filler:
    """A program that fills a disk to its last byte, again and again."""

    def __init__(self, disk: Path) -> None:
        self._path = disk / "filler"
        self._file = self._path.open("wb", buffering=0)

    def fill(self) -> None:
        """Take all free space."""
        for size in (1 << 20, 4096):
            try:
                while True:
                    self._file.write(b"x" * size)
            except OSError:
                continue

    def end(self) -> None:
        """Free the space again."""
        self._file.close()
        self._path.unlink()


async def status_of_a_post(chat: ChatClient) -> int:
    """Return the status of a post."""
    return (await chat.request("POST", "/chat", b'{"text":"x","username":"bob"}')).code


async def served(chat: ChatClient, path: str, body: bytes) -> Any:
    """Return the answer to a POST, which is repeated if it came too late for a slow database."""
    for _ in range(10):
        response = await chat.request("POST", path, body)
        document = json.loads(response.body)
        if response.code == 200:
            return document
        assert response.code == 503, document
        assert False in (document.get("claimed"), document.get("changed")), document
    raise AssertionError(document)


async def test_one_client_cannot_fill_the_disk(server: Server, disk: Path) -> None:
    (mongod,) = mongods_on(disk / "data")
    chat = ChatClient(server.base)
    stored: list[str] = []
    refused = False

    async def fill(name: str) -> None:
        nonlocal refused
        while not refused:
            # Random texts, which cannot be compressed.
            texts = [os.urandom(24_000).hex() for _ in range(32)]
            items = [{"text": text, "username": name, "timeout": 3600} for text in texts]
            response = await chat.request("POST", "/chat/batch", json.dumps(items).encode())
            assert response.code == 200
            for result in json.loads(response.body)["results"]:
                if "id" in result:
                    stored.append(result["id"])
                    continue
                error = result["error"]
                assert (error["status"], error["type"]) == (507, "urn:chat:problem:storage-full")
                assert error["stored"] is False
                refused = await chat.metric("chat_storage_full") == 1

    names = [f"inbox-{number}" for number in range(4)]
    await asyncio.gather(*(fill(name) for name in names))

    # A quarter of the reserve (32 MiB) stays free on the disk. MongoDB itself takes some of that.
    assert free_mib(disk) > 16
    body = b'{"text":"x","username":"bob"}'
    # With two processes, the other one notices some seconds later.
    for headers in ({}, {"Idempotency_Key": '"once"'}):

        async def is_refused(headers: dict[str, str] = headers) -> bool:
            response = await chat.request("POST", "/chat", body, **headers)
            return (response.code, response.headers.get("Retry-After")) == (507, "10")

        await eventually(is_refused, 30)
    read = [message.id for message in await chat.read("bob")]
    for name in names:
        lease = await served(chat, f"/chat/{name}/lease?limit=5", b"")
        await served(chat, f"/chat/{name}/ack", json.dumps({"lease": lease["lease"]}).encode())
        read += [message["id"] for message in lease["messages"]]
        read += [message.id for message in await chat.read(name)]
    assert set(stored) <= set(read)
    assert len(set(read)) == len(read)
    assert "posts are refused: the database's disk is nearly full" in server.errors()
    assert await chat.metric("chat_requests_refused_total") > 0
    assert await chat.metric("chat_storage_free_bytes") > 0
    # mongod was not restarted.
    assert mongods_on(disk / "data") == [mongod]
    chat.close()


async def test_a_disk_that_others_fill_is_survived(server: Server, disk: Path) -> None:
    chat = ChatClient(server.base)
    ids = [await chat.post("bob", "x", 3600) for _ in range(20)]
    (mongod,) = mongods_on(disk / "data")
    filler = Filler(disk)
    filler.fill()

    async def is_refused() -> bool:
        return await status_of_a_post(chat) == 507

    await eventually(is_refused, 30)
    assert [message.id for message in (await chat.read("bob"))[:20]] == ids

    async def room_was_made() -> bool:
        return "the ballast was dropped" in server.errors() and free_mib(disk) > 0

    await eventually(room_was_made, 30)
    assert mongods_on(disk / "data") == [mongod]
    filler.end()

    async def is_taken() -> bool:
        return await status_of_a_post(chat) == 201

    await eventually(is_taken, 30)

    async def all_processes_know() -> bool:
        return await chat.metric("chat_storage_full") == 0

    await eventually(all_processes_know, 30)
    assert "posts are accepted again" in server.errors()
    chat.close()


async def test_mongod_returns_after_a_full_disk(server: Server, disk: Path) -> None:
    chat = ChatClient(server.base)
    kept = await chat.post("bob", "kept", 3600)
    filler = Filler(disk)
    filler.fill()

    async def room_was_made() -> bool:
        return "the ballast was dropped" in server.errors()

    await eventually(room_was_made, 30)
    # Fill that space as well. Now the service has nothing left to delete.
    filler.fill()
    os.kill(mongods_on(disk / "data")[0], signal.SIGKILL)

    async def cause_is_named() -> bool:
        filler.fill()
        return f"the disk of {disk / 'data'} is full" in server.errors()

    await eventually(cause_is_named, 60)
    assert await status_of_a_post(chat) in (503, 507)
    filler.end()

    async def is_read() -> bool:
        response = await chat.request("GET", "/chat/bob")
        return response.code == 200 and json.loads(response.body) == [{"text": "kept", "id": kept}]

    await eventually(is_read, 60)
    assert server.process.poll() is None
    # Starts that failed for lack of space are no restarts.
    restarts = server.errors().count("mongod is running again")
    assert await chat.metric("chat_mongod_restarts_total") == restarts
    chat.close()
