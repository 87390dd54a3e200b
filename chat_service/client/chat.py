"""The client itself: everything that a user of the service can ask of it.

Times are in seconds. What every method may raise besides what it says: `ProblemError` where the
service refuses, `ServiceUnavailable` where it could not be asked; both of
`chat_service.client.errors`.
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

from chat_service.client.errors import (
    ChatError,
    LeaseOver,
    ProblemError,
    giving_up,
    problem_in,
    understanding,
)
from chat_service.client.http import Answer, Http, Request, pause_s
from chat_service.client.lease import Lease, end, extend
from chat_service.client.message import Message, messages_of
from chat_service.client.stream import Stream
from chat_service.client.waiting import Asked, granted, until

#: Unread messages are counted so far.
COUNT_MAX = 10_000
#: What a read was given is known by its key for a minute; a repeat must arrive before. In seconds.
_REPEAT_WITHIN_S = 45.0
#: The service takes so much in one batch.
_BATCH_MESSAGES, _BATCH_BYTES = 500, 4 << 20
_LEASE_S = 30.0
#: The longest key that the service takes, in characters; one that leaves no room for a number.
_KEY_MAX, _HASHED_FROM = 255, 246
_BETWEEN = b",\n"


class Posted(NamedTuple):
    """A message that is stored. `receipt` is there where one was asked for."""

    id: str
    receipt: str | None = None


class Draft(NamedTuple):
    """A message to be posted; it lives for `timeout_s`, or as long as the service thinks."""

    username: str
    text: str
    timeout_s: int | None = None

    def body(self) -> bytes:
        """What is posted for it."""
        fields: dict[str, Any] = {"text": self.text, "username": self.username}
        if self.timeout_s is not None:
            fields["timeout"] = self.timeout_s
        return json.dumps(fields).encode()


Fate: TypeAlias = Literal["pending", "leased", "read", "expired", "revoked"]


class Status(NamedTuple):
    """What became of a message, and when, once it has come to its end."""

    status: Fate
    at: datetime | None


class ChatClient:
    """A client of one service; an async context manager.

    What is safe to repeat is asked `tries` times, with growing random pauses. It has at most
    `connections` requests open at the same time, streams not counted: long waits hold one each.
    `base_url` is where the service is, such as `http://127.0.0.1:8080`.
    """

    def __init__(self, base_url: str, *, tries: int = 10, connections: int = 64) -> None:
        self._service = Http(base_url, tries, connections)
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
        """Close its streams. What else is open goes to its end; no more can be asked."""
        self._is_closed = True
        await asyncio.gather(*(stream.aclose() for stream in list(self._streams)))

    @property
    def _http(self) -> Http:
        if self._is_closed:
            raise RuntimeError("this ChatClient is closed: make another, or ask within its block")
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
        """Store a message, once: with `key`, once for all posts with it.

        With `receipt` it comes back with what `status` and `revoke` ask for. Raises
        `OutcomeUnknown` where it may be stored; its key, used again, settles it. Cancelled, it may
        be stored or not: name a key where that matters.
        """
        key = _new_key() if key is None else key
        headers = _post_headers(key, receipt)
        body = Draft(username, text, timeout_s).body()
        answer = await self._http.ask(Request("POST", "/chat", body, headers, key=key))
        with understanding():
            return Posted(str(answer.document()["id"]), answer.headers.get("X-Receipt"))

    async def post_many(
        self,
        drafts: Iterable[Draft | tuple[str, str] | tuple[str, str, int | None]],
        *,
        key: str | None = None,
        receipt: bool = False,
    ) -> list[Posted | ChatError]:
        """Store many messages; for each in its place that it is stored, or why it is not.

        They go in batches, in order, each message once: with `key`, once for all calls with it and
        the same drafts. Raises nothing: an error is that of its message, `OutcomeUnknown` and
        `ServiceUnavailable` included. Cancelled, any of them may be stored: name a key where that
        matters.
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
        """Take what is unread, oldest first: about 1000 messages at most, then read again.

        With `wait_s` the service waits so long for a first one, 25 s at most. An answer that is
        lost loses nothing: the read has a key, and is repeated with it. Raises `OutcomeUnknown`
        where that did not help; what was taken stays with its `key` for a minute, and is given to
        a read that names it. So it does when cancelled: name a key of 22 characters or more that
        nobody can guess where that matters.
        """
        return (await self._read(username, limit, wait_s, key)).result

    async def _read(
        self, username: str, limit: int | None, wait_s: float, key: str | None
    ) -> Asked[list[Message]]:
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
        answer = await self._http.ask(request)
        with understanding():
            messages = messages_of(answer.document())
        return Asked(messages, bool(messages), granted(answer, wait_s))

    async def wait(
        self,
        username: str,
        timeout_s: float,
        limit: int | None = None,
        *,
        key: str | None = None,
    ) -> list[Message]:
        """Read as soon as there is a message; nothing when the time is over. `math.inf` is long.

        Asks again and again, each time as `read` does, which see for what it raises and for what
        becomes of it when cancelled.
        """
        return await until(timeout_s, lambda wait_s: self._read(username, limit, wait_s, key))

    async def count(self, username: str) -> int:
        """How many messages are unread. Changes nothing.

        The service counts up to `COUNT_MAX`. If there are more, this is one more than that.
        """
        answer = await self._http.ask(Request("HEAD", _inbox(username)))
        with understanding():
            said = answer.headers["X-Unread-Count"]
            return COUNT_MAX + 1 if said.startswith(">") else int(said)

    async def lease(
        self,
        username: str,
        ttl_s: float = _LEASE_S,
        limit: int | None = None,
        wait_s: float = 0.0,
    ) -> Lease:
        """Take what is unread on loan for `ttl_s`: it is unread again unless acknowledged by then.

        WaitLimits for a first message as `read` does; the lease may hold none. An answer that is
        lost,
        or a cancellation, leaves messages on loan until the lease is over, so they come later.
        Raises `OutcomeUnknown` where that may be so and the tries are used up.
        """
        return (await self._lease(username, ttl_s, limit, wait_s)).result

    async def wait_lease(
        self,
        username: str,
        timeout_s: float,
        ttl_s: float = _LEASE_S,
        limit: int | None = None,
    ) -> Lease:
        """Take a lease as soon as there is a message; one of nothing when the time is over.

        As `lease`, asked again and again.
        """
        return await until(timeout_s, lambda wait_s: self._lease(username, ttl_s, limit, wait_s))

    async def _lease(
        self, username: str, ttl_s: float, limit: int | None, wait_s: float
    ) -> Asked[Lease]:
        inbox = _inbox(username)
        path = f"{inbox}/lease{_query(ttl=ttl_s, limit=limit, wait=wait_s)}"
        answer = await self._http.ask(Request("POST", path, b"", wait_s=wait_s))
        with understanding():
            taken = answer.document()
            lease = Lease(
                self._http,
                inbox,
                taken["lease"],
                float(taken["ttl"]),
                messages_of(taken["messages"]),
                answer.headers.get("X-More") == "true",
            )
        return Asked(lease, lease.name is not None, granted(answer, wait_s))

    async def acknowledge(self, username: str, lease: str, ids: Iterable[str] | None = None) -> int:
        """Mark messages of a lease that somebody took as read, all or these; how many are.

        Raises `LeaseOver` if any of them is lost. As `Lease.acknowledge`, by the lease's name.
        """
        return await end(self._http, _inbox(username), lease, "ack", ids)

    async def release(self, username: str, lease: str, ids: Iterable[str] | None = None) -> int:
        """Make messages of a lease that somebody took unread again, all or these; how many.

        0 where the lease is over anyway. As `Lease.release`, by the lease's name.
        """
        try:
            return await end(self._http, _inbox(username), lease, "release", ids)
        except LeaseOver:
            return 0

    async def extend(self, username: str, lease: str, ttl_s: float) -> float:
        """Have a lease that somebody took end so many seconds from now; how many are granted.

        As `Lease.extend`, by the lease's name.
        """
        return await extend(self._http, _inbox(username), lease, ttl_s)

    def stream(self, username: str) -> Stream:
        """What is unread and what comes, for an `async for`, over restarts of the service.

        The service takes for read what it wrote 10 s ago to a connection that is still open,
        handled or not. For work that takes longer and has to be done, use `lease`.
        """
        stream = Stream(self._http, _inbox(username))
        self._streams.add(stream)
        return stream

    async def status(self, message_id: str, receipt: str) -> Status:
        """What became of a message. `ProblemError` 404 where the receipt is not its own."""
        path = f"/messages/{quote(message_id, safe='')}/status"
        answer = await self._http.ask(Request("GET", path, headers={"X-Receipt": receipt}))
        with understanding():
            fate = answer.document()
            at = fate["at"]
            return Status(fate["status"], None if at is None else datetime.fromisoformat(at))

    async def revoke(self, message_id: str, receipt: str) -> bool:
        """Take back a message that is unread; False where it is read, on loan or expired.

        `ProblemError` 404 where the receipt is not its own. Raises `OutcomeUnknown`; may be
        repeated then, and when cancelled.
        """
        path = f"/messages/{quote(message_id, safe='')}"
        try:
            answer = await self._http.ask(Request("DELETE", path, headers={"X-Receipt": receipt}))
        except ProblemError as problem:
            if problem.kind != "too-late":
                raise
            return False
        with understanding():
            if answer.status != 204:
                raise ValueError(f"revoking answered {answer.status}")
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
            results = _results(await self._http.ask(request))
            if tried == self._http.tries or not any(_is_passing(each) for each in results):
                return [_final(each, key) for each in results]
            # The whole batch again: what is stored by now is not stored twice.
            await asyncio.sleep(pause_s(tried, 1.0))


def _results(answer: Answer) -> list[Posted | ChatError]:
    with understanding():
        return [
            problem_in(each["error"], each["error"]["status"])
            if "error" in each
            else Posted(each["id"], each.get("receipt"))
            for each in answer.document()["results"]
        ]


def _is_passing(result: Posted | ChatError) -> bool:
    return isinstance(result, ProblemError) and result.is_passing


def _final(result: Posted | ChatError, key: str) -> Posted | ChatError:
    """A result after the last try."""
    if isinstance(result, ProblemError) and result.is_passing:
        return giving_up(str(result), result.is_unclear, key, result)
    return result


def _batches(bodies: Iterable[bytes]) -> Iterator[list[bytes]]:
    """As few batches as the service takes."""
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
    """The key of a call's batch of this number. A long one is hashed: the service takes only 255
    characters, and those that it refuses shall be refused for what they are.
    """
    if _HASHED_FROM <= len(key) <= _KEY_MAX and key.isascii() and key.isprintable():
        key = hashlib.sha256(key.encode()).hexdigest()
    return f"{key}.{number}" if key else key


def _inbox(username: str) -> str:
    return f"/chat/{quote(username, safe='')}"


def _query(**parameters: float | None) -> str:
    """A query string of those that are not None; seconds as the service reads them."""
    fields = [
        f"{name}={value if isinstance(value, int) else format(value, '.3f')}"
        for name, value in parameters.items()
        if value is not None
    ]
    return "?" + "&".join(fields) if fields else ""


def _new_key() -> str:
    return secrets.token_urlsafe(24)
