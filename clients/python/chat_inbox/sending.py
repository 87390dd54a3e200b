"""Flows that send requests with retries, and that repeat long polls."""

from __future__ import annotations

import math
import random
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from chat_inbox.errors import Forbidden, ProblemError, RateLimited, final_error
from chat_inbox.steps import (
    RETRY_AFTER_MAX_S,
    Answer,
    Authorize,
    Exchange,
    Flow,
    NotAnswered,
    Pause,
    Request,
)

T = TypeVar("T")

#: The longest pause after the first try and after later ones, in seconds. It doubles each time.
_PAUSE_S, _PAUSE_MAX_S, _DOUBLINGS = 0.1, 5.0, 6
#: The wait of one request, in seconds: less than the service's default maximum.
_WAIT_S = 20.0
_APPLIED = re.compile(r"wait=([0-9.]+)")


def send(request: Request, tries: int) -> Flow[Answer]:
    """Send a request until it is answered with a status of 2xx, and return the answer.

    Raise `ProblemError` for an answer that a retry cannot change. When all tries have failed, raise
    `OutcomeUnknown` if one of them may have been carried out. Otherwise raise `RateLimited` if that
    was the last answer, and else `ServiceUnavailable`.
    """
    give_up_at, is_outcome_unknown = math.inf, False
    reason, retry_after_s = "", 0.0
    last_answer: ProblemError | None = None
    for number in range(tries):
        if number:
            yield Pause(pause_s(number, retry_after_s))
        began = time.monotonic()
        # Too late: the service would treat a retry as a new request.
        if began > give_up_at:
            break
        try:
            answer = yield from _send_once(request)
        except NotAnswered as error:
            reason, retry_after_s, may_be_done = str(error), 0.0, error.is_sent
            last_answer = None
        else:
            if 200 <= answer.status < 300:
                return answer
            problem = answer.problem()
            if isinstance(problem, Forbidden):
                problem.needs = request.needs
            is_final = not problem.is_transient or _is_long(problem)
            if is_final and is_outcome_unknown and not problem.settles_outcome:
                raise final_error(str(problem), True, request.key)
            if is_final:
                raise problem
            reason, retry_after_s = str(problem), answer.retry_after_s
            last_answer = problem
            may_be_done = problem.is_outcome_unknown
        if may_be_done:
            is_outcome_unknown = True
            give_up_at = min(give_up_at, began + request.within_s)
    # A request that changes nothing has no unknown outcome.
    changes = request.method in ("POST", "DELETE")
    raise final_error(reason, is_outcome_unknown and changes, request.key, last_answer)


def _send_once(request: Request) -> Flow[Answer]:
    """Send a request, and once more if another token may be accepted."""
    authorization: str | None = yield Authorize()
    answer: Answer = yield Exchange(request, authorization)
    if answer.status == 401 and authorization is not None:
        other: str | None = yield Authorize(refused=authorization)
        if other != authorization:
            answer = yield Exchange(request, other)
    return answer


def _is_long(problem: ProblemError) -> bool:
    return isinstance(problem, RateLimited) and problem.retry_after_s > RETRY_AFTER_MAX_S


def pause_s(number: int, retry_after_s: float = 0.0) -> float:
    """Return the pause before retry `number`, counted from 1, in seconds.

    It is random, so that many clients do not retry at the same time.
    """
    longest = min(_PAUSE_S * 2 ** min(number - 1, _DOUBLINGS), _PAUSE_MAX_S)
    return retry_after_s + random.uniform(0, longest)


@dataclass(frozen=True)
class Polled(Generic[T]):
    """The result of one long poll.

    `is_found` tells whether it is what the caller waits for. `granted_s` is how long the service
    was willing to wait.
    """

    result: T
    is_found: bool
    granted_s: float


def granted(answer: Answer, wait_s: float) -> float:
    """Return how long the service was willing to wait, in seconds.

    The service states it if it is less than the request asked for.
    """
    applied = _APPLIED.search(answer.headers.get("preference-applied", ""))
    return wait_s if applied is None else min(float(applied[1]), wait_s)


def poll_until(timeout_s: float, poll: Callable[[float], Flow[Polled[T]]]) -> Flow[T]:
    """Repeat `poll` with a wait in seconds until it finds something or `timeout_s` has passed."""
    deadline = time.monotonic() + timeout_s
    early = 0
    while True:
        began = time.monotonic()
        polled = yield from poll(min(max(deadline - began, 0.0), _WAIT_S))
        now = time.monotonic()
        if polled.is_found or now >= deadline:
            return polled.result
        # A service that is stopping, or does not allow waiting, returns early; do not spin then.
        is_early = now - began < polled.granted_s / 2 or not polled.granted_s
        early = early + 1 if is_early else 0
        if early:
            yield Pause(min(pause_s(early), deadline - now))
