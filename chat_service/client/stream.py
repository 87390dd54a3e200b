"""An inbox as an endless iterator, over broken connections: what `ChatClient.stream` gives.

Made of connections, one after the other. What a connection has brought is handed out before the
next one is made, also when it has broken meanwhile: the service takes what it wrote for read once
the connection has stayed open for 10 s, so that nobody else may ever be given it.
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

from chat_service.client.errors import ChatError, ProblemError, problem_of, understanding
from chat_service.client.events import EventParser
from chat_service.client.http import CONNECT_S, Answer, Http, NotAnswered, Request
from chat_service.client.http import fetch as carry_out
from chat_service.client.message import Message, messages_of

log = logging.getLogger(__name__)

#: The service says something every 15 s. A connection silent for so long is dead. In seconds.
SILENCE_S = 45.0
#: The first pause before connecting again, until the service has said how long; it doubles up to
#: the last one. In seconds.
_RETRY_S, _RETRY_MAX_S, _DOUBLINGS = 0.2, 30.0, 8
#: So many ids are known as handled: what comes again does so soon.
_HANDLED_MAX = 10_000
#: An acknowledgement is tried so often: without it the message comes again, and is known then.
_ACKNOWLEDGE_TRIES = 3
_TYPE = "text/event-stream"


class Stream(AsyncIterator[Message]):
    """The messages of one inbox, as they come. For one consumer.

    A message counts as handled, and is acknowledged, when the next one is asked for; the stream
    gives none twice that was handled. The last one, if its consumer stops there, is unread again
    when the stream is closed: by `aclose`, by leaving its context, or when nobody holds it.
    """

    def __init__(self, http: Http, inbox: str) -> None:
        """`inbox` is its path."""
        self._http = http
        self._inbox = inbox
        self._connection: _Connection | None = None
        self._given: _Delivery | None = None
        self._handled: dict[str, None] = {}
        self._last_handled = ""
        self._retry_s = _RETRY_S
        self._failures = 0
        self._is_broken = False
        self._connect_at = 0.0
        self._closed = asyncio.Event()

    def __aiter__(self) -> "Stream":
        return self

    async def __anext__(self) -> Message:
        """Acknowledge what was given last and give the next message, waiting as long as it takes.

        Connects again by itself, for as long as the service is away. Raises `ProblemError` where
        the service refuses for good, and `StopAsyncIteration` once closed. Cancelling it loses
        nothing, and the stream goes on: ask again.
        """
        await self.acknowledge()
        while not self._closed.is_set():
            if self._connection is None:
                self._connection = await self._connect()
            elif self._connection.deliveries:
                delivery = self._connection.deliveries.popleft()
                if delivery.message.id not in self._handled:
                    self._given = delivery
                    return delivery.message
                await self._settle(delivery)
            elif self._connection.is_over:
                over, self._connection = self._connection, None
                self._plan_after(over)
            else:
                await self._connection.wait()
                if self._is_broken and self._connection.was_open:
                    log.info("the stream goes on")
                    self._is_broken = False
        raise StopAsyncIteration

    async def acknowledge(self) -> None:
        """Acknowledge the message that was given last, without asking for another one.

        For a consumer that stops there; before the stream is closed. Raises nothing.
        """
        if self._given is not None:
            self._remember(self._given.message.id)
            await self._settle(self._given)
            self._given = None

    async def aclose(self) -> None:
        """Close it; what is not acknowledged is unread again soon."""
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
        # A consumer that broke out of its loop shall not keep messages that it never reads.
        if self._connection is not None:
            self._connection.abandon()

    async def _connect(self) -> "_Connection | None":
        """The next connection when its time has come; none where the stream is closed before."""
        with suppress(TimeoutError):
            async with asyncio.timeout_at(self._connect_at):
                await self._closed.wait()
                return None
        headers = {"Accept": _TYPE}
        if self._last_handled:
            # Not the last one received, as a browser would have it: that may not be handled.
            headers["Last-Event-ID"] = self._last_handled
        return _Connection(f"{self._http.base_url}{self._inbox}/stream", headers)

    def _plan_after(self, connection: "_Connection") -> None:
        """Plan the next connection. Raises `ProblemError` where there should be none."""
        if connection.retry_s is not None:
            self._retry_s = connection.retry_s
        try:
            retry_after_s = connection.end()
        except ProblemError:
            self._closed.set()
            raise
        self._failures = 0 if connection.was_open else self._failures + 1
        doubled_s = self._retry_s * 2 ** min(max(self._failures - 1, 0), _DOUBLINGS)
        pause_s = min(doubled_s, max(self._retry_s, _RETRY_MAX_S))
        pause_s = max(pause_s, retry_after_s) * random.uniform(1, 1.5)
        self._connect_at = asyncio.get_running_loop().time() + pause_s
        what = "the stream ended" if connection.was_open else "no stream came"
        log.info("%s; again in %.1f s", what, pause_s)
        self._is_broken = True

    def _remember(self, message_id: str) -> None:
        self._last_handled = message_id
        self._handled[message_id] = None
        if len(self._handled) > _HANDLED_MAX:
            del self._handled[next(iter(self._handled))]

    async def _settle(self, delivery: "_Delivery") -> None:
        """Have a message counted as read. Raises nothing: else it comes again, and is known."""
        connection = self._connection
        if connection is None or connection.is_lost:
            # The next connection says it by its Last-Event-ID.
            return
        body = json.dumps({"lease": delivery.lease, "ids": [delivery.message.id]}).encode()
        tries = 1 if connection.is_over else _ACKNOWLEDGE_TRIES
        try:
            await self._http.ask(Request("POST", f"{self._inbox}/ack", body), tries)
        except ChatError as error:
            log.info("a message of a stream was not acknowledged: %s", error)
            connection.is_lost = connection.is_over


class _Delivery(NamedTuple):
    """A message, and the lease by which this stream has it."""

    message: Message
    lease: str


class _Connection:
    """One connection of a stream: what it has brought, until it is over.

    It knows nothing of its stream, so that a stream that nobody holds can be closed.
    """

    def __init__(self, url: str, headers: dict[str, str]) -> None:
        self.deliveries: deque[_Delivery] = deque()
        #: Whether nothing can be acknowledged by its lease any more. Its stream says so.
        self.is_lost = False
        self._parser = EventParser()
        self._lease = ""
        self._status = 0
        self._is_foreign = False
        self._type = ""
        self._body = b""
        self._news = asyncio.Event()
        request = HTTPRequest(
            url,
            headers=headers,
            connect_timeout=CONNECT_S,
            request_timeout=0,
            header_callback=self._take_header,
            streaming_callback=self._take,
        )
        self._loop = asyncio.get_running_loop()
        self._task = self._loop.create_task(carry_out(request))
        self._task.add_done_callback(self._have_ended)

    @property
    def is_over(self) -> bool:
        """Whether it brings no more."""
        return self._task.done()

    @property
    def was_open(self) -> bool:
        """Whether the service has begun to stream."""
        return bool(self._lease)

    @property
    def retry_s(self) -> float | None:
        """The pause that the service wishes before the next connection, in seconds."""
        return None if self._parser.retry_ms is None else self._parser.retry_ms / 1000

    async def wait(self) -> None:
        """Wait until there is something, or it is over; ends it where it is silent."""
        self._news.clear()
        try:
            async with asyncio.timeout(SILENCE_S):
                await self._news.wait()
        except TimeoutError:
            await self.close()

    def end(self) -> float:
        """How long the service wants to be left alone, in seconds, once it is over.

        Raises `ProblemError` where it refused for good.
        """
        if self._is_foreign:
            raise ProblemError(200, title="The answer is not the service's: is this its address?")
        try:
            answer = self._task.result()._replace(body=self._body)
        except (NotAnswered, asyncio.CancelledError):
            return 0.0
        if answer.status == 200:
            if not self._type.startswith(_TYPE):
                raise ProblemError(200, title="The answer is no stream: is this the service?")
        elif answer.status < 500 and answer.status != 429:
            raise problem_of(answer.status, answer.body)
        return answer.retry_after_s

    async def close(self) -> None:
        """End it."""
        self._task.cancel()
        await asyncio.wait((self._task,))

    def abandon(self) -> None:
        """End it, from wherever."""
        with suppress(RuntimeError):
            # Unless the loop has been closed, and the connection with it.
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
            with understanding():
                self._take_events(chunk)
        except ChatError:
            # Another's stream. Its end says so.
            self._is_foreign = True
            self._task.cancel()
        self._news.set()

    def _take_events(self, chunk: bytes) -> None:
        for event in self._parser.feed(chunk):
            if event.type == "open":
                self._lease = str(json.loads(event.data)["lease"])
            elif event.type == "message":
                message = messages_of([json.loads(event.data)])[0]
                self.deliveries.append(_Delivery(message, self._lease))

    def _have_ended(self, task: asyncio.Task[Answer]) -> None:
        if not task.cancelled():
            # So that it counts as seen also where nobody asks.
            task.exception()
        self._news.set()
