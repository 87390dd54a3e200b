"""`chat send`: posts a message, or one per line of standard input."""

import os
import sys
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import click

from chat_inbox import (
    ChatError,
    Draft,
    OutcomeUnknown,
    Posted,
    ProblemError,
    ServiceUnavailable,
)
from chat_service.cli.exit_codes import CommandError, ExitCode, OutputError, print_error
from chat_service.cli.param_types import Duration, LocalTime, NonEmptyText, Text
from chat_service.cli.session import (
    Session,
    describe_problem,
    describe_unavailable,
    exit_code_of,
    with_session,
)

_CHUNK_BYTES = 1 << 20


@click.command()
@click.argument("name", type=NonEmptyText())
@click.argument("words", type=Text(), metavar="[TEXT]...", nargs=-1)
@click.option(
    "--file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="F",
    help="Send the exact content of a file.",
)
@click.option("--lines", is_flag=True, help="Post each line of standard input as a message.")
@click.option(
    "--timeout",
    type=Duration(whole=True),
    metavar="TIME",
    help="Lifetime of the message, from when it can be read: 90, 90s, 10m, 2h, 7d.",
)
@click.option(
    "--in",
    "delay",
    type=Duration(),
    metavar="TIME",
    help="Schedule the message: it can be read after this time, such as 30s, 1.5h or 7d.",
)
@click.option(
    "--at",
    "due",
    type=LocalTime(),
    metavar="WHEN",
    help="Schedule the message: 2026-12-01T09:00 in local time, or with an offset or Z.",
)
@click.option(
    "--key",
    type=NonEmptyText(),
    help="Store the message only once, even if this command is repeated with the same key.",
)
@click.option("--receipt", is_flag=True, help="Get a receipt, for status and revoke.")
@with_session
def send(
    session: Session,
    name: str,
    words: tuple[str, ...],
    file: Path | None,
    lines: bool,
    timeout: int | None,
    delay: float | None,
    due: datetime | None,
    key: str | None,
    receipt: bool,
) -> int:
    """Post TEXT to the inbox NAME, and print the message's id.

    Several words form one text. Without TEXT, or if TEXT is -, the text is read from standard
    input, without the newline (LF or CRLF) at its end. Exits with 1 if standard input is empty.

    \b
    Examples:
      chat send bob 'lunch?' --timeout 10m
      uptime | chat send ops
      chat send bob --file letter.txt --receipt
      chat send bob 'stand-up' --at 2026-12-01T09:00
      tail -f app.log | chat send ops --lines
    """
    if delay is not None and due is not None:
        raise click.UsageError("Give either --in or --at, not both.")
    when = _When(delay, due)
    if due is not None and key is not None:
        # The delay is a part of what a key stands for, and another one at each repeat.
        raise click.UsageError("--key needs --in instead of --at, so that a repeat is the same.")
    text = " ".join(words) if words else None
    if lines:
        if text is not None or file is not None:
            raise click.UsageError("--lines reads standard input; omit TEXT and --file.")
        return _send_lines(session, name, timeout, when, key, receipt)
    draft = Draft(name, _text(text, file), timeout, when.delay_s())
    posted = _post(session, draft, when, key, receipt)
    try:
        _print_posted(session, posted)
    except OutputError as failure:
        with_receipt = f", with the receipt {posted.receipt}" if posted.receipt else ""
        raise failure.with_advice(f"the message is stored as {posted.id}{with_receipt}") from None
    return ExitCode.DONE


class _When(NamedTuple):
    """When a message can be read: after a delay in seconds, at a time, or at once."""

    delay: float | None
    due: datetime | None

    def delay_s(self) -> float | None:
        """Return the delay of a message that is sent now, in seconds, or None."""
        if self.due is None:
            return self.delay
        return round(max(self.due.timestamp() - time.time(), 0.0), 3)


def _post(session: Session, draft: Draft, when: _When, key: str | None, receipt: bool) -> Posted:
    """Post a message. If the outcome is unknown, say how to repeat it."""
    try:
        return session.run(
            session.chat.post(*draft[:3], delay_s=draft.delay_s, key=key, receipt=receipt)
        )
    except OutcomeUnknown as error:
        if when.due is None:
            raise
        raise CommandError(
            ExitCode.UNKNOWN,
            f"the outcome is unknown: {error}; to retry safely, repeat this command with "
            f"--key {error.key} and with --in {draft.delay_s}s instead of --at",
        ) from None


def _text(text: str | None, file: Path | None) -> str:
    """Return the text of the message, from the arguments, a file or standard input."""
    if file is not None:
        if text is not None:
            raise click.UsageError("Give either TEXT or --file, not both.")
        try:
            return file.read_bytes().decode()
        except (OSError, UnicodeDecodeError) as error:
            raise CommandError(ExitCode.REFUSED, f"{file} cannot be sent: {error}") from None
    if text is None and sys.stdin.isatty():
        raise click.UsageError("There is no text; give TEXT or --file, or pipe a text in.")
    if text is None or text == "-":
        try:
            given = sys.stdin.buffer.read()
        except OSError as error:
            raise _unreadable(error) from None
        if not given:
            raise CommandError(ExitCode.NOTHING, "standard input is empty; nothing was sent")
        return _decoded(_without_newline(given), "standard input")
    return text


def _send_lines(
    session: Session, name: str, timeout: int | None, when: _When, key: str | None, receipt: bool
) -> int:
    """Post the lines of standard input as they arrive, and return the largest exit code.

    With a key, read all lines first, so that a repeat posts the same batches. Stop if the service
    is unavailable, or will refuse the next lines as well.
    """
    code, is_hopeless = ExitCode.DONE, False
    number = 0
    for lines in [list(_all_lines())] if key else _read_lines():
        sent = number
        drafts = [Draft(name, line, timeout, when.delay_s()) for line in lines]
        for result in session.run(session.chat.post_batch(drafts, key=key, receipt=receipt)):
            number += 1
            try:
                if isinstance(result, Posted):
                    _print_posted(session, result, number)
                else:
                    code = max(code, _print_failure(session, result, number))
            except OutputError as failure:
                last = sent + len(lines)
                raise failure.with_advice(
                    f"the results of lines {number} to {last} are not shown"
                ) from None
            is_hopeless = is_hopeless or _is_hopeless(result)
        if is_hopeless:
            print_error("the remaining lines are not read")
            break
    return code


def _is_hopeless(result: Posted | ChatError) -> bool:
    if isinstance(result, ProblemError):
        return exit_code_of(result) != ExitCode.REFUSED
    return isinstance(result, ServiceUnavailable)


def _print_posted(session: Session, posted: Posted, line: int | None = None) -> None:
    """Print the id of a stored message, and its receipt."""
    fields: dict[str, Any] = {} if line is None else {"line": line}
    fields["id"] = posted.id
    text = posted.id
    if posted.receipt is not None:
        fields["receipt"] = posted.receipt
        text += f"  {session.out.dim('receipt')} {posted.receipt}"
    session.out.record(text, **fields)


def _print_failure(session: Session, error: ChatError, line: int) -> ExitCode:
    """Print why a line was not stored, and return the exit code for that."""
    if isinstance(error, ProblemError):
        reason, code = f"was refused: {describe_problem(error)}", exit_code_of(error)
    elif isinstance(error, ServiceUnavailable):
        reason = f"was not sent: {describe_unavailable(session.url, error)}"
        code = ExitCode.UNREACHABLE
    else:
        reason, code = f"has an unknown outcome: {error}", ExitCode.UNKNOWN
    print_error(f"line {line} {reason}")
    if session.out.is_json:
        session.out.record("", line=line, error=reason)
    return code


def _read_lines() -> Iterator[list[str]]:
    """Yield the lines that are available each time, so that no line waits for the next one."""
    rest = b""
    number = 0
    while chunk := _read_some():
        *whole, rest = (rest + chunk).split(b"\n")
        yield [
            _decoded(line.removesuffix(b"\r"), f"line {number + at}")
            for at, line in enumerate(whole, 1)
        ]
        number += len(whole)
    if rest:
        yield [_decoded(rest, f"line {number + 1}")]


def _read_some() -> bytes:
    try:
        return os.read(sys.stdin.fileno(), _CHUNK_BYTES)
    except OSError as error:
        raise _unreadable(error) from None


def _unreadable(error: OSError) -> CommandError:
    return CommandError(ExitCode.REFUSED, f"standard input cannot be read: {error.strerror}")


def _without_newline(text: bytes) -> bytes:
    """Return the text without a final LF or CRLF."""
    whole = text.removesuffix(b"\n")
    return whole.removesuffix(b"\r") if len(whole) < len(text) else text


def _all_lines() -> Iterator[str]:
    for lines in _read_lines():
        yield from lines


def _decoded(text: bytes, what: str) -> str:
    try:
        return text.decode()
    except UnicodeDecodeError as error:
        raise CommandError(ExitCode.REFUSED, f"{what} is not UTF-8: {error}") from None
