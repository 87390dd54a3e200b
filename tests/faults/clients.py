"""Clients that press a service while it is being broken, and write down what they saw.

Each client has one connection at a time and waits for every answer. It posts to and reads from
inboxes that it shares with the others. Used by `tests.faults.scenarios`.
"""

import asyncio
import json
import random
import time
from collections.abc import Callable
from typing import NamedTuple

from tests.faults.history import Got, History, Outcome, Posted
from tests.support.load import Connection

#: Longer than any request may take; who waits longer has no answer.
GIVE_UP_S = 12.0
#: Pause after a refusal, or where no connection could be had.
BACK_OFF_S = 0.05


class Answer(NamedTuple):
    """One request as a client saw it. `status` is 0 where there was no answer."""

    began: float
    ended: float
    status: int
    outcome: Outcome
    body: bytes = b""


class Client:
    """A connection that is opened again whenever it has ended."""

    def __init__(self, port: Callable[[], int]) -> None:
        self._port = port
        self._connection: Connection | None = None

    async def ask(self, request: bytes) -> Answer | None:
        """Send one request. None where no connection could be had, so that nothing was sent."""
        if self._connection is None or self._connection.closed:
            try:
                self._connection = await Connection.open(self._port())
            except OSError:
                return None
        began = time.monotonic()
        try:
            async with asyncio.timeout(GIVE_UP_S):
                status, body = await self._connection.ask(request)
        except (OSError, TimeoutError):
            self._connection.close()
            self._connection = None
            return Answer(began, time.monotonic(), 0, "cut")
        return Answer(began, time.monotonic(), status, _outcome(status, body), body)

    def close(self) -> None:
        """Close its connection."""
        if self._connection is not None:
            self._connection.close()


def post_request(user: str, text: str, lifetime_s: int) -> bytes:
    """A POST as it goes over the wire."""
    body = json.dumps({"text": text, "username": user, "timeout": lifetime_s}).encode()
    head = f"POST /chat HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


def read_request(user: str) -> bytes:
    """A read as it goes over the wire."""
    return f"GET /chat/{user} HTTP/1.1\r\nHost: x\r\n\r\n".encode()


class Crowd:
    """Many clients at once, for as long as a fault lasts. Use as an async context."""

    def __init__(
        self,
        port: Callable[[], int],
        *,
        clients: int = 32,
        users: int = 200,
        pause_s: float = 0.0,
        lifetimes_s: tuple[int, ...] = (3600,),
    ) -> None:
        self._port = port
        self._users = [f"user-{number}" for number in range(users)]
        self._pause_s = pause_s
        self._lifetimes_s = lifetimes_s
        self._clients = clients
        self._tasks: list[asyncio.Task[None]] = []
        self._is_over = False
        self.history = History([], [], [])
        #: Every request that was sent, without its body.
        self.answers: list[Answer] = []
        #: Moments at which no connection could be had.
        self.not_connected: list[float] = []

    async def __aenter__(self) -> "Crowd":
        self._tasks = [asyncio.create_task(self._live(number)) for number in range(self._clients)]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._is_over = True
        await asyncio.gather(*self._tasks)

    @property
    def accepted(self) -> int:
        """Messages acknowledged so far, roughly."""
        return sum(answer.status == 201 for answer in self.answers)

    async def first_success(self, after: float, within_s: float = 90.0) -> float:
        """Wait for a POST that was sent after a moment and accepted; seconds from then on."""
        seen = 0
        async with asyncio.timeout(within_s):
            while True:
                for answer in self.answers[seen:]:
                    if answer.status == 201 and answer.began >= after:
                        return answer.ended - after
                seen = len(self.answers)
                await asyncio.sleep(0.005)

    async def drain(self, within_s: float = 30.0) -> None:
        """Read every inbox until it is empty; each of these reads must be answered."""
        client = Client(self._port)
        deadline = time.monotonic() + within_s
        for user in self._users:
            while True:
                got = await self._read(client, user)
                if got is not None and got.outcome == "ok" and not got.messages:
                    break
                assert time.monotonic() < deadline + len(self._users), "it does not come back"
                if got is None or got.outcome != "ok":
                    await asyncio.sleep(0.05)
        client.close()

    async def _live(self, number: int) -> None:
        rng = random.Random(number)
        client = Client(self._port)
        posted = 0
        while not self._is_over:
            # The first inbox is everybody's; the others have a few writers and readers each.
            hot = rng.random() < 0.1
            user = self._users[0] if hot else rng.choice(self._users)
            if rng.random() < 0.55:
                posted += 1
                is_served = await self._post(client, f"{number}", user, posted, rng)
            else:
                got = await self._read(client, user)
                is_served = got is not None and got.outcome == "ok"
            if not is_served:
                await asyncio.sleep(BACK_OFF_S)
            elif self._pause_s:
                await asyncio.sleep(rng.expovariate(1 / self._pause_s))
        client.close()

    async def _post(
        self, client: Client, sender: str, user: str, number: int, rng: random.Random
    ) -> bool:
        text = f"{sender}.{number}"
        lifetime_s = rng.choice(self._lifetimes_s)
        answer = await client.ask(post_request(user, text, lifetime_s))
        if answer is None:
            self.not_connected.append(time.monotonic())
            return False
        self.answers.append(answer._replace(body=b""))
        message_id = json.loads(answer.body)["id"] if answer.status == 201 else ""
        self.history.posts.append(
            Posted(
                *(sender, user, text, lifetime_s, answer.began, answer.ended),
                *(answer.outcome, message_id),
            )
        )
        return answer.outcome == "ok"

    async def _read(self, client: Client, user: str) -> Got | None:
        answer = await client.ask(read_request(user))
        if answer is None:
            self.not_connected.append(time.monotonic())
            return None
        self.answers.append(answer._replace(body=b""))
        messages = json.loads(answer.body) if answer.status == 200 else ()
        got = Got(
            *(user, answer.began, answer.ended, answer.outcome),
            tuple((message["id"], message["text"]) for message in messages),
        )
        self.history.reads.append(got)
        return got


def _outcome(status: int, body: bytes) -> Outcome:
    if status in (200, 201):
        return "ok"
    if status == 503:
        problem = json.loads(body)
        happened = problem["stored"] if "stored" in problem else problem["claimed"]
        return "unknown" if happened == "unknown" else "refused"
    return "refused"
