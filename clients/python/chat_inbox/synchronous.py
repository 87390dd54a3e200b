"""The client for threads. It has the methods of `chat_inbox.asynchronous`.

Times are in seconds. Besides the errors that its documentation lists, every method may raise
`ProblemError` if the service refuses the request, and `ServiceUnavailable` if it cannot be reached.
Subclasses of `ProblemError` tell a missing token (`Unauthorized`), a missing right (`Forbidden`)
and a limit (`RateLimited`, `InboxFull`) apart.
"""

from __future__ import annotations

import logging
import threading
import time
import weakref
from collections.abc import Generator, Iterable, Iterator
from contextlib import suppress
from types import TracebackType
from typing import Any, Callable, TypeVar

import httpx

from chat_inbox import calls
from chat_inbox.calls import AnyDraft, Grant
from chat_inbox.credentials import Credentials, TokenSource, asking
from chat_inbox.errors import ChatError, ClientClosed
from chat_inbox.http import SILENCE_S, Address, Sockets, not_answered, shut_down
from chat_inbox.leasing import HeldLease
from chat_inbox.messages import Delivered, Draft, Message, Posted, Status
from chat_inbox.steps import Answer, Exchange, Flow, NotAnswered, Pause, Step
from chat_inbox.streaming import Feed, Open, Receive, StreamFlow, StreamStep, Subscription

log = logging.getLogger("chat_inbox")

S = TypeVar("S")
T = TypeVar("T")


class SyncChatClient:
    """A client for one service, usable as a context manager, in any number of threads.

    `base_url` is the address of the service, such as `http://127.0.0.1:8080`. It keeps its
    connections open for the next requests.

    Requests that are safe to repeat are tried up to `tries` times, with growing random pauses. An
    answer may take `timeout_s`, in addition to the time that the request asks the service to wait.
    At most `connections` requests are open at the same time. A long poll counts as one; streams do
    not count.

    `token` is sent with every request: a token, or a function that returns one. The function is
    called once, and again when the service refuses what it returned; if it raises, the request
    raises `TokenUnavailable`. The token is in no error, no `repr` and no log line, and is never
    sent to another origin. Over plain HTTP it is sent only to this machine, unless
    `allow_plain_http` is set; for other addresses, this raises `ValueError`.

    `transport` replaces the transport, for example with an `httpx.HTTPTransport` that has a proxy,
    other certificates or a Unix socket. The client closes it.
    """

    def __init__(
        self,
        base_url: str,
        *,
        token: TokenSource | None = None,
        tries: int = 10,
        timeout_s: float = 15.0,
        connections: int = 64,
        allow_plain_http: bool = False,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self._address = Address(base_url)
        self._tries = tries
        self._timeout_s = timeout_s
        self._credentials: Credentials[str] = Credentials(base_url, token, allow_plain_http)
        self._asking = threading.Lock()
        self._closed = threading.Event()
        self._sockets = Sockets()
        self._streams: weakref.WeakSet[SyncStream] = weakref.WeakSet()
        self._transport = transport or self._new_transport(connections)
        self._stream_transport = transport or self._new_transport(None)

    def _new_transport(self, connections: int | None) -> httpx.BaseTransport:
        context, limits = self._address.transport_options(connections)
        return httpx.HTTPTransport(verify=context, limits=limits)

    def __repr__(self) -> str:
        return f"SyncChatClient({self._address.base_url!r})"

    def __enter__(self) -> SyncChatClient:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close all streams and connections. New requests and open ones raise `ClientClosed`.

        An open request may or may not be carried out. Any thread may call this. A signal handler
        starts a thread for it, because the code that it interrupts may hold a lock.
        """
        self._closed.set()
        self._sockets.shut_down()
        for stream in list(self._streams):
            stream.close()
        self._transport.close()
        self._stream_transport.close()

    def post(
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
        out, post again with the key in the error.
        """
        draft = Draft(username, text, timeout_s, delay_s)
        return self._run(calls.post(draft, key, receipt, self._tries))

    def post_batch(
        self, drafts: Iterable[AnyDraft], *, key: str | None = None, receipt: bool = False
    ) -> list[Posted | ChatError]:
        """Store messages in order, and return the result or the error of each, in the same order.

        Messages are sent in batches, and each is stored once. All calls with the same `key` and the
        same drafts together store each message once. Raises no `ChatError`: the errors in the
        result include `OutcomeUnknown` and `ServiceUnavailable`.
        """
        return self._run(calls.post_batch(drafts, key, receipt, self._tries))

    def read(
        self, username: str, limit: int | None = None, *, key: str | None = None
    ) -> list[Message]:
        """Read unread messages, oldest first. This consumes them.

        Return at most about 1000 messages; read again for more. The read has a key and is retried
        with it, so a lost answer loses no messages. Raise `OutcomeUnknown` if the retries fail as
        well: for a minute, another read with the `key` in the error returns the messages. Your own
        key must have at least 22 characters that cannot be guessed.
        """
        return self._run(calls.read(username, limit, 0.0, key, self._tries))

    def wait(
        self,
        username: str,
        timeout_s: float,
        limit: int | None = None,
        *,
        key: str | None = None,
    ) -> list[Message]:
        """Read as soon as there is a message. Return [] after `timeout_s`, which may be `math.inf`.

        This repeats long polls. See `read` for the errors.
        """
        return self._run(calls.read(username, limit, timeout_s, key, self._tries))

    def count(self, username: str) -> int:
        """Return the number of unread messages. Changes nothing.

        The service counts up to `COUNT_MAX`. If there are more, return `COUNT_MAX + 1`. Leased and
        scheduled messages do not count.
        """
        return self._run(calls.count(username, self._tries))

    def dead_letter_inbox(self, username: str) -> str | None:
        """Return the name of the inbox that takes the dead letters of this one.

        Return None if the service is too old to have dead letters.
        """
        return self._run(calls.dead_letter_inbox(username, self._tries))

    def lease(
        self,
        username: str,
        ttl_s: float = 30.0,
        limit: int | None = None,
        wait_s: float = 0.0,
    ) -> SyncLease:
        """Lease unread messages for `ttl_s`. Unless acknowledged by then, they become unread again.

        Lease few messages, such as `limit=1`: if the process is killed, all of them count as
        delivered. Use the result with `with`. Wait up to `wait_s` for a first message, which may be
        `math.inf`. The lease may be empty. If the answer is lost, messages may stay leased until
        the lease ends. Raise `OutcomeUnknown` if that may have happened and all tries failed.
        """
        return SyncLease(self, self._run(calls.lease(username, ttl_s, limit, wait_s, self._tries)))

    def acknowledge(self, username: str, lease: str, ids: str | Iterable[str] | None = None) -> int:
        """Acknowledge messages of any lease, by its name, and return how many are acknowledged.

        Without `ids`, acknowledge all its messages. Raise `LeaseOver` if any message is lost. See
        `SyncLease.acknowledge`.
        """
        return self._run(calls.settle(username, lease, "ack", ids, self._tries))

    def release(
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
        `deliveries` then. Return 0 if the lease has already ended. See `SyncLease.release`.
        """
        flow = calls.release(username, lease, ids, delivered, delay_s, self._tries)
        return self._run(flow)

    def extend(self, username: str, lease: str, ttl_s: float) -> float:
        """Extend any lease, by its name, and return the duration that is granted.

        See `SyncLease.extend`.
        """
        return self._run(calls.extend(username, lease, ttl_s, self._tries))

    def stream(self, username: str) -> SyncStream:
        """Return an iterator over the unread messages and then new ones.

        It reconnects when the service restarts. 10 s after the service wrote a message to a
        connection that is still open, it counts the message as read, even if it is not handled yet.
        For work that takes longer and must not be lost, use `lease`.
        """
        self._check_open()
        stream = SyncStream(self, username)
        self._streams.add(stream)
        return stream

    def status(self, message_id: str, receipt: str) -> Status:
        """Return the status of a message. Raise `ProblemError` (404) if the receipt is wrong."""
        return self._run(calls.status(message_id, receipt, self._tries))

    def revoke(self, message_id: str, receipt: str) -> bool:
        """Revoke a message that is unread or scheduled. Return False if it is too late for that.

        It is too late if the message is read, leased, expired or a dead letter. Raise
        `ProblemError` (404) if the receipt is wrong, and `OutcomeUnknown` if all tries failed.
        Then, it is safe to repeat the call.
        """
        return self._run(calls.revoke(message_id, receipt, self._tries))

    def _run(self, flow: Flow[T]) -> T:
        return run(flow, self._perform)

    def _perform(self, step: Step) -> object:
        if isinstance(step, Exchange):
            return self._exchange(step)
        if isinstance(step, Pause):
            self._closed.wait(step.seconds)
            return None
        return self._authorize(step.refused)

    def _authorize(self, refused: str | None) -> str | None:
        if self._credentials.ask is None:
            return self._credentials.header()
        with self._asking:
            # Another thread may have asked meanwhile.
            header = self._credentials.header(refused)
            if header is None:
                with asking():
                    header = self._credentials.take(self._credentials.ask())
            return header

    def _exchange(self, step: Exchange) -> Answer:
        self._check_open()
        answer_s = step.request.wait_s + self._timeout_s
        request = self._address.build(step.request, step.authorization, answer_s)
        if step.request.wait_s:
            request.extensions["trace"] = self._sockets.trace
        body = []
        try:
            response = self._transport.handle_request(request)
            self._sockets.add(response.extensions.get("network_stream"))
            # From here on: the request may have waited for a free connection.
            give_up_at = time.monotonic() + self._timeout_s
            # The stream itself, because the methods of the response take longer.
            stream = response.stream
            assert isinstance(stream, httpx.SyncByteStream)
            try:
                for chunk in stream:
                    body.append(chunk)
                    if time.monotonic() > give_up_at:
                        raise httpx.ReadTimeout("")
            finally:
                stream.close()
        except httpx.TransportError as error:
            if self._closed.is_set():
                raise ClientClosed from None
            raise self._address.not_answered(error) from error
        return Answer(response.status_code, response.headers, b"".join(body))

    def _check_open(self) -> None:
        if self._closed.is_set():
            raise ClientClosed


def run(flow: Generator[S, Any, T], perform: Callable[[S], object]) -> T:
    """Run a flow to its end and return its result. `perform` takes each step."""
    try:
        step = next(flow)
        while True:
            try:
                result = perform(step)
            except (NotAnswered, ChatError, ClientClosed, ValueError) as error:
                step = flow.throw(error)
            else:
                step = flow.send(result)
    except StopIteration as end:
        value: T = end.value
        return value
    finally:
        flow.close()


class SyncLease:
    """Leased messages of one inbox. No other reader receives them until the lease ends.

    In a `with` block, a thread extends the lease until the block ends. Then, the messages that you
    have received from the iteration or from `messages` are acknowledged, and `LeaseOver` is raised
    if any of them is lost. The others are released, as after a `break`. If the block raises, all
    are released. If the lease is lost during the block, for example because the service could not
    be reached, the block goes on: `check` and the iteration over the lease raise `LeaseOver`. An
    empty lease can be used in the same way, and sends no requests.

    Only messages in hand count as delivered if they are released, so only they can become dead
    letters: the one that the iteration returned last, since you were done with those before it. If
    the iteration has ended, if `messages` was used, or if you acknowledge messages one by one, all
    are in hand that you have received and that are not acknowledged.
    """

    def __init__(self, client: SyncChatClient, grant: Grant) -> None:
        self._client = client
        self._held = HeldLease(grant)
        self._keeper: threading.Thread | None = None
        self._is_ending = threading.Event()
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
        return f"SyncLease({self.name!r}, ttl_s={self.ttl_s}, messages={self._held.size})"

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

    def acknowledge(self, ids: str | Iterable[str] | None = None) -> int:
        """Acknowledge these messages, or all that it still holds, and return how many are.

        Raise `LeaseOver` if any of them is lost; it lists the acknowledged and the lost ones. Raise
        `OutcomeUnknown` or `ServiceUnavailable` if all tries failed. Then, it is safe to repeat the
        call.
        """
        return self._client._run(self._held.acknowledge(ids, self._client._tries))

    def release(
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
        Raise `OutcomeUnknown` or `ServiceUnavailable` if all tries failed. Then, the messages
        become unread at the latest when the lease ends.
        """
        flow = self._held.release(ids, delivered, delay_s, self._client._tries)
        return self._client._run(flow)

    def extend(self, ttl_s: float) -> float:
        """Extend the lease to `ttl_s` from now, and return the duration that the service grants.

        Raise `LeaseOver`, `OutcomeUnknown`, `ServiceUnavailable` or `ProblemError`. Then, it is
        safe to repeat the call.
        """
        return self._client._run(self._held.extend(ttl_s, self._client._tries))

    def __enter__(self) -> SyncLease:
        if self.name is not None:
            self._keeper = threading.Thread(target=self._keep, name="chat-inbox lease", daemon=True)
            self._keeper.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._is_ending.set()
        try:
            if error is None:
                self._client._run(self._held.end(self._client._tries))
                return
            # If this fails, the messages become unread when the lease ends.
            with suppress(ChatError, ClientClosed):
                # Try once: an exception should not wait for an unavailable service.
                self._client._run(self._held.release(None, None, None, 1))
        finally:
            if self._keeper is not None:
                self._keeper.join()

    def _keep(self) -> None:
        with suppress(_Ending):
            run(self._held.keep(), self._perform)

    def _perform(self, step: Step) -> object:
        if isinstance(step, Pause):
            if self._is_ending.wait(step.seconds):
                raise _Ending
            return None
        return self._client._perform(step)


class _Ending(Exception):
    """The block of a lease is ending."""


class SyncStream(Iterator[Message]):
    """An iterator over the messages of one inbox, for one consumer.

    A message counts as handled, and is acknowledged, when the next one is requested. The stream
    never returns a handled message again. If the consumer stops after a message, that message
    becomes unread when the stream is closed: by `close`, by the end of its `with` block, or by
    garbage collection.
    """

    def __init__(self, client: SyncChatClient, username: str) -> None:
        self._client = client
        # First, for `__del__`: the name may be refused.
        self._connection: _Connection | None = None
        self._subscription = Subscription(username)
        self._closed = threading.Event()

    def __iter__(self) -> SyncStream:
        return self

    def __next__(self) -> Message:
        """Acknowledge the previous message, then wait for the next one without a time limit.

        Reconnect while the service is unavailable. Raise `ProblemError` if the service refuses
        permanently, and `StopIteration` once the stream is closed. After `TokenUnavailable`, no
        message is lost and the iteration can continue.
        """
        message = self._run(self._subscription.next())
        if message is None:
            raise StopIteration
        return message

    def acknowledge(self) -> None:
        """Acknowledge the previous message without requesting another one.

        Call this before closing the stream if its last message has been handled. If it fails, the
        message is delivered again.
        """
        self._run(self._subscription.acknowledge())

    def close(self) -> None:
        """Close the stream. Messages that are not acknowledged become unread soon.

        Another thread may call this; the thread that waits for a message then ends its iteration.
        """
        self._subscription.is_closed = True
        self._closed.set()
        if self._connection is not None:
            self._connection.close()

    def __enter__(self) -> SyncStream:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __del__(self) -> None:
        # A consumer that left its loop must not keep messages that it will never read.
        if self._connection is not None:
            self._connection.close()

    def _run(self, flow: StreamFlow[T]) -> T:
        return run(flow, self._perform)

    def _perform(self, step: StreamStep) -> object:
        if isinstance(step, Open):
            request = self._client._address.build(step.request, step.authorization, SILENCE_S)
            self._client._check_open()
            self._connection = _Connection(self._client._stream_transport, request, step.feed)
            return None
        if isinstance(step, Receive):
            assert self._connection is not None
            self._connection.receive()
            return None
        if isinstance(step, Pause):
            return self._closed.wait(step.seconds)
        return self._client._perform(step)


class _Connection:
    """One connection, which is read into its feed by the thread of the consumer."""

    def __init__(self, transport: httpx.BaseTransport, request: httpx.Request, feed: Feed) -> None:
        self._transport = transport
        self._request = request
        self._feed = feed
        self._response: httpx.Response | None = None
        self._chunks: Iterator[bytes] = iter(())
        self._is_closed = False
        # Held by the thread that reads.
        self._reading = threading.Lock()

    def receive(self) -> None:
        """Wait for the head, for data or for the end of the connection."""
        with self._reading:
            if not self._is_closed:
                self._receive()
        if self._is_closed:
            self._feed.is_over = True
            self.close()

    def _receive(self) -> None:
        try:
            if self._response is None:
                self._response = self._transport.handle_request(self._request)
                self._feed.begin(self._response.status_code, self._response.headers)
                self._chunks = self._response.iter_raw()
                is_over = False
            else:
                chunk = next(self._chunks, None)
                is_over = chunk is None or not self._feed.take(chunk)
        except httpx.TransportError as error:
            log.debug("the connection of a stream ended: %s", not_answered(error))
            is_over = True
        if is_over:
            self._feed.is_over = True
            if self._response is not None:
                self._response.close()

    def close(self) -> None:
        """Close the connection, also while another thread reads from it."""
        self._is_closed = True
        if not self._reading.acquire(blocking=False):
            self._wake()
            return
        try:
            if self._response is not None:
                self._response.close()
        finally:
            self._reading.release()

    def _wake(self) -> None:
        """Wake the thread that reads, which then closes the connection."""
        response = self._response
        stream = None if response is None else response.extensions.get("network_stream")
        if stream is not None:
            shut_down(stream)
