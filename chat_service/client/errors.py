"""What the client raises: a problem that the service names, or that it could not be asked.

Raised by everything in `chat_service.client`, for its callers. All are `ChatError`.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

#: What a 503 is called where the service is certain that nothing was done.
_NOTHING_DONE = frozenset({"overloaded", "draining", "unavailable"})
#: Answers of the service, or of what stands before it, that pass.
_PASSING = frozenset({429, 502, 503, 504})


class ChatError(Exception):
    """Anything that went wrong between the client and the service."""


class ServiceUnavailable(ChatError):
    """The service could not be asked, or was too busy, in all of the tries. Nothing was done.

    `answer` is what it said at the last try; None if it did not answer.
    """

    def __init__(self, reason: str, answer: "ProblemError | None" = None) -> None:
        super().__init__(reason)
        self.answer = answer


class OutcomeUnknown(ChatError):
    """The service may have done what was asked, and none of the tries brought an answer.

    Asking again with the same `key`, where there is one, is safe: that does it once.
    """

    def __init__(self, reason: str, key: str | None = None) -> None:
        super().__init__(reason)
        self.key = key


class FieldError(NamedTuple):
    """One field of the request, and the rule that it breaks."""

    field: str
    detail: str


class ProblemError(ChatError):
    """The service refused: `application/problem+json`, as docs/api.md lists it.

    `kind` is the end of the problem's `type`, such as "invalid-request"; empty where the answer was
    no problem document, as from a proxy or to a HEAD.
    """

    def __init__(
        self,
        status: int,
        kind: str = "",
        title: str = "",
        detail: str = "",
        errors: tuple[FieldError, ...] = (),
    ) -> None:
        super().__init__(f"{status} {kind}: {detail or title}")
        self.status = status
        self.kind = kind
        self.title = title
        self.detail = detail
        self.errors = errors

    @property
    def is_passing(self) -> bool:
        """Whether the same request may succeed a little later."""
        return self.status in _PASSING or self.kind == "key-in-flight"

    @property
    def is_unclear(self) -> bool:
        """Whether, passing, it leaves open what was done."""
        return self.kind not in _NOTHING_DONE


class LeaseOver(ProblemError):
    """The lease has ended: its messages are unread again, or somebody else's by now.

    Of an acknowledgement it is raised if any message could not be acknowledged. `acknowledged` has
    the ids of those that are, by this call or an earlier one, and `lost` the ids of the others.
    """

    acknowledged: tuple[str, ...] = ()
    lost: tuple[str, ...] = ()


def problem_of(status: int, body: bytes) -> ProblemError:
    """The problem in an answer, whatever it is that answered."""
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        document = None
    return problem_in(document if isinstance(document, dict) else {}, status)


def problem_in(document: Mapping[str, Any], status: int) -> ProblemError:
    """The problem of a document, as an answer of this status."""
    kind = str(document.get("type", "")).rpartition(":")[2]
    errors = document.get("errors")
    problem = (LeaseOver if kind == "lease-over" else ProblemError)(
        status,
        kind,
        str(document.get("title", "")),
        str(document.get("detail", "")),
        # Others than the service answer in JSON, too, with errors of their own form.
        tuple(
            FieldError(str(each.get("field", "")), str(each.get("detail", "")))
            for each in (errors if isinstance(errors, list) else ())
            if isinstance(each, dict)
        ),
    )
    if isinstance(problem, LeaseOver):
        problem.acknowledged = tuple(map(str, document.get("acknowledged", ())))
        problem.lost = tuple(map(str, document.get("lost", ())))
    return problem


@contextmanager
def understanding() -> Iterator[None]:
    """Read an answer. Raises `ChatError` if it is not one that the service gives."""
    try:
        yield
    except (LookupError, TypeError, ValueError, AttributeError, RecursionError):
        raise ChatError("the answer is not the service's: is this its address?") from None


def giving_up(
    reason: str, is_unclear: bool, key: str | None = None, answer: ProblemError | None = None
) -> ChatError:
    """What is raised when the tries are used up."""
    return OutcomeUnknown(reason, key) if is_unclear else ServiceUnavailable(reason, answer)
