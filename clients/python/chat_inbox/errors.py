"""The errors that the clients raise. All but `ClientClosed` are subclasses of `ChatError`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http import HTTPStatus
from typing import Any, NamedTuple

#: The kinds of 503 and 429 with which the service states that nothing was done.
_NOTHING_DONE = frozenset({"overloaded", "draining", "unavailable", "rate-limited"})
#: Statuses of temporary problems of the service or a proxy.
_TRANSIENT = frozenset({429, 502, 503, 504})


class ChatError(Exception):
    """The base class of all errors of the clients."""


class ServiceUnavailable(ChatError):
    """All tries failed because the service was unreachable or too busy. Nothing was done.

    `answer` is the answer to the last try, or None if there was none.
    """

    def __init__(self, reason: str, answer: ProblemError | None = None) -> None:
        super().__init__(reason)
        self.answer = answer


class OutcomeUnknown(ChatError):
    """All tries failed, and at least one of them may have been carried out.

    If the request has a `key`, it is safe to repeat it with the same key: it takes effect once.
    """

    def __init__(self, reason: str, key: str | None = None) -> None:
        super().__init__(reason)
        self.key = key


class FieldError(NamedTuple):
    """One field of the request, and the rule that it breaks."""

    field: str
    detail: str


class ProblemError(ChatError):
    """The service refused the request, and said why in a problem document (RFC 9457).

    `status` is the status of the answer. `type`, `title`, `detail` and `instance` are those of the
    document; `instance` is the id of the request in the service's log. They are empty if the
    answer was no problem document, for example from a proxy or to a HEAD request. `errors` names
    each invalid field as the API does: `timeout` is the argument `timeout_s`.
    """

    def __init__(
        self,
        status: int,
        type: str = "",
        title: str = "",
        detail: str = "",
        instance: str = "",
        errors: tuple[FieldError, ...] = (),
    ) -> None:
        super().__init__(status, type, title, detail, instance, errors)
        self.status = status
        self.type = type
        self.title = title
        self.detail = detail
        self.instance = instance
        self.errors = errors

    def __str__(self) -> str:
        return ": ".join([f"{self.status} {self.kind or _phrase(self.status)}", *self._reasons()])

    def _reasons(self) -> list[str]:
        reason = self.detail or self.title
        return [reason] if reason else []

    @property
    def kind(self) -> str:
        """Return the last part of `type`, such as "invalid-request"."""
        return self.type.rpartition(":")[2]

    @property
    def is_transient(self) -> bool:
        """Return whether the same request may succeed a little later."""
        return self.status in _TRANSIENT or self.kind == "key-in-flight"

    @property
    def is_outcome_unknown(self) -> bool:
        """Return whether, for a transient problem, the request may have been carried out."""
        return self.kind not in _NOTHING_DONE

    @property
    def settles_outcome(self) -> bool:
        """Return whether this answer to a retry tells what became of the earlier tries.

        A refusal for lack of space, of access or of a free place does not: an earlier try may have
        succeeded.
        """
        return self.status not in (401, 403, 429, 507)


class Unauthorized(ProblemError):
    """The service needs a token, or does not accept the one that was sent (401)."""


class Forbidden(ProblemError):
    """The token is valid, and does not have the right that the request needs (403).

    `needs` is this right, such as `read "bob"`, or empty if the client does not know it.
    """

    needs: str = ""

    def _reasons(self) -> list[str]:
        needs = [f"it needs the right to {self.needs}"] if self.needs else []
        reasons = super()._reasons() + needs
        return ["; ".join(reasons)] if reasons else []


class RateLimited(ProblemError):
    """The client exceeds its rate (429). Nothing was done.

    `retry_after_s` is the time after which the service accepts requests again, in seconds; 0 if it
    did not say.
    """

    retry_after_s: float = 0.0


class InboxFull(ProblemError):
    """The inbox holds as many unread messages as it may (429). Nothing was stored.

    The client does not retry such a post: only a reader of the inbox makes room.
    """

    @property
    def is_transient(self) -> bool:
        """Return False; see the class."""
        return False


class LeaseOver(ProblemError):
    """The lease has ended: its messages are unread again, expired, or with another reader.

    An acknowledgement raises this if any message cannot be acknowledged. `acknowledged` holds the
    ids of messages that are acknowledged, by this call or an earlier one, and `lost` the others.
    """

    acknowledged: tuple[str, ...] = ()
    lost: tuple[str, ...] = ()


class TokenUnavailable(ChatError):
    """The function that returns the client's token failed; the cause is in `__cause__`."""


class ClientClosed(RuntimeError):
    """The client is closed, or was closed while the request was open.

    This is no `ChatError`, so that a loop that goes on after any `ChatError` ends with its client.
    """

    def __init__(self) -> None:
        super().__init__("this client is closed; create another, or use it in its block")


_CLASSES: dict[str, type[ProblemError]] = {
    "lease-over": LeaseOver,
    "unauthorized": Unauthorized,
    "forbidden": Forbidden,
    "rate-limited": RateLimited,
    "inbox-full": InboxFull,
}


def problem_of(status: int, body: bytes, challenge: str = "") -> ProblemError:
    """Return the problem of an error answer, also if a proxy sent it.

    `challenge` is the value of WWW-Authenticate. Only a service that takes tokens sends "Bearer".
    """
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        document = None
    return problem_from(document if isinstance(document, dict) else {}, status, challenge)


def problem_from(document: Mapping[str, Any], status: int, challenge: str = "") -> ProblemError:
    """Return the problem that a JSON object describes."""
    kind = str(document.get("type", ""))
    errors = document.get("errors")
    problem = _class_of(kind.rpartition(":")[2], status, challenge)(
        status,
        kind,
        str(document.get("title", "")),
        str(document.get("detail", "")),
        str(document.get("instance", "")),
        # The answer may be another program's JSON, with errors in another format.
        tuple(
            FieldError(str(each.get("field", "")), str(each.get("detail", "")))
            for each in (errors if isinstance(errors, list) else ())
            if isinstance(each, dict)
        ),
    )
    if isinstance(problem, LeaseOver):
        problem.acknowledged = _ids_of(document.get("acknowledged"))
        problem.lost = _ids_of(document.get("lost"))
    return problem


def _phrase(status: int) -> str:
    """Return what a status means, for an answer without a document."""
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "unknown status"


def _ids_of(ids: object) -> tuple[str, ...]:
    return tuple(map(str, ids)) if isinstance(ids, list) else ()


def _class_of(kind: str, status: int, challenge: str) -> type[ProblemError]:
    if kind:
        return _CLASSES.get(kind, ProblemError)
    # The answer to HEAD has no document, and a proxy's is another one.
    if status == 429:
        return RateLimited
    if challenge.lower().startswith("bearer"):
        return {401: Unauthorized, 403: Forbidden}.get(status, ProblemError)
    return ProblemError


@contextmanager
def reading_answer() -> Iterator[None]:
    """Raise `ChatError` if the code in the block cannot read an answer of the service."""
    try:
        yield
    except (LookupError, TypeError, ValueError, AttributeError, RecursionError):
        raise ChatError("the answer is not from a chat service; check the address") from None


def final_error(
    reason: str,
    is_outcome_unknown: bool,
    key: str | None = None,
    answer: ProblemError | None = None,
) -> ChatError:
    """Return the error to raise when all tries have failed."""
    if is_outcome_unknown:
        return OutcomeUnknown(reason, key)
    return answer if isinstance(answer, RateLimited) else ServiceUnavailable(reason, answer)
