"""How a command speaks to a service: where it is, how to write, and what goes wrong in words.

Used by every command that does; they are plain functions that `run` one question after the other.
"""

import asyncio
import re
import signal
import sys
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any, Concatenate, ParamSpec, TypeVar

import click

from chat_service.cli.exit_codes import ExitCode, Failed
from chat_service.cli.output import Output
from chat_service.cli.param_types import Url
from chat_service.client import (
    ChatClient,
    ChatError,
    LeaseOver,
    OutcomeUnknown,
    ProblemError,
    ServiceUnavailable,
)

P = ParamSpec("P")
T = TypeVar("T")

#: Long enough for a service that is being started again, and short enough for who waits: 1 to 3 s.
_TRIES = 6
#: The service speaks of headers and fields, whose user wrote options and arguments.
_IN_OUR_WORDS = {
    "the receipt in X-Receipt": "this receipt",
    "Idempotency-Key": "--key",
    "ttl must": "--ttl must",
    "limit must": "--limit must",
    "timeout must be an integer": "--timeout must be a number of seconds",
    "username must": "the inbox's name must",
    "username may": "the inbox's name may",
    "lease is required and must be": "the lease must be",
    "as POST .../lease gave it": "as chat lease printed it",
}


class Session:
    """A client, what runs its questions, and where the answers go."""

    def __init__(self, url: str, output: Output, runner: asyncio.Runner) -> None:
        self.url = url
        self.chat = ChatClient(url, tries=_TRIES)
        self.out = output
        self._runner = runner

    def run(self, question: Coroutine[Any, Any, T]) -> T:
        """Ask, and wait for the answer. Ctrl-C cancels it, and raises `KeyboardInterrupt`.

        So do SIGTERM and SIGHUP, which end the command.
        """
        return self._runner.run(_unless_terminated(question))


async def _unless_terminated(question: Coroutine[Any, Any, T]) -> T:
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task is not None
    came: list[ExitCode] = []

    def end(code: ExitCode) -> None:
        came.append(code)
        task.cancel()

    ends = {signal.SIGTERM: ExitCode.TERMINATED, signal.SIGHUP: ExitCode.HUNG_UP}
    # One that is ignored stays so, as under nohup.
    ends = {sign: code for sign, code in ends.items() if signal.getsignal(sign) != signal.SIG_IGN}
    for sign, code in ends.items():
        loop.add_signal_handler(sign, end, code)
    try:
        return await question
    except asyncio.CancelledError:
        if came:
            raise Failed(came[0]) from None
        raise
    finally:
        for sign in ends:
            loop.remove_signal_handler(sign)


def with_session(command: Callable[Concatenate[Session, P], int]) -> Callable[..., int]:
    """Give a command the options `--url`, `--json` and `--text`, and a `Session` made of them."""

    @click.option(
        "--url",
        type=Url(),
        envvar="CHAT_URL",
        default="http://127.0.0.1:8080",
        show_default=True,
        help="Where the service is (CHAT_URL).",
    )
    @click.option("--json/--text", "is_json", default=None, help="For programs, or for people.")
    @wraps(command)
    def session(*args: Any, url: str, is_json: bool | None, **options: Any) -> int:
        with told(url), asyncio.Runner() as runner:
            session = Session(url, Output(is_json), runner)
            try:
                return command(session, *args, **options)
            finally:
                runner.run(session.chat.close())

    return session


@contextmanager
def told(url: str) -> Iterator[None]:
    """Say in words what the client raises."""
    url = bare(url)
    try:
        yield
    except LeaseOver:
        raise Failed(
            ExitCode.NOTHING,
            "the lease is over, or is not this inbox's: what it held is unread again, or read",
        ) from None
    except ProblemError as problem:
        if problem.status >= 500:
            raise Failed(
                ExitCode.UNKNOWN, f"the service at {url} failed: {problem}; its log says why"
            ) from None
        raise Failed(ExitCode.REFUSED, f"the service refused: {reason_of(problem)}") from None
    except OutcomeUnknown as error:
        key = f"; to settle it, repeat this command with --key {error.key}" if error.key else ""
        raise Failed(ExitCode.UNKNOWN, f"it may have been done or not: {error}{key}") from None
    except ServiceUnavailable as error:
        advice = ""
        if error.answer is None:
            tls = ", does it speak https" if url.startswith("https") else ""
            advice = (
                f"; is it running (chat serve){tls}, and is this the address (--url, CHAT_URL)?"
            )
        raise Failed(ExitCode.UNREACHABLE, unavailable(url, error) + advice) from None
    except ChatError as error:
        raise Failed(ExitCode.UNREACHABLE, f"{url}: {error}") from None
    except KeyboardInterrupt:
        if sys.stderr.isatty():
            # The terminal has written ^C.
            click.echo(err=True)
        raise Failed(ExitCode.INTERRUPTED) from None


def bare(url: str) -> str:
    """An address without the name and password that may be in it, for people to see."""
    return re.sub(r"(?<=//)[^/@]*@", "", url)


def unavailable(url: str, error: ServiceUnavailable) -> str:
    """Say that nothing was done, and why: what the service answered, if it did."""
    if error.answer is None:
        return f"no answer from {bare(url)}: {error}"
    reason = reason_of(error.answer)
    return f"nothing was done: the service at {bare(url)} answered {error.answer.status}: {reason}"


def reason_of(problem: ProblemError) -> str:
    """What the service said, about what this command's user wrote."""
    reason = problem.detail or problem.title or f"it answered {problem.status}"
    if not problem.kind and (problem.status < 400 or problem.status in (401, 403, 404, 405)):
        reason += "; is this the address of the service itself?"
    for theirs, ours in _IN_OUR_WORDS.items():
        reason = reason.replace(theirs, ours)
    return reason
