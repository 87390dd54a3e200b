"""Several processes behind one socket act as one service, even if a process fails."""

import asyncio
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.client import ChatClient
from tests.support.load import Connection
from tests.support.server import Server, wait_for_no_mongod
from tests.support.waiting import eventually


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    """A new data directory."""
    return tmp_path / "data"


@pytest.fixture
def server(tmp_path: Path, data_dir: Path) -> Iterator[Server]:
    """Two processes that share one embedded mongod."""
    with Server(tmp_path, "--processes", "2", "--data-dir", str(data_dir)) as started:
        yield started


class Load:
    """Clients that post and read without a pause and check every answer. Each has its own inbox."""

    def __init__(self, server: Server, clients: int = 16) -> None:
        self._port = int(server.base.rpartition(":")[2])
        self._tasks = [asyncio.create_task(self._run(f"load-{n}")) for n in range(clients)]
        self._is_over = False
        self.rounds = 0

    async def more(self, rounds: int) -> None:
        """Wait until the clients have done this many more rounds."""
        goal = self.rounds + rounds

        async def is_reached() -> bool:
            return self.rounds >= goal or any(task.done() for task in self._tasks)

        await eventually(is_reached, 30)

    async def end(self) -> None:
        """Stop the clients. Raise the exception that ended one of them, if any."""
        self._is_over = True
        await asyncio.gather(*self._tasks)

    async def _run(self, name: str) -> None:
        connection: Connection | None = None
        while not self._is_over:
            for step in ("post", "read"):
                is_new = connection is None or connection.closed
                try:
                    if connection is None or is_new:
                        connection = await Connection.open(self._port)
                    if step == "post":
                        message_id = await connection.post(name, "x")
                    else:
                        messages = await connection.read(name)
                        assert messages == [{"text": "x", "id": message_id}]
                except ConnectionResetError as error:
                    if is_new:
                        # No process accepted it before the last one stopped listening.
                        raise ConnectionRefusedError from error
                    raise
            self.rounds += 1
        if connection is not None:
            connection.close()


async def test_all_processes_serve_one_inbox_and_count_together(server: Server) -> None:
    chat = ChatClient(server.base)
    ids = await asyncio.gather(*(chat.post("bob", "x") for _ in range(200)))
    answers = await asyncio.gather(*(chat.read("bob") for _ in range(50)))
    assert sorted(message.id for answer in answers for message in answer) == sorted(ids)
    for _ in range(5):
        assert await chat.metric("chat_messages_accepted_total") == 200
        assert await chat.metric("chat_messages_read_total") == 200
    assert len(server.members()) == 2
    for _ in range(5):
        await chat.post("eve", "x")

    async def is_not_doubled() -> bool:
        return await chat.metric("chat_messages_pending") == 5

    await eventually(is_not_doubled, 20)
    assert await chat.metric("chat_leader") == 1
    chat.close()


async def test_a_killed_process_is_replaced_and_its_counts_stay(
    server: Server,
) -> None:
    chat = ChatClient(server.base)
    for number in range(3):
        await chat.post("bob", str(number), 3600)
        killed = server.members()[0]
        os.kill(killed, signal.SIGKILL)

        async def is_replaced(killed: int = killed) -> bool:
            return killed not in server.members() and len(server.members()) == 2

        await eventually(is_replaced)
        chat.close()
        chat = ChatClient(server.base)

    async def all_restarts_are_counted() -> bool:
        return await chat.metric("chat_process_restarts_total") == 3

    await eventually(all_restarts_are_counted)
    assert await chat.metric("chat_messages_accepted_total") == 3
    assert await chat.texts("bob") == ["0", "1", "2"]
    chat.close()


async def test_a_process_killed_before_it_serves_is_replaced_too(
    server: Server,
) -> None:
    before = server.members()
    os.kill(before[0], signal.SIGKILL)

    async def has_successor() -> bool:
        return len(set(server.members()) - set(before)) == 1

    await eventually(has_successor)
    (successor,) = set(server.members()) - set(before)
    os.kill(successor, signal.SIGKILL)
    chat = ChatClient(server.base)

    async def both_are_counted() -> bool:
        restarts = await chat.metric("chat_process_restarts_total")
        return restarts == 2 and len(server.members()) == 2

    await eventually(both_are_counted)
    chat.close()


async def test_a_hanging_process_leaves_new_connections_to_others(
    server: Server,
) -> None:
    os.kill(server.members()[0], signal.SIGSTOP)
    try:
        for _ in range(20):
            chat = ChatClient(server.base)
            await chat.post("bob", "x")
            chat.close()
    finally:
        for pid in server.members():
            os.kill(pid, signal.SIGCONT)


async def test_a_rolling_restart_under_load_fails_no_request(server: Server) -> None:
    load = Load(server)
    await load.more(50)
    for _ in range(2):
        before = server.members()
        server.signal(signal.SIGHUP)

        async def all_are_new(before: list[int] = before) -> bool:
            members = server.members()
            return len(members) == 2 and not set(members) & set(before)

        await eventually(all_are_new, 30)
        await load.more(50)
    await load.end()


async def test_sigterm_drains_every_process_and_stops_the_mongod(
    server: Server, data_dir: Path
) -> None:
    chat = ChatClient(server.base)
    await chat.post("bob", "kept", 3600)
    chat.close()
    server.signal(signal.SIGTERM)
    assert server.wait() == 0
    assert server.members() == []
    wait_for_no_mongod(data_dir)
    server.start()
    chat = ChatClient(server.base)
    assert await chat.texts("bob") == ["kept"]
    chat.close()


def is_accepted(client_port: int) -> bool:
    """Return whether a process of this machine has accepted the connection from this port."""
    rows = Path("/proc/net/tcp").read_text(encoding="ascii").splitlines()[1:]
    # A connection that waits to be accepted has no inode.
    return any(
        fields[2].endswith(f":{client_port:04X}") and fields[9] != "0"
        for fields in map(str.split, rows)
    )


async def test_sigterm_in_a_rolling_restart_waits_for_all_processes(
    server: Server,
) -> None:
    first, second = server.members()
    body = b'{"text": "x", "username": "bob"}'
    head = f"POST /chat HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    # Stop the second process, so that the first one accepts this request.
    os.kill(second, signal.SIGSTOP)
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(head + body[:9])
    port: int = writer.get_extra_info("sockname")[1]

    async def has_accepted() -> bool:
        return is_accepted(port)

    await eventually(has_accepted)
    os.kill(second, signal.SIGCONT)
    server.signal(signal.SIGHUP)

    async def first_is_told_to_end() -> bool:
        return '"stopping"' in server.errors()

    await eventually(first_is_told_to_end, 20)
    server.signal(signal.SIGTERM)

    async def others_are_gone() -> bool:
        return server.members() == [first]

    await eventually(others_are_gone, 20)
    writer.write(body[9:])
    assert (await reader.read()).startswith(b"HTTP/1.1 201")
    writer.close()
    assert await asyncio.to_thread(server.wait) == 0
    assert server.members() == []


async def test_a_signal_to_the_whole_group_drains(
    server: Server,
) -> None:
    load = Load(server)
    await load.more(50)
    for pid in (*server.members(), server.process.pid):
        os.kill(pid, signal.SIGTERM)
    assert await asyncio.to_thread(server.wait) == 0
    with pytest.raises(ConnectionRefusedError):
        await load.end()


async def test_nothing_outlives_a_supervisor_that_was_killed(
    server: Server, data_dir: Path
) -> None:
    assert len(server.members()) == 2
    server.signal(signal.SIGKILL)
    server.wait()
    wait_for_no_mongod(data_dir)

    async def all_are_gone() -> bool:
        return not server.members()

    await eventually(all_are_gone, 20)


def test_a_failed_start_is_reported_once(tmp_path: Path) -> None:
    server = Server(
        tmp_path,
        *("--processes", "3", "--mongo-uri", "mongodb://127.0.0.1:1/?directConnection=true"),
        CHAT_MONGO_WAIT_S="0",
    )
    with pytest.raises(AssertionError, match="did not start"):
        server.start()
    assert server.process.returncode == 4
    assert server.errors().count("the database cannot be reached") == 1
