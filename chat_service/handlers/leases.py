"""Messages on loan: taken, acknowledged, given back, held longer."""

import secrets
from collections.abc import Mapping

import msgspec

from chat_service.message import JSON_HEADERS, Part, Request, Response
from chat_service.parameters import (
    TTL_MIN_S,
    Waits,
    read_options,
    refuse_body,
    refuse_parameters,
)
from chat_service.problems import FieldError, invalid, lease_over, not_acknowledged
from chat_service.schema import LeaseBody, Rules, lease_of, username_in_path
from workers.commands import Extend, Finish, Lease, Release, delivery
from workers.pool import WorkerPool

#: A lease lasts so long unless its taker says otherwise, in seconds.
TTL_S = 30.0


class LeaseHandlers:
    """The handlers of leases under /chat/:username."""

    def __init__(self, pool: WorkerPool, rules: Rules, waits: Waits) -> None:
        self._pool = pool
        self._rules = rules
        self._waits = waits

    async def take(self, request: Request) -> Response:
        """POST /chat/:username/lease: what is unread, until the lease is over or acknowledged."""
        username = username_in_path(request.parameter, self._rules)
        refuse_body(request.body)
        prefer = request.headers.get("Prefer", "")
        options = read_options(request.query, self._waits, prefer, is_lease=True)
        ttl_s = options.ttl_s or min(TTL_S, self._waits.lease_max_s)
        lease = secrets.token_hex(16)
        terms = Lease(delivery(lease), int(ttl_s * 1000))
        taken = await self._pool.read(username, options.limit, wait_s=options.wait_s, lease=terms)
        # Nothing of it is lost with the answer: it is unread again when the lease is over.
        return _answer(
            {
                "lease": lease if taken.messages else None,
                "ttl": ttl_s,
                "messages": taken.messages,
            },
            {**options.headers(), **({"X-More": "true"} if taken.more else {})},
        )

    async def acknowledge(self, request: Request) -> Response:
        """POST /chat/:username/ack: mark as read what a lease holds, or some of it."""
        username, asked = self._asked(request)
        ids = None if asked.ids is None else tuple(asked.ids)
        finished = await self._pool.finish(Finish(username, asked.lease, ids))
        if not finished.is_all:
            raise not_acknowledged(finished)
        return _answer({"acknowledged": finished.messages})

    async def release(self, request: Request) -> Response:
        """POST /chat/:username/release: make it unread again, at once."""
        username, asked = self._asked(request)
        ids = None if asked.ids is None else tuple(asked.ids)
        messages = await self._pool.settle(Release(username, asked.lease, ids))
        return _answer({"released": _some(messages, asked)})

    async def extend(self, request: Request) -> Response:
        """POST /chat/:username/extend: have the lease end `ttl` seconds from now."""
        username, asked = self._asked(request)
        if asked.ttl is None or not asked.ttl >= TTL_MIN_S:
            rule = f"is required and must be at least {TTL_MIN_S} seconds"
            raise invalid(FieldError("ttl", rule))
        ttl_s = min(asked.ttl, self._waits.lease_max_s)
        _some(await self._pool.settle(Extend(username, asked.lease, int(ttl_s * 1000))), asked)
        return _answer({"ttl": ttl_s})

    def _asked(self, request: Request) -> tuple[str, LeaseBody]:
        refuse_parameters(request.query)
        return username_in_path(request.parameter, self._rules), lease_of(request.body)


def _some(messages: int, asked: LeaseBody) -> int:
    # Nothing was asked of a lease by naming no message of it.
    if not messages and asked.ids != []:
        raise lease_over()
    return messages


def _answer(document: dict[str, object], more: Mapping[str, str] | None = None) -> Response:
    headers = {**JSON_HEADERS, **more} if more else JSON_HEADERS
    return Response(200, headers, Part(msgspec.json.encode(document), 0))
