"""One consumer's deliveries, each of them a lease: what both kinds of stream have in common.

Streams are wake-ups, storage is the truth: a consumer that connects is given all that is unread,
then waits for more. What it was delivered stays its own until it acknowledges it; what it did
not acknowledge is unread again when its connection closes, or when the lease is over because
nobody saw it close. Used by `chat_service.handlers.stream` and
`chat_service.streaming.websocket`.
"""

import asyncio
import secrets
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from functools import partial

import structlog

from workers.commands import (
    Acknowledge,
    Extend,
    Held,
    Lease,
    Message,
    Release,
    Resume,
    Slice,
    delivery,
)
from workers.errors import Draining, ServiceError
from workers.pool import WorkerPool

log = structlog.get_logger(__name__)

#: How long messages stay on loan to a stream whose end nobody saw, in seconds.
LEASE_S = 30.0
#: Messages that may wait for their acknowledgement before no more are delivered, and how many are
#: settled at once. One delivery may go beyond the former.
UNACKED_MAX, _AT_ONCE = 1000, 1000
#: Pause before a refused command is tried again, in seconds, and how often.
_AGAIN_AFTER_S, _TRIES = 0.5, 10
#: The longest pause before a stream with too much that is not acknowledged looks whether it still
#: is, in seconds.
_PAUSE_MAX_S = 5.0


class Subscription:
    """The deliveries of one stream of one inbox. For one task, but for `acknowledge`."""

    def __init__(self, pool: WorkerPool, username: str, is_lease_known: bool) -> None:
        """`is_lease_known` to its consumer, who may acknowledge by it."""
        self._pool = pool
        self._username = username
        self._is_lease_known = is_lease_known
        self._pause_s = _AGAIN_AFTER_S
        self._look_at = 0.0
        #: The lease under which everything is delivered from now on.
        self.lease = secrets.token_hex(16)
        self._deliveries = 0
        # Messages with their lease, in order of delivery.
        self._unacked: dict[str, str] = {}
        # The last that were acknowledged: again is as good as once.
        # Made when there is one: most streams of an idle service have none.
        self._acked: deque[str] | None = None
        self._timers: list[asyncio.TimerHandle] = []
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def unacked(self) -> int:
        """Messages that were delivered and are not acknowledged."""
        return len(self._unacked)

    @property
    def is_ending(self) -> bool:
        """Whether the service stops."""
        return self._pool.is_ending

    async def resume(self, last: str) -> None:
        """Acknowledge what an earlier stream delivered up to and with this message."""
        await self._patiently(lambda: self._pool.submit(Resume(self._username, last)))

    async def next(self, wait_s: float) -> Sequence[Message]:
        """What is unread, oldest first; waits for it for so long, and gives nothing then.

        Nor while too much is not acknowledged. After a failure it goes on under another lease: what
        the first one may have taken is given back, and must not be taken for what is delivered
        from then on.
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
                reading = self._pool.read(self._username, wait_s=left_s, lease=terms)
                return await self._delivered(reading)
            except ServiceError as error:
                # The consumer need not know; what may be on loan comes back by itself.
                log.debug("a stream has to try again", reason=str(error))
            self.lease, self._deliveries = secrets.token_hex(16), 0
            await asyncio.sleep(_AGAIN_AFTER_S)
        return ()

    async def _delivered(self, reading: "asyncio.Future[Slice]") -> Sequence[Message]:
        """What a read took, noted as this stream's also where nobody waits for it any more."""
        try:
            return (await reading).messages
        finally:
            if reading.done() and not reading.cancelled() and reading.exception() is None:
                given = reading.result().messages
                self._unacked.update((message.id, self.lease) for message in given)

    async def _await_room(self, left_s: float) -> None:
        """Wait a moment for acknowledgements. For those by the lease, which may have come to any
        process, the database is asked; the more seldom, the longer that has been in vain.
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
        """Forget what is no longer on loan to it; whether that was any."""
        before = len(self._unacked)
        held: set[str] = set()
        try:
            for lease in set(self._unacked.values()):
                held |= await self._pool.submit(Held(self._username, lease))
        except ServiceError as error:
            log.debug("a stream has to try again", reason=str(error))
            return False
        for each in [each for each in self._unacked if each not in held]:
            del self._unacked[each]
        return len(self._unacked) < before

    async def acknowledge(self, ids: Sequence[str]) -> bool:
        """Mark delivered messages as read; False where they are no longer this stream's."""
        mine = self._take(ids)
        read = 0
        for lease, its in mine:
            command = Acknowledge(self._username, lease, its)
            read += await self._patiently(partial(self._pool.submit, command))
            if self._acked is None:
                self._acked = deque(maxlen=UNACKED_MAX)
            self._acked.extend(its)
        return bool(mine) and read == sum(len(its) for _, its in mine)

    async def acknowledge_upto(self, message_id: str) -> bool:
        """Mark as read all that was delivered up to and with this message."""
        if message_id not in self._unacked:
            return self._acked is not None and message_id in self._acked
        upto = list(self._unacked)
        return await self.acknowledge(upto[: upto.index(message_id) + 1])

    def acknowledge_later(self, after_s: float, ids: Sequence[str]) -> None:
        """Mark these as read some seconds from now, unless the stream has been closed by then."""
        loop = asyncio.get_running_loop()
        now = loop.time()
        self._timers = [timer for timer in self._timers if timer.when() > now]
        self._timers.append(loop.call_later(after_s, self._acknowledge_now, ids))

    async def hold(self) -> None:
        """Have what is not acknowledged stay on loan for longer."""
        for lease in set(self._unacked.values()):
            command = Extend(self._username, lease, int(LEASE_S * 1000))
            await self._patiently(partial(self._pool.submit, command))

    async def close(self) -> None:
        """Give back what is not acknowledged, to the end, also where the caller is cancelled.

        A client that leaves is noticed twice: by what could not be written, and by its connection.
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
        # Those that have begun go to their end: they are short.
        if self._tasks:
            await asyncio.wait(self._tasks)
        for lease, its in self._take(list(self._unacked)):
            command = Release(self._username, lease, its)
            try:
                await self._patiently(partial(self._pool.submit, command))
            except ServiceError as error:
                # It comes back by itself when the lease is over.
                log.info("a stream's messages were not given back", reason=str(error))

    def _take(self, ids: Sequence[str]) -> list[tuple[str, tuple[str, ...]]]:
        """Those of these that are not settled, by their lease, some at a time. They count as
        settled from now on.
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
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _acknowledge_or_log(self, ids: Sequence[str]) -> None:
        try:
            await self.acknowledge(ids)
        except ServiceError as error:
            # It is given again when the lease is over.
            log.warning("a stream's messages could not be acknowledged", reason=str(error))

    async def _patiently(self, ask: Callable[[], Awaitable[int]]) -> int:
        """Settle something, trying again for a while: each of these is safe to repeat."""
        for _ in range(_TRIES):
            try:
                return await ask()
            except Draining:
                raise
            except ServiceError as error:
                log.debug("a stream has to try again", reason=str(error))
            await asyncio.sleep(_AGAIN_AFTER_S)
        return await ask()
