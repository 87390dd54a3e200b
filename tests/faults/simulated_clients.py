"""The clients of the simulation. Each does what a step says, and records what it saw.

They behave like real clients: they disconnect, repeat a keyed request that failed, die with leased
messages, and reconnect.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any, NamedTuple, Protocol, TypeVar

from chat_service.api.identity import Client, Identity, Rights
from chat_service.api.request_options import post_key_hash
from tests.faults.history import (
    History,
    LeaseOperation,
    Outcome,
    PostRecord,
    ReadRecord,
    ReceiptQuery,
)
from workers.commands import (
    Delivered,
    Extend,
    Finish,
    Finished,
    Key,
    Lease,
    MessageStatus,
    Release,
    Resume,
    Revoke,
    Slice,
    Stored,
    Track,
    delivery,
)
from workers.errors import KeyReused, NotExecuted, OutcomeUnknown
from workers.pool import WorkerPool
from workers.routing import shard_of

T = TypeVar("T", str, Stored, Slice, int, Finished, MessageStatus | None)

#: The reason with which a request is cancelled when its node dies.
KILLED = "killed"
#: Lifetimes of messages, in seconds: they expire during a schedule, at its end, or after it.
LIFETIMES_S = (1, 3, 600)
#: Delays of scheduled messages, in seconds.
_DELAYS_S = (0.001, 0.3, 1.0, 2.5)
#: Durations of leases and of long polls, in seconds.
_LEASES_S = (0.3, 1.0, 2.5)
_WAITS_S = (0.3, 2.5, 2.5)
#: The duration of each long poll of a conversation, in seconds.
_POLL_S = 1.5
#: How often a conversation gets two messages, and the seconds between them.
_PAIRS = 3
_BETWEEN_S = (0.0, 0.005, 0.01, 0.02)
#: How many times a keyed request is sent at most.
_REPEATS = 4


#: The posts of a flood.
FLOOD = 60


class Process(Protocol):
    """A node, as its clients see it."""

    number: int
    skew_s: float
    pool: WorkerPool
    #: Unanswered requests, for when the node is killed. A dictionary, because it is ordered.
    requests: dict[asyncio.Future[Any], None]


class _Receipt(NamedTuple):
    id: str
    receipt: str


class SimulatedClients:
    """All clients of one run."""

    #: Whether a stream continues under the same lease after a failed read.
    keeps_lease = False

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        rng: random.Random,
        nodes: Sequence[Process],
        history: History,
    ) -> None:
        self._loop = loop
        self._rng = rng
        self._nodes = nodes
        self._history = history
        self._texts = 0
        self._conversations = 0
        # A sender is one client that waits for each answer: one request at a time for each user.
        self._senders: set[str] = set()
        self._receipts: list[_Receipt] = []
        self._keys: list[str] = []
        self._tasks: set[asyncio.Task[Any]] = set()

    def start(self, what: str, node: Process, user: str, number: int) -> None:
        """Start a client for a step."""
        limit = 1 + number % 3
        client: Coroutine[Any, Any, Any]
        match what:
            case "post":
                client = self._post(node, user, number)
            case "scheduled post":
                client = self._post(node, user, number, self._rng.choice(_DELAYS_S))
            case "keyed post":
                client = self._keyed_post(node, user, number)
            case "scheduled keyed post":
                client = self._keyed_post(node, user, number, self._rng.choice(_DELAYS_S))
            case "read":
                client = self.read(node, user)
            case "limited read":
                client = self.read(node, user, limit)
            case "abandoned read":
                client = self.read(node, user, leaves_after_s=number / 300)
            case "long poll":
                client = self.read(node, user, wait_s=_WAITS_S[number % 3])
            case "limited long poll":
                client = self.read(node, user, limit, wait_s=_WAITS_S[number % 3])
            case "abandoned long poll":
                client = self.read(node, user, wait_s=2.5, leaves_after_s=number / 6)
            case "conversation":
                client = self._converse(node, user)
            case "keyed read":
                client = self._keyed_read(node, user, number)
            case "lease":
                client = self._lease(node, user, number)
            case "abandoned lease":
                client = self._abandon_lease(node, user, number)
            case "dead letter lease":
                inbox = self._history.dead_letters.inbox_of(user)
                client = self._lease(node, inbox, number)
            case "dead letter read":
                client = self.read(node, self._history.dead_letters.inbox_of(user))
            case "stream":
                client = self._stream(node, user, number)
            case "flood":
                client = self._flood(node, user)
            case "light post":
                client = self._light(node, user, is_read=False)
            case "light read":
                client = self._light(node, user, is_read=True)
            case "track" | "revoke":
                client = self._query_receipt(node, what == "revoke", number)
            case _:
                client = _await_answer(node, lambda: node.pool.count(user))
        task = self._loop.create_task(client)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def end(self, longest_s: float) -> None:
        """Wait for all clients. A request that still waits then never ends, and the checker says
        so.
        """
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=longest_s)
        for endless in self._tasks:
            endless.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _new_text(self) -> str:
        self._texts += 1
        return f"t{self._texts}"

    async def _pause(self) -> None:
        await asyncio.sleep(self._rng.choice((0.01, 0.1, 0.4)))

    def _other(self, node: Process) -> Process:
        """Return the same node or the other one."""
        return self._nodes[node.number ^ self._rng.randrange(2)]

    async def _post(self, node: Process, user: str, number: int, delay_s: float = 0.0) -> None:
        text, lifetime_s = self._new_text(), LIFETIMES_S[number % 3]
        receipt = f"r-{text}" if number % 2 else ""
        began = self._loop.time()
        # One node with one clock: the clocks of two nodes define no order.
        sender = f"{user}-{number % 2}-{node.number}-{node.skew_s}"
        if sender in self._senders or delay_s:
            sender = text
        self._senders.add(sender)

        def ask() -> "asyncio.Future[str]":
            return node.pool.post(
                *(user, text, len(text), lifetime_s, receipt),
                client=f"client-{number % 3}",
                delay_s=delay_s,
            )

        outcome, answer, unknown_id = await _await_answer(node, ask)
        self._senders.discard(sender)
        self._posted(
            PostRecord(
                *(sender, user, text, lifetime_s, began, self._loop.time()),
                *(outcome, answer or "", "", receipt),
                delay_s=delay_s,
            ),
            unknown_id,
        )

    async def _flood(self, node: Process, user: str) -> None:
        """Post more messages at once than a queue holds."""
        await asyncio.gather(*(self._plain_post(node, user, "heavy") for _ in range(FLOOD)))

    async def _light(self, node: Process, user: str, is_read: bool) -> None:
        """Send one request, as a client that shares the queue with others."""
        if not is_read:
            await self._plain_post(node, user, "light")
            return
        began = self._loop.time()
        outcome, answer, _ = await _await_answer(node, lambda: node.pool.read(user, client="light"))
        self._history.reads.append(
            ReadRecord(
                *(user, began, self._loop.time(), outcome),
                tuple((each.id, each.text) for each in answer.messages) if answer else (),
                answer is not None and not answer.more,
                client="light",
                queue=_queue_of(node, user),
            )
        )

    async def _plain_post(self, node: Process, user: str, client: str) -> None:
        text, began = self._new_text(), self._loop.time()
        outcome, answer, _ = await _await_answer(
            node, lambda: node.pool.post(user, text, len(text), LIFETIMES_S[2], client=client)
        )
        self._history.posts.append(
            PostRecord(
                *(text, user, text, LIFETIMES_S[2], began, self._loop.time(), outcome),
                *(answer or "",),
                client=client,
                queue=_queue_of(node, user),
            )
        )

    async def _keyed_post(
        self, node: Process, user: str, number: int, delay_s: float = 0.0
    ) -> None:
        """Post with a key. A few use the key of another post, which must be refused."""
        text, lifetime_s = self._new_text(), LIFETIMES_S[number % 3]
        key = self._rng.choice(self._keys) if number in (7, 8) and self._keys else f"k-{text}"
        self._keys.append(key)
        # Two identities use the same keys.
        subject = f"subject-{number % 2}"
        client = Client(Identity(subject, Rights()), subject)
        hashed = post_key_hash(client, "post", key)

        async def attempt(node: Process, number: int) -> Outcome:
            receipt = f"r-{text}-{number}" if number % 2 else ""
            began = self._loop.time()

            def ask() -> "asyncio.Future[Stored]":
                return node.pool.post_keyed(
                    *(user, text, len(text), lifetime_s, Key(hashed, text), receipt),
                    client=subject,
                    delay_s=delay_s,
                )

            is_reused = False

            def note(error: NotExecuted) -> None:
                nonlocal is_reused
                is_reused = isinstance(error, KeyReused)

            outcome, answer, unknown_id = await _await_answer(node, ask, note)
            self._posted(
                PostRecord(
                    *(text, user, text, lifetime_s, began, self._loop.time()),
                    *(outcome, answer.id if answer else "", f"{subject} {key}", receipt),
                    is_reused=is_reused,
                    delay_s=delay_s,
                ),
                unknown_id,
            )
            return outcome

        await self._repeat(node, number, attempt)

    def _posted(self, post: PostRecord, unknown_id: str | None) -> None:
        self._history.posts.append(post)
        if post.receipt and (post.id or unknown_id):
            self._receipts.append(_Receipt(post.id or unknown_id or "", post.receipt))

    async def _repeat(
        self, node: Process, number: int, attempt: Callable[[Process, int], Awaitable[Outcome]]
    ) -> None:
        """Repeat a keyed request until it is answered, and sometimes once more."""
        if number == 9:
            # Send two at once, like a client that does not wait for the answer.
            twins = [attempt(each, position) for position, each in enumerate(self._nodes)]
            await asyncio.gather(*twins)
        for repeat in range(_REPEATS):
            outcome = await attempt(node, repeat + number)
            if outcome == "ok" and (number % 3 or repeat):
                return
            if outcome != "ok" and self._rng.random() < 0.1:
                # The client gives up.
                return
            await self._pause()
            node = self._other(node)

    async def read(
        self,
        node: Process,
        user: str,
        limit: int | None = None,
        wait_s: float = 0.0,
        leaves_after_s: float | None = None,
        lease: Lease | None = None,
        key: str = "",
    ) -> ReadRecord:
        """Read once. The client may disconnect before the answer."""
        began = self._loop.time()

        def ask() -> "asyncio.Future[Slice]":
            if key:
                request = node.pool.read_keyed(user, key, limit, wait_s)
            else:
                request = node.pool.read(user, limit, None, wait_s, lease)
            if leaves_after_s is not None:
                self._loop.call_later(leaves_after_s, request.cancel)
            return request

        outcome, answer, _ = await _await_answer(node, ask)
        got = ReadRecord(
            *(user, began, self._loop.time(), outcome),
            tuple((each.id, each.text) for each in answer.messages) if answer else (),
            limit is None and not key and answer is not None and not answer.more,
            wait_s,
            lease.token if lease else "",
            lease.ttl_ms / 1000 if lease else 0.0,
            key,
            deliveries=tuple(
                each.deliveries
                for each in (answer.messages if answer else ())
                if isinstance(each, Delivered)
            ),
        )
        self._history.reads.append(got)
        return got

    async def _converse(self, node: Process, user: str) -> None:
        """Poll a new inbox again and again. Another node stores two messages in a row in it, so
        that the second may arrive while the client polls again.
        """
        self._conversations += 1
        name = f"{user}-{self._conversations}"

        async def post() -> None:
            other = self._nodes[node.number ^ 1]
            for _ in range(_PAIRS):
                await asyncio.sleep(self._rng.choice((0.1, 0.4)))
                await self._post(other, name, 2)
                await asyncio.sleep(self._rng.choice(_BETWEEN_S))
                await self._post(other, name, 2)
                await asyncio.sleep(1.0)

        posting = asyncio.create_task(post())
        while not posting.done():
            await self.read(node, name, wait_s=_POLL_S)
        await posting
        await self.read(node, name)

    async def _keyed_read(self, node: Process, user: str, number: int) -> None:
        key = self._rng.randbytes(8).hex()
        limit = 1 + number % 3 if number % 2 else None
        wait_s = 1.0 if number == 5 else 0.0

        async def attempt(node: Process, repeat: int) -> Outcome:
            leaves_after_s = 0.005 if number == 6 and repeat == number else None
            got = await self.read(
                node, user, limit, wait_s=wait_s, leaves_after_s=leaves_after_s, key=key
            )
            return got.outcome

        await self._repeat(node, number, attempt)

    async def _lease(self, node: Process, user: str, number: int) -> None:
        """Lease messages, and finish the lease completely, in part, too late, or never."""
        name, ttl_s = self._rng.randbytes(8).hex(), self._rng.choice(_LEASES_S)
        limit = 3 if number % 2 else None
        terms = Lease(delivery(name), int(ttl_s * 1000))
        got = await self.read(node, user, limit, wait_s=(number == 4) * 1.0, lease=terms)
        if not got.messages:
            return
        ids = tuple(message_id for message_id, _ in got.messages)
        some = ids[: self._rng.randint(1, len(ids))]
        works_s = ttl_s * self._rng.choice((0.1, 0.6, 1.0, 1.5))
        await asyncio.sleep(works_s)
        node = self._other(node)
        match number:
            case 0 | 1 | 2:
                await self._retry_on_lease(node, "acknowledge", user, name)
            case 3:
                await self._retry_on_lease(node, "acknowledge", user, name, some)
            case 4:
                await self._retry_on_lease(node, "acknowledge", user, name, some)
                # Another reader may have the rest by then.
                await asyncio.sleep(ttl_s)
                await self._retry_on_lease(node, "acknowledge", user, name)
            case 5:
                await self._operate_on_lease(node, "release", user, name, some)
                await self._retry_on_lease(node, "acknowledge", user, name)
            case 6:
                await self._operate_on_lease(
                    node, "extend", user, name, ttl_s=self._rng.choice(_LEASES_S)
                )
                await asyncio.sleep(works_s)
                await self._retry_on_lease(node, "acknowledge", user, name)
            case 7:
                await self._retry_on_lease(node, "release", user, name)
            case 8:
                # The consumer began with none of the messages, or with none but the first.
                some = self._rng.choice((ids, ids[1:]))
                # Another reader may have them by then.
                await asyncio.sleep(self._rng.choice((0.0, ttl_s)))
                await self._retry_on_lease(node, "undelivered release", user, name, some)
            case _ if self._rng.random() < 0.5:
                await self._put_off(node, user, name, ids, some)
            case _:
                # The consumer died.
                pass

    async def _put_off(
        self, node: Process, user: str, name: str, ids: tuple[str, ...], some: tuple[str, ...]
    ) -> None:
        """Release messages with a delay, all or some, and acknowledge or extend the lease then."""
        delay_s = self._rng.choice(_DELAYS_S)
        what = self._rng.choice(("release", "release", "undelivered release"))
        some = self._rng.choice((ids, some))
        await self._retry_on_lease(node, what, user, name, some, delay_s)
        node = self._other(node)
        match self._rng.randrange(4):
            case 0:
                await self._retry_on_lease(node, "acknowledge", user, name)
            case 1:
                await self._operate_on_lease(node, "acknowledge", user, name, some)
            case 2:
                await self._operate_on_lease(node, "extend", user, name, ttl_s=_LEASES_S[-1])
            case _:
                # The others become unread when the lease ends.
                pass

    async def _abandon_lease(self, node: Process, user: str, number: int) -> None:
        """Lease messages for a long time, and disconnect before the answer."""
        terms = Lease(delivery(self._rng.randbytes(8).hex()), int(_LEASES_S[-1] * 1000))
        await self.read(node, user, leaves_after_s=number / 300, lease=terms)

    async def _retry_on_lease(
        self,
        node: Process,
        what: str,
        user: str,
        name: str,
        ids: tuple[str, ...] | None = None,
        delay_s: float = 0.0,
    ) -> None:
        """Repeat an operation until it is answered, and sometimes once more."""
        for _ in range(_REPEATS):
            settled = await self._operate_on_lease(node, what, user, name, ids, delay_s=delay_s)
            if settled.outcome == "ok" and self._rng.random() < 0.7:
                return
            await self._pause()
            node = self._other(node)

    async def _operate_on_lease(
        self,
        node: Process,
        what: str,
        user: str,
        name: str,
        ids: tuple[str, ...] | None = None,
        ttl_s: float = 0.0,
        last: str = "",
        delay_s: float = 0.0,
    ) -> LeaseOperation:
        command: Release | Extend | Resume
        if what == "acknowledge":
            return await self._acknowledge(node, Finish(user, name, ids))
        match what:
            case "release" | "undelivered release":
                command = Release(user, name, ids, what == "release", int(delay_s * 1000))
            case "extend":
                command = Extend(user, name, int(ttl_s * 1000))
            case _:
                command = Resume(user, last)
        began = self._loop.time()

        def ask() -> "asyncio.Future[int]":
            return node.pool.submit(command)

        outcome, count, _ = await _await_answer(node, ask)
        operation = LeaseOperation(
            what.rpartition(" ")[2],  # type: ignore[arg-type]
            *(user, name, began, self._loop.time(), outcome, count or 0, ids, ttl_s, last),
            is_delivered=what != "undelivered release",
            delay_s=delay_s,
        )
        self._history.lease_operations.append(operation)
        return operation

    async def _acknowledge(self, node: Process, command: Finish) -> LeaseOperation:
        began = self._loop.time()
        outcome, finished, _ = await _await_answer(node, lambda: node.pool.submit(command))
        finished = finished or Finished(0, is_all=False)
        operation = LeaseOperation(
            *("acknowledge", command.username, command.lease, began, self._loop.time(), outcome),
            # The number that the client gets if not all of them are acknowledged.
            finished.messages if finished.is_all else len(finished.acknowledged),
            command.ids,
            is_all=finished.is_all,
            acknowledged=frozenset(finished.acknowledged),
        )
        self._history.lease_operations.append(operation)
        return operation

    async def _stream(self, node: Process, user: str, number: int) -> None:
        """Receive deliveries under one lease until the connection ends; then reconnect."""
        rng, last, name = self._rng, "", ""
        ttl_s = rng.choice((1.0, 4.0))
        for _ in range(2 + number % 2):
            if last:
                await self._operate_on_lease(node, "resume", user, name, last=last)
            name, last = rng.randbytes(8).hex(), ""
            for each in range(1, 2 + number % 4):
                limit = 2 if number % 2 else None
                terms = Lease(delivery(name, each), int(ttl_s * 1000))
                got = await self.read(node, user, limit, wait_s=0.3, lease=terms)
                if got.outcome != "ok" and self.keeps_lease:
                    got = await self.read(node, user, limit, wait_s=0.3, lease=terms)
                if got.outcome != "ok":
                    # A client that does not know all messages of a lease gets no more under it.
                    break
                ids = [message_id for message_id, _ in got.messages]
                if ids and rng.random() < 0.3:
                    await self._operate_on_lease(node, "acknowledge", user, name, (ids[0],))
                if ids:
                    # Part of a delivery may not have reached the consumer.
                    last = ids[-1] if rng.random() < 0.7 else rng.choice(ids)
                    if last != ids[-1]:
                        break
                if rng.random() < 0.3:
                    await self._operate_on_lease(node, "extend", user, name, ttl_s=ttl_s)
            if number == 7:
                await self._operate_on_lease(node, "release", user, name)
            await asyncio.sleep(rng.choice((0.02, 0.3, 1.2)))
            node = self._other(node)

    async def _query_receipt(self, node: Process, revokes: bool, number: int) -> None:
        if not self._receipts:
            return
        known = self._rng.choice(self._receipts[-6:])
        receipt = "a guess" if number == 0 else known.receipt
        command = Revoke(known.id, receipt) if revokes else Track(known.id, receipt)
        began = self._loop.time()
        outcome, fate, _ = await _await_answer(node, lambda: node.pool.submit(command))
        self._history.receipt_queries.append(
            ReceiptQuery(
                "revoke" if revokes else "track",
                *(known.id, receipt, began, self._loop.time(), outcome),
                fate.status if fate is not None else None,
            )
        )


async def _await_answer(
    node: Process,
    ask: Callable[[], "asyncio.Future[T]"],
    on_refused: Callable[[NotExecuted], None] = lambda _: None,
) -> tuple[Outcome, T | None, str | None]:
    """Return what a client sees of one request, and the id in an answer that says `unknown`."""
    try:
        request = ask()
    except NotExecuted as error:
        on_refused(error)
        return "refused", None, None
    node.requests[request] = None
    try:
        return "ok", await request, None
    except NotExecuted as error:
        on_refused(error)
        return "refused", None, None
    except OutcomeUnknown as error:
        return "unknown", None, error.message_id
    except asyncio.CancelledError as error:
        # The client disconnected; the engine makes the messages it had for it unread again.
        return ("cut" if error.args == (KILLED,) else "unknown"), None, None
    finally:
        node.requests.pop(request, None)


def _queue_of(node: Process, user: str) -> str:
    return f"{node.number} {shard_of(user, 2)}"
