"""Clients that load a service while faults are injected, and record what they saw.

Each client has one connection at a time and waits for every answer. Clients share the inboxes that
they post to and read from. Used by `tests.faults.scenarios`.
"""

import asyncio
import json
import random
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple, TypeAlias
from urllib.parse import quote

from tests.faults.history import History, LeaseOperation, Outcome, PostRecord, ReadRecord
from tests.support.load import Connection
from workers.dead_letters import DeadLetters
from workers.store.base import LEADER_LEASE_S

#: Where a server listens: its host and port.
Address: TypeAlias = tuple[str, int]

#: Seconds after which a client gives up on an answer; longer than any request may take.
GIVE_UP_S = 12.0
#: Duration of a lease, and the longest time for which a keyed request is repeated, in seconds.
LEASE_S, REPEAT_S = 1.0, 40.0
#: Delays of scheduled messages, and of releases, in seconds.
DELAYS_S = (0.2, 1.0, 3.0)
#: Pause in seconds after a refusal, or if no connection could be opened.
BACK_OFF_S = 0.05


#: How often clients do what. TIMELESS is for scenarios in which the database's clock is wrong; it
#: has nothing that depends on time. EVERYTHING needs a service with scheduled messages.
TIMELESS = {"post": 45, "keyed post": 10, "read": 45}
SHARES = {"post": 45, "keyed post": 10, "read": 28, "keyed read": 9, "lease": 8}
EVERYTHING = {**SHARES, "scheduled post": 8, "dead letter lease": 2}
#: The fields of a 503 that say what happened to the request's effect.
_EFFECTS = ("stored", "claimed", "changed")


class Answer(NamedTuple):
    """One request as a client saw it. `status` is 0 if there was no answer.

    `port` is that of the server, and differs between servers.
    """

    began: float
    ended: float
    status: int
    outcome: Outcome
    port: int
    body: bytes = b""


class Client:
    """A connection that is opened again after it has ended."""

    def __init__(self, address: Callable[[], Address]) -> None:
        self._address = address
        self._port = 0
        self._connection: Connection | None = None

    async def ask(self, request: bytes) -> Answer | None:
        """Send one request. Return None if no connection could be opened and nothing was sent."""
        if self._connection is None or self._connection.closed:
            host, self._port = self._address()
            try:
                self._connection = await Connection.open(self._port, host)
            except OSError:
                return None
        began = time.monotonic()
        try:
            async with asyncio.timeout(GIVE_UP_S):
                status, body = await self._connection.ask(request)
        except (OSError, TimeoutError):
            self._connection.close()
            self._connection = None
            return Answer(began, time.monotonic(), 0, "cut", self._port)
        return Answer(began, time.monotonic(), status, _outcome(status, body), self._port, body)

    def close(self) -> None:
        """Close the connection."""
        if self._connection is not None:
            self._connection.close()


def post_request(
    user: str, text: str, lifetime_s: int, key: str = "", delay_s: float = 0.0
) -> bytes:
    """Return the bytes of a POST."""
    fields: dict[str, object] = {"text": text, "username": user, "timeout": lifetime_s}
    if delay_s:
        fields["delay"] = delay_s
    return _request("POST /chat", fields, key)


def read_request(user: str, key: str = "") -> bytes:
    """Return the bytes of a read."""
    header = f"Idempotency-Key: {key}\r\n" if key else ""
    return f"GET /chat/{quote(user, safe='')} HTTP/1.1\r\nHost: localhost\r\n{header}\r\n".encode()


def _request(what: str, fields: object, key: str = "") -> bytes:
    body = json.dumps(fields).encode()
    header = f"Idempotency-Key: {key}\r\n" if key else ""
    head = f"{what} HTTP/1.1\r\nHost: localhost\r\n{header}Content-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


class ChaosClients:
    """Many concurrent clients, for as long as a fault lasts. Use as an async context."""

    def __init__(
        self,
        address: Callable[[], Address],
        *,
        clients: int = 32,
        users: int = 200,
        pause_s: float = 0.0,
        lifetimes_s: tuple[int, ...] = (3600,),
        shares: Mapping[str, int] = SHARES,
        max_deliveries: int = 0,
        has_deliveries: bool = True,
    ) -> None:
        """Without `has_deliveries`, some nodes are of a version that counts no deliveries."""
        self._shares = shares
        self._has_deliveries = has_deliveries
        self._dead_letters = DeadLetters(max_deliveries)
        self._address = address
        self._users = [f"user-{number}" for number in range(users)]
        self._pause_s = pause_s
        self._lifetimes_s = lifetimes_s
        self._clients = clients
        self._tasks: list[asyncio.Task[None]] = []
        self._is_stopping = False
        self._stopped = 0.0
        self.history = History([], [], [], dead_letters=self._dead_letters)
        #: Every request that was sent, without its body.
        self.answers: list[Answer] = []
        #: Moments at which no connection could be opened.
        self.not_connected: list[float] = []

    async def __aenter__(self) -> "ChaosClients":
        self._tasks = [asyncio.create_task(self._live(number)) for number in range(self._clients)]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._is_stopping = True
        await asyncio.gather(*self._tasks)
        self._stopped = time.monotonic()

    @property
    def accepted(self) -> int:
        """The approximate number of messages accepted so far."""
        return sum(answer.status == 201 for answer in self.answers)

    async def first_success(
        self, after: float, port: int | None = None, within_s: float = 90.0
    ) -> float:
        """Wait until a POST that was sent after `after` is accepted: by any server, or by that on
        `port`. Return the seconds since `after`.
        """
        seen = 0
        async with asyncio.timeout(within_s):
            while True:
                for answer in self.answers[seen:]:
                    if (
                        answer.status == 201
                        and answer.began >= after
                        and port in (None, answer.port)
                    ):
                        return answer.ended - after
                seen = len(self.answers)
                await asyncio.sleep(0.005)

    def outage(self, port: int, since: float, until: float) -> float:
        """Return the longest time without an accepted POST through a server, in seconds.

        Only the time between these moments counts.
        """
        moments = [
            answer.ended
            for answer in self.answers
            if answer.status == 201 and answer.port == port and since < answer.ended < until
        ]
        return max(end - begin for begin, end in pairwise((since, *sorted(moments), until)))

    async def drain(self, within_s: float = 30.0) -> None:
        """Read every inbox until it is empty. Each of these reads must be answered.

        First wait until every lease and every delay has ended, because leased and scheduled
        messages are in no inbox. If the leader may have died, another node ends them once its
        leader lease is over.
        """
        has_trouble = any(read.outcome in ("unknown", "cut") for read in self.history.reads)
        has_delays = "scheduled post" in self._shares
        wait_s = LEASE_S + 1 + LEADER_LEASE_S * has_trouble + max(DELAYS_S) * has_delays
        await asyncio.sleep(max(self._stopped + wait_s - time.monotonic(), 0))
        client = Client(self._address)
        deadline = time.monotonic() + within_s
        inboxes = list(self._users)
        if self._dead_letters.max_deliveries:
            inboxes += map(self._dead_letters.inbox_of, self._users)
        for user in inboxes:
            while True:
                got = await self._read(client, user)
                if got is not None and got.outcome == "ok" and not got.messages:
                    break
                assert time.monotonic() < deadline + len(inboxes), "the service does not recover"
                if got is None or got.outcome != "ok":
                    await asyncio.sleep(0.05)
        client.close()

    async def _live(self, number: int) -> None:
        rng = random.Random(number)
        client = Client(self._address)
        posted = 0
        while not self._is_stopping:
            # All clients use the first inbox; the others have a few writers and readers each.
            hot = rng.random() < 0.1
            user = self._users[0] if hot else rng.choice(self._users)
            what = rng.choices(list(self._shares), list(self._shares.values()))[0]
            posted += "post" in what
            match what:
                case "post":
                    is_served = await self._post(client, f"{number}", user, posted, rng)
                case "scheduled post":
                    delay_s = rng.choice(DELAYS_S)
                    is_served = await self._post(
                        client, f"{number}", user, posted, rng, delay_s=delay_s
                    )
                case "dead letter lease":
                    is_served = await self._lease(client, self._dead_letters.inbox_of(user), rng)
                case "keyed post":
                    is_served = await self._keyed_post(client, f"{number}", user, posted, rng)
                case "read":
                    got = await self._read(client, user)
                    is_served = got is not None and got.outcome == "ok"
                case "keyed read":
                    is_served = await self._keyed_read(client, user, rng)
                case _:
                    is_served = await self._lease(client, user, rng)
            if not is_served:
                await asyncio.sleep(BACK_OFF_S)
            elif self._pause_s:
                await asyncio.sleep(rng.expovariate(1 / self._pause_s))
        client.close()

    async def _post(
        self,
        client: Client,
        sender: str,
        user: str,
        number: int,
        rng: random.Random,
        key: str = "",
        lifetime_s: int = 0,
        delay_s: float = 0.0,
    ) -> bool:
        text = f"{sender}.{number}"
        lifetime_s = lifetime_s or rng.choice(self._lifetimes_s)
        answer = await self._ask(client, post_request(user, text, lifetime_s, key, delay_s))
        if answer is None:
            return False
        message_id = json.loads(answer.body)["id"] if answer.status == 201 else ""
        self.history.posts.append(
            PostRecord(
                # Scheduled messages are in the order of their due times.
                *(text if delay_s else sender, user, text, lifetime_s, answer.began, answer.ended),
                *(answer.outcome, message_id, key),
                delay_s=delay_s,
            )
        )
        return answer.outcome == "ok"

    async def _keyed_post(
        self, client: Client, sender: str, user: str, number: int, rng: random.Random
    ) -> bool:
        """Post with a key until the post is answered; sometimes repeat it once more."""
        key, lifetime_s = f"{sender}.{number}", rng.choice(self._lifetimes_s)
        # Use a separate sender: a repeat may arrive after the client's later posts.
        return await self._repeat(
            lambda: self._post(client, f"{sender}.once", user, number, rng, key, lifetime_s), rng
        )

    async def _read(self, client: Client, user: str, key: str = "") -> ReadRecord | None:
        answer = await self._ask(client, read_request(user, key))
        if answer is None:
            return None
        messages = json.loads(answer.body) if answer.status == 200 else ()
        return self._got(user, answer, messages, is_all=not key, key=key)

    async def _keyed_read(self, client: Client, user: str, rng: random.Random) -> bool:
        """Read with a key until the read is answered; sometimes repeat it once more."""
        key = f"{rng.getrandbits(160):040x}"

        async def read() -> bool:
            got = await self._read(client, user, key)
            return got is not None and got.outcome == "ok"

        return await self._repeat(read, rng)

    async def _repeat(self, attempt: Callable[[], Awaitable[bool]], rng: random.Random) -> bool:
        give_up_at = time.monotonic() + REPEAT_S
        while not await attempt():
            if time.monotonic() > give_up_at:
                return False
            await asyncio.sleep(BACK_OFF_S)
        if rng.random() < 0.1:
            await attempt()
        return True

    async def _lease(self, client: Client, user: str, rng: random.Random) -> bool:
        """Lease messages, and acknowledge all, some or none of them."""
        answer = await self._ask(
            client, _request(f"POST /chat/{quote(user, safe='')}/lease?ttl={LEASE_S}", {})
        )
        if answer is None:
            return False
        taken = json.loads(answer.body) if answer.status == 200 else {"messages": ()}
        # If the lease got no answer, its name is unknown.
        name = taken.get("lease") or f"{rng.getrandbits(64):x}"
        self._got(user, answer, taken["messages"], is_all=False, lease=f"{name}.0")
        if answer.outcome != "ok" or not taken["messages"]:
            return answer.outcome == "ok"
        ids = tuple(message["id"] for message in taken["messages"])
        end = rng.random()
        if end < 0.2:
            # The consumer dies.
            return True
        some = ids[: rng.randint(1, len(ids))] if end < 0.4 else None
        if end >= 0.8 and "scheduled post" in self._shares:
            return await self._put_off(client, user, name, rng.choice((None, ids[:1])), rng)
        for _ in range(3):
            if await self._acknowledge(client, user, name, some):
                return True
            await asyncio.sleep(BACK_OFF_S)
        return False

    async def _put_off(
        self,
        client: Client,
        user: str,
        lease: str,
        ids: tuple[str, ...] | None,
        rng: random.Random,
    ) -> bool:
        """Release messages with a delay until that is answered. The others wait for the end of
        their lease.
        """
        delay_s, is_delivered = rng.choice(DELAYS_S), rng.random() < 0.5
        fields: dict[str, object] = {"lease": lease, "delay": delay_s, "delivered": is_delivered}
        if ids is not None:
            fields["ids"] = ids
        for _ in range(3):
            answer = await self._ask(
                client, _request(f"POST /chat/{quote(user, safe='')}/release", fields)
            )
            if answer is None:
                continue
            outcome: Outcome = "ok" if answer.status == 410 else answer.outcome
            released = json.loads(answer.body)["released"] if answer.status == 200 else 0
            self.history.lease_operations.append(
                LeaseOperation(
                    *("release", user, lease, answer.began, answer.ended, outcome, released, ids),
                    is_delivered=is_delivered,
                    delay_s=delay_s,
                )
            )
            if outcome == "ok":
                return True
            await asyncio.sleep(BACK_OFF_S)
        return False

    async def _acknowledge(
        self, client: Client, user: str, lease: str, ids: tuple[str, ...] | None
    ) -> bool:
        fields: dict[str, object] = {"lease": lease}
        if ids is not None:
            fields["ids"] = ids
        answer = await self._ask(client, _request(f"POST /chat/{quote(user, safe='')}/ack", fields))
        if answer is None:
            return False
        # A lease that has ended is an answer, too.
        outcome: Outcome = "ok" if answer.status == 410 else answer.outcome
        told: Any = json.loads(answer.body)["acknowledged"] if answer.status in (200, 410) else ()
        self.history.lease_operations.append(
            LeaseOperation(
                *("acknowledge", user, lease, answer.began, answer.ended, outcome),
                *(told if answer.status == 200 else len(told), ids),
                is_all=answer.status == 200,
                acknowledged=frozenset(told if answer.status == 410 else ()),
            )
        )
        return outcome == "ok"

    def _got(
        self,
        user: str,
        answer: Answer,
        messages: Sequence[dict[str, Any]],
        is_all: bool,
        key: str = "",
        lease: str = "",
    ) -> ReadRecord:
        got = ReadRecord(
            *(user, answer.began, answer.ended, answer.outcome),
            tuple((message["id"], message["text"]) for message in messages),
            is_all=is_all,
            lease=lease,
            ttl_s=LEASE_S if lease else 0.0,
            key=key,
            deliveries=(
                tuple(message["deliveries"] for message in messages)
                if lease and self._has_deliveries
                else ()
            ),
        )
        self.history.reads.append(got)
        return got

    async def _ask(self, client: Client, request: bytes) -> Answer | None:
        answer = await client.ask(request)
        if answer is None:
            self.not_connected.append(time.monotonic())
        else:
            self.answers.append(answer._replace(body=b""))
        return answer


def _outcome(status: int, body: bytes) -> Outcome:
    if status in (200, 201):
        return "ok"
    if status == 503:
        problem = json.loads(body)
        (happened,) = (problem[name] for name in _EFFECTS if name in problem)
        return "unknown" if happened == "unknown" else "refused"
    return "refused"
