"""`chat watch`: streams the messages of an inbox, or runs a command for each of them."""

import asyncio
import logging
import math
import os
import signal
from asyncio.subprocess import PIPE, Process
from contextlib import suppress

import click

from chat_inbox import (
    ChatError,
    Lease,
    LeaseOver,
    Message,
    OutcomeUnknown,
    ServiceUnavailable,
)
from chat_service.cli.exit_codes import ExitCode, OutputError
from chat_service.cli.param_types import NonEmptyText
from chat_service.cli.session import Session, with_session

#: Duration of the lease of a command's message, in seconds. It is extended every third of that.
_TTL_S = 30.0
#: Time between SIGTERM and SIGKILL, in seconds: less than what is left of the lease.
_GRACE_S = 10.0


@click.command()
@click.argument("name", type=NonEmptyText())
@click.option(
    "--exec",
    "command",
    metavar="CMD",
    help="Run a shell command for each message, with the text on standard input and the id in "
    "MESSAGE_ID. If it exits 0, the message is acknowledged; otherwise it becomes unread again "
    "within 30 s.",
)
@with_session
def watch(session: Session, name: str, command: str | None) -> int:
    """Print the unread messages in the inbox NAME, then new ones, until Ctrl-C.

    A message counts as read when it is printed. Reconnects when the service restarts.

    \b
    Examples:
      chat watch bob
      chat watch bob --json | jq -r .text
      chat watch jobs --exec 'xargs -0 ./work'
    """
    # Report a wrong address or name at once. A stream would keep reconnecting.
    session.run(session.chat.count(name))
    _show_interruptions(session)
    session.out.note(f"watching {name}; press Ctrl-C to stop")
    session.run(_show(session, name) if command is None else _run_for_each(session, name, command))
    return ExitCode.DONE


async def _show(session: Session, name: str) -> None:
    """Print messages. Each is acknowledged when the next one is requested, which is at once."""
    async with session.chat.stream(name) as messages:
        try:
            async for message in messages:
                session.out.message(message)
                session.out.sync()
        except OutputError as failure:
            raise failure.with_advice("messages that were not shown become unread again") from None
        except asyncio.CancelledError:
            # The last message was shown, but may not be acknowledged yet.
            await messages.acknowledge()
            raise


def _show_interruptions(session: Session) -> None:
    """Show the client's log lines about interrupted streams as notes."""

    class Notes(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            session.out.note(record.getMessage())

    log = logging.getLogger("chat_inbox")
    log.addHandler(Notes())
    log.setLevel(logging.INFO)
    log.propagate = False


async def _run_for_each(session: Session, name: str, command: str) -> None:
    """Lease one message at a time, and run the command for it."""
    while True:
        try:
            lease = await session.chat.lease(name, _TTL_S, 1, math.inf)
            for message in lease.messages:
                await _run_command(session, lease, message, command)
        except (ServiceUnavailable, OutcomeUnknown) as error:
            # The client's own retries take seconds, so this loop does not spin.
            session.out.note(f"{error}; retrying")


async def _run_command(session: Session, lease: Lease, message: Message, command: str) -> None:
    """Run the command for a message. If it exits 0, acknowledge the message."""
    environ = {**os.environ, "MESSAGE_ID": message.id}
    # With a terminal, the command shares our process group, so that it can read from the terminal
    # and gets its signals. Without one, it gets its own group, so that it can be ended together
    # with its children.
    group = None if _has_terminal() else 0
    # Started in a task, so that a cancellation cannot lose track of the new process.
    starting = asyncio.create_task(
        asyncio.create_subprocess_shell(command, stdin=PIPE, env=environ, process_group=group)
    )
    try:
        code = await _wait_and_extend(await asyncio.shield(starting), lease, message)
    except BaseException:
        await _terminate(await starting, owns_group=group == 0)
        # The message did not fail, so make it unread now instead of when the lease ends.
        with suppress(ChatError):
            await lease.release()
        raise
    if code == 0:
        try:
            await lease.acknowledge()
        except LeaseOver:
            session.out.note(f"{message.id}: the lease had ended; the message is delivered again")
    else:
        session.out.note(f"{message.id}: exit {code}; unread again within {_TTL_S:.0f} s")


def _has_terminal() -> bool:
    try:
        os.close(os.open("/dev/tty", os.O_RDWR))
    except OSError:
        return False
    return True


async def _terminate(process: Process, owns_group: bool) -> None:
    """Send SIGTERM to a command, and SIGKILL if it does not exit before the lease can end."""
    send = os.killpg if owns_group else os.kill
    with suppress(ProcessLookupError):
        send(process.pid, signal.SIGTERM)
        # A stopped process handles SIGTERM only after SIGCONT.
        send(process.pid, signal.SIGCONT)
        try:
            async with asyncio.timeout(_GRACE_S):
                await process.wait()
        except TimeoutError:
            send(process.pid, signal.SIGKILL)
    await process.wait()


async def _wait_and_extend(process: Process, lease: Lease, message: Message) -> int:
    """Wait for a command while extending the lease of its message. Return its exit code."""
    working = asyncio.create_task(process.communicate(message.text.encode()))
    try:
        while not (await asyncio.wait((working,), timeout=_TTL_S / 3))[0]:
            # If this fails, the message may be delivered again, but the command goes on.
            with suppress(ChatError):
                await lease.extend(_TTL_S)
        await working
    finally:
        working.cancel()
        await asyncio.gather(working, return_exceptions=True)
    assert process.returncode is not None
    return process.returncode
