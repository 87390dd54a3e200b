"""Leasing messages, acknowledging and releasing them, and extending a lease."""

import math
import secrets
from collections.abc import Mapping

import msgspec

from chat_service.api.problems import FieldError, invalid, lease_over, not_acknowledged
from chat_service.api.request_options import (
    TTL_MIN_S,
    WaitLimits,
    read_options,
    reject_body,
    reject_parameters,
)
from chat_service.api.types import JSON_HEADERS, BodyChunk, Request, Response
from chat_service.api.validation import LeaseBody, MessageLimits, lease_body, username_in_path
from workers.commands import Extend, Finish, Lease, Release, delivery
from workers.pool import WorkerPool

#: The default duration of a lease, in seconds.
TTL_S = 30.0


class LeaseHandlers:
    """The handlers of leases."""

    def __init__(self, pool: WorkerPool, rules: MessageLimits, waits: WaitLimits) -> None:
        self._pool = pool
        self._rules = rules
        self._waits = waits

    async def take(self, request: Request) -> Response:
        """POST /chat/:username/lease: lease unread messages, to acknowledge them later."""
        username = username_in_path(request.parameter, self._rules)
        reject_body(request.body)
        prefer = request.headers.get("Prefer", "")
        options = read_options(request.query, self._waits, prefer, is_lease=True)
        ttl_s = options.ttl_s or min(TTL_S, self._waits.lease_max_s)
        lease = secrets.token_hex(16)
        terms = Lease(delivery(lease), int(ttl_s * 1000))
        taking = self._pool.read(
            *(username, options.limit),
            wait_s=options.wait_s,
            lease=terms,
            client=request.client.key,
        )
        request.permit.on_end = taking.cancel
        taken = await taking
        # If the answer is lost, the messages become unread again when the lease ends.
        return _answer(
            {
                "lease": lease if taken.messages else None,
                "ttl": ttl_s,
                "messages": taken.messages,
            },
            {**options.headers(), **({"X-More": "true"} if taken.more else {})},
        )

    async def acknowledge(self, request: Request) -> Response:
        """POST /chat/:username/ack: acknowledge all or some messages of a lease."""
        username, asked = self._parse(request)
        ids = None if asked.ids is None else tuple(asked.ids)
        finish = Finish(username, asked.lease, ids)
        finished = await self._pool.submit(finish, client=request.client.key)
        if not finished.is_all:
            raise not_acknowledged(finished)
        return _answer({"acknowledged": finished.messages})

    async def release(self, request: Request) -> Response:
        """POST /chat/:username/release: make all or some messages of a lease unread again, at once
        or after a delay.
        """
        username, asked = self._parse(request)
        ids = None if asked.ids is None else tuple(asked.ids)
        # Not before its time: a part of a millisecond counts as one.
        delay_ms = math.ceil((asked.delay or 0) * 1000)
        release = Release(username, asked.lease, ids, asked.delivered is not False, delay_ms)
        messages = await self._pool.submit(release, client=request.client.key)
        return _answer({"released": _require_some(messages, asked)})

    async def extend(self, request: Request) -> Response:
        """POST /chat/:username/extend: extend a lease to `ttl` seconds from now."""
        username, asked = self._parse(request)
        if asked.ttl is None or not asked.ttl >= TTL_MIN_S:
            rule = f"is required and must be at least {TTL_MIN_S} seconds"
            raise invalid(FieldError("ttl", rule))
        ttl_s = min(asked.ttl, self._waits.lease_max_s)
        extend = Extend(username, asked.lease, int(ttl_s * 1000))
        _require_some(await self._pool.submit(extend, client=request.client.key), asked)
        return _answer({"ttl": ttl_s})

    def _parse(self, request: Request) -> tuple[str, LeaseBody]:
        reject_parameters(request.query)
        username = username_in_path(request.parameter, self._rules)
        return username, lease_body(request.body, self._rules)


def _require_some(messages: int, asked: LeaseBody) -> int:
    # An empty list of ids asks for nothing, so the lease does not have to exist.
    if not messages and asked.ids != []:
        raise lease_over()
    return messages


def _answer(document: dict[str, object], more: Mapping[str, str] | None = None) -> Response:
    headers = {**JSON_HEADERS, **more} if more else JSON_HEADERS
    return Response(200, headers, BodyChunk(msgspec.json.encode(document), 0))
