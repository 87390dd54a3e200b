"""Flows: what a client does, as generators that yield steps and perform none of them.

A flow yields a step, gets its result back, and returns what the caller of the client asked for. It
knows no network and no event loop, so `chat_inbox.asynchronous` and `chat_inbox.synchronous` run
the same flows: the first awaits each step, the second blocks.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar, Union

from chat_inbox.errors import ProblemError, RateLimited, problem_of, reading_answer

T = TypeVar("T")

#: The longest Retry-After that is respected, in seconds.
RETRY_AFTER_MAX_S = 30.0


@dataclass(frozen=True)
class Request:
    """A request. `path` is escaped and relative to the base URL.

    `wait_s` is how long the request asks the service to wait before it answers. A retry is safe for
    `within_s` seconds. `key` is added to the error if all tries fail. `needs` is the right that the
    request needs, for the error if it is missing.
    """

    method: str
    path: str
    body: bytes | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    wait_s: float = 0.0
    within_s: float = math.inf
    key: str | None = None
    needs: str = ""


@dataclass(frozen=True)
class Answer:
    """An answer of any status. The names of `headers` are in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def document(self) -> Any:
        """Return the body, decoded as JSON. Raise `ChatError` if it is not JSON."""
        with reading_answer():
            return json.loads(self.body)

    def problem(self) -> ProblemError:
        """Return the problem of an answer that is an error."""
        challenge = self.headers.get("www-authenticate", "")
        problem = problem_of(self.status, self.body, challenge)
        if isinstance(problem, RateLimited):
            problem.retry_after_s = self._retry_after_s
        return problem

    @property
    def retry_after_s(self) -> float:
        """Return the value of Retry-After in seconds, bounded; 0 if there is none."""
        return min(self._retry_after_s, RETRY_AFTER_MAX_S)

    @property
    def _retry_after_s(self) -> float:
        value = self.headers.get("retry-after", "")
        if value.isascii() and value.isdigit():
            return float(value) if len(value) < 9 else 0.0
        try:
            # A proxy may send a date.
            return max(parsedate_to_datetime(value).timestamp() - time.time(), 0.0)
        except (TypeError, ValueError, IndexError, OverflowError):
            return 0.0


class NotAnswered(Exception):
    """No complete answer arrived. `is_sent` tells whether the service may have got the request."""

    def __init__(self, reason: str, is_sent: bool) -> None:
        super().__init__(reason)
        self.is_sent = is_sent


@dataclass(frozen=True)
class Exchange:
    """The step that sends a request once and returns the answer, or raises `NotAnswered`."""

    request: Request
    authorization: str | None = field(repr=False)


@dataclass(frozen=True)
class Pause:
    """The step that waits for some seconds."""

    seconds: float


@dataclass(frozen=True)
class Authorize:
    """The step that returns the value of Authorization, or None to send no such header.

    `refused` is a value that the service refused; the result is another one, if there is one.
    """

    refused: str | None = field(default=None, repr=False)


Step = Union[Exchange, Pause, Authorize]
#: A flow whose result has the type T.
Flow = Generator[Step, Any, T]
