"""Posting to an inbox, reading it, counting it."""

import asyncio
from collections.abc import AsyncIterator, Callable

import msgspec

from chat_service.message import JSON_HEADERS, Part, Request, Response
from chat_service.schema import Rules, new_message, read_limit, username_in_path
from workers.commands import Slice
from workers.errors import NotExecuted
from workers.ids import last_id_of
from workers.pool import WorkerPool

#: A long read goes on with slices of at least so many messages, where they fit into one.
_SEARCH_MIN = 16
#: A long read that is refused a slice asks again so often, after so many seconds.
_RETRIES, _RETRY_AFTER_S = 40, 0.1

_encode = msgspec.json.Encoder().encode


class InboxHandlers:
    """The handlers under /chat."""

    def __init__(
        self, pool: WorkerPool, rules: Rules, on_undelivered: Callable[[int], None]
    ) -> None:
        self._pool = pool
        self._rules = rules
        self._on_undelivered = on_undelivered

    async def post(self, request: Request) -> Response:
        """POST /chat: store a message; 201 once it is durable on a majority."""
        return self.posted(await self.begin_post(request.body))

    def begin_post(self, body: bytes) -> asyncio.Future[str]:
        """Hand a post to the pool: the message's id once it is stored. Raises what is wrong."""
        new = new_message(body, self._rules)
        return self._pool.post(new.username, new.text, new.size, new.timeout_s)

    def posted(self, message_id: str) -> Response:
        """The answer to a post."""
        return Response(201, JSON_HEADERS, Part(b'{"id":"%b"}' % message_id.encode(), 0))

    async def read(self, request: Request) -> Response:
        """GET /chat/:username, POST /chat/:username/read: claim what is unread, oldest first."""
        first = await self._claim(self.begin_read(request.parameter, request.query))
        return self.have_read(request.parameter, request.query, first)

    def begin_read(self, parameter: str, query: str) -> asyncio.Future[Slice]:
        """Hand a read to the pool: its first slice. Raises what is wrong."""
        username = username_in_path(parameter, self._rules)
        return self._pool.read(username, read_limit(query))

    def have_read(self, parameter: str, query: str, first: Slice) -> Response:
        """The answer to a read of which this is the first slice."""
        count = len(first.messages)
        if first.more and count != (limit := read_limit(query)):
            # A long inbox is read up to this moment, slice by slice, however fast others post.
            upto = last_id_of(self._pool.now_ms())
            username = username_in_path(parameter, self._rules)
            return Response(200, JSON_HEADERS, self._slices(first, username, limit, upto))
        return Response(200, JSON_HEADERS, Part(_encode(first.messages), count))

    async def count(self, request: Request) -> Response:
        """HEAD /chat/:username: how many messages are unread, claiming none."""
        username = username_in_path(request.parameter, self._rules)
        unread = await self._pool.count(username)
        return Response(200, {**JSON_HEADERS, "X-Unread-Count": str(unread)}, Part(b"", 0))

    async def _slices(
        self, first: Slice, username: str, limit: int | None, upto: str
    ) -> AsyncIterator[Part]:
        """The JSON array of a long inbox in parts; a slice is claimed when its turn has come."""
        current = first
        separator = b"["
        while True:
            count = len(current.messages)
            if count:
                yield Part(separator + _encode(current.messages)[1:-1], count)
                separator = b","
            if limit is not None:
                limit -= count
            if not current.more or limit == 0:
                break
            # Large messages fill a slice soon: do not search for a thousand to take a few.
            wanted = max(2 * count, _SEARCH_MIN)
            wanted = wanted if limit is None else min(wanted, limit)
            following = await self._claim_patiently(username, wanted, upto)
            if following is None:
                break
            current = following
        yield Part(b"]" if separator == b"," else b"[]", 0)

    async def _claim_patiently(self, username: str, limit: int, upto: str) -> Slice | None:
        """The next slice; None where the service stays too busy: the rest is still unread."""
        for _ in range(_RETRIES):
            try:
                return await self._claim(self._pool.read(username, limit, upto))
            except NotExecuted:
                await asyncio.sleep(_RETRY_AFTER_S)
        return None

    async def _claim(self, claim: asyncio.Future[Slice]) -> Slice:
        try:
            return await claim
        except asyncio.CancelledError:
            # The client went away in the very turn of the loop in which the claim came back.
            if not claim.cancelled() and claim.done() and claim.exception() is None:
                self._on_undelivered(len(claim.result().messages))
            raise
