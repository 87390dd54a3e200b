"""Posting to an inbox, reading it, counting it."""

import asyncio
import secrets
from collections.abc import AsyncIterator, Callable, Mapping

import msgspec
from msgspec.structs import astuple

from chat_service.handlers.messages import receipt_hash
from chat_service.message import JSON_HEADERS, Part, Request, Response
from chat_service.parameters import (
    READ_KEY_MIN,
    ReadOptions,
    Waits,
    hash_of,
    idempotency_key,
    preferences,
    read_options,
    refuse_body,
)
from chat_service.schema import Rules, new_message, username_in_path
from workers.commands import COUNT_MAX, Key, Slice
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
        self,
        pool: WorkerPool,
        rules: Rules,
        waits: Waits,
        on_undelivered: Callable[[int], None],
    ) -> None:
        self._pool = pool
        self._rules = rules
        self._waits = waits
        self._on_undelivered = on_undelivered

    async def post(self, request: Request) -> Response:
        """POST /chat: store a message; 201 once it is durable on a majority.

        With an `Idempotency-Key`, once for all repeats; with `Prefer: receipt`, with a receipt.
        """
        prefers_receipt = preferences(request.headers.get("Prefer", "")).receipt
        given = idempotency_key(request.headers)
        if given is None and not prefers_receipt:
            return self.posted(await self.begin_post(request.body))
        new = new_message(request.body, self._rules)
        headers = dict(JSON_HEADERS)
        hashed = ""
        if prefers_receipt:
            receipt = secrets.token_urlsafe(24)
            hashed = receipt_hash(receipt)
            headers |= {"X-Receipt": receipt, "Preference-Applied": "receipt"}
        if given is None:
            message_id = await self._pool.post(*new, hashed)
        else:
            key = Key(hash_of("post", given), hash_of(new.username, new.text, str(new.timeout_s)))
            message_id, is_repeated = astuple(await self._pool.post_once(*new, key, hashed))
            if is_repeated:
                headers["Idempotent-Replayed"] = "true"
        return self.posted(message_id, headers)

    def begin_post(self, body: bytes) -> asyncio.Future[str]:
        """Hand a plain post to the pool: its message's id once stored. Raises what is wrong."""
        new = new_message(body, self._rules)
        return self._pool.post(new.username, new.text, new.size, new.timeout_s)

    def posted(self, message_id: str, headers: Mapping[str, str] = JSON_HEADERS) -> Response:
        """The answer to a post."""
        return Response(201, headers, Part(b'{"id":"%b"}' % message_id.encode(), 0))

    async def read(self, request: Request) -> Response:
        """GET /chat/:username, POST /chat/:username/read: claim what is unread, oldest first.

        With an `Idempotency-Key`, a repeat gets the same again.
        """
        if request.method == "POST":
            refuse_body(request.body)
        prefer = request.headers.get("Prefer", "")
        options = read_options(request.query, self._waits, prefer)
        username = username_in_path(request.parameter, self._rules)
        key = idempotency_key(request.headers, READ_KEY_MIN)
        if key is not None:
            hashed = hash_of("read", username, key)
            again = await self._pool.read_again(username, hashed, options.limit, options.wait_s)
            headers = {**JSON_HEADERS, **options.headers()}
            if again.more:
                headers["X-More"] = "true"
            # A repeat gets it back, so that it is not lost with the answer.
            return Response(200, headers, Part(_encode(again.messages), 0))
        first = await self._claim(self._pool.read(username, options.limit, wait_s=options.wait_s))
        return self._have_read(username, options, first)

    def begin_read(self, parameter: str, query: str) -> asyncio.Future[Slice]:
        """Hand a plain read to the pool: its first slice. Raises what is wrong."""
        if not query:
            return self._pool.read(username_in_path(parameter, self._rules))
        # In the order of `read`: of two faults, both name the same one.
        options = read_options(query, self._waits)
        username = username_in_path(parameter, self._rules)
        return self._pool.read(username, options.limit, wait_s=options.wait_s)

    def have_read(self, parameter: str, query: str, first: Slice) -> Response:
        """The answer to a plain read of which this is the first slice."""
        options = read_options(query, self._waits)
        return self._have_read(username_in_path(parameter, self._rules), options, first)

    def _have_read(self, username: str, options: ReadOptions, first: Slice) -> Response:
        count = len(first.messages)
        said = options.headers()
        headers = {**JSON_HEADERS, **said} if said else JSON_HEADERS
        if first.more and count != options.limit:
            # A long inbox is read up to this moment, slice by slice, however fast others post.
            upto = last_id_of(self._pool.now_ms())
            return Response(200, headers, self._slices(first, username, options.limit, upto))
        return Response(200, headers, Part(_encode(first.messages), count))

    async def count(self, request: Request) -> Response:
        """HEAD /chat/:username: how many messages are unread, up to a bound, claiming none."""
        username = username_in_path(request.parameter, self._rules)
        unread = await self._pool.count(username)
        said = str(unread) if unread <= COUNT_MAX else f">{COUNT_MAX}"
        return Response(200, {**JSON_HEADERS, "X-Unread-Count": said}, Part(b"", 0))

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
