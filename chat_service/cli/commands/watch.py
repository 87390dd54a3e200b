"""`chat watch`: shows what comes to an inbox, as it comes, or has a command work it off."""

import asyncio
import logging
import math
import os
import signal
from asyncio.subprocess import PIPE, Process
from contextlib import suppress

import click

from chat_service.cli.exit_codes import ExitCode, Unwritten
from chat_service.cli.param_types import NotEmpty
from chat_service.cli.session import Session, with_session
from chat_service.client import (
    ChatError,
    Lease,
    LeaseOver,
    Message,
    OutcomeUnknown,
    ServiceUnavailable,
)

#: A command's message is on loan for so long, extended thrice in it. In seconds.
_TTL_S = 30.0
#: A command that is to end is given so long, in seconds: less than is left of the loan.
_GRACE_S = 10.0


@click.command()
@click.argument("name", type=NotEmpty())
@click.option(
    "--exec",
    "command",
    metavar="CMD",
    help="Run a shell command for each message, its text on standard input, its id in "
    "MESSAGE_ID: acknowledged where it exits 0, else unread again some 30 s later.",
)
@with_session
def watch(session: Session, name: str, command: str | None) -> int:
    """Show what is unread in the inbox NAME, and what comes, until Ctrl-C.

    A message is read once it is shown. Goes on over restarts of the service.

    \b
    Examples:
      chat watch bob
      chat watch bob --json | jq -r .text
      chat watch jobs --exec 'xargs -0 ./work'
    """
    # So that a wrong address or name is said at once; a stream would go on trying.
    session.run(session.chat.count(name))
    _tell_of_breaks(session)
    session.out.note(f"watching {name}; Ctrl-C ends")
    session.run(_show(session, name) if command is None else _work(session, name, command))
    return ExitCode.DONE


async def _show(session: Session, name: str) -> None:
    """Print; each is acknowledged as the next one is asked for, which is at once."""
    async with session.chat.stream(name) as messages:
        try:
            async for message in messages:
                session.out.message(message)
                session.out.settle()
        except Unwritten as unwritten:
            raise unwritten.told("what was not shown is unread again") from None
        except asyncio.CancelledError:
            # The last one has been shown, and perhaps not been acknowledged yet.
            await messages.acknowledge()
            raise


def _tell_of_breaks(session: Session) -> None:
    """Have the client's log lines (a stream has ended, it is begun again) shown as notes."""

    class Notes(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            session.out.note(record.getMessage())

    log = logging.getLogger("chat_service.client")
    log.addHandler(Notes())
    log.setLevel(logging.INFO)
    log.propagate = False


async def _work(session: Session, name: str, command: str) -> None:
    """Lease one message after the other, and run the command for it."""
    while True:
        try:
            lease = await session.chat.wait_lease(name, math.inf, _TTL_S, limit=1)
            for message in lease.messages:
                await _work_off(session, lease, message, command)
        except (ServiceUnavailable, OutcomeUnknown) as error:
            # Its tries take seconds, so that this does not spin.
            session.out.note(f"{error}; trying again")


async def _work_off(session: Session, lease: Lease, message: Message, command: str) -> None:
    """Run the command for a message, and acknowledge it where that went well."""
    environ = {**os.environ, "MESSAGE_ID": message.id}
    # On a terminal it is in our group, for what it asks there, and for the terminal's signals.
    # Elsewhere in one of its own, so that it can be ended with all that it has started.
    group = None if _has_terminal() else 0
    # A task, so that no cancellation comes between its start and our knowing of it.
    starting = asyncio.create_task(
        asyncio.create_subprocess_shell(command, stdin=PIPE, env=environ, process_group=group)
    )
    try:
        code = await _ended(await asyncio.shield(starting), lease, message)
    except BaseException:
        await _end(await starting, owns_group=group == 0)
        # At once, not in half a minute: nothing is known to have failed.
        with suppress(ChatError):
            await lease.release()
        raise
    if code == 0:
        try:
            await lease.acknowledge()
        except LeaseOver:
            session.out.note(f"{message.id}: was done too late, and comes again")
    else:
        session.out.note(f"{message.id}: exit {code}; it is unread again in {_TTL_S:.0f} s or less")


def _has_terminal() -> bool:
    try:
        os.close(os.open("/dev/tty", os.O_RDWR))
    except OSError:
        return False
    return True


async def _end(process: Process, owns_group: bool) -> None:
    """ExitCode a command, by force where it does not listen: its message is still on loan then."""
    send = os.killpg if owns_group else os.kill
    with suppress(ProcessLookupError):
        send(process.pid, signal.SIGTERM)
        # One that is stopped would not see it.
        send(process.pid, signal.SIGCONT)
        try:
            async with asyncio.timeout(_GRACE_S):
                await process.wait()
        except TimeoutError:
            send(process.pid, signal.SIGKILL)
    await process.wait()


async def _ended(process: Process, lease: Lease, message: Message) -> int:
    """Wait for a command, keeping its message on loan; its exit code."""
    working = asyncio.create_task(process.communicate(message.text.encode()))
    try:
        while not (await asyncio.wait((working,), timeout=_TTL_S / 3))[0]:
            # Where that fails, the message may come again; the command shall not be ended for it.
            with suppress(ChatError):
                await lease.extend(_TTL_S)
        await working
    finally:
        working.cancel()
        await asyncio.gather(working, return_exceptions=True)
    assert process.returncode is not None
    return process.returncode
