"""The session of a client command: its client, its output, and messages for the client's errors.

Client commands are plain functions that call `Session.run` once per request.
"""

import asyncio
import logging
import math
import os
import re
import signal
import sys
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any, Concatenate, ParamSpec, TypeVar

import click

from chat_inbox import (
    ChatClient,
    ChatError,
    Forbidden,
    InboxFull,
    LeaseOver,
    OutcomeUnknown,
    ProblemError,
    RateLimited,
    ServiceUnavailable,
    TokenUnavailable,
    Unauthorized,
)
from chat_service.cli.credentials import HOW_TO_GIVE_ONE, UserToken, find_token
from chat_service.cli.exit_codes import CommandError, ExitCode
from chat_service.cli.output import Output
from chat_service.cli.param_types import Duration, Url

P = ParamSpec("P")
T = TypeVar("T")

#: Tries of a request, over 1 to 3 s: enough for a service that restarts, and short for a user.
_TRIES = 6
#: The status of a refusal for lack of storage. Nothing was done then.
_NO_ROOM = 507
#: Terms of the HTTP API in error messages, and the options and arguments that they stand for.
_CLI_TERMS = {
    "the receipt in X-Receipt": "this receipt",
    "Idempotency-Key": "--key",
    "ttl must": "--ttl must",
    "ttl is required and must": "--ttl must",
    "limit must": "--limit must",
    "delay must be": "the delay (--in, --at) must be",
    "timeout must be an integer": "--timeout must be a number of seconds",
    "username must": "the inbox's name must",
    "lease is required and must be": "the lease must be",
    "as POST .../lease gave it": "as chat lease printed it",
}
#: The option of commands that can wait for a first message.
wait_option = click.option(
    "--wait",
    type=Duration(),
    metavar="TIME",
    default=0.0,
    help="Wait this long for a first message: 5, 30s, 10m.",
)


class Session:
    """The client and the output of one command."""

    def __init__(
        self, url: str, output: Output, runner: asyncio.Runner, token: UserToken | None
    ) -> None:
        """`token` may be sent to `url`, also if that is plain HTTP."""
        self.url = url
        self.token = token
        # Tornado logs a failed handshake for each try. The error at the end has the reason.
        logging.getLogger("tornado.general").addHandler(logging.NullHandler())
        self.chat = ChatClient(
            url,
            tries=_TRIES,
            token=None if token is None else token.source(),
            allow_plain_http=True,
        )
        self.out = output
        self._runner = runner

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine and return its result.

        Ctrl-C cancels it and raises `KeyboardInterrupt`. SIGTERM and SIGHUP cancel it and raise
        `CommandError`.
        """
        return self._runner.run(_cancel_on_signal(work))


async def _cancel_on_signal(work: Coroutine[Any, Any, T]) -> T:
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task is not None
    received: list[ExitCode] = []

    def on_signal(code: ExitCode) -> None:
        received.append(code)
        task.cancel()

    codes = {signal.SIGTERM: ExitCode.TERMINATED, signal.SIGHUP: ExitCode.HUNG_UP}
    # Keep ignoring a signal that is ignored, as under nohup.
    codes = {
        number: code for number, code in codes.items() if signal.getsignal(number) != signal.SIG_IGN
    }
    for number, code in codes.items():
        loop.add_signal_handler(number, on_signal, code)
    try:
        return await work
    except asyncio.CancelledError:
        if received:
            raise CommandError(received[0]) from None
        raise
    finally:
        for number in codes:
            loop.remove_signal_handler(number)


insecure_option = click.option(
    "--insecure", is_flag=True, help="Send the token over plain HTTP to another machine."
)


def with_session(command: Callable[Concatenate[Session, P], int]) -> Callable[..., int]:
    """Add `--url`, `--insecure`, `--json` and `--text` to a command, and pass it the `Session`."""

    @click.option(
        "--url",
        type=Url(),
        envvar="CHAT_URL",
        default="http://127.0.0.1:8080",
        show_default=True,
        help="Address of the service (CHAT_URL).",
    )
    @insecure_option
    @click.option("--json/--text", "is_json", default=None, help="Print JSON, or text for people.")
    @wraps(command)
    def wrapper(*args: Any, url: str, insecure: bool, is_json: bool | None, **options: Any) -> int:
        token = find_token(os.environ)
        if token is not None:
            token.check_address(url, insecure)
        with translate_errors(url, token), asyncio.Runner() as runner:
            session = Session(url, Output(is_json), runner, token)
            try:
                return command(session, *args, **options)
            finally:
                runner.run(session.chat.close())

    return wrapper


@contextmanager
def translate_errors(url: str, token: UserToken | None = None) -> Iterator[None]:
    """Turn the client's errors and Ctrl-C into `CommandError`. `token` is what the client sends."""
    url = without_credentials(url)
    try:
        yield
    except LeaseOver:
        raise CommandError(
            ExitCode.NOTHING,
            "the lease has ended or belongs to another inbox; its messages are read, or unread "
            "again",
        ) from None
    except ProblemError as problem:
        if problem.status >= 500 and problem.status != _NO_ROOM:
            raise CommandError(
                ExitCode.UNKNOWN, f"the service at {url} failed: {problem}; see its log"
            ) from None
        raise CommandError(exit_code_of(problem), _describe_refusal(url, problem, token)) from None
    except OutcomeUnknown as error:
        key = f"; to retry safely, repeat this command with --key {error.key}" if error.key else ""
        raise CommandError(ExitCode.UNKNOWN, f"the outcome is unknown: {error}{key}") from None
    except ServiceUnavailable as error:
        advice = ""
        if "CERTIFICATE_VERIFY_FAILED" in str(error):
            advice = "; name the authority that issued its certificate in SSL_CERT_FILE"
        elif error.answer is None:
            tls = ", that it serves HTTPS" if url.startswith("https") else ""
            advice = (
                f"; check that the service is running (chat serve){tls} and that this is its "
                "address (--url, CHAT_URL)"
            )
        raise CommandError(
            ExitCode.UNREACHABLE, describe_unavailable(url, error) + advice
        ) from None
    except TokenUnavailable as error:
        # The file of the token was read again, and is no longer usable.
        reason = str(error.__cause__ or error)
        raise CommandError(ExitCode.NO_ACCESS, reason) from None
    except ChatError as error:
        raise CommandError(ExitCode.UNREACHABLE, f"{url}: {error}") from None
    except KeyboardInterrupt:
        if sys.stderr.isatty():
            # Start a new line after the ^C that the terminal shows.
            click.echo(err=True)
        raise CommandError(ExitCode.INTERRUPTED) from None


def without_credentials(url: str) -> str:
    """Return an address without its username and password."""
    return re.sub(r"(?<=//)[^/@]*@", "", url)


def describe_unavailable(url: str, error: ServiceUnavailable) -> str:
    """Return a message that nothing was done, and why."""
    if error.answer is None:
        return str(error)
    address, problem = without_credentials(url), error.answer
    reason = describe_problem(problem)
    return f"nothing was done: the service at {address} answered {problem.status}: {reason}"


def exit_code_of(problem: ProblemError) -> ExitCode:
    """Return the exit code of a command whose request was refused."""
    if isinstance(problem, Unauthorized | Forbidden):
        return ExitCode.NO_ACCESS
    if isinstance(problem, RateLimited | InboxFull) or problem.status == _NO_ROOM:
        return ExitCode.UNREACHABLE
    return ExitCode.REFUSED


def _describe_refusal(url: str, problem: ProblemError, token: UserToken | None) -> str:
    """Return why a request was refused, and what to do about its token or the limit."""
    if isinstance(problem, Unauthorized):
        if token is None:
            return f"the service at {url} needs a token; {HOW_TO_GIVE_ONE}"
        return (
            f"the service at {url} does not accept the token from {token.origin}: it is unknown, "
            "revoked or expired"
        )
    if isinstance(problem, Forbidden):
        whose = f"the token from {token.origin}" if token else "a request without a token"
        action = problem.needs or "do this"
        return f"{whose} may not {action} at {url}; the access file of the service lists the rights"
    if isinstance(problem, RateLimited):
        after = f" in {math.ceil(problem.retry_after_s)} s" if problem.retry_after_s else " later"
        return f"nothing was done: the service at {url} limits this client; try again{after}"
    if isinstance(problem, InboxFull):
        return f"nothing was stored: {describe_problem(problem)}"
    if problem.status == _NO_ROOM:
        return f"the service at {url} has no room: {describe_problem(problem)}"
    return f"the service refused: {describe_problem(problem)}"


def describe_problem(problem: ProblemError) -> str:
    """Return the service's reason, in terms of options and arguments."""
    reason = problem.detail or problem.title or f"it answered {problem.status}"
    if not problem.kind and (problem.status < 400 or problem.status in (401, 403, 404, 405)):
        reason += "; check that this is the address of the service itself"
    for api_term, cli_term in _CLI_TERMS.items():
        reason = reason.replace(api_term, cli_term)
    return reason
