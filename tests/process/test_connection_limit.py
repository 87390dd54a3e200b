"""Near the limit of file descriptors, idle connections are closed to make room."""

import asyncio
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.support.cases import each_case
from tests.support.proxy import MongoProxy
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


def few_descriptors(folder: Path, mongo_uri: str, database: str) -> Server:
    """A service whose process has few file descriptors. It is not started."""
    server = Server(
        *(folder, "--mongo-uri", mongo_uri),
        CHAT_MONGO_DATABASE=database,
        CHAT_ALLOWED_HOSTS="good.test",
    )
    server.wrapper = ("prlimit", f"--nofile={DESCRIPTORS}")
    return server


@pytest.fixture
def port(mongo_uri: str, database: str, tmp_path: Path) -> Iterator[int]:
    """The port of a process with few file descriptors."""
    with few_descriptors(tmp_path, mongo_uri, database) as server:
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


async def test_the_client_with_most_connections_makes_room(port: int) -> None:
    wire = Wire(port)
    others = []
    for target in (b"/chat/nobody", b"/livez"):
        others.append(await wire.connect("127.0.0.2"))
        assert (await others[-1].ask(get(target))).status == 200
    greedy = [await wire.connect() for _ in range(CLIENTS)]
    assert await greedy[0].answer() is None
    # The others have been idle longer.
    for other in others:
        assert (await other.ask(get(b"/chat/nobody"))).status == 200
    await wire.close()


#: What waits for a message, on either path.
WAITING: Final = {
    "long polls on the fast path": get(b"/chat/nobody?wait=20"),
    "long polls by Tornado": get(b"/chat/nobody?wait=20", b"TE: trailers"),
    "leases that wait": request(b"POST", b"/chat/nobody/lease?wait=20"),
    "streams": get(b"/chat/nobody/stream"),
}


@each_case(WAITING)
async def test_clients_that_wait_lock_nobody_out(sent: bytes, port: int) -> None:
    wire = Wire(port)
    for _ in range(CLIENTS):
        connection = await wire.connect()
        await connection.send(sent)
    for number in range(5):
        name = f"served-{number}"
        connection = await wire.connect()
        accepted(await connection.ask(post(message(name, "hi"))))
        assert texts_of(await connection.ask(get(f"/chat/{name}".encode()))) == ["hi"]
    await wire.close()


async def test_three_quarters_of_the_connections_may_wait(port: int) -> None:
    connections = DESCRIPTORS - 64
    waiting = []
    for number in range(connections):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(get(b"/chat/waits-%d?wait=2" % number))
        waiting.append((reader, writer))
    lines = [await reader.readline() for reader, _ in waiting]
    for _, writer in waiting:
        writer.close()
    assert Counter(int(line.split(b" ")[1]) for line in lines) == {
        200: connections * 3 // 4,
        503: connections - connections * 3 // 4,
    }


async def test_while_each_connection_is_served_new_clients_wait(
    mongo_uri: str, database: str, tmp_path: Path
) -> None:
    async with MongoProxy(mongo_uri, tmp_path) as proxy:
        server = few_descriptors(tmp_path, proxy.uri, database)
        await asyncio.to_thread(server.start)
        proxy.hold["insert"] = b"served"
        wire = Wire(server.port)
        served = [await wire.connect() for _ in range(DESCRIPTORS - 64)]
        for number, connection in enumerate(served):
            await connection.send(post(message(f"served-{number}", "hi")))
        await proxy.held.wait()
        late = asyncio.create_task(wire.texts("late"))
        done, _ = await asyncio.wait((late,), timeout=0.5)
        assert not done
        proxy.release()
        answers = await asyncio.gather(*(connection.answer() for connection in served))
        assert [answer and answer.status for answer in answers] == [201] * len(served)
        assert await late == []
        await wire.close()
        await asyncio.to_thread(server.__exit__, None, None, None)
