"""One flow for each request of the API: builds it, sends it, and reads the answer."""

from __future__ import annotations

import hashlib
import json
import secrets
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Optional, Union
from urllib.parse import quote, unquote

from chat_inbox.errors import (
    ChatError,
    Forbidden,
    LeaseOver,
    ProblemError,
    final_error,
    problem_from,
    reading_answer,
)
from chat_inbox.messages import (
    Delivered,
    Draft,
    Message,
    Posted,
    Status,
    delivered_of,
    messages_of,
    status_of,
)
from chat_inbox.sending import Polled, granted, pause_s, poll_until, send
from chat_inbox.steps import Answer, Flow, Pause, Request

#: The service counts unread messages up to this number.
COUNT_MAX = 10_000
#: A keyed read can be repeated for a minute. The client stops earlier, after this many seconds.
_REPEAT_WITHIN_S = 45.0
#: A lease is extended when this part of its duration has passed. Two more tries fit into the rest.
EXTEND_AFTER = 1 / 3
#: The largest batch that the service accepts.
_BATCH_MESSAGES, _BATCH_BYTES = 500, 4 << 20
#: The longest key that the service accepts, and the shortest one without room for a batch number,
#: in characters.
_KEY_MAX, _HASHED_FROM = 255, 246
_BETWEEN = b",\n"

Action = Literal["ack", "release"]
Result = Union[Posted, ChatError]
#: What `post_batch` takes: a draft, or a tuple of its first fields.
AnyDraft = Union[
    Draft,
    tuple[str, str],
    tuple[str, str, Optional[int]],
    tuple[str, str, Optional[int], Optional[float]],
]


def post(draft: Draft, key: str | None, receipt: bool, tries: int) -> Flow[Posted]:
    """Store a message once."""
    # Created before the first try, so that all tries have the same key.
    key = new_key() if key is None else key
    needs = right("send", draft.username)
    headers = _post_headers(key, receipt)
    request = Request("POST", "/chat", draft.body(), headers, key=key, needs=needs)
    answer = yield from send(request, tries)
    with reading_answer():
        return Posted(
            str(answer.document()["id"]),
            answer.headers.get("x-receipt"),
            answer.headers.get("idempotent-replayed") == "true",
        )


def post_batch(
    drafts: Iterable[AnyDraft], key: str | None, receipt: bool, tries: int
) -> Flow[list[Result]]:
    """Store messages in batches, each once, and return the result of each."""
    key = new_key() if key is None else key
    results: list[Result] = []
    for number, bodies in enumerate(_batches([Draft(*each).body() for each in drafts])):
        try:
            results += yield from _post_one_batch(bodies, key, number, receipt, tries)
        except ChatError as error:
            results += [error] * len(bodies)
    return results


def _post_one_batch(
    bodies: Sequence[bytes], key: str, number: int, receipt: bool, tries: int
) -> Flow[list[Result]]:
    body = b"[" + _BETWEEN.join(bodies) + b"]"
    headers = _post_headers(_numbered(key, number), receipt)
    request = Request("POST", "/chat/batch", body, headers, key=key)
    tried = 0
    while True:
        tried += 1
        results = _results(bodies, (yield from send(request, tries)))
        if tried == tries or not any(_is_transient(each) for each in results):
            return [_final(each, key) for each in results]
        # Retry the whole batch. The key keeps messages from being stored twice.
        yield Pause(pause_s(tried, 1.0))


def read(
    username: str, limit: int | None, timeout_s: float, key: str | None, tries: int
) -> Flow[list[Message]]:
    """Read unread messages, and wait for a first one for up to `timeout_s`."""
    key = new_key() if key is None else key

    def poll(wait_s: float) -> Flow[Polled[list[Message]]]:
        path = f"{inbox_path(username)}/read{_query(limit=limit, wait=wait_s or None)}"
        headers = {"Idempotency-Key": key}
        needs = right("read", username)
        request = Request("POST", path, b"", headers, wait_s, _REPEAT_WITHIN_S, key, needs)
        answer = yield from send(request, tries)
        with reading_answer():
            messages = messages_of(answer.document())
        return Polled(messages, bool(messages), granted(answer, wait_s))

    return (yield from poll_until(timeout_s, poll))


def count(username: str, tries: int) -> Flow[int]:
    """Return the number of unread messages."""
    answer = yield from _head(username, tries)
    with reading_answer():
        unread = answer.headers["x-unread-count"]
        return COUNT_MAX + 1 if unread.startswith(">") else int(unread)


def _head(username: str, tries: int) -> Flow[Answer]:
    request = Request("HEAD", inbox_path(username), needs=right("read", username))
    return (yield from send(request, tries))


def dead_letter_inbox(username: str, tries: int) -> Flow[str | None]:
    """Return the name of the inbox that takes the dead letters of this one, or None."""
    answer = yield from _head(username, tries)
    name = answer.headers.get("x-dead-letter-inbox")
    return None if name is None else unquote(name)


@dataclass(frozen=True)
class Grant:
    """A lease as the service granted it. `name` is None if there are no messages.

    `ends_at` is a time of `time.monotonic` at which the lease has not ended yet.
    """

    username: str
    name: str | None
    ttl_s: float
    ends_at: float
    messages: list[Delivered]
    more: bool


def lease(
    username: str, ttl_s: float, limit: int | None, timeout_s: float, tries: int
) -> Flow[Grant]:
    """Lease unread messages, and wait for a first one for up to `timeout_s`."""

    def poll(wait_s: float) -> Flow[Polled[Grant]]:
        path = f"{inbox_path(username)}/lease{_query(ttl=ttl_s, limit=limit, wait=wait_s or None)}"
        began = time.monotonic()
        request = Request("POST", path, b"", wait_s=wait_s, needs=right("read", username))
        answer = yield from send(request, tries)
        with reading_answer():
            taken = answer.document()
            ttl = float(taken["ttl"])
            grant = Grant(
                username,
                None if taken["lease"] is None else str(taken["lease"]),
                ttl,
                began + ttl,
                delivered_of(taken["messages"]),
                answer.headers.get("x-more") == "true",
            )
        # The lease began at some time of the wait, and only its beginning is certain.
        if grant.name is not None and time.monotonic() > began + ttl * EXTEND_AFTER:
            grant = yield from _confirmed(grant)
        return Polled(grant, grant.name is not None, granted(answer, wait_s))

    return (yield from poll_until(timeout_s, poll))


def _confirmed(grant: Grant) -> Flow[Grant]:
    """Extend a lease that may have begun long ago, so that its end is known.

    Returns an empty grant if the lease has already ended, and an unchanged one if the service does
    not say so.
    """
    assert grant.name is not None
    began = time.monotonic()
    try:
        ttl_s = yield from extend(grant.username, grant.name, grant.ttl_s, 1)
    except LeaseOver:
        return replace(grant, name=None, messages=[])
    except ChatError:
        return grant
    return replace(grant, ttl_s=ttl_s, ends_at=began + ttl_s)


def settle(
    username: str,
    name: str,
    action: Action,
    ids: str | Iterable[str] | None,
    tries: int,
    *,
    delivered: bool = True,
    delay_s: float | None = None,
) -> Flow[int]:
    """Acknowledge or release messages of a lease, and return the service's count of them.

    If `ids` is None, this applies to all messages of the lease. If they were not `delivered`, a
    release takes back the count of this lease. They are unread after `delay_s`, or at once.
    """
    fields: dict[str, Any] = {"lease": name} if delivered else {"lease": name, "delivered": False}
    if delay_s is not None:
        fields["delay"] = delay_s
    if ids is not None:
        fields["ids"] = list_of(ids)
    path, needs = f"{inbox_path(username)}/{action}", right("read", username)
    request = Request("POST", path, json.dumps(fields).encode(), needs=needs)
    answer = yield from send(request, tries)
    with reading_answer():
        return int(answer.document()["acknowledged" if action == "ack" else "released"])


def release(
    username: str,
    name: str,
    ids: str | Iterable[str] | None,
    delivered: bool,
    delay_s: float | None,
    tries: int,
) -> Flow[int]:
    """Release messages of a lease, and return how many are. 0 if the lease has ended."""
    settling = settle(
        *(username, name, "release", ids, tries), delivered=delivered, delay_s=delay_s
    )
    try:
        return (yield from settling)
    except LeaseOver:
        return 0


def extend(username: str, name: str, ttl_s: float, tries: int) -> Flow[float]:
    """Extend a lease to `ttl_s` from now, and return the duration that the service grants."""
    body = json.dumps({"lease": name, "ttl": ttl_s}).encode()
    path, needs = f"{inbox_path(username)}/extend", right("read", username)
    answer = yield from send(Request("POST", path, body, needs=needs), tries)
    with reading_answer():
        return float(answer.document()["ttl"])


def status(message_id: str, receipt: str, tries: int) -> Flow[Status]:
    """Return the status of a message."""
    request = Request("GET", f"{_message(message_id)}/status", headers={"X-Receipt": receipt})
    answer = yield from send(request, tries)
    with reading_answer():
        return status_of(answer.document())


def revoke(message_id: str, receipt: str, tries: int) -> Flow[bool]:
    """Revoke a message, and return whether it is revoked."""
    request = Request("DELETE", _message(message_id), headers={"X-Receipt": receipt})
    try:
        answer = yield from send(request, tries)
    except ProblemError as problem:
        if problem.kind != "too-late":
            raise
        return False
    with reading_answer():
        if answer.status != 204:
            raise ValueError(f"DELETE was answered with {answer.status}")
    return True


def list_of(ids: str | Iterable[str]) -> list[str]:
    """Return ids as a list, also a single one."""
    return [ids] if isinstance(ids, str) else list(ids)


def new_key() -> str:
    """Return a key that cannot be guessed."""
    return secrets.token_urlsafe(24)


def inbox_path(username: str) -> str:
    """Return the path of an inbox."""
    return f"/chat/{_segment(username)}"


def right(action: Literal["send", "read"], username: str) -> str:
    """Return what a request that needs this right says about it, such as `read "bob"`."""
    words = "send to" if action == "send" else action
    return f"{words} {json.dumps(username, ensure_ascii=False)}"


def _results(bodies: Sequence[bytes], answer: Answer) -> list[Result]:
    with reading_answer():
        results: list[Result] = [
            problem_from(each["error"], int(each["error"]["status"]))
            if "error" in each
            else Posted(str(each["id"]), each.get("receipt"))
            for each in answer.document()["results"]
        ]
        if len(results) != len(bodies):
            raise ValueError(f"{len(bodies)} messages got {len(results)} results")
        for body, result in zip(bodies, results):
            if isinstance(result, Forbidden):
                result.needs = right("send", json.loads(body)["username"])
        return results


def _is_transient(result: Result) -> bool:
    return isinstance(result, ProblemError) and result.is_transient


def _final(result: Result, key: str) -> Result:
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
    if receipt:
        headers["Prefer"] = "receipt"
    return headers


def _numbered(key: str, number: int) -> str:
    """Return the key for a call's batch with this number.

    A valid key without room for the number is hashed first. Invalid keys are not hashed, so that
    the service still refuses them.
    """
    if _HASHED_FROM <= len(key) <= _KEY_MAX and key.isascii() and key.isprintable():
        key = hashlib.sha256(key.encode()).hexdigest()
    return f"{key}.{number}" if key else key


def _segment(text: str) -> str:
    # An unescaped dot segment would be removed from the path.
    return text.replace(".", "%2E") if text in (".", "..") else quote(text, safe="")


def _message(message_id: str) -> str:
    return f"/messages/{_segment(message_id)}"


def _query(**parameters: float | None) -> str:
    """Return a query string of the parameters that are not None."""
    fields = [
        f"{name}={value if isinstance(value, int) else format(value, '.3f')}"
        for name, value in parameters.items()
        if value is not None
    ]
    return "?" + "&".join(fields) if fields else ""
