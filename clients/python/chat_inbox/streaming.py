"""What a stream knows, and its flows. Both clients use it.

A stream uses one connection at a time. All messages that a connection has received are returned
before the next connection is opened, even if the connection has broken: messages that the service
wrote 10 s before may already count as read, so no other reader would receive them.
"""

from __future__ import annotations

import json
import logging
import random
import time
from collections import deque
from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar, Union

from chat_inbox.calls import inbox_path, right
from chat_inbox.errors import (
    ChatError,
    ClientClosed,
    Forbidden,
    ProblemError,
    Unauthorized,
    reading_answer,
)
from chat_inbox.events import EventParser
from chat_inbox.messages import Message, messages_of
from chat_inbox.sending import send
from chat_inbox.steps import Answer, Authorize, Pause, Request, Step

log = logging.getLogger("chat_inbox")

T = TypeVar("T")
#: The pause before reconnecting, until the service sets another, and the longest pause, in seconds.
#: The pause doubles with each failure.
_RETRY_S, _RETRY_MAX_S, _DOUBLINGS = 0.2, 30.0, 8
#: Number of handled ids that are kept to detect repeated deliveries, which come soon.
_HANDLED_MAX = 10_000
#: Tries of an acknowledgement. If all fail, the message is delivered again and recognized.
_ACKNOWLEDGE_TRIES = 3
_TYPE = "text/event-stream"


class Delivery(NamedTuple):
    """A message, and the lease under which it was delivered."""

    message: Message
    lease: str


class Feed:
    """One connection of a stream, and what it has received. It sends nothing itself.

    A client passes it the head of the answer, the bytes and the end.
    """

    def __init__(self) -> None:
        self.deliveries: deque[Delivery] = deque()
        #: Whether the connection has ended.
        self.is_over = False
        #: Whether its lease can no longer be used to acknowledge. Set by the subscription.
        self.is_lost = False
        self._answer: Answer | None = None
        self._body = b""
        self._parser = EventParser()
        self._lease = ""
        self._is_invalid = False

    @property
    def was_open(self) -> bool:
        """Return whether the service has opened the stream."""
        return bool(self._lease)

    @property
    def retry_s(self) -> float | None:
        """Return the pause that the service asks for before reconnecting, in seconds, or None."""
        return None if self._parser.retry_ms is None else self._parser.retry_ms / 1000

    def begin(self, status: int, headers: Mapping[str, str]) -> None:
        """Take the head of the answer."""
        self._answer = Answer(status, headers, b"")

    def take(self, chunk: bytes) -> bool:
        """Take bytes. Return whether the connection should go on."""
        if self._answer is None or self._answer.status != 200:
            self._body += chunk
            return True
        try:
            with reading_answer():
                self._take_events(chunk)
        except ChatError:
            # Not a stream of this service; `result` reports that.
            self._is_invalid = True
        return not self._is_invalid

    def result(self) -> float:
        """Return the Retry-After of an ended connection, in seconds.

        Raise `ProblemError` if the service refused permanently.
        """
        if self._is_invalid:
            raise ProblemError(
                200, title="The answer is not from a chat service; check the address"
            )
        if self._answer is None:
            return 0.0
        answer = Answer(self._answer.status, self._answer.headers, self._body)
        if answer.status == 200:
            if not answer.headers.get("content-type", "").lower().startswith(_TYPE):
                raise ProblemError(200, title="The answer is not a stream; check the address")
        elif answer.status < 500 and answer.status != 429:
            raise answer.problem()
        return answer.retry_after_s

    def _take_events(self, chunk: bytes) -> None:
        for event in self._parser.feed(chunk):
            if event.type == "open":
                self._lease = str(json.loads(event.data)["lease"])
            elif event.type == "message":
                message = messages_of([json.loads(event.data)])[0]
                self.deliveries.append(Delivery(message, self._lease))


@dataclass(frozen=True)
class Open:
    """The step that begins a connection whose answer goes into `feed`. It does not wait for it."""

    request: Request
    authorization: str | None = field(repr=False)
    feed: Feed


@dataclass(frozen=True)
class Receive:
    """The step that waits until the feed has received something or has ended."""

    feed: Feed


StreamStep = Union[Step, Open, Receive]
#: A flow of a stream whose result has the type T.
StreamFlow = Generator[StreamStep, Any, T]


class Subscription:
    """The messages of one inbox, for one consumer.

    A message counts as handled, and is acknowledged, when the next one is requested. The
    subscription never returns a handled message again. A flow can be abandoned at any step, and
    another one continues from there.
    """

    def __init__(self, username: str) -> None:
        #: Whether the stream is closed. Set by the client.
        self.is_closed = False
        self._username = username
        self._inbox = inbox_path(username)
        self._feed: Feed | None = None
        self._delivered: Delivery | None = None
        self._handled: dict[str, None] = {}
        self._last_handled = ""
        self._retry_s = _RETRY_S
        self._failures = 0
        self._is_broken = False
        self._authorization: str | None = None
        self._is_renewed = False
        self._connect_at = 0.0

    def next(self) -> StreamFlow[Message | None]:
        """Acknowledge the previous message, then return the next one; None if closed."""
        yield from self.acknowledge()
        while not self.is_closed:
            feed = self._feed
            if feed is None:
                yield from self._connect()
            elif feed.deliveries:
                delivery = feed.deliveries.popleft()
                if delivery.message.id not in self._handled:
                    self._delivered = delivery
                    return delivery.message
                yield from self._settle(delivery)
            elif feed.is_over:
                self._feed = None
                yield from self._schedule_after(feed)
            else:
                yield Receive(feed)
                if self._is_broken and feed.was_open:
                    log.info("the stream has resumed")
                    self._is_broken = False
        return None

    def acknowledge(self) -> StreamFlow[None]:
        """Acknowledge the previous message. Never raises `ChatError`."""
        if self._delivered is not None:
            self._remember(self._delivered.message.id)
            yield from self._settle(self._delivered)
            self._delivered = None

    def _connect(self) -> StreamFlow[None]:
        """Open the next connection after the pause, unless the stream is closed first."""
        pause_s = self._connect_at - time.monotonic()
        if pause_s > 0:
            yield Pause(pause_s)
        if self.is_closed:
            return
        headers = {"Accept": _TYPE}
        if self._last_handled:
            # Unlike a browser, do not send the last id received: that message may not be handled.
            headers["Last-Event-ID"] = self._last_handled
        self._authorization = yield Authorize()
        feed = Feed()
        yield Open(
            Request("GET", f"{self._inbox}/stream", headers=headers), self._authorization, feed
        )
        self._feed = feed

    def _schedule_after(self, feed: Feed) -> StreamFlow[None]:
        """Schedule the next connection. Raise `ProblemError` if the service refuses permanently."""
        if feed.retry_s is not None:
            self._retry_s = feed.retry_s
        if feed.was_open:
            self._is_renewed = False
        try:
            retry_after_s = feed.result()
        except ProblemError as problem:
            if isinstance(problem, Unauthorized) and (yield from self._renew()):
                return
            self.is_closed = True
            if isinstance(problem, Forbidden):
                problem.needs = right("read", self._username)
            raise
        self._failures = 0 if feed.was_open else self._failures + 1
        doubled_s = self._retry_s * 2 ** min(max(self._failures - 1, 0), _DOUBLINGS)
        pause_s = min(doubled_s, max(self._retry_s, _RETRY_MAX_S))
        pause_s = max(pause_s, retry_after_s) * random.uniform(1, 1.5)
        self._connect_at = time.monotonic() + pause_s
        event = "the stream ended" if feed.was_open else "could not open the stream"
        log.info("%s; reconnecting in %.1f s", event, pause_s)
        self._is_broken = True

    def _renew(self) -> StreamFlow[bool]:
        """Return whether to connect at once with another token, at most once until it is open."""
        refused = self._authorization
        if self._is_renewed or refused is None:
            return False
        self._is_renewed = True
        other = yield Authorize(refused=refused)
        return bool(other != refused)

    def _remember(self, message_id: str) -> None:
        self._last_handled = message_id
        self._handled[message_id] = None
        if len(self._handled) > _HANDLED_MAX:
            del self._handled[next(iter(self._handled))]

    def _settle(self, delivery: Delivery) -> StreamFlow[None]:
        """Acknowledge a message. After a failure, its repetition is recognized."""
        feed = self._feed
        if feed is None or feed.is_lost:
            # The next connection acknowledges it with its Last-Event-ID.
            return
        body = json.dumps({"lease": delivery.lease, "ids": [delivery.message.id]}).encode()
        tries = 1 if feed.is_over else _ACKNOWLEDGE_TRIES
        try:
            yield from send(Request("POST", f"{self._inbox}/ack", body), tries)
        except ChatError as error:
            log.info("could not acknowledge a message: %s", error)
            feed.is_lost = feed.is_over
        except ClientClosed:
            self.is_closed = True
