"""Posting messages, reading an inbox, and counting its messages."""

import asyncio
import secrets
from collections.abc import AsyncIterator, Callable, Mapping
from typing import TypeAlias, TypeVar
from urllib.parse import quote

import msgspec

from chat_service.api.authorization import require
from chat_service.api.identity import EVERYONE, Client
from chat_service.api.plain_posts import message_to
from chat_service.api.request_options import (
    READ_KEY_MIN,
    ReadOptions,
    WaitLimits,
    gets_receipt_again,
    idempotency_key,
    post_key_hash,
    post_options,
    preferences,
    read_key_hash,
    read_options,
    reject_body,
)
from chat_service.api.types import JSON_HEADERS, BodyChunk, Request, Response
from chat_service.api.validation import MessageLimits, NewMessage, new_message, username_in_path
from chat_service.handlers.messages import body_hash, receipt_hash
from workers.commands import COUNT_MAX, Key, Slice
from workers.errors import NotExecuted
from workers.ids import last_id_of
from workers.pool import WorkerPool

#: The smallest number of messages that a long read asks for in its next slice.
_SEARCH_MIN = 16
#: How often a long read retries a slice that was refused, and the seconds between two tries.
_RETRIES, _RETRY_AFTER_S = 40, 0.1

_encode = msgspec.json.Encoder().encode
_T = TypeVar("_T")


#: The future of a checked request that the pool has, and the function that makes the response to
#: its outcome.
Pending: TypeAlias = tuple[asyncio.Future[_T], Callable[[_T], Response]]


class InboxHandlers:
    """The handlers that post to an inbox, read it, and count its messages."""

    def __init__(
        self,
        pool: WorkerPool,
        rules: MessageLimits,
        waits: WaitLimits,
        on_undelivered: Callable[[int], None],
        dead_letter_inbox: Callable[[str], str],
    ) -> None:
        self._pool = pool
        self._dead_letter_inbox = dead_letter_inbox
        self._rules = rules
        self._waits = waits
        self._on_undelivered = on_undelivered

    async def post(self, request: Request) -> Response:
        """POST /chat: store a message.

        Answers 201 once a majority has journaled it. Repeats with the same `Idempotency-Key` store
        one message. `Prefer: receipt` adds a receipt.
        """
        prefers_receipt = preferences(request.headers.get("Prefer", "")).receipt
        key = idempotency_key(request.headers)
        new = self.parse_post(request.body)
        request.permit.recipient = new.username
        if key is None and not prefers_receipt:
            storing, _ = self.begin_post(new, request.client)
            return _posted(await storing)
        require(request.client.identity, "send", new.username)
        return await self._store(new, request.client, key, prefers_receipt)

    async def post_text(self, request: Request) -> Response:
        """POST /chat/:username: store a message whose text is the body.

        The answers are those of POST /chat, and so are keys and receipts.
        """
        prefers_receipt = preferences(request.headers.get("Prefer", "")).receipt
        key = idempotency_key(request.headers)
        options = post_options(request.query, request.headers)
        username = username_in_path(request.parameter, self._rules)
        new = message_to(username, request.body, request.headers, options, self._rules)
        return await self._store(new, request.client, key, prefers_receipt)

    async def _store(
        self, new: NewMessage, client: Client, given: str | None, prefers_receipt: bool
    ) -> Response:
        """Store a message of a client that may post it, under its key if it gave one."""
        headers = dict(JSON_HEADERS)
        hashed = ""
        if prefers_receipt:
            receipt = secrets.token_urlsafe(24)
            hashed = receipt_hash(receipt)
            headers |= {"X-Receipt": receipt, "Preference-Applied": "receipt"}
        if given is None:
            storing = self._pool.post(
                *(new.username, new.text, new.size, new.timeout_s),
                hashed,
                client=client.key,
                delay_s=new.delay_s,
            )
            return _posted(await storing, headers)
        gets_receipt = gets_receipt_again(client)
        key = Key(
            post_key_hash(client, "post", given),
            body_hash(new),
            gets_receipt,
        )
        stored = await self._pool.post_keyed(
            *(new.username, new.text, new.size, new.timeout_s),
            key,
            hashed,
            client=client.key,
            delay_s=new.delay_s,
        )
        if stored.is_repeated:
            headers["Idempotent-Replayed"] = "true"
            if not gets_receipt:
                headers.pop("X-Receipt", None)
                headers.pop("Preference-Applied", None)
        return _posted(stored.id, headers)

    def parse_post(self, body: bytes) -> NewMessage:
        """Return the message in the body of a post. Raises a `Problem` if the body is invalid."""
        return new_message(body, self._rules)

    def begin_post(self, new: NewMessage, client: Client) -> Pending[str]:
        """Hand a post without options to the pool. The outcome is the id of the stored message.

        Raises a `Problem` if the client may not send to its name, or what `WorkerPool.post` raises.
        """
        if client.identity is not EVERYONE:
            require(client.identity, "send", new.username)
        future = self._pool.post(
            new.username,
            new.text,
            new.size,
            new.timeout_s,
            client=client.key,
            delay_s=new.delay_s,
        )
        return future, _posted

    async def read(self, request: Request) -> Response:
        """GET /chat/:username, POST /chat/:username/read: read unread messages, oldest first.

        A repeat with the same `Idempotency-Key` gets the same messages.
        """
        if request.method == "POST":
            reject_body(request.body)
        prefer = request.headers.get("Prefer", "")
        options = read_options(request.query, self._waits, prefer)
        username = username_in_path(request.parameter, self._rules)
        key = idempotency_key(request.headers, READ_KEY_MIN)
        if key is not None:
            hashed = read_key_hash(request.client, username, key)
            reading = self._pool.read_keyed(
                *(username, hashed, options.limit, options.wait_s), client=request.client.key
            )
            request.permit.on_end = reading.cancel
            again = await reading
            headers = {**JSON_HEADERS, **options.headers()}
            if again.more:
                headers["X-More"] = "true"
            # A repeat returns these messages, so none is lost if the answer is.
            return Response(200, headers, BodyChunk(_encode(again.messages), 0))
        client = request.client.key
        claim = self._pool.read(username, options.limit, wait_s=options.wait_s, client=client)
        request.permit.on_end = claim.cancel
        return self.render_read(username, options, client, await self._claim(claim))

    def begin_read(self, parameter: str, query: str, client: Client) -> Pending[Slice]:
        """Hand a plain read to the pool. The outcome is its first slice.

        Raises a `Problem` if a parameter is invalid, or what `WorkerPool.read` raises.
        """
        # In the order of `read`: if two parameters are invalid, both report the same one.
        options = read_options(query, self._waits)
        username = username_in_path(parameter, self._rules)
        future = self._pool.read(username, options.limit, wait_s=options.wait_s, client=client.key)
        return future, _ReadRenderer(self, username, options, client.key)

    def render_read(
        self, username: str, options: ReadOptions, client: str, first: Slice
    ) -> Response:
        """Return the response to a plain read. Its body claims more slices if one is not all."""
        count = len(first.messages)
        said = options.headers()
        headers = {**JSON_HEADERS, **said} if said else JSON_HEADERS
        if first.more and count != options.limit:
            # A long inbox is read slice by slice up to this moment, so that the read ends even
            # if messages arrive faster than it reads.
            upto = last_id_of(self._pool.now_ms())
            slices = self._slices(first, username, options.limit, upto, client)
            return Response(200, headers, slices)
        return Response(200, headers, BodyChunk(_encode(first.messages), count))

    async def count(self, request: Request) -> Response:
        """HEAD /chat/:username: count unread messages, and name the dead-letter inbox."""
        username = username_in_path(request.parameter, self._rules)
        unread = await self._pool.count(username, client=request.client.key)
        said = str(unread) if unread <= COUNT_MAX else f">{COUNT_MAX}"
        # One segment of a path, since a name may have slashes, and characters that no header has.
        dead = quote(self._dead_letter_inbox(username), safe="")
        headers = {**JSON_HEADERS, "X-Unread-Count": said, "X-Dead-Letter-Inbox": dead}
        return Response(200, headers, BodyChunk(b"", 0))

    async def _slices(
        self, first: Slice, username: str, limit: int | None, upto: str, client: str
    ) -> AsyncIterator[BodyChunk]:
        """Yield the JSON array of a long inbox in chunks, claiming each slice when it is due."""
        current = first
        separator = b"["
        while True:
            count = len(current.messages)
            if count:
                yield BodyChunk(separator + _encode(current.messages)[1:-1], count)
                separator = b","
            if limit is not None:
                limit -= count
            if not current.more or limit == 0:
                break
            # A few large messages fill a slice, so searching for a thousand would be wasted.
            wanted = max(2 * count, _SEARCH_MIN)
            wanted = wanted if limit is None else min(wanted, limit)
            following = await self._claim_patiently(username, wanted, upto, client)
            if following is None:
                break
            current = following
        yield BodyChunk(b"]" if separator == b"," else b"[]", 0)

    async def _claim_patiently(
        self, username: str, limit: int, upto: str, client: str
    ) -> Slice | None:
        """Return the next slice, or None if the service stays too busy. The rest stays unread."""
        for _ in range(_RETRIES):
            try:
                return await self._claim(self._pool.read(username, limit, upto, client=client))
            except NotExecuted:
                await asyncio.sleep(_RETRY_AFTER_S)
        return None

    async def _claim(self, claim: asyncio.Future[Slice]) -> Slice:
        try:
            return await claim
        except asyncio.CancelledError:
            # The client disconnected in the same turn of the loop in which the claim finished.
            if not claim.cancelled() and claim.done() and claim.exception() is None:
                self._on_undelivered(len(claim.result().messages))
            raise


class _ReadRenderer(msgspec.Struct, frozen=True):
    """Makes the response to a read that began. A waiting read has one, so it is small."""

    handlers: InboxHandlers
    username: str
    options: ReadOptions
    client: str

    def __call__(self, first: Slice) -> Response:
        return self.handlers.render_read(self.username, self.options, self.client, first)


def _posted(message_id: str, headers: Mapping[str, str] = JSON_HEADERS) -> Response:
    return Response(201, headers, BodyChunk(b'{"id":"%b"}' % message_id.encode(), 0))
