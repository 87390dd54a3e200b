"""Where a server's log goes: a pipe that nobody reads, a file, a closed descriptor."""

import asyncio
import contextlib
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from tornado.testing import bind_unused_port

from tests.support.client import ChatClient
from tests.support.server import Server
from tests.support.waiting import PATIENCE, eventually


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    """A pipe that is full to the last byte."""
    reading, writing = os.pipe()
    fill = b"x" * 65536
    os.set_blocking(writing, False)
    while True:
        try:
            os.write(writing, fill)
        except BlockingIOError:
            if len(fill) == 1:
                break
            fill = fill[: len(fill) // 2]
    os.set_blocking(writing, True)
    yield reading, writing
    for descriptor in (reading, writing):
        os.close(descriptor)


@pytest.mark.parametrize("processes", ["1", "2"])
async def test_a_log_that_nobody_reads_stops_nothing(
    tmp_path: Path, mongo_uri: str, database: str, pipe: tuple[int, int], processes: str
) -> None:
    server = Server(
        tmp_path,
        *("--mongo-uri", mongo_uri, "--processes", processes),
        CHAT_MONGO_DATABASE=database,
        CHAT_LOG_REQUESTS_PER_S="100000",
    )
    server.stderr = pipe[1]
    with server:
        chat = ChatClient(server.base)
        for _ in range(100):
            await chat.post("bob", "x")
        while await chat.metric("chat_log_lines_dropped_total") == 0:
            await asyncio.gather(*(chat.request("GET", "/chat/bob") for _ in range(200)))
        response = await chat.request("GET", "/livez")
        assert response.code == 200
        assert len(await chat.post("bob", "after")) > 10
        chat.close()
        server.signal(signal.SIGTERM)
        assert await asyncio.to_thread(server.wait) == 0


async def test_a_log_that_is_read_again_says_what_is_missing(
    tmp_path: Path, mongo_uri: str, database: str, pipe: tuple[int, int]
) -> None:
    server = Server(
        tmp_path,
        *("--mongo-uri", mongo_uri),
        CHAT_MONGO_DATABASE=database,
        CHAT_LOG_REQUESTS_PER_S="100000",
    )
    server.stderr = pipe[1]
    with server:
        chat = ChatClient(server.base)
        while await chat.metric("chat_log_lines_dropped_total") == 0:
            await asyncio.gather(*(chat.request("GET", "/chat/bob") for _ in range(200)))
        said = b""

        async def missing_is_said() -> bool:
            nonlocal said
            said += await asyncio.to_thread(os.read, pipe[0], 1 << 20)
            return b"log lines dropped" in said and said.endswith(b"\n")

        await eventually(missing_is_said)
        chat.close()
    lines = [json.loads(line) for line in said.lstrip(b"x").splitlines()]
    (missing,) = (line for line in lines if line["event"].startswith("log lines dropped"))
    assert missing["lines"] > 0


async def test_the_last_lines_before_the_end_reach_a_file_in_order(
    tmp_path: Path, mongo_uri: str, database: str
) -> None:
    arguments = ("--mongo-uri", mongo_uri)
    server = Server(
        tmp_path, *arguments, CHAT_MONGO_DATABASE=database, CHAT_LOG_REQUESTS_PER_S="100000"
    )
    with server:
        chat = ChatClient(server.base)
        for number in range(300):
            await chat.request("GET", "/chat/bob", None, X_Request_ID=f"request-{number}")
        chat.close()
        server.signal(signal.SIGTERM)
        assert await asyncio.to_thread(server.wait) == 0
    lines = [json.loads(line) for line in server.errors().splitlines()]
    asked = [line["id"] for line in lines if line["event"] == "request"]
    assert asked == [f"request-{number}" for number in range(300)]
    assert [line["event"] for line in lines][-2:] == ["stopping", "drained"]


async def test_a_log_reader_that_disappears_stops_nothing(
    tmp_path: Path, mongo_uri: str, database: str
) -> None:
    reading, writing = os.pipe()
    server = Server(tmp_path, "--mongo-uri", mongo_uri, CHAT_MONGO_DATABASE=database)
    server.stderr = writing
    with server:
        os.close(writing)
        os.close(reading)
        chat = ChatClient(server.base)
        await chat.post("bob", "x")

        async def drops_are_counted() -> bool:
            return await chat.metric("chat_log_lines_dropped_total") > 0

        await eventually(drops_are_counted)
        chat.close()
        server.signal(signal.SIGTERM)
        assert await asyncio.to_thread(server.wait) == 0


@pytest.mark.parametrize("processes", ["1", "2"])
async def test_a_closed_stderr_sends_no_log_line_to_a_client(
    tmp_path: Path, mongo_uri: str, database: str, processes: str
) -> None:
    arguments = ("--mongo-uri", mongo_uri, "--processes", processes)
    server = Server(tmp_path, *arguments, CHAT_MONGO_DATABASE=database)
    server.wrapper = ("sh", "-c", 'exec "$@" 2>&- 0<&-', "sh")
    with server:
        chat = ChatClient(server.base)
        await chat.post("bob", "x")
        assert await chat.texts("bob") == ["x"]
        chat.close()
        server.signal(signal.SIGTERM)
        assert await asyncio.to_thread(server.wait) == 0


@pytest.mark.parametrize("processes", ["1", "2"])
async def test_a_full_stdout_keeps_no_service_from_serving(
    tmp_path: Path, mongo_uri: str, database: str, pipe: tuple[int, int], processes: str
) -> None:
    sock, port = bind_unused_port()
    sock.close()
    arguments = ("--mongo-uri", mongo_uri, "--processes", processes)
    server = Server(tmp_path, *arguments, port=port, CHAT_MONGO_DATABASE=database)
    process = await asyncio.create_subprocess_exec(
        *server.command, stdout=pipe[1], stderr=pipe[1], env=server.environ
    )
    try:
        chat = ChatClient(f"http://127.0.0.1:{port}")

        async def serves() -> bool:
            with contextlib.suppress(OSError):
                return (await chat.request("GET", "/readyz")).code == 200
            return False

        await eventually(serves, 30)
        await chat.post("bob", "x")
        chat.close()
        process.terminate()
        assert await asyncio.wait_for(process.wait(), 30 * PATIENCE) == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
