"""Messages on loan: what `ChatClient.lease` gives its caller.

A lease has a name, by which `ChatClient` ends and extends it from elsewhere, too.
"""

import json
from collections.abc import Iterable
from contextlib import suppress
from types import TracebackType
from typing import Any, Literal, TypeAlias

from chat_service.client.errors import ChatError, LeaseOver, understanding
from chat_service.client.http import Http, Request
from chat_service.client.message import Message

End: TypeAlias = Literal["ack", "release"]


class Lease:
    """Some messages of one inbox, which nobody else is given until the lease is over.

    As an async context manager it acknowledges what it still holds when the block is left, which
    raises `LeaseOver` if any of that is lost, and
    gives it back when the block raises or is cancelled. One without messages may be used like any
    other, and asks nothing of the service.
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
        """`inbox` is its path."""
        self._http = http
        self._inbox = inbox
        self._name = name
        # What was neither acknowledged nor given back, in order.
        self._held = dict.fromkeys(message.id for message in messages)
        #: How long it lasts from when it was taken or extended, in seconds.
        self.ttl_s = ttl_s
        #: What is on loan, oldest first.
        self.messages = messages
        #: Whether more was unread than one lease holds.
        self.more = more

    @property
    def name(self) -> str | None:
        """What others may acknowledge it by; None where it is empty."""
        return self._name

    def __repr__(self) -> str:
        return f"Lease({self._name!r}, ttl_s={self.ttl_s}, messages={len(self.messages)})"

    async def acknowledge(self, ids: Iterable[str] | None = None) -> int:
        """Mark these messages, or all that it still holds, as read; how many are.

        Raises `LeaseOver` if any of them could not be acknowledged: it names those that are and
        those that are lost. Raises `OutcomeUnknown` or `ServiceUnavailable`; may be repeated then,
        and when cancelled.
        """
        named = list(self._held if ids is None else ids)
        try:
            return await self._settle("ack", named)
        except LeaseOver:
            # What became of each is told, and nothing of it is held any more.
            self._forget(named)
            raise

    async def release(self, ids: Iterable[str] | None = None) -> int:
        """Make these, or all that it still holds, unread again at once; how many are unread then.

        0 where the lease was over anyway, and others have taken them since. Raises
        `OutcomeUnknown` or `ServiceUnavailable`; they are unread again then when the lease is over,
        and so when it is cancelled.
        """
        return await self._release(ids)

    async def extend(self, ttl_s: float) -> float:
        """Have it end so many seconds from now; how many the service grants.

        Raises `LeaseOver`, `OutcomeUnknown`, `ServiceUnavailable` or `ProblemError`; may be
        repeated then, and when cancelled.
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
        # Without it they are unread again when the lease is over.
        with suppress(ChatError):
            # Once: whoever left in a hurry shall not wait for a service that is away.
            await self._release(tries=1)

    async def _release(self, ids: Iterable[str] | None = None, tries: int | None = None) -> int:
        named = list(self._held if ids is None else ids)
        try:
            return await self._settle("release", named, tries)
        except LeaseOver:
            # What was asked for is so; perhaps by a try whose answer was lost.
            self._forget(named)
            return 0

    async def _settle(self, what: End, ids: Iterable[str] | None, tries: int | None = None) -> int:
        named = list(self._held if ids is None else ids)
        if self._name is None or not named:
            return 0
        count = await end(self._http, self._inbox, self._name, what, named, tries)
        self._forget(named)
        return count

    def _forget(self, ids: Iterable[str]) -> None:
        for each in ids:
            self._held.pop(each, None)


async def end(
    http: Http,
    inbox: str,
    name: str,
    what: End,
    ids: Iterable[str] | None,
    tries: int | None = None,
) -> int:
    """Acknowledge or release messages of a lease, all of them where `ids` is None; how many."""
    fields: dict[str, Any] = {"lease": name}
    if ids is not None:
        fields["ids"] = list(ids)
    body = json.dumps(fields).encode()
    answer = await http.ask(Request("POST", f"{inbox}/{what}", body), tries)
    with understanding():
        return int(answer.document()["acknowledged" if what == "ack" else "released"])


async def extend(http: Http, inbox: str, name: str, ttl_s: float) -> float:
    """Have a lease end so many seconds from now; how many the service grants."""
    body = json.dumps({"lease": name, "ttl": ttl_s}).encode()
    answer = await http.ask(Request("POST", f"{inbox}/extend", body))
    with understanding():
        return float(answer.document()["ttl"])
