"""Near the limit of file descriptors, the service closes the longest idle connections."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.support.cases import each_case
from tests.support.raw import Wire, accepted, get, message, post, request, texts_of
from tests.support.server import Server

#: The process may have this many file descriptors, and keeps some of them free for other uses.
DESCRIPTORS: Final = 256
CLIENTS: Final = 260
#: What a client sent before it became idle, and whether the service answered.
IDLE: Final = {
    "nothing": (b"", False),
    "an answer on the fast path": (get(b"/chat/nobody"), True),
    "an answer by Tornado": (get(b"/livez"), True),
    "half a head": (b"GET /chat/bob HTTP/1.1\r\nX: ", False),
    "half a body": (post(message("bob", "x" * 100))[:-50], False),
    "half a long body": (request(b"POST", b"/chat/batch", b"Content-Length: 10") + b"[", False),
}


@pytest.fixture
def port(mongo_uri: str, database: str, tmp_path: Path) -> Iterator[int]:
    """The port of a process with few file descriptors."""
    server = Server(
        *(tmp_path, "--mongo-uri", mongo_uri),
        CHAT_MONGO_DATABASE=database,
        CHAT_ALLOWED_HOSTS="good.test",
    )
    server.wrapper = ("prlimit", f"--nofile={DESCRIPTORS}")
    with server:
        yield server.port


@each_case(IDLE)
async def test_clients_that_do_nothing_lock_nobody_out(case: tuple[bytes, bool], port: int) -> None:
    sent, is_answered = case
    wire = Wire(port)
    waiting = await wire.connect()
    await waiting.send(get(b"/chat/waited-for?wait=20"))
    idle = []
    for _ in range(CLIENTS):
        idle.append(await wire.connect())
        await idle[-1].send(sent)
        if is_answered:
            assert await idle[-1].answer() is not None
    connection = await wire.connect()
    accepted(await connection.ask(post(message("waited-for", "hi"))))
    # The service never closes a connection whose request it serves.
    read = await waiting.answer()
    assert read is not None
    assert texts_of(read) == ["hi"]
    # The first connections have been idle longest.
    assert await idle[0].answer() is None
    if is_answered:
        assert (await idle[-1].ask(get(b"/chat/nobody"))).status == 200
    await wire.close()


async def test_while_each_connection_is_served_new_clients_wait(port: int) -> None:
    wire = Wire(port)
    served = [await wire.connect() for _ in range(DESCRIPTORS - 64)]
    for number, connection in enumerate(served):
        await connection.send(get(b"/chat/served-%d?wait=2" % number))
    late = asyncio.create_task(wire.texts("late"))
    answers = await asyncio.gather(*(connection.answer() for connection in served))
    assert [answer and answer.status for answer in answers] == [200] * len(served)
    assert await late == []
    await wire.close()
