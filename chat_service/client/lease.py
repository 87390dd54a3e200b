"""Leases, as returned by `ChatClient.lease`.

A lease has a name. With it, any `ChatClient` can acknowledge, release and extend the lease.
"""

import json
from collections.abc import Iterable
from contextlib import suppress
from types import TracebackType
from typing import Any, Literal, TypeAlias

from chat_service.client.errors import ChatError, LeaseOver, reading_answer
from chat_service.client.http import Http, Request
from chat_service.client.message import Message

Action: TypeAlias = Literal["ack", "release"]


class Lease:
    """Leased messages of one inbox. No other reader receives them until the lease ends.

    As an async context manager, it acknowledges the messages that it still holds when the block
    ends, and raises `LeaseOver` if any of them is lost. If the block raises or is cancelled, it
    releases them instead. An empty lease can be used in the same way, and sends no requests.
    """

    def __init__(
        self,
        http: Http,
        inbox: str,
        name: str | None,
        ttl_s: float,
        messages: list[Message],
        more: bool,
    ) -> None:
        """`inbox` is the path of the inbox."""
        self._http = http
        self._inbox = inbox
        self._name = name
        # Ids of messages that are neither acknowledged nor released, in order.
        self._held = dict.fromkeys(message.id for message in messages)
        #: Duration since the lease was created or last extended, in seconds.
        self.ttl_s = ttl_s
        #: The leased messages, oldest first.
        self.messages = messages
        #: Whether there are more unread messages than one lease can hold.
        self.more = more

    @property
    def name(self) -> str | None:
        """Return the name of the lease, or None if it is empty."""
        return self._name

    def __repr__(self) -> str:
        return f"Lease({self._name!r}, ttl_s={self.ttl_s}, messages={len(self.messages)})"

    async def acknowledge(self, ids: Iterable[str] | None = None) -> int:
        """Acknowledge these messages, or all that it still holds, and return how many are.

        Raise `LeaseOver` if any of them is lost; it lists the acknowledged and the lost ones. Raise
        `OutcomeUnknown` or `ServiceUnavailable` if all tries failed. Then, and after a
        cancellation, it is safe to repeat the call.
        """
        named = list(self._held if ids is None else ids)
        try:
            return await self._settle("ack", named)
        except LeaseOver:
            # The error lists each message, and none of them is held any longer.
            self._forget(named)
            raise

    async def release(self, ids: Iterable[str] | None = None) -> int:
        """Release these messages, or all that it still holds, and return how many are unread then.

        Return 0 if the lease had ended and other readers have received the messages. Raise
        `OutcomeUnknown` or `ServiceUnavailable` if all tries failed. Then, and after a
        cancellation, the messages become unread at the latest when the lease ends.
        """
        return await self._release(ids)

    async def extend(self, ttl_s: float) -> float:
        """Extend the lease to `ttl_s` from now, and return the duration that the service grants.

        Raise `LeaseOver`, `OutcomeUnknown`, `ServiceUnavailable` or `ProblemError`. Then, and after
        a cancellation, it is safe to repeat the call.
        """
        if self._name is not None:
            self.ttl_s = await extend(self._http, self._inbox, self._name, ttl_s)
        return self.ttl_s

    async def __aenter__(self) -> "Lease":
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is None:
            await self.acknowledge()
            return
        # If this fails, the messages become unread when the lease ends.
        with suppress(ChatError):
            # Try once: an exception or a cancellation should not wait for an unavailable service.
            await self._release(tries=1)

    async def _release(self, ids: Iterable[str] | None = None, tries: int | None = None) -> int:
        named = list(self._held if ids is None else ids)
        try:
            return await self._settle("release", named, tries)
        except LeaseOver:
            # The lease has ended, possibly by a try whose answer was lost.
            self._forget(named)
            return 0

    async def _settle(
        self, action: Action, ids: Iterable[str] | None, tries: int | None = None
    ) -> int:
        named = list(self._held if ids is None else ids)
        if self._name is None or not named:
            return 0
        count = await settle(self._http, self._inbox, self._name, action, named, tries)
        self._forget(named)
        return count

    def _forget(self, ids: Iterable[str]) -> None:
        for each in ids:
            self._held.pop(each, None)


async def settle(
    http: Http,
    inbox: str,
    name: str,
    action: Action,
    ids: Iterable[str] | None,
    tries: int | None = None,
) -> int:
    """Acknowledge or release messages of a lease, and return the service's count of them.

    If `ids` is None, this applies to all messages of the lease.
    """
    fields: dict[str, Any] = {"lease": name}
    if ids is not None:
        fields["ids"] = list(ids)
    body = json.dumps(fields).encode()
    answer = await http.send(Request("POST", f"{inbox}/{action}", body), tries)
    with reading_answer():
        return int(answer.document()["acknowledged" if action == "ack" else "released"])


async def extend(http: Http, inbox: str, name: str, ttl_s: float) -> float:
    """Extend a lease to `ttl_s` from now, and return the duration that the service grants."""
    body = json.dumps({"lease": name, "ttl": ttl_s}).encode()
    answer = await http.send(Request("POST", f"{inbox}/extend", body))
    with reading_answer():
        return float(answer.document()["ttl"])
