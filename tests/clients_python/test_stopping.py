"""A client that is closed ends its requests at once, and the README's worker stops cleanly."""

import asyncio
import math
import signal
import subprocess
import sys
import threading
import traceback
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from chat_inbox import ChatClient, ChatError, ClientClosed
from chat_inbox.steps import Pause
from chat_inbox.synchronous import SyncChatClient
from chat_service.service import Service
from tests.clients_python.conftest import NewClient
from tests.clients_python.test_documents import WORKER
from tests.conftest import Connect
from tests.support.client import ChatClient as Chat
from tests.support.code_path import CODE_PATH
from tests.support.middleman import Middleman, answer, base_of
from tests.support.waiting import eventually


async def waits(chat: Chat, waiters: int = 1) -> None:
    """Wait until this many requests wait at the service."""

    async def are_there() -> bool:
        return await chat.metric("chat_waiters") == waiters

    await eventually(are_there)


@pytest.mark.parametrize("is_connected", [False, True])
async def test_closing_a_client_ends_its_waits(
    service: Service, connect: Connect, new_client: NewClient, is_connected: bool
) -> None:
    chat, client = connect(service), new_client(base_of(service))
    if is_connected:
        # The wait then uses the connection of this request.
        await client.count("bob")
    waiting = asyncio.ensure_future(client.lease("bob", wait_s=math.inf))
    await waits(chat)
    await client.close()
    with pytest.raises(ClientClosed) as raised:
        await waiting
    shown = "".join(traceback.format_exception(raised.value))
    assert "httpcore" not in shown
    assert "During handling" not in shown
    # The service knows it too, and leases nothing for this client.
    await waits(chat, 0)


def test_closing_a_client_ends_its_pauses() -> None:
    client = SyncChatClient("http://127.0.0.1:9")
    pausing = threading.Thread(target=client._perform, args=(Pause(3600),), daemon=True)
    pausing.start()
    client.close()
    pausing.join()


async def test_an_error_in_a_block_outranks_a_closed_client(
    service: Service, new_client: NewClient
) -> None:
    client = new_client(base_of(service))
    await client.post("bob", "x")

    async def fail() -> None:
        async with client.lease("bob"):
            await client.close()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await fail()


def test_a_loop_over_errors_ends_with_its_client() -> None:
    assert not issubclass(ClientClosed, ChatError)
    assert issubclass(ClientClosed, RuntimeError)


@asynccontextmanager
async def worker(base: str, work: str = "", tries: int = 10) -> AsyncIterator[Process]:
    """Run the README's worker, with more work after it has printed a job."""
    code = WORKER.replace('"http://127.0.0.1:8080"', f"{base!r}, tries={tries}")
    printed, pause = "print(message.text, flush=True)", "PAUSE_S = 5\n"
    assert printed in code
    assert pause in code
    code = code.replace(pause, "PAUSE_S = 0\n")
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        code.replace(printed, f"{printed}{work}"),
        env={"PYTHONPATH": CODE_PATH},
        stdout=PIPE,
        stderr=subprocess.STDOUT,
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def prints(process: Process) -> str:
    """Return the next line that a worker prints."""
    assert process.stdout is not None
    return (await asyncio.wait_for(process.stdout.readline(), 60)).decode()


async def stops(process: Process) -> str:
    """Wait for a worker that was told to stop, and return the rest of its output."""
    output, _ = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode == 0
    return output.decode()


async def test_a_worker_that_waits_is_stopped(service: Service, connect: Connect) -> None:
    chat = connect(service)
    async with worker(base_of(service)) as process:
        await waits(chat)
        process.send_signal(signal.SIGTERM)
        assert await stops(process) == ""
    await waits(chat, 0)


async def test_a_worker_that_works_finishes_its_job(client: ChatClient, service: Service) -> None:
    async with worker(base_of(service), "; time.sleep(1)") as process:
        first = await client.post("jobs", "first", 600, receipt=True)
        assert await prints(process) == "first\n"
        process.send_signal(signal.SIGTERM)
        await client.post("jobs", "second", 600)
        assert await stops(process) == ""
    assert first.receipt is not None
    assert (await client.status(first.id, first.receipt)).status == "read"
    assert [message.text for message in await client.read("jobs")] == ["second"]


async def test_a_worker_outlives_a_job_that_fails(client: ChatClient, service: Service) -> None:
    async with worker(base_of(service), "; 1 / (message.deliveries - 1)") as process:
        failing = await client.post("jobs", "job", 600, receipt=True)
        assert await prints(process) == "job\n"
        while (line := await prints(process)) != "job\n":
            assert line
        process.send_signal(signal.SIGTERM)
        await stops(process)
    assert failing.receipt is not None
    assert (await client.status(failing.id, failing.receipt)).status == "read"


async def test_a_worker_outlives_an_outage(service: Service, connect: Connect) -> None:
    async with Middleman(service.port) as between:
        # Each of them makes one call fail.
        between.answers = [answer(503)] * 3
        async with worker(between.base, tries=1) as process:
            for _ in range(3):
                assert (await prints(process)).startswith("trying again: 503")
            await connect(service).post("jobs", "after it", 600)
            assert await prints(process) == "after it\n"
            process.send_signal(signal.SIGTERM)
            assert await stops(process) == ""
