"""Posting many messages in one request, with a result for each."""

import asyncio
import re
import secrets
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import msgspec

from chat_service.access.limits import MESSAGE_COST, RateLimiter
from chat_service.api.authorization import require
from chat_service.api.identity import Client
from chat_service.api.problems import (
    FieldError,
    Problem,
    answer_to,
    invalid,
    not_json,
)
from chat_service.api.request_options import (
    gets_receipt_again,
    idempotency_key,
    post_key_hash,
    preferences,
)
from chat_service.api.types import JSON_HEADERS, BodyChunk, Request, Response
from chat_service.api.validation import BYTE_ORDER_MARK, MessageLimits, new_message
from chat_service.handlers.messages import body_hash, receipt_hash
from workers.commands import Key, Stored
from workers.errors import NotExecuted
from workers.pool import WorkerPool

#: Messages that are submitted in one turn of the loop, which takes less than half a millisecond.
_AT_ONCE = 16
#: A submitted message: its outcome and its receipt; or the result of a bad one.
_Begun: TypeAlias = tuple[asyncio.Future[Any], str] | dict[str, Any]
_SPACE = b" \t\r\n"
#: The end of a line and the empty lines after it.
_LINE_END = re.compile(rb"\n[ \t\r\n]*")


class Posting(NamedTuple):
    """Who posts the messages of one request, under which key, and with receipts or not."""

    client: Client
    key: str | None
    has_receipts: bool


class BatchHandlers:
    """The handler of POST /chat/batch."""

    def __init__(
        self,
        pool: WorkerPool,
        rules: MessageLimits,
        messages_max: int,
        on_failed: Callable[[Exception, str, Client, str], None],
        limiter: RateLimiter | None = None,
    ) -> None:
        """`on_failed` is called for a message that is refused.

        Its arguments are the error, the id of the request, the client, and an empty address.
        """
        self._pool = pool
        self._on_failed = on_failed
        self._limiter = limiter
        self._rules = rules
        self._messages_max = messages_max
        self._turn = asyncio.Lock()
        # For a list, the decoder checks the length at the end. For an array of fields, it stops at
        # the first item beyond the last field.
        items = msgspec.defstruct(
            "Items",
            [(f"item_{number}", msgspec.Raw, None) for number in range(messages_max)],
            array_like=True,
            forbid_unknown_fields=True,
        )
        self._decode = msgspec.json.Decoder(items).decode

    async def post(self, request: Request) -> Response:
        """POST /chat/batch: store many messages; each is stored or refused on its own."""
        try:
            bodies = self._split(request.body, request.headers.get("Content-Type", ""))
        except Problem:
            self._charge(request.client, 1)
            raise
        self._charge(request.client, max(len(bodies), 1))
        prefer = preferences(request.headers.get("Prefer", ""))
        posting = Posting(request.client, idempotency_key(request.headers), prefer.receipt)
        faults = _Faults(request.id)
        begun = await self._begin_all(bodies, posting, faults)
        waiting = [each[0] for each in begun if isinstance(each, tuple)]
        outcomes = iter(await asyncio.gather(*waiting, return_exceptions=True))
        results = [
            _result(next(outcomes), each[1], posting, faults) if isinstance(each, tuple) else each
            for each in begun
        ]
        headers = dict(JSON_HEADERS)
        if posting.has_receipts:
            headers["Preference-Applied"] = "receipt"
        return Response(200, headers, BodyChunk(msgspec.json.encode({"results": results}), 0))

    def _charge(self, client: Client, messages: int) -> None:
        """Charge the client for its messages. Raises a 429 problem, and then none is stored."""
        if self._limiter is not None:
            self._limiter.admit(client.key, messages * MESSAGE_COST, 0, "stored")

    async def _begin_all(
        self, bodies: list[bytes], posting: Posting, faults: "_Faults"
    ) -> list[_Begun]:
        """Submit all messages in order, a few at a time: other requests get the loop in between.

        If this is cancelled, so is what was submitted.
        """
        begun: list[_Begun] = []
        try:
            for start in range(0, len(bodies), _AT_ONCE):
                # All batches together get one turn, not one each.
                async with self._turn:
                    for number, body in enumerate(bodies[start : start + _AT_ONCE], start):
                        begun.append(self._begin(body, number, posting, faults))
                    if len(begun) < len(bodies):
                        await asyncio.sleep(0)
        except asyncio.CancelledError:
            for each in begun:
                if isinstance(each, tuple):
                    each[0].cancel()
            raise
        return begun

    def _split(self, body: bytes, content_type: str) -> list[bytes]:
        """Return the messages of a JSON array, or of one object per line (NDJSON)."""
        body = body.removeprefix(BYTE_ORDER_MARK)
        if not body.lstrip().startswith(b"["):
            # Empty lines do not count. Splitting stops one message above the limit.
            lines = _LINE_END.split(body.strip(_SPACE), self._messages_max)
            if lines == [b""] or (len(lines) == 1 and "ndjson" not in content_type.lower()):
                raise not_a_batch()
            if not lines[0].rstrip().endswith(b"}"):
                # A single object over several lines is not a batch.
                raise not_a_batch()
            if len(lines) > self._messages_max:
                raise self._too_many()
            return lines
        try:
            items = msgspec.structs.astuple(self._decode(body))
            return [bytes(raw) for raw in items if raw is not None]
        except msgspec.ValidationError:
            raise self._too_many() from None
        except (msgspec.DecodeError, ValueError, RecursionError):
            raise not_a_batch() from None

    def _too_many(self) -> Problem:
        return invalid(FieldError("body", f"must have at most {self._messages_max} messages"))

    def _begin(self, body: bytes, number: int, posting: Posting, faults: "_Faults") -> _Begun:
        """Submit one message. Return its outcome and receipt, or the result of a bad message."""
        receipt = secrets.token_urlsafe(24) if posting.has_receipts else ""
        hashed = receipt_hash(receipt) if receipt else ""
        try:
            new = new_message(body, self._rules, "message")
            require(posting.client.identity, "send", new.username)
            if posting.key is None:
                return (
                    self._pool.post(
                        *(new.username, new.text, new.size, new.timeout_s),
                        hashed,
                        client=posting.client.key,
                        delay_s=new.delay_s,
                    ),
                    receipt,
                )
            hashed_key = post_key_hash(posting.client, "batch", posting.key, str(number))
            key = Key(hashed_key, body_hash(new), gets_receipt_again(posting.client))
            stored = self._pool.post_keyed(
                *(new.username, new.text, new.size, new.timeout_s),
                key,
                hashed,
                client=posting.client.key,
                delay_s=new.delay_s,
            )
            return stored, receipt
        except Exception as error:
            self._on_failed(error, faults.request_id, posting.client, "")
            # The exception is dropped: its traceback is a hundred times as large as the message.
            return faults.result(error)


class _Faults:
    """The results of the messages of one request that were not stored.

    Many messages often break the same rule, so equal results are rendered once.
    """

    def __init__(self, request_id: str) -> None:
        self.request_id = request_id
        self._known: dict[str, dict[str, Any]] = {}

    def result(self, error: Exception) -> dict[str, Any]:
        """Return the result of a message that failed with this error."""
        # Other errors may name their message.
        is_alike = isinstance(error, Problem | NotExecuted)
        name = f"{type(error).__name__}: {error}" if is_alike else ""
        result = self._known.get(name)
        if result is None:
            problem = answer_to(error, self.request_id, "stored")
            assert isinstance(problem.body, BodyChunk)
            result = {"error": msgspec.Raw(problem.body.body)}
            if is_alike:
                self._known[name] = result
        return result


def _result(
    outcome: str | Stored | BaseException, receipt: str, posting: Posting, faults: _Faults
) -> dict[str, Any]:
    if isinstance(outcome, Exception):
        return faults.result(outcome)
    if isinstance(outcome, BaseException):
        raise outcome
    if isinstance(outcome, str):
        result = {"id": outcome}
    else:
        result = {"id": outcome.id}
        if outcome.is_repeated and not gets_receipt_again(posting.client):
            receipt = ""
    return {**result, "receipt": receipt} if receipt else result


def not_a_batch() -> Problem:
    """Return a 400 for a body that is not a batch."""
    return not_json("the body must be a JSON array of messages, or have one message per line")
