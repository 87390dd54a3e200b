"""Errors of the API name options and arguments when the command line shows them."""

import asyncio
from collections.abc import Callable
from typing import cast

import pytest

from chat_inbox import ProblemError
from chat_service.api import problems
from chat_service.api.problems import Problem
from chat_service.api.request_options import READ_KEY_MIN, WaitLimits, idempotency_key, read_options
from chat_service.api.types import Request
from chat_service.api.validation import MessageLimits, lease_body, new_message, username_in_path
from chat_service.cli import session
from chat_service.cli.session import describe_problem
from chat_service.handlers.leases import LeaseHandlers
from workers.errors import KeyInFlight, KeyReused
from workers.pool import WorkerPool

MESSAGES = MessageLimits(128, 65536, 60, 2592000)
WAITS = WaitLimits(wait_max_s=25.0, lease_max_s=3600.0)


def message(fields: str) -> Callable[[], object]:
    """Return a call that decodes the body of a post with these fields."""
    return lambda: new_message(b'{"text": "x", %s}' % fields.encode(), MESSAGES)


def lease(body: bytes) -> Callable[[], object]:
    """Return a call that decodes the body of a request about a lease."""
    return lambda: lease_body(body, MESSAGES)


def extension(body: bytes) -> Callable[[], object]:
    """Return a call that extends a lease with this body."""
    handlers = LeaseHandlers(cast(WorkerPool, None), MESSAGES, WAITS)
    return lambda: asyncio.run(handlers.extend(Request("id", "POST", "bob", "", {}, body)))


def problem_of(call: Callable[[], object]) -> ProblemError:
    """Return the problem that a call raises, as the client raises it."""
    with pytest.raises(Problem) as raised:
        call()
    problem = raised.value
    return ProblemError(problem.status, problem.kind, problem.title, problem.detail)


def raising(problem: Problem) -> Callable[[], object]:
    """Return a call that raises the problem."""

    def call() -> None:
        raise problem

    return call


SHOWN: dict[str, tuple[Callable[[], object], str]] = {
    "receipt": (raising(problems.no_such_message()), "this id and this receipt, or its record"),
    "short key": (
        lambda: idempotency_key({"Idempotency-Key": "short"}, READ_KEY_MIN),
        "--key must have at least 22 characters",
    ),
    "key reused": (
        raising(problems.of_service_error(KeyReused("x"), "stored")),
        "this --key was used before, with another text, timeout or delay",
    ),
    "key in flight": (
        raising(problems.of_service_error(KeyInFlight("x"), "stored")),
        "a request with this --key is still in progress",
    ),
    "ttl of a lease": (
        lambda: read_options("ttl=0.001", WAITS, is_lease=True),
        "--ttl must be at least 0.01 seconds",
    ),
    "ttl of an extension": (
        extension(b'{"lease": "ab", "ttl": 0}'),
        "--ttl must be at least 0.01 seconds",
    ),
    "limit": (lambda: read_options("limit=0", WAITS), "--limit must be one integer from 1 to"),
    "timeout": (
        message('"username": "bob", "timeout": 0'),
        "--timeout must be a number of seconds from 1 to 2592000",
    ),
    "delay": (
        message('"username": "bob", "delay": -1'),
        "the delay (--in, --at) must be a number of seconds from 0 to 2592000",
    ),
    "long name": (
        lambda: username_in_path("b" * 129, MESSAGES),
        "the inbox's name must have 1 to 128 characters",
    ),
    "name of dots": (lambda: username_in_path("..", MESSAGES), "the inbox's name must not be"),
    "lease": (
        lease(b'{"lease": "xyz"}'),
        "the lease must be a string of hexadecimal digits, as chat lease printed it",
    ),
}


@pytest.mark.parametrize(("call", "shown"), SHOWN.values(), ids=SHOWN)
def test_an_error_names_the_option(call: Callable[[], object], shown: str) -> None:
    assert shown in describe_problem(problem_of(call))


def test_every_term_replaces_something() -> None:
    texts = [problem_of(call).detail for call, _ in SHOWN.values()]
    for term in session._CLI_TERMS:
        assert any(term in text for text in texts), f"no error has {term!r} any more"
