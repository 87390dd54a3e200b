"""examples/worker.py: no job is lost, whether it fails or the worker is stopped or killed."""

import asyncio
import json
import signal
import sys
from asyncio.subprocess import Process
from pathlib import Path

import pytest

from chat_service.service import Service
from tests.conftest import Connect, StartService
from tests.examples.conftest import EXAMPLES, Start
from tests.pages.access import Tokens
from tests.support.client import ChatClient
from tests.support.waiting import eventually

#: The worker with short leases, and with work that begins by creating a file and ends once there is
#: another one.
_SLOW = """
import asyncio, sys, time
from pathlib import Path
sys.path.insert(0, {examples!r})
import worker
worker.LEASE_S = 0.5
def square(number):
    (Path({folder!r}) / f"began-{{number}}").touch()
    while not (Path({folder!r}) / "go").exists():
        time.sleep(0.01)
    return number * number
worker.square = square
asyncio.run(worker.main())
"""


class Worker:
    """Workers of one service, whose work waits in a folder."""

    def __init__(self, chat: ChatClient, start: Start, folder: Path) -> None:
        self.chat = chat
        self._start = start
        self.folder = folder

    async def start(self) -> Process:
        """Start the worker as it is."""
        return await self._start(sys.executable, EXAMPLES / "worker.py", CHAT_URL=self.chat.base)

    async def start_slow(self) -> Process:
        """Start a worker whose work takes until `go`."""
        code = _SLOW.format(examples=str(EXAMPLES), folder=str(self.folder))
        return await self._start(sys.executable, "-c", code, CHAT_URL=self.chat.base)

    async def has_begun(self, number: int) -> None:
        """Wait until a worker does the job with this number."""

        async def begun() -> bool:
            return (self.folder / f"began-{number}").exists()

        await eventually(begun)

    def go(self) -> None:
        """Let all work end."""
        (self.folder / "go").touch()

    async def post(self, number: object) -> str:
        """Post a job for ann."""
        return await self.chat.post("squares", json.dumps({"square": number, "answer_to": "ann"}))

    async def answers(self, number: int) -> list[str]:
        """Wait for this many answers to ann."""
        found: list[str] = []
        async with asyncio.timeout(60):
            while len(found) < number:
                found += await self.chat.texts("ann", "?wait=5")
        return found


@pytest.fixture
def workers(chat: ChatClient, start: Start, tmp_path: Path) -> Worker:
    """Workers of the service."""
    return Worker(chat, start, tmp_path)


async def ends(process: Process) -> int:
    """Wait for the exit code of a process."""
    return await asyncio.wait_for(process.wait(), 60)


async def is_empty(chat: ChatClient) -> None:
    """Wait until no message is unread, leased or scheduled."""

    async def empty() -> bool:
        return await chat.metric("chat_messages_pending") == 0

    await eventually(empty)


async def test_a_worker_answers_and_acknowledges(workers: Worker) -> None:
    await workers.start()
    for number in (2, 3, 4):
        await workers.post(number)
    assert await workers.answers(3) == ["4", "9", "16"]
    await is_empty(workers.chat)


async def test_a_stopped_worker_finishes_its_job(workers: Worker) -> None:
    worker = await workers.start_slow()
    await workers.post(2)
    await workers.has_begun(2)
    await workers.post(3)
    worker.send_signal(signal.SIGTERM)
    # Longer than its lease, which it therefore must extend.
    await asyncio.sleep(1)
    workers.go()
    assert await ends(worker) == 0
    assert await workers.answers(1) == ["4"]
    assert len(await workers.chat.texts("squares")) == 1
    await is_empty(workers.chat)


async def test_a_stopped_idle_worker_leases_nothing(workers: Worker) -> None:
    worker = await workers.start()

    async def waits() -> bool:
        return await workers.chat.metric("chat_waiters") == 1

    await eventually(waits)
    worker.send_signal(signal.SIGTERM)
    assert await ends(worker) == 0
    await workers.post(2)
    assert len(await workers.chat.texts("squares")) == 1


async def test_the_job_of_a_killed_worker_is_done_again(workers: Worker) -> None:
    killed = await workers.start_slow()
    await workers.post(2)
    await workers.has_begun(2)
    killed.kill()
    await ends(killed)
    workers.go()
    await workers.start()
    assert await workers.answers(1) == ["4"]
    await is_empty(workers.chat)


async def test_a_job_that_fails_becomes_a_dead_letter(
    start_service: StartService, connect: Connect, start: Start, tmp_path: Path
) -> None:
    service: Service = await start_service(max_deliveries=2)
    workers = Worker(connect(service), start, tmp_path)
    await workers.start()
    await workers.post("three")
    await workers.post(4)
    assert await workers.answers(1) == ["16"]
    (failed,) = await workers.chat.texts("dead/squares", "?wait=20")
    assert json.loads(failed)["square"] == "three"
    await is_empty(workers.chat)


async def test_a_worker_takes_its_token_from_a_variable_or_a_file(
    start_service: StartService, connect: Connect, start: Start, tokens: Tokens, tmp_path: Path
) -> None:
    token = tokens.add("worker", send=["*"], read=["squares", "ann"])
    chat = connect(await start_service(access="tokens", access_file=str(tokens.path)))
    file = tmp_path / "worker.token"
    file.write_text(f"{token}\n", encoding="ascii")
    bearer = f"Bearer {token}"
    job = b'{"square": 2, "answer_to": "ann"}'
    for given in ({"CHAT_TOKEN_FILE": str(file)}, {"CHAT_TOKEN": token}):
        worker = await start(sys.executable, EXAMPLES / "worker.py", CHAT_URL=chat.base, **given)
        await chat.request(
            "POST", "/chat/squares", job, Authorization=bearer, Content_Type="text/plain"
        )
        answered = await chat.request("GET", "/chat/ann?wait=20", Authorization=bearer)
        assert [answer["text"] for answer in json.loads(answered.body)] == ["4"]
        worker.send_signal(signal.SIGTERM)
        assert await ends(worker) == 0
