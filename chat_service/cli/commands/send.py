"""`chat send`: posts a message, or one for each line of standard input."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from chat_service.cli.exit_codes import ExitCode, Failed, Unwritten, say
from chat_service.cli.param_types import Duration, NotEmpty, Text
from chat_service.cli.session import Session, reason_of, unavailable, with_session
from chat_service.client import ChatError, Draft, Posted, ProblemError, ServiceUnavailable

_CHUNK_BYTES = 1 << 20


@click.command()
@click.argument("name", type=NotEmpty())
@click.argument("words", type=Text(), metavar="[TEXT]...", nargs=-1)
@click.option(
    "--file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="F",
    help="Take the text from a file, to the byte.",
)
@click.option("--lines", is_flag=True, help="Post each line of standard input.")
@click.option(
    "--timeout",
    type=Duration(whole=True),
    metavar="TIME",
    help="How long it lives unread: 90, 90s, 10m, 2h, 7d.",
)
@click.option(
    "--key",
    type=NotEmpty(),
    help="Store it once, however often this command is repeated with the key.",
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
    key: str | None,
    receipt: bool,
) -> int:
    """Post TEXT to the inbox NAME, and print the message's id.

    Several words are one text. Without TEXT, or where it is -, the text is read from standard
    input, less the newline (LF or CRLF) at its end; exits with 1 where there is none.

    \b
    Examples:
      chat send bob 'lunch?' --timeout 10m
      uptime | chat send ops
      chat send bob --file letter.txt --receipt
      tail -f app.log | chat send ops --lines
    """
    text = " ".join(words) if words else None
    if lines:
        if text is not None or file is not None:
            raise click.UsageError("--lines reads standard input: name neither TEXT nor --file.")
        return _send_lines(session, name, timeout, key, receipt)
    text = _text(text, file)
    posted = session.run(session.chat.post(name, text, timeout, key=key, receipt=receipt))
    try:
        _tell(session, posted)
    except Unwritten as unwritten:
        receipt_is = f", with the receipt {posted.receipt}" if posted.receipt else ""
        raise unwritten.told(f"the message is stored as {posted.id}{receipt_is}") from None
    return ExitCode.DONE


def _text(text: str | None, file: Path | None) -> str:
    """The one text that was named."""
    if file is not None:
        if text is not None:
            raise click.UsageError("Name TEXT or --file, not both.")
        try:
            return file.read_bytes().decode()
        except (OSError, UnicodeDecodeError) as error:
            raise Failed(ExitCode.REFUSED, f"{file} cannot be sent: {error}") from None
    if text is None and sys.stdin.isatty():
        raise click.UsageError("There is no text: name TEXT or --file, or pipe one in.")
    if text is None or text == "-":
        try:
            given = sys.stdin.buffer.read()
        except OSError as error:
            raise _unreadable(error) from None
        if not given:
            raise Failed(ExitCode.NOTHING, "standard input is empty: nothing was sent")
        return _decoded(_without_newline(given), "standard input")
    return text


def _send_lines(
    session: Session, name: str, timeout: int | None, key: str | None, receipt: bool
) -> int:
    """Post line by line, as they come; with a key all at once, so that a repeat is the same."""
    end, is_away = ExitCode.DONE, False
    number = 0
    for lines in [list(_all_lines())] if key else _lines_as_they_come():
        sent = number
        drafts = [Draft(name, line, timeout) for line in lines]
        for result in session.run(session.chat.post_many(drafts, key=key, receipt=receipt)):
            number += 1
            try:
                if isinstance(result, Posted):
                    _tell(session, result, number)
                else:
                    end = max(end, _tell_failure(session, result, number))
            except Unwritten as unwritten:
                upto = sent + len(lines)
                lost = f"what became of lines {number} to {upto} is not shown"
                raise unwritten.told(lost) from None
                is_away = is_away or isinstance(result, ServiceUnavailable)
        if is_away:
            say("no more lines are read")
            break
    return end


def _tell(session: Session, posted: Posted, line: int | None = None) -> None:
    """Print what was stored."""
    fields: dict[str, Any] = {} if line is None else {"line": line}
    fields["id"] = posted.id
    words = posted.id
    if posted.receipt is not None:
        fields["receipt"] = posted.receipt
        words += f"  {session.out.dim('receipt')} {posted.receipt}"
    session.out.record(words, **fields)


def _tell_failure(session: Session, error: ChatError, line: int) -> ExitCode:
    """Print what was not stored, and why."""
    if isinstance(error, ProblemError):
        reason, end = f"was refused: {reason_of(error)}", ExitCode.REFUSED
    elif isinstance(error, ServiceUnavailable):
        reason, end = f"was not sent: {unavailable(session.url, error)}", ExitCode.UNREACHABLE
    else:
        reason, end = f"may be stored or not: {error}", ExitCode.UNKNOWN
    say(f"line {line} {reason}")
    if session.out.is_json:
        session.out.record("", line=line, error=reason)
    return end


def _lines_as_they_come() -> Iterator[list[str]]:
    """Some lines at a time: those that are there, so that none waits for the next."""
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


def _unreadable(error: OSError) -> Failed:
    return Failed(ExitCode.REFUSED, f"standard input cannot be read: {error.strerror}")


def _without_newline(text: bytes) -> bytes:
    """The text without the newline at its end, Unix's or Windows'."""
    whole = text.removesuffix(b"\n")
    return whole.removesuffix(b"\r") if len(whole) < len(text) else text


def _all_lines() -> Iterator[str]:
    for lines in _lines_as_they_come():
        yield from lines


def _decoded(text: bytes, what: str) -> str:
    try:
        return text.decode()
    except UnicodeDecodeError as error:
        raise Failed(ExitCode.REFUSED, f"{what} is not UTF-8: {error}") from None
