"""The deliveries of one stream, under leases. Both kinds of stream use it.

A consumer that connects gets all unread messages, then waits for more: streams only wake it up,
and the database decides what is unread. Delivered messages stay leased to the consumer until it
acknowledges them. Messages that it has not acknowledged become unread again when its connection
closes. If nobody notices that, they become unread when their lease ends. Used by
`chat_service.handlers.stream` and `chat_service.streaming.websocket`.
"""

import asyncio
import secrets
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import cast

import structlog

from workers.commands import (
    Acknowledge,
    Command,
    Delivered,
    Extend,
    Held,
    Lease,
    R,
    Release,
    Resume,
    Slice,
    delivery,
)
from workers.errors import Draining, ServiceError
from workers.pool import WorkerPool

log = structlog.get_logger(__name__)

#: The length of a lease, in seconds. It matters if nobody notices that the stream has ended.
LEASE_S = 30.0
#: The most unacknowledged messages of a stream; nothing is delivered beyond that, but the last
#: delivery may exceed it. And the most messages that one command acknowledges or releases.
UNACKED_MAX, _AT_ONCE = 1000, 1000
#: The pause before a refused command is repeated, in seconds, and how often it is repeated.
_AGAIN_AFTER_S, _TRIES = 0.5, 10
#: The longest pause before a stream with too many unacknowledged messages asks the database
#: whether they are still leased, in seconds.
_PAUSE_MAX_S = 5.0


class Subscription:
    """The deliveries of one stream of one inbox.

    One task uses it; others may call `acknowledge` at the same time.
    """

    __slots__ = (
        "_acked",
        "_client",
        "_deliveries",
        "_is_lease_known",
        "_look_at",
        "_pause_s",
        "_pool",
        "_reading",
        "_tasks",
        "_timers",
        "_unacked",
        "_username",
        "is_ended",
        "lease",
    )

    def __init__(
        self, pool: WorkerPool, username: str, client: str, *, is_lease_known: bool
    ) -> None:
        """`is_lease_known` says that the consumer can acknowledge by lease, at any process."""
        self._pool = pool
        self._username = username
        self._client = client
        self._is_lease_known = is_lease_known
        self._pause_s = _AGAIN_AFTER_S
        self._look_at = 0.0
        #: The lease of the next deliveries.
        self.lease = secrets.token_hex(16)
        self._deliveries = 0
        # The lease of each unacknowledged message, in order of delivery.
        self._unacked: dict[str, str] = {}
        # The last acknowledged messages: to acknowledge them again is no error.
        # Made when there is one, since most streams of an idle service have none.
        self._acked: deque[str] | None = None
        self._timers: list[asyncio.TimerHandle] = []
        # A list, since an empty set takes four times as much memory.
        self._tasks: list[asyncio.Task[None]] = []
        #: Whether the consumer may no longer read.
        self.is_ended = False
        self._reading: asyncio.Future[Slice] | None = None

    @property
    def unacked(self) -> int:
        """The number of messages that were delivered and not acknowledged."""
        return len(self._unacked)

    @property
    def is_ending(self) -> bool:
        """Whether nothing more is delivered: the service is stopping, or the stream was ended."""
        return self.is_ended or self._pool.is_ending

    def end(self) -> None:
        """Deliver nothing more: the consumer may no longer read. Then `close` must be called."""
        self.is_ended = True
        if self._reading is not None:
            self._reading.cancel()

    async def resume(self, last: str) -> None:
        """Acknowledge the messages that an earlier stream delivered, up to this one."""
        await self._patiently(partial(self._submit, Resume(self._username, last)))

    async def next(self, wait_s: float) -> Sequence[Delivered]:
        """Return the unread messages, oldest first. Wait up to `wait_s` seconds for the first.

        Returns nothing after that time, while too many messages are unacknowledged, when the
        service stops, and when the stream is ended. After an error, later deliveries use a new
        lease: messages that were claimed under the old one, without the stream's knowledge, are
        released and must not be confused with them.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + wait_s
        while not self.is_ending and (left_s := deadline - loop.time()) > 0:
            if len(self._unacked) >= UNACKED_MAX:
                await self._await_room(left_s)
                continue
            self._deliveries += 1
            terms = Lease(delivery(self.lease, self._deliveries), int(LEASE_S * 1000))
            try:
                self._reading = self._pool.read(
                    self._username, wait_s=left_s, lease=terms, client=self._client
                )
                return await self._delivered(self._reading)
            except asyncio.CancelledError:
                task = asyncio.current_task()
                if not self.is_ended or task is None or task.cancelling():
                    raise
                return ()
            except ServiceError as error:
                # The consumer need not know: any messages it claimed become unread by themselves.
                log.debug("a stream retries a command", reason=str(error))
            self.lease, self._deliveries = secrets.token_hex(16), 0
            await asyncio.sleep(_AGAIN_AFTER_S)
        return ()

    async def _delivered(self, reading: "asyncio.Future[Slice]") -> Sequence[Delivered]:
        """Return the messages of a read. They count as delivered even if this is cancelled."""
        try:
            # A read with a lease returns no other messages.
            return cast(tuple[Delivered, ...], (await reading).messages)
        finally:
            if reading.done() and not reading.cancelled() and reading.exception() is None:
                given = reading.result().messages
                self._unacked.update((message.id, self.lease) for message in given)

    async def _await_room(self, left_s: float) -> None:
        """Wait a moment for acknowledgements.

        Acknowledgements by lease may reach any process, so ask the database for them; less often
        while it has none.
        """
        now = asyncio.get_running_loop().time()
        if self._is_lease_known and now >= self._look_at:
            has_room = await self._notice_acknowledgements()
            self._pause_s = _AGAIN_AFTER_S if has_room else min(2 * self._pause_s, _PAUSE_MAX_S)
            self._look_at = now + self._pause_s
            if has_room:
                return
        await asyncio.sleep(min(_AGAIN_AFTER_S, left_s))

    async def _notice_acknowledgements(self) -> bool:
        """Forget messages that are no longer leased. Return whether there were any."""
        before = len(self._unacked)
        held: set[str] = set()
        try:
            for lease in set(self._unacked.values()):
                held |= await self._submit(Held(self._username, lease))
        except ServiceError as error:
            log.debug("a stream retries a command", reason=str(error))
            return False
        for each in [each for each in self._unacked if each not in held]:
            del self._unacked[each]
        return len(self._unacked) < before

    async def acknowledge(self, ids: Sequence[str]) -> bool:
        """Mark delivered messages as read.

        Return False if none of them was unacknowledged, or if one was no longer leased.
        """
        mine = self._take(ids)
        read = 0
        for lease, its in mine:
            command = Acknowledge(self._username, lease, its)
            read += await self._patiently(partial(self._submit, command))
            if self._acked is None:
                self._acked = deque(maxlen=UNACKED_MAX)
            self._acked.extend(its)
        return bool(mine) and read == sum(len(its) for _, its in mine)

    async def acknowledge_upto(self, message_id: str) -> bool:
        """Mark all messages that were delivered up to this one as read.

        Return False if it is unknown, or as `acknowledge`.
        """
        if message_id not in self._unacked:
            return self._acked is not None and message_id in self._acked
        upto = list(self._unacked)
        return await self.acknowledge(upto[: upto.index(message_id) + 1])

    def acknowledge_later(self, after_s: float, ids: Sequence[str]) -> None:
        """Mark messages as read after `after_s` seconds, unless the stream closes before."""
        loop = asyncio.get_running_loop()
        now = loop.time()
        self._timers = [timer for timer in self._timers if timer.when() > now]
        self._timers.append(loop.call_later(after_s, self._acknowledge_now, ids))

    async def hold(self) -> None:
        """Extend the leases of all unacknowledged messages."""
        for lease in set(self._unacked.values()):
            command = Extend(self._username, lease, int(LEASE_S * 1000))
            await self._patiently(partial(self._submit, command))

    async def close(self) -> None:
        """Release all unacknowledged messages. Completes even if the caller is cancelled.

        A client's disconnection is noticed twice: by a failed write, and by its connection.
        """
        for timer in self._timers:
            timer.cancel()
        giving_back = asyncio.create_task(self._give_back())
        try:
            await asyncio.shield(giving_back)
        except asyncio.CancelledError:
            await asyncio.wait((giving_back,))
            raise

    async def _give_back(self) -> None:
        # Acknowledgements that have begun are short: let them finish.
        if self._tasks:
            await asyncio.wait(self._tasks)
        for lease, its in self._take(list(self._unacked)):
            command = Release(self._username, lease, its)
            try:
                await self._patiently(partial(self._submit, command))
            except ServiceError as error:
                # They become unread when their lease ends.
                log.info("a stream's messages were not released", reason=str(error))

    def _take(self, ids: Sequence[str]) -> list[tuple[str, tuple[str, ...]]]:
        """Return the unacknowledged ones of these messages: pairs of a lease and some of its ids.

        They no longer count as unacknowledged.
        """
        by_lease: dict[str, list[str]] = {}
        for each in ids:
            lease = self._unacked.pop(each, None)
            if lease is not None:
                by_lease.setdefault(lease, []).append(each)
        return [
            (lease, tuple(its[start : start + _AT_ONCE]))
            for lease, its in by_lease.items()
            for start in range(0, len(its), _AT_ONCE)
        ]

    def _acknowledge_now(self, ids: Sequence[str]) -> None:
        task = asyncio.create_task(self._acknowledge_or_log(ids))
        self._tasks.append(task)
        task.add_done_callback(self._tasks.remove)

    async def _acknowledge_or_log(self, ids: Sequence[str]) -> None:
        try:
            await self.acknowledge(ids)
        except ServiceError as error:
            # They are delivered again when their lease ends.
            log.warning("a stream's messages were not acknowledged", reason=str(error))

    def _submit(self, command: Command[R]) -> "asyncio.Future[R]":
        return self._pool.submit(command, client=self._client)

    async def _patiently(self, ask: Callable[[], Awaitable[int]]) -> int:
        """Carry out a command, which is safe to repeat, with some retries.

        Raises `Draining` at once, and the last `ServiceError`.
        """
        for _ in range(_TRIES):
            try:
                return await ask()
            except Draining:
                raise
            except ServiceError as error:
                log.debug("a stream retries a command", reason=str(error))
            await asyncio.sleep(_AGAIN_AFTER_S)
        return await ask()
