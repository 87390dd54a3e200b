"""The client: one method per request of the API.

Times are in seconds. Besides the errors that its documentation lists, every method may raise
`ProblemError` if the service refuses the request, and `ServiceUnavailable` if it cannot be reached.
Subclasses of `ProblemError` tell a missing token (`Unauthorized`), a missing right (`Forbidden`)
and a limit (`RateLimited`, `InboxFull`) apart. All are defined in `chat_service.client.errors`.
"""

import asyncio
import hashlib
import json
import secrets
import weakref
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from types import TracebackType
from typing import Any, Literal, NamedTuple, TypeAlias
from urllib.parse import quote

from chat_service.client.credentials import TokenSource
from chat_service.client.errors import (
    ChatError,
    LeaseOver,
    ProblemError,
    final_error,
    problem_from,
    reading_answer,
)
from chat_service.client.http import Answer, Http, Request, pause_s
from chat_service.client.lease import Lease, extend, settle
from chat_service.client.message import Message, messages_of
from chat_service.client.stream import Stream
from chat_service.client.waiting import Polled, granted, poll_until

#: The service counts unread messages up to this number.
COUNT_MAX = 10_000
#: A keyed read can be repeated for a minute. The client stops earlier, after this many seconds.
_REPEAT_WITHIN_S = 45.0
#: The largest batch that the service accepts.
_BATCH_MESSAGES, _BATCH_BYTES = 500, 4 << 20
_LEASE_S = 30.0
#: The longest key that the service accepts, and the shortest one without room for a batch number,
#: in characters.
_KEY_MAX, _HASHED_FROM = 255, 246
_BETWEEN = b",\n"


class Posted(NamedTuple):
    """A stored message. `receipt` is None unless one was requested."""

    id: str
    receipt: str | None = None


class Draft(NamedTuple):
    """A message to post. Without `timeout_s`, the service sets the lifetime."""

    username: str
    text: str
    timeout_s: int | None = None

    def body(self) -> bytes:
        """Return the JSON that is posted for it."""
        fields: dict[str, Any] = {"text": self.text, "username": self.username}
        if self.timeout_s is not None:
            fields["timeout"] = self.timeout_s
        return json.dumps(fields).encode()


MessageStatus: TypeAlias = Literal["pending", "leased", "read", "expired", "revoked"]


class Status(NamedTuple):
    """The status of a message, and when it was read, expired or revoked."""

    status: MessageStatus
    at: datetime | None


class ChatClient:
    """A client for one service, usable as an async context manager.

    `base_url` is the address of the service, such as `http://127.0.0.1:8080`. Requests that are
    safe to repeat are tried up to `tries` times, with growing random pauses. At most `connections`
    requests are open at the same time. A long poll counts as one; streams do not count.

    `token` is sent with every request: a token, or an async function that returns one. The function
    is called once, and again when the service refuses what it returned; if it raises, the request
    raises `TokenUnavailable`. The token is in no error, no `repr` and no log line, and is never
    sent to another origin. Over plain HTTP it is sent only to this machine, unless
    `allow_plain_http` is set; for other addresses, this raises `ValueError`.
    """

    def __init__(
        self,
        base_url: str,
        *,
        tries: int = 10,
        connections: int = 64,
        token: TokenSource | None = None,
        allow_plain_http: bool = False,
    ) -> None:
        self._service = Http(base_url, tries, connections, token, allow_plain_http=allow_plain_http)
        self._is_closed = False
        self._streams: weakref.WeakSet[Stream] = weakref.WeakSet()

    async def __aenter__(self) -> "ChatClient":
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close all streams. Other open requests continue; new ones raise RuntimeError."""
        self._is_closed = True
        await asyncio.gather(*(stream.aclose() for stream in list(self._streams)))

    @property
    def _http(self) -> Http:
        if self._is_closed:
            raise RuntimeError("this ChatClient is closed; create another, or use it in its block")
        return self._service

    async def post(
        self,
        username: str,
        text: str,
        timeout_s: int | None = None,
        *,
        key: str | None = None,
        receipt: bool = False,
    ) -> Posted:
        """Store a message once, even if the request is retried.

        All posts with the same `key` together store one message. With `receipt`, the result has the
        receipt that `status` and `revoke` need. Raise `OutcomeUnknown` if the message may or may
        not be stored; to find out, post again with the key in the error. If this is cancelled, the
        message may or may not be stored; pass a key if that matters.
        """
        key = _new_key() if key is None else key
        headers = _post_headers(key, receipt)
        body = Draft(username, text, timeout_s).body()
        answer = await self._http.send(Request("POST", "/chat", body, headers, key=key))
        with reading_answer():
            return Posted(str(answer.document()["id"]), answer.headers.get("X-Receipt"))

    async def post_many(
        self,
        drafts: Iterable[Draft | tuple[str, str] | tuple[str, str, int | None]],
        *,
        key: str | None = None,
        receipt: bool = False,
    ) -> list[Posted | ChatError]:
        """Store messages in order, and return the result or the error of each, in the same order.

        Messages are sent in batches, and each is stored once. All calls with the same `key` and the
        same drafts together store each message once. Never raises: the errors in the result
        include `OutcomeUnknown` and `ServiceUnavailable`. If this is cancelled, any of the messages
        may be stored; pass a key if that matters.
        """
        key = _new_key() if key is None else key
        results: list[Posted | ChatError] = []
        for number, bodies in enumerate(_batches([Draft(*each).body() for each in drafts])):
            try:
                results += await self._post_batch(bodies, key, number, receipt)
            except ChatError as error:
                results += [error] * len(bodies)
        return results

    async def read(
        self,
        username: str,
        limit: int | None = None,
        wait_s: float = 0.0,
        *,
        key: str | None = None,
    ) -> list[Message]:
        """Read unread messages, oldest first. This consumes them.

        Return at most about 1000 messages; read again for more. With `wait_s`, the service waits
        that long for a first message, up to 25 s. The read has a key and is retried with it, so a
        lost answer loses no messages. Raise `OutcomeUnknown` if the retries fail as well: for a
        minute, another read with the `key` in the error returns the messages. The same holds if
        this is cancelled; if that matters, pass a key of at least 22 characters that cannot be
        guessed.
        """
        return (await self._read(username, limit, wait_s, key)).result

    async def _read(
        self, username: str, limit: int | None, wait_s: float, key: str | None
    ) -> Polled[list[Message]]:
        key = _new_key() if key is None else key
        request = Request(
            "POST",
            f"{_inbox(username)}/read{_query(limit=limit, wait=wait_s)}",
            b"",
            {"Idempotency-Key": key},
            wait_s,
            _REPEAT_WITHIN_S,
            key,
        )
        answer = await self._http.send(request)
        with reading_answer():
            messages = messages_of(answer.document())
        return Polled(messages, bool(messages), granted(answer, wait_s))

    async def wait(
        self,
        username: str,
        timeout_s: float,
        limit: int | None = None,
        *,
        key: str | None = None,
    ) -> list[Message]:
        """Read as soon as there is a message. Return [] after `timeout_s`, which may be `math.inf`.

        This repeats long polls with `read`, which describes the errors and the effect of a
        cancellation.
        """
        return await poll_until(timeout_s, lambda wait_s: self._read(username, limit, wait_s, key))

    async def count(self, username: str) -> int:
        """Return the number of unread messages. Changes nothing.

        The service counts up to `COUNT_MAX`. If there are more, return `COUNT_MAX + 1`.
        """
        answer = await self._http.send(Request("HEAD", _inbox(username)))
        with reading_answer():
            unread = answer.headers["X-Unread-Count"]
            return COUNT_MAX + 1 if unread.startswith(">") else int(unread)

    async def lease(
        self,
        username: str,
        ttl_s: float = _LEASE_S,
        limit: int | None = None,
        wait_s: float = 0.0,
    ) -> Lease:
        """Lease unread messages for `ttl_s`. Unless acknowledged by then, they become unread again.

        With `wait_s`, wait for a first message as `read` does. The lease may be empty. If the
        answer is lost or this is cancelled, messages may stay leased until the lease ends. Raise
        `OutcomeUnknown` if that may have happened and all tries failed.
        """
        return (await self._lease(username, ttl_s, limit, wait_s)).result

    async def wait_lease(
        self,
        username: str,
        timeout_s: float,
        ttl_s: float = _LEASE_S,
        limit: int | None = None,
    ) -> Lease:
        """Lease as soon as there is a message. Return an empty lease after `timeout_s`.

        This repeats long polls with `lease`.
        """
        return await poll_until(
            timeout_s, lambda wait_s: self._lease(username, ttl_s, limit, wait_s)
        )

    async def _lease(
        self, username: str, ttl_s: float, limit: int | None, wait_s: float
    ) -> Polled[Lease]:
        inbox = _inbox(username)
        path = f"{inbox}/lease{_query(ttl=ttl_s, limit=limit, wait=wait_s)}"
        answer = await self._http.send(Request("POST", path, b"", wait_s=wait_s))
        with reading_answer():
            taken = answer.document()
            lease = Lease(
                self._http,
                inbox,
                taken["lease"],
                float(taken["ttl"]),
                messages_of(taken["messages"]),
                answer.headers.get("X-More") == "true",
            )
        return Polled(lease, lease.name is not None, granted(answer, wait_s))

    async def acknowledge(self, username: str, lease: str, ids: Iterable[str] | None = None) -> int:
        """Acknowledge messages of any lease, by its name, and return how many are acknowledged.

        Without `ids`, acknowledge all its messages. Raise `LeaseOver` if any message is lost. See
        `Lease.acknowledge`.
        """
        return await settle(self._http, _inbox(username), lease, "ack", ids)

    async def release(self, username: str, lease: str, ids: Iterable[str] | None = None) -> int:
        """Release messages of any lease, by its name, and return how many are unread then.

        Without `ids`, release all its messages. Return 0 if the lease has already ended. See
        `Lease.release`.
        """
        try:
            return await settle(self._http, _inbox(username), lease, "release", ids)
        except LeaseOver:
            return 0

    async def extend(self, username: str, lease: str, ttl_s: float) -> float:
        """Extend any lease, by its name, and return the duration that is granted.

        See `Lease.extend`.
        """
        return await extend(self._http, _inbox(username), lease, ttl_s)

    def stream(self, username: str) -> Stream:
        """Return an iterator over the unread messages and then new ones, for `async for`.

        It reconnects when the service restarts. 10 s after the service wrote a message to a
        connection that is still open, it counts the message as read, even if it is not handled yet.
        For work that takes longer and must not be lost, use `lease`.
        """
        stream = Stream(self._http, _inbox(username))
        self._streams.add(stream)
        return stream

    async def status(self, message_id: str, receipt: str) -> Status:
        """Return the status of a message. Raise `ProblemError` (404) if the receipt is wrong."""
        path = f"/messages/{quote(message_id, safe='')}/status"
        answer = await self._http.send(Request("GET", path, headers={"X-Receipt": receipt}))
        with reading_answer():
            document = answer.document()
            at = document["at"]
            return Status(document["status"], None if at is None else datetime.fromisoformat(at))

    async def revoke(self, message_id: str, receipt: str) -> bool:
        """Revoke an unread message. Return False if it is read, leased or expired.

        Raise `ProblemError` (404) if the receipt is wrong, and `OutcomeUnknown` if all tries
        failed. Then, and after a cancellation, it is safe to repeat the call.
        """
        path = f"/messages/{quote(message_id, safe='')}"
        try:
            answer = await self._http.send(Request("DELETE", path, headers={"X-Receipt": receipt}))
        except ProblemError as problem:
            if problem.kind != "too-late":
                raise
            return False
        with reading_answer():
            if answer.status != 204:
                raise ValueError(f"DELETE was answered with {answer.status}")
        return True

    async def _post_batch(
        self, bodies: Sequence[bytes], key: str, number: int, receipt: bool
    ) -> list[Posted | ChatError]:
        body = b"[" + _BETWEEN.join(bodies) + b"]"
        headers = _post_headers(_numbered(key, number), receipt)
        request = Request("POST", "/chat/batch", body, headers, key=key)
        tried = 0
        while True:
            tried += 1
            results = _results(await self._http.send(request))
            if tried == self._http.tries or not any(_is_transient(each) for each in results):
                return [_final(each, key) for each in results]
            # Retry the whole batch. The key keeps messages from being stored twice.
            await asyncio.sleep(pause_s(tried, 1.0))


def _results(answer: Answer) -> list[Posted | ChatError]:
    with reading_answer():
        return [
            problem_from(each["error"], each["error"]["status"])
            if "error" in each
            else Posted(each["id"], each.get("receipt"))
            for each in answer.document()["results"]
        ]


def _is_transient(result: Posted | ChatError) -> bool:
    return isinstance(result, ProblemError) and result.is_transient


def _final(result: Posted | ChatError, key: str) -> Posted | ChatError:
    """Return a result after the last try: a transient problem becomes a final error."""
    if isinstance(result, ProblemError) and result.is_transient:
        return final_error(str(result), result.is_outcome_unknown, key, result)
    return result


def _batches(bodies: Iterable[bytes]) -> Iterator[list[bytes]]:
    """Yield the bodies in as few batches as the service accepts."""
    batch: list[bytes] = []
    size = 2
    for body in bodies:
        size += len(body) + len(_BETWEEN)
        if batch and (size > _BATCH_BYTES or len(batch) == _BATCH_MESSAGES):
            yield batch
            batch, size = [], 2 + len(body) + len(_BETWEEN)
        batch.append(body)
    if batch:
        yield batch


def _post_headers(key: str, receipt: bool) -> dict[str, str]:
    headers = {"Idempotency-Key": key}
    return headers | {"Prefer": "receipt"} if receipt else headers


def _numbered(key: str, number: int) -> str:
    """Return the key for a call's batch with this number.

    A valid key without room for the number is hashed first. Invalid keys are not hashed, so that
    the service still refuses them.
    """
    if _HASHED_FROM <= len(key) <= _KEY_MAX and key.isascii() and key.isprintable():
        key = hashlib.sha256(key.encode()).hexdigest()
    return f"{key}.{number}" if key else key


def _inbox(username: str) -> str:
    return f"/chat/{quote(username, safe='')}"


def _query(**parameters: float | None) -> str:
    """Return a query string of the parameters that are not None."""
    fields = [
        f"{name}={value if isinstance(value, int) else format(value, '.3f')}"
        for name, value in parameters.items()
        if value is not None
    ]
    return "?" + "&".join(fields) if fields else ""


def _new_key() -> str:
    return secrets.token_urlsafe(24)
