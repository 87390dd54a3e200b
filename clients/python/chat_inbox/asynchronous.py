"""The asyncio client. `chat_inbox.synchronous` has the same methods for threads.

Times are in seconds. Besides the errors that its documentation lists, every method may raise
`ProblemError` if the service refuses the request, and `ServiceUnavailable` if it cannot be reached.
Subclasses of `ProblemError` tell a missing token (`Unauthorized`), a missing right (`Forbidden`)
and a limit (`RateLimited`, `InboxFull`) apart.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import time
import weakref
from collections.abc import AsyncIterator, Awaitable, Coroutine, Generator, Iterable, Iterator
from contextlib import suppress
from types import TracebackType
from typing import Any, Callable, TypeVar

import httpx

from chat_inbox import calls
from chat_inbox.calls import AnyDraft, Grant
from chat_inbox.credentials import AsyncTokenSource, Credentials, asking
from chat_inbox.errors import ChatError, ClientClosed
from chat_inbox.http import SILENCE_S, Address, not_answered
from chat_inbox.leasing import HeldLease
from chat_inbox.messages import Delivered, Draft, Message, Posted, Status
from chat_inbox.steps import Answer, Exchange, Flow, NotAnswered, Pause, Step
from chat_inbox.streaming import Feed, Open, Receive, StreamFlow, StreamStep, Subscription

log = logging.getLogger("chat_inbox")

S = TypeVar("S")
T = TypeVar("T")


class ChatClient:
    """A client for one service, usable as an async context manager.

    `base_url` is the address of the service, such as `http://127.0.0.1:8080`. Use a client in one
    event loop. It keeps its connections open for the next requests.

    Requests that are safe to repeat are tried up to `tries` times, with growing random pauses. An
    answer may take `timeout_s`, in addition to the time that the request asks the service to wait.
    At most `connections` requests are open at the same time. A long poll counts as one; streams do
    not count.

    `token` is sent with every request: a token, or a function that returns one, which may be
    asynchronous. The function is called once, and again when the service refuses what it returned;
    if it raises, the request raises `TokenUnavailable`. The token is in no error, no `repr` and no
    log line, and is never sent to another origin. Over plain HTTP it is sent only to this machine,
    unless `allow_plain_http` is set; for other addresses, this raises `ValueError`.

    `transport` replaces the transport, for example with an `httpx.AsyncHTTPTransport` that has a
    proxy, other certificates or a Unix socket. The client closes it.
    """

    def __init__(
        self,
        base_url: str,
        *,
        token: AsyncTokenSource | None = None,
        tries: int = 10,
        timeout_s: float = 15.0,
        connections: int = 64,
        allow_plain_http: bool = False,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._address = Address(base_url)
        self._tries = tries
        self._timeout_s = timeout_s
        self._credentials: Credentials[str | Awaitable[str]]
        self._credentials = Credentials(base_url, token, allow_plain_http)
        # Created in the event loop: before Python 3.10, a lock belongs to the loop of its creation.
        self._asking: asyncio.Lock | None = None
        self._is_closed = False
        self._streams: weakref.WeakSet[Stream] = weakref.WeakSet()
        self._transport = transport or self._new_transport(connections)
        self._stream_transport = transport or self._new_transport(None)

    def _new_transport(self, connections: int | None) -> httpx.AsyncBaseTransport:
        context, limits = self._address.transport_options(connections)
        return httpx.AsyncHTTPTransport(verify=context, limits=limits)

    def __repr__(self) -> str:
        return f"ChatClient({self._address.base_url!r})"

    async def __aenter__(self) -> ChatClient:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close all streams and connections. New requests and open ones raise `ClientClosed`.

        An open request may or may not be carried out.
        """
        self._is_closed = True
        await asyncio.gather(*(stream.close() for stream in list(self._streams)))
        await self._transport.aclose()
        await self._stream_transport.aclose()

    async def post(
        self,
        username: str,
        text: str,
        timeout_s: int | None = None,
        *,
        delay_s: float | None = None,
        key: str | None = None,
        receipt: bool = False,
    ) -> Posted:
        """Store a message once, even if the request is retried.

        It can be read after `delay_s`, and for `timeout_s` from then on: 60 seconds unless
        `timeout_s` is set, or what the service is configured to. All posts with the same `key`
        together store one message. With `receipt`, the result has the receipt that `status` and
        `revoke` need. Raise `OutcomeUnknown` if the message may or may not be stored; to find
        out, post again with the key in the error. If this is cancelled, the message may or may not
        be stored; pass a key if that matters.
        """
        draft = Draft(username, text, timeout_s, delay_s)
        return await self._run(calls.post(draft, key, receipt, self._tries))

    async def post_batch(
        self, drafts: Iterable[AnyDraft], *, key: str | None = None, receipt: bool = False
    ) -> list[Posted | ChatError]:
        """Store messages in order, and return the result or the error of each, in the same order.

        Messages are sent in batches, and each is stored once. All calls with the same `key` and the
        same drafts together store each message once. Raises no `ChatError`: the errors in the
        result include `OutcomeUnknown` and `ServiceUnavailable`. If this is cancelled, any of the
        messages may be stored; pass a key if that matters.
        """
        return await self._run(calls.post_batch(drafts, key, receipt, self._tries))

    async def read(
        self, username: str, limit: int | None = None, *, key: str | None = None
    ) -> list[Message]:
        """Read unread messages, oldest first. This consumes them.

        Return at most about 1000 messages; read again for more. The read has a key and is retried
        with it, so a lost answer loses no messages. Raise `OutcomeUnknown` if the retries fail as
        well: for a minute, another read with the `key` in the error returns the messages. The same
        holds if this is cancelled; if that matters, pass a key of at least 22 characters that
        cannot be guessed.
        """
        return await self._run(calls.read(username, limit, 0.0, key, self._tries))

    async def wait(
        self,
        username: str,
        timeout_s: float,
        limit: int | None = None,
        *,
        key: str | None = None,
    ) -> list[Message]:
        """Read as soon as there is a message. Return [] after `timeout_s`, which may be `math.inf`.

        This repeats long polls. See `read` for the errors and the effect of a cancellation.
        """
        return await self._run(calls.read(username, limit, timeout_s, key, self._tries))

    async def count(self, username: str) -> int:
        """Return the number of unread messages. Changes nothing.

        The service counts up to `COUNT_MAX`. If there are more, return `COUNT_MAX + 1`. Leased and
        scheduled messages do not count.
        """
        return await self._run(calls.count(username, self._tries))

    async def dead_letter_inbox(self, username: str) -> str | None:
        """Return the name of the inbox that takes the dead letters of this one.

        Return None if the service is too old to have dead letters.
        """
        return await self._run(calls.dead_letter_inbox(username, self._tries))

    def lease(
        self,
        username: str,
        ttl_s: float = 30.0,
        limit: int | None = None,
        wait_s: float = 0.0,
    ) -> LeaseRequest:
        """Lease unread messages for `ttl_s`. Unless acknowledged by then, they become unread again.

        Lease few messages, such as `limit=1`: if the process is killed, all of them count as
        delivered. Use the result with `async with`, or await it for a `Lease`. Wait up to `wait_s`
        for a first message, which may be `math.inf`. The lease may be empty. If the answer is lost
        or this is cancelled, messages may stay leased until the lease ends. Raise `OutcomeUnknown`
        if that may have happened and all tries failed.
        """
        return LeaseRequest(self._lease(username, ttl_s, limit, wait_s))

    async def _lease(self, username: str, ttl_s: float, limit: int | None, wait_s: float) -> Lease:
        return Lease(
            self, await self._run(calls.lease(username, ttl_s, limit, wait_s, self._tries))
        )

    async def acknowledge(
        self, username: str, lease: str, ids: str | Iterable[str] | None = None
    ) -> int:
        """Acknowledge messages of any lease, by its name, and return how many are acknowledged.

        Without `ids`, acknowledge all its messages. Raise `LeaseOver` if any message is lost. See
        `Lease.acknowledge`.
        """
        return await self._run(calls.settle(username, lease, "ack", ids, self._tries))

    async def release(
        self,
        username: str,
        lease: str,
        ids: str | Iterable[str] | None = None,
        *,
        delivered: bool = True,
        delay_s: float | None = None,
    ) -> int:
        """Release messages of any lease, by its name, and return how many are unread then.

        Without `ids`, release all its messages. They are unread after `delay_s`, or at once. If you
        began with none of them, set `delivered` to False: the lease does not count in their
        `deliveries` then. Return 0 if the lease has already ended. See `Lease.release`.
        """
        flow = calls.release(username, lease, ids, delivered, delay_s, self._tries)
        return await self._run(flow)

    async def extend(self, username: str, lease: str, ttl_s: float) -> float:
        """Extend any lease, by its name, and return the duration that is granted.

        See `Lease.extend`.
        """
        return await self._run(calls.extend(username, lease, ttl_s, self._tries))

    def stream(self, username: str) -> Stream:
        """Return an iterator over the unread messages and then new ones.

        It reconnects when the service restarts. 10 s after the service wrote a message to a
        connection that is still open, it counts the message as read, even if it is not handled yet.
        For work that takes longer and must not be lost, use `lease`.
        """
        self._check_open()
        stream = Stream(self, username)
        self._streams.add(stream)
        return stream

    async def status(self, message_id: str, receipt: str) -> Status:
        """Return the status of a message. Raise `ProblemError` (404) if the receipt is wrong."""
        return await self._run(calls.status(message_id, receipt, self._tries))

    async def revoke(self, message_id: str, receipt: str) -> bool:
        """Revoke a message that is unread or scheduled. Return False if it is too late for that.

        It is too late if the message is read, leased, expired or a dead letter. Raise
        `ProblemError` (404) if the receipt is wrong, and `OutcomeUnknown` if all tries failed.
        Then, and after a cancellation, it is safe to repeat the call.
        """
        return await self._run(calls.revoke(message_id, receipt, self._tries))

    async def _run(self, flow: Flow[T]) -> T:
        return await run(flow, self._perform)

    async def _perform(self, step: Step) -> object:
        if isinstance(step, Exchange):
            return await self._exchange(step)
        if isinstance(step, Pause):
            await asyncio.sleep(step.seconds)
            return None
        return await self._authorize(step.refused)

    async def _authorize(self, refused: str | None) -> str | None:
        header = self._credentials.header(refused)
        if header is not None or self._credentials.ask is None:
            return header
        if self._asking is None:
            self._asking = asyncio.Lock()
        async with self._asking:
            # Another request may have asked meanwhile.
            header = self._credentials.header()
            if header is None:
                with asking():
                    token = self._credentials.ask()
                    if inspect.isawaitable(token):
                        token = await token
                    header = self._credentials.take(token)
            return header

    async def _exchange(self, step: Exchange) -> Answer:
        self._check_open()
        answer_s = step.request.wait_s + self._timeout_s
        request = self._address.build(step.request, step.authorization, answer_s)
        body = []
        try:
            response = await self._transport.handle_async_request(request)
            # From here on: the request may have waited for a free connection.
            give_up_at = time.monotonic() + self._timeout_s
            # The stream itself, because the methods of the response take longer.
            stream = response.stream
            assert isinstance(stream, httpx.AsyncByteStream)
            try:
                async for chunk in stream:
                    body.append(chunk)
                    if time.monotonic() > give_up_at:
                        raise httpx.ReadTimeout("")
            finally:
                await stream.aclose()
        except httpx.TransportError as error:
            if self._is_closed:
                raise ClientClosed from None
            raise self._address.not_answered(error) from error
        return Answer(response.status_code, response.headers, b"".join(body))

    def _check_open(self) -> None:
        if self._is_closed:
            raise ClientClosed


async def run(flow: Generator[S, Any, T], perform: Callable[[S], Awaitable[object]]) -> T:
    """Run a flow to its end and return its result. `perform` takes each step."""
    try:
        step = next(flow)
        while True:
            try:
                result = await perform(step)
            except (NotAnswered, ChatError, ClientClosed, ValueError) as error:
                step = flow.throw(error)
            else:
                step = flow.send(result)
    except StopIteration as end:
        value: T = end.value
        return value
    finally:
        flow.close()


class Lease:
    """Leased messages of one inbox. No other reader receives them until the lease ends.

    In an `async with` block, the lease is extended until the block ends. Then, the messages that
    you have received from the iteration or from `messages` are acknowledged, and `LeaseOver` is
    raised if any of them is lost. The others are released, as after a `break`. If the block raises
    or is cancelled, all are released. If the lease is lost during the block, for example because
    the service could not be reached, the block goes on: `check` and the iteration over the lease
    raise `LeaseOver`. An empty lease can be used in the same way, and sends no requests.

    Only messages in hand count as delivered if they are released, so only they can become dead
    letters: the one that the iteration returned last, since you were done with those before it. If
    the iteration has ended, if `messages` was used, or if you acknowledge messages one by one, all
    are in hand that you have received and that are not acknowledged.
    """

    def __init__(self, client: ChatClient, grant: Grant) -> None:
        self._client = client
        self._held = HeldLease(grant)
        self._keeper: asyncio.Task[None] | None = None
        #: Whether there are more unread messages than one lease can hold.
        self.more: bool = grant.more

    @property
    def messages(self) -> list[Delivered]:
        """Return the leased messages, oldest first.

        All of them are in hand then. To work on one after the other, iterate over the lease.
        """
        return self._held.hand_out_all()

    @property
    def name(self) -> str | None:
        """Return the name of the lease, or None if it is empty."""
        return self._held.grant.name

    @property
    def ttl_s(self) -> float:
        """Return the duration since the lease was created or last extended, in seconds."""
        return self._held.ttl_s

    def __repr__(self) -> str:
        return f"Lease({self.name!r}, ttl_s={self.ttl_s}, messages={self._held.size})"

    def __iter__(self) -> Iterator[Delivered]:
        """Iterate over the messages, oldest first, and `check` before each.

        The message that it returned last is in hand.
        """
        return self._held.hand_out()

    def check(self) -> None:
        """Raise `LeaseOver` if the lease has ended and messages were not acknowledged in time.

        Sends no request. The messages may already be with another reader.
        """
        self._held.check()

    async def acknowledge(self, ids: str | Iterable[str] | None = None) -> int:
        """Acknowledge these messages, or all that it still holds, and return how many are.

        Raise `LeaseOver` if any of them is lost; it lists the acknowledged and the lost ones. Raise
        `OutcomeUnknown` or `ServiceUnavailable` if all tries failed. Then, and after a
        cancellation, it is safe to repeat the call.
        """
        return await self._client._run(self._held.acknowledge(ids, self._client._tries))

    async def release(
        self,
        ids: str | Iterable[str] | None = None,
        *,
        delivered: bool | None = None,
        delay_s: float | None = None,
    ) -> int:
        """Release these messages, or all that it still holds, and return how many are unread then.

        With `delay_s`, nobody receives them before that many seconds have passed, for example
        because a job failed and another try at once would fail, too. Then they are unread, unless
        they have expired.

        If you began with none of them, set `delivered` to False: this lease does not count in their
        `deliveries` then. If it is None, the lease counts for the messages that are in hand; see
        the class. Return 0 if the lease had ended and other readers have received the messages.
        Raise `OutcomeUnknown` or `ServiceUnavailable` if all tries failed. Then, and after a
        cancellation, the messages become unread at the latest when the lease ends.
        """
        flow = self._held.release(ids, delivered, delay_s, self._client._tries)
        return await self._client._run(flow)

    async def extend(self, ttl_s: float) -> float:
        """Extend the lease to `ttl_s` from now, and return the duration that the service grants.

        Raise `LeaseOver`, `OutcomeUnknown`, `ServiceUnavailable` or `ProblemError`. Then, and after
        a cancellation, it is safe to repeat the call.
        """
        return await self._client._run(self._held.extend(ttl_s, self._client._tries))

    async def __aenter__(self) -> Lease:
        if self.name is not None:
            self._keeper = asyncio.create_task(self._client._run(self._held.keep()))
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._stop_extending()
        if error is None:
            await self._client._run(self._held.end(self._client._tries))
            return
        # If this fails, the messages become unread when the lease ends.
        with suppress(ChatError, ClientClosed):
            # Try once: an exception or a cancellation should not wait for an unavailable service.
            await self._client._run(self._held.release(None, None, None, 1))

    async def _stop_extending(self) -> None:
        keeper, self._keeper = self._keeper, None
        if keeper is None:
            return
        keeper.cancel()
        await asyncio.wait({keeper})
        if not keeper.cancelled() and keeper.exception() is not None:
            log.error("the lease was not extended", exc_info=keeper.exception())


class LeaseRequest(Coroutine[Any, Any, Lease]):
    """A lease that is being requested: await it, or use it with `async with`."""

    def __init__(self, requested: Coroutine[Any, Any, Lease]) -> None:
        self._requested = requested

    def __await__(self) -> Generator[Any, Any, Lease]:
        return self._requested.__await__()

    async def __aenter__(self) -> Lease:
        self._lease = await self._requested
        return await self._lease.__aenter__()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._lease.__aexit__(kind, error, traceback)

    def send(self, value: Any) -> Any:
        """See `collections.abc.Coroutine`."""
        return self._requested.send(value)

    def throw(self, *error: Any) -> Any:
        """See `collections.abc.Coroutine`."""
        return self._requested.throw(*error)

    def close(self) -> None:
        """See `collections.abc.Coroutine`."""
        self._requested.close()


class Stream(AsyncIterator[Message]):
    """An iterator over the messages of one inbox, for one consumer.

    A message counts as handled, and is acknowledged, when the next one is requested. The stream
    never returns a handled message again. If the consumer stops after a message, that message
    becomes unread when the stream is closed: by `close`, by the end of its `async with` block, or
    by garbage collection.
    """

    def __init__(self, client: ChatClient, username: str) -> None:
        self._client = client
        # First, for `__del__`: the name may be refused.
        self._pump: _Pump | None = None
        self._subscription = Subscription(username)
        self._closed: asyncio.Event | None = None

    def __aiter__(self) -> Stream:
        return self

    async def __anext__(self) -> Message:
        """Acknowledge the previous message, then wait for the next one without a time limit.

        Reconnect while the service is unavailable. Raise `ProblemError` if the service refuses
        permanently, and `StopAsyncIteration` once the stream is closed. After `TokenUnavailable`
        and after a cancellation, no message is lost and the iteration can continue.
        """
        message = await self._run(self._subscription.next())
        if message is None:
            raise StopAsyncIteration
        return message

    async def acknowledge(self) -> None:
        """Acknowledge the previous message without requesting another one.

        Call this before closing the stream if its last message has been handled. If it fails, the
        message is delivered again.
        """
        await self._run(self._subscription.acknowledge())

    async def close(self) -> None:
        """Close the stream. Messages that are not acknowledged become unread soon."""
        self._subscription.is_closed = True
        if self._closed is not None:
            self._closed.set()
        if self._pump is not None:
            await self._pump.close()

    async def __aenter__(self) -> Stream:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    def __del__(self) -> None:
        # A consumer that left its loop must not keep messages that it will never read.
        if self._pump is not None:
            self._pump.abandon()

    async def _run(self, flow: StreamFlow[T]) -> T:
        return await run(flow, self._perform)

    async def _perform(self, step: StreamStep) -> object:
        if isinstance(step, Open):
            request = self._client._address.build(step.request, step.authorization, SILENCE_S)
            self._client._check_open()
            self._pump = _Pump(self._client._stream_transport, request, step.feed)
            return None
        if isinstance(step, Receive):
            assert self._pump is not None
            await self._pump.wait()
            return None
        if isinstance(step, Pause):
            await self._pause(step.seconds)
            return None
        return await self._client._perform(step)

    async def _pause(self, seconds: float) -> None:
        if self._closed is None:
            self._closed = asyncio.Event()
        with suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._closed.wait(), seconds)


class _Pump:
    """Reads one connection into its feed, in a task of its own.

    A consumer may be cancelled at any time without breaking the connection. The task has no
    reference to its stream, so that an unused stream can be garbage-collected.
    """

    def __init__(
        self, transport: httpx.AsyncBaseTransport, request: httpx.Request, feed: Feed
    ) -> None:
        self._feed = feed
        self._changed = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._task: asyncio.Task[None] = self._loop.create_task(self._read(transport, request))

    async def wait(self) -> None:
        """Wait for data or the end of the connection.

        Raise the error that ended it if another connection would not help.
        """
        await self._changed.wait()
        self._changed.clear()
        if self._task.done() and not self._task.cancelled():
            self._task.result()

    async def close(self) -> None:
        """Close the connection and wait until it is closed."""
        self._task.cancel()
        await asyncio.wait({self._task})

    def abandon(self) -> None:
        """Close the connection from any thread, without waiting."""
        with suppress(RuntimeError):
            # A closed loop raises RuntimeError; the connection is closed then, too.
            self._loop.call_soon_threadsafe(self._task.cancel)

    async def _read(self, transport: httpx.AsyncBaseTransport, request: httpx.Request) -> None:
        try:
            response = await transport.handle_async_request(request)
            try:
                self._feed.begin(response.status_code, response.headers)
                async for chunk in response.aiter_raw():
                    if not self._feed.take(chunk):
                        self._task.cancel()
                    self._changed.set()
            finally:
                await response.aclose()
        except httpx.TransportError as error:
            log.debug("the connection of a stream ended: %s", not_answered(error))
        finally:
            self._feed.is_over = True
            self._changed.set()
