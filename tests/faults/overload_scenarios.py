"""Clients that demand too much: too many, too slow, too fast, or gone before their answer.

Scenarios of `tests.faults.scenarios`. The testbed's clients are the honest traffic.
"""

import asyncio
import socket
import statistics
import time
from itertools import count

from tests.faults.chaos_clients import Answer, Client, post_request, read_request
from tests.faults.testbed import Goal, Testbed

_SLOW = 2000
_DESCRIPTORS = 256
#: Number of slow readers, and of messages and bytes that each of them asks for.
_READERS, _MESSAGES, _LARGE = 30, 100, 60_000
_STARVED_S = 3.0
#: Requests that the overloaded service can hold: 40 are queued in each of two shards, 8 are being
#: served.
_FITTING = 90

#: The load that is offered, relative to the measured capacity.
_FACTORS = (3, 6, 12)


async def slow_senders(testbed: Testbed, times: int) -> None:
    """Open 2,000 connections that send one byte of their headers per second."""
    await asyncio.sleep(times)
    before = _p99(testbed.clients.answers)
    senders = [await _open(testbed) for _ in range(_SLOW)]
    began = time.monotonic()
    head = f"GET /chat/slow HTTP/1.1\r\nHost: localhost\r\nX-Long: {'x' * 10_000}".encode()
    for second in range(times):
        turn = time.monotonic()
        for position in range(0, _SLOW, 100):
            for sender in senders[position : position + 100]:
                await _send(sender, head[second : second + 1])
            await asyncio.sleep(max(turn + position / _SLOW - time.monotonic(), 0))
        await asyncio.sleep(max(turn + 1 - time.monotonic(), 0))
    during = _p99(_since(testbed.clients.answers, began))
    for sender in senders:
        sender.close()
    testbed.goals.append(
        Goal("honest p99 during the attack, relative to before", during / before, 2, "times")
    )


async def slow_readers(testbed: Testbed, times: int) -> None:
    """Request 6 MB on each of 30 connections and read none of it. Memory must stay bounded."""
    await asyncio.gather(*(_fill(testbed, f"large-{number}") for number in range(_READERS)))
    testbed.memory_mib = 0
    readers = []
    for number in range(_READERS):
        readers.append(await _open(testbed, receive_bytes=4096))
        await _send(readers[-1], read_request(f"large-{number}"))
    await asyncio.sleep(times)
    for reader in readers:
        reader.close()
    testbed.goals.append(Goal("memory of a process", testbed.memory_mib, 300, "MiB"))


async def _fill(testbed: Testbed, user: str) -> None:
    client = Client(testbed.address)
    for _ in range(_MESSAGES):
        answer = await client.ask(post_request(user, "x" * _LARGE, 3600))
        assert answer is not None
        assert answer.status == 201
    client.close()


async def descriptors(testbed: Testbed, times: int) -> None:
    """Open twice as many connections as there are file descriptors. The service must not spin, and
    must accept new clients at once afterwards.
    """
    shares: list[float] = []
    for _ in range(times):
        await testbed.run_load()
        before = await _share(testbed)
        idle = [await _open(testbed) for _ in range(2 * _DESCRIPTORS)]
        answered = len(testbed.clients.answers)
        shares.append(await _share(testbed) / before)
        served = len(testbed.clients.answers) - answered
        for connection in idle:
            connection.close()
        moment = time.monotonic()
        fresh = Client(testbed.address)
        answer = await fresh.ask(read_request("nobody"))
        assert answer is not None
        assert answer.status == 200
        testbed.recovery_times.append(time.monotonic() - moment)
        fresh.close()
        assert served, "existing connections are served"
    testbed.goals.append(
        Goal("time until a new client is served", max(testbed.recovery_times), 1, "s")
    )
    testbed.goals.append(Goal("processor time, relative to before", max(shares), 1.5, "times"))


async def until_refused(testbed: Testbed) -> None:
    """Post large messages until the service accepts none."""
    text = "x" * _LARGE

    async def post_until_refused(number: int) -> None:
        client = Client(testbed.address)
        while True:
            answer = await client.ask(post_request(f"press-{number}", text, 3600))
            if answer is None or answer.status != 201:
                break
        client.close()

    async with asyncio.timeout(60):
        await asyncio.gather(*(post_until_refused(number) for number in range(8)))


async def disconnects(testbed: Testbed, times: int) -> None:
    """Reset connections after the headers, in the body, and before the answer."""
    until = time.monotonic() + times
    request = post_request("leaver", "x" * 100, 60)
    ends = (request[:40], request[:-50], request, read_request("leaver"))
    left = 0
    while time.monotonic() < until:
        for part in ends:
            sender = await _open(testbed)
            await _send(sender, part)
            # SO_LINGER with a time of 0 makes `close` reset the connection.
            sender.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            sender.close()
            left += 1
        await asyncio.sleep(0.005)
    testbed.goals.append(Goal("memory of a process", testbed.memory_mib, 300, "MiB"))


async def overload(testbed: Testbed, times: int) -> None:
    """Offer three times the service's capacity, or more until it refuses a third, for this many
    seconds, and then return to normal.

    A slow connection to the database and small batches make the service so slow that clients in
    Python can overload it.
    """
    testbed.proxy.delay_s = 0.02
    peak = await _capacity(testbed, times)
    for factor in _FACTORS:
        served, answers = await _offered(testbed, times, rate=factor * peak)
        refused = [answer for answer in answers if answer.status == 503]
        is_offered = len(answers) > 2.5 * peak * times
        # On a busy machine the measured capacity may be too low, or the clients too slow.
        if is_offered and len(refused) > len(answers) / 3:
            break
    accepted = [answer for answer in answers if answer.outcome == "ok"]
    assert is_offered, "the clients were too slow to overload it"
    assert len(refused) > len(answers) / 3, f"{len(refused)} of {len(answers)} were refused"
    testbed.goals += [
        Goal("goodput lost, relative to the peak", 1 - served / peak, 0.1, ""),
        Goal("p99 of refusals", _p99(refused), 0.05, "s"),
        Goal("p99 of served requests", _p99(accepted), 5, "s"),
    ]
    testbed.proxy.delay_s = 0
    await testbed.await_recovery(time.monotonic())


def _mixed(number: int) -> bytes:
    """Return request number `number`: alternating posts and reads over 200 inboxes."""
    user = f"flood-{number // 2 % 200}"
    return read_request(user) if number % 2 else post_request(user, "x", 3600)


async def _capacity(testbed: Testbed, seconds: float) -> float:
    """Return the requests answered per second in a closed loop.

    There are as many clients as fit into the queues.
    """
    until = time.monotonic() + seconds
    numbers = count()
    served = 0

    async def live() -> None:
        nonlocal served
        client = Client(testbed.address)
        while time.monotonic() < until:
            answer = await client.ask(_mixed(next(numbers)))
            served += answer is not None and answer.outcome == "ok"
        client.close()

    await asyncio.gather(*(live() for _ in range(_FITTING)))
    return served / seconds


async def _offered(testbed: Testbed, seconds: float, rate: float) -> tuple[float, list[Answer]]:
    """Offer requests at this rate, regardless of the answers. Return the served requests per
    second, and all answers.
    """
    answers: list[Answer] = []
    idle: list[Client] = []
    asked: set[asyncio.Task[None]] = set()

    async def ask(client: Client, number: int) -> None:
        answer = await client.ask(_mixed(number))
        if answer is not None:
            answers.append(answer)
        idle.append(client)

    began = time.monotonic()
    number = 0
    while (now := time.monotonic()) < began + seconds:
        while number < (now - began) * rate:
            task = asyncio.create_task(ask(idle.pop() if idle else Client(testbed.address), number))
            asked.add(task)
            task.add_done_callback(asked.discard)
            number += 1
        await asyncio.sleep(0.002)
    served = sum(answer.outcome == "ok" for answer in answers) / seconds
    await asyncio.gather(*asked)
    for client in idle:
        client.close()
    return served, answers


def _since(answers: list[Answer], moment: float) -> list[Answer]:
    return [answer for answer in answers if answer.began >= moment]


def _p99(answers: list[Answer]) -> float:
    return statistics.quantiles([answer.ended - answer.began for answer in answers], n=100)[-1]


async def _share(testbed: Testbed) -> float:
    """Return the seconds of processor time that the server uses per second."""
    began, used = time.monotonic(), _cpu_s(testbed)
    await asyncio.sleep(_STARVED_S)
    return (_cpu_s(testbed) - used) / (time.monotonic() - began)


def _cpu_s(testbed: Testbed) -> float:
    """Return the seconds of processor time that the server has used."""
    path = f"/proc/{testbed.server.process.pid}/stat"
    with open(path, encoding="ascii") as file:
        fields = file.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / 100


async def _open(testbed: Testbed, receive_bytes: int = 0) -> socket.socket:
    connection = socket.socket()
    if receive_bytes:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
    connection.setblocking(False)
    await asyncio.get_running_loop().sock_connect(connection, testbed.address())
    return connection


async def _send(connection: socket.socket, data: bytes) -> None:
    try:
        await asyncio.get_running_loop().sock_sendall(connection, data)
    except (BrokenPipeError, ConnectionResetError):
        # The service has closed the connection.
        return
