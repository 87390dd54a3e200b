"""An inbox as an endless iterator that reconnects, as returned by `ChatClient.stream`.

It uses one connection at a time. All messages that a connection has received are returned before
the next connection is opened, even if the connection has broken: messages that the service wrote
10 s before may already count as read, so no other reader would receive them.
"""

import asyncio
import json
import logging
import random
from collections import deque
from collections.abc import AsyncIterator
from contextlib import suppress
from types import TracebackType
from typing import NamedTuple

from tornado.httpclient import HTTPRequest

from chat_service.client.errors import ChatError, ProblemError, Unauthorized, reading_answer
from chat_service.client.events import EventParser
from chat_service.client.http import CONNECT_S, Answer, Http, NotAnswered, Request
from chat_service.client.http import fetch as fetch_answer
from chat_service.client.message import Message, messages_of

log = logging.getLogger(__name__)

#: A connection that is silent for this long, in seconds, is dead: the service sends every 15 s.
SILENCE_S = 45.0
#: The pause before reconnecting, until the service sets another, and the longest pause, in seconds.
#: The pause doubles with each failure.
_RETRY_S, _RETRY_MAX_S, _DOUBLINGS = 0.2, 30.0, 8
#: Number of handled ids that are kept to detect repeated deliveries, which come soon.
_HANDLED_MAX = 10_000
#: Tries of an acknowledgement. If all fail, the message is delivered again and recognized.
_ACKNOWLEDGE_TRIES = 3
_TYPE = "text/event-stream"


class Stream(AsyncIterator[Message]):
    """An iterator over the messages of one inbox, for one consumer.

    A message counts as handled, and is acknowledged, when the next one is requested. The stream
    never returns a handled message again. If the consumer stops after a message, that message
    becomes unread when the stream is closed: by `aclose`, by the end of its `async with` block, or
    by garbage collection.
    """

    def __init__(self, http: Http, inbox: str) -> None:
        """`inbox` is the path of the inbox."""
        self._http = http
        self._inbox = inbox
        self._connection: _Connection | None = None
        self._delivered: _Delivery | None = None
        self._handled: dict[str, None] = {}
        self._last_handled = ""
        self._retry_s = _RETRY_S
        self._failures = 0
        self._is_broken = False
        self._authorization: dict[str, str] = {}
        self._is_renewed = False
        self._connect_at = 0.0
        self._closed = asyncio.Event()

    def __aiter__(self) -> "Stream":
        return self

    async def __anext__(self) -> Message:
        """Acknowledge the previous message, then wait for the next one without a time limit.

        Reconnect while the service is unavailable. Raise `ProblemError` if the service refuses
        permanently, and `StopAsyncIteration` once the stream is closed. After `TokenUnavailable`
        and after a cancellation, no message is lost and the iteration can continue.
        """
        await self.acknowledge()
        while not self._closed.is_set():
            if self._connection is None:
                self._connection = await self._connect()
            elif self._connection.deliveries:
                delivery = self._connection.deliveries.popleft()
                if delivery.message.id not in self._handled:
                    self._delivered = delivery
                    return delivery.message
                await self._settle(delivery)
            elif self._connection.is_over:
                over, self._connection = self._connection, None
                await self._schedule_after(over)
            else:
                await self._connection.wait()
                if self._is_broken and self._connection.was_open:
                    log.info("the stream has resumed")
                    self._is_broken = False
        raise StopAsyncIteration

    async def acknowledge(self) -> None:
        """Acknowledge the previous message without requesting another one. Never raises.

        Call this before closing the stream if its last message has been handled.
        """
        if self._delivered is not None:
            self._remember(self._delivered.message.id)
            await self._settle(self._delivered)
            self._delivered = None

    async def aclose(self) -> None:
        """Close the stream. Messages that are not acknowledged become unread soon."""
        self._closed.set()
        if self._connection is not None:
            await self._connection.close()

    async def __aenter__(self) -> "Stream":
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    def __del__(self) -> None:
        # A consumer that left its loop must not keep messages that it will never read.
        if self._connection is not None:
            self._connection.abandon()

    async def _connect(self) -> "_Connection | None":
        """Open the next connection after the pause. Return None if the stream is closed first."""
        with suppress(TimeoutError):
            async with asyncio.timeout_at(self._connect_at):
                await self._closed.wait()
                return None
        headers = {"Accept": _TYPE}
        if self._last_handled:
            # Unlike a browser, do not send the last id received: that message may not be handled.
            headers["Last-Event-ID"] = self._last_handled
        self._authorization = await self._http.credentials.headers()
        headers |= self._authorization
        return _Connection(f"{self._http.base_url}{self._inbox}/stream", headers)

    async def _schedule_after(self, connection: "_Connection") -> None:
        """Schedule the next connection. Raise `ProblemError` if the service refuses permanently."""
        if connection.retry_s is not None:
            self._retry_s = connection.retry_s
        if connection.was_open:
            self._is_renewed = False
        try:
            retry_after_s = connection.end()
        except ProblemError as problem:
            if isinstance(problem, Unauthorized) and await self._renew():
                return
            self._closed.set()
            raise
        self._failures = 0 if connection.was_open else self._failures + 1
        doubled_s = self._retry_s * 2 ** min(max(self._failures - 1, 0), _DOUBLINGS)
        pause_s = min(doubled_s, max(self._retry_s, _RETRY_MAX_S))
        pause_s = max(pause_s, retry_after_s) * random.uniform(1, 1.5)
        self._connect_at = asyncio.get_running_loop().time() + pause_s
        event = "the stream ended" if connection.was_open else "could not open the stream"
        log.info("%s; reconnecting in %.1f s", event, pause_s)
        self._is_broken = True

    async def _renew(self) -> bool:
        """Return whether to connect at once with another token, at most once until it is open."""
        if self._is_renewed or not await self._http.credentials.renew(self._authorization):
            return False
        self._is_renewed = True
        return True

    def _remember(self, message_id: str) -> None:
        self._last_handled = message_id
        self._handled[message_id] = None
        if len(self._handled) > _HANDLED_MAX:
            del self._handled[next(iter(self._handled))]

    async def _settle(self, delivery: "_Delivery") -> None:
        """Acknowledge a message. Never raises: after a failure, its repetition is recognized."""
        connection = self._connection
        if connection is None or connection.is_lost:
            # The next connection acknowledges it with its Last-Event-ID.
            return
        body = json.dumps({"lease": delivery.lease, "ids": [delivery.message.id]}).encode()
        tries = 1 if connection.is_over else _ACKNOWLEDGE_TRIES
        try:
            await self._http.send(Request("POST", f"{self._inbox}/ack", body), tries)
        except ChatError as error:
            log.info("could not acknowledge a message: %s", error)
            connection.is_lost = connection.is_over


class _Delivery(NamedTuple):
    """A message, and the lease under which it was delivered."""

    message: Message
    lease: str


class _Connection:
    """One connection of a stream, with the messages that it has received.

    It has no reference to its stream, so that an unused stream can be garbage-collected.
    """

    def __init__(self, url: str, headers: dict[str, str]) -> None:
        self.deliveries: deque[_Delivery] = deque()
        #: Whether its lease can no longer be used to acknowledge. Set by the stream.
        self.is_lost = False
        self._parser = EventParser()
        self._lease = ""
        self._status = 0
        self._is_invalid = False
        self._type = ""
        self._body = b""
        self._changed = asyncio.Event()
        request = HTTPRequest(
            url,
            headers=headers,
            connect_timeout=CONNECT_S,
            request_timeout=0,
            header_callback=self._take_header,
            streaming_callback=self._take,
        )
        self._loop = asyncio.get_running_loop()
        self._task = self._loop.create_task(fetch_answer(request))
        self._task.add_done_callback(self._on_end)

    @property
    def is_over(self) -> bool:
        """Return whether it has ended."""
        return self._task.done()

    @property
    def was_open(self) -> bool:
        """Return whether the service has opened the stream."""
        return bool(self._lease)

    @property
    def retry_s(self) -> float | None:
        """Return the pause that the service asks for before reconnecting, in seconds, or None."""
        return None if self._parser.retry_ms is None else self._parser.retry_ms / 1000

    async def wait(self) -> None:
        """Wait for data or the end of the connection. Close it if it is silent for too long."""
        self._changed.clear()
        try:
            async with asyncio.timeout(SILENCE_S):
                await self._changed.wait()
        except TimeoutError:
            await self.close()

    def end(self) -> float:
        """Return the Retry-After of an ended connection, in seconds.

        Raise `ProblemError` if the service refused permanently.
        """
        if self._is_invalid:
            raise ProblemError(
                200, title="The answer is not from a chat service; check the address"
            )
        try:
            answer = self._task.result()._replace(body=self._body)
        except (NotAnswered, asyncio.CancelledError):
            return 0.0
        if answer.status == 200:
            if not self._type.startswith(_TYPE):
                raise ProblemError(200, title="The answer is not a stream; check the address")
        elif answer.status < 500 and answer.status != 429:
            raise answer.problem()
        return answer.retry_after_s

    async def close(self) -> None:
        """Close the connection and wait until it is closed."""
        self._task.cancel()
        await asyncio.wait((self._task,))

    def abandon(self) -> None:
        """Close the connection from any thread, without waiting."""
        with suppress(RuntimeError):
            # A closed loop raises RuntimeError; the connection is closed then, too.
            self._loop.call_soon_threadsafe(self._task.cancel)

    def _take_header(self, line: str) -> None:
        if line.startswith("HTTP/"):
            self._status = int(line.split()[1])
        name, _, value = line.partition(":")
        if name.lower() == "content-type":
            self._type = value.strip().lower()

    def _take(self, chunk: bytes) -> None:
        if self._status != 200:
            self._body += chunk
            return
        try:
            with reading_answer():
                self._take_events(chunk)
        except ChatError:
            # Not a stream of this service; `end` reports that.
            self._is_invalid = True
            self._task.cancel()
        self._changed.set()

    def _take_events(self, chunk: bytes) -> None:
        for event in self._parser.feed(chunk):
            if event.type == "open":
                self._lease = str(json.loads(event.data)["lease"])
            elif event.type == "message":
                message = messages_of([json.loads(event.data)])[0]
                self.deliveries.append(_Delivery(message, self._lease))

    def _on_end(self, task: asyncio.Task[Answer]) -> None:
        if not task.cancelled():
            # Retrieve the exception, so that asyncio does not log it if `end` is never called.
            task.exception()
        self._changed.set()
