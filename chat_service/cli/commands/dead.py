"""`chat dead`: lists the dead letters of an inbox, or returns them to it."""

from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, suppress
from functools import partial

import click

from chat_inbox import ChatError, Delivered, Lease, LeaseOver, Origin, OutcomeUnknown, ProblemError
from chat_service.cli.exit_codes import CommandError, ExitCode, OutputError
from chat_service.cli.param_types import Duration, NonEmptyText
from chat_service.cli.session import Session, with_session

#: How long returned messages live, in seconds. The service's default may be a minute, too short for
#: a consumer that is being repaired.
_LIFETIME_S = 86_400
#: Duration of a lease, in seconds, and how many messages it holds. Returning them takes less time.
_TTL_S, _AT_ONCE = 60.0, 100

Handle = Callable[[Lease, Delivered, Origin], Awaitable[None]]


@click.command()
@click.argument("name", type=NonEmptyText())
@click.option("--return", "returns", is_flag=True, help="Return them to the inbox NAME.")
@click.option("--limit", type=click.IntRange(1), metavar="N", help="Only the N oldest.")
@click.option(
    "--timeout",
    type=Duration(whole=True),
    metavar="TIME",
    help="With --return: lifetime of the returned messages, instead of a day.",
)
@with_session
def dead(session: Session, name: str, returns: bool, limit: int | None, timeout: int | None) -> int:
    """List the dead letters of the inbox NAME: messages that were leased too often.

    With --return, give them back to the inbox, as new messages that live for a day. If that is
    interrupted, repeat the command; it returns no message twice. Exits with 1 if there are none.

    The token must be allowed to read NAME and its dead-letter inbox, such as dead/NAME, and with
    --return to send to NAME.

    \b
    Examples:
      chat dead jobs
      chat dead jobs --json | jq -r .text
      chat dead jobs --return --timeout 7d
    """
    if timeout is not None and not returns:
        raise click.UsageError("--timeout is the lifetime of returned messages; add --return.")
    inbox = session.run(session.chat.dead_letter_inbox(name))
    if inbox is None:
        raise CommandError(ExitCode.NOTHING, "this service is too old for dead letters")
    handle: Handle = (
        partial(_return, session, timeout or _LIFETIME_S) if returns else partial(_show, session)
    )
    if not session.run(_for_each(session, name, inbox, limit, handle)):
        session.out.note(
            f"no dead letters, unless another reader has leased {inbox}; "
            "a service without the setting max_deliveries makes none"
        )
        return ExitCode.NOTHING
    session.out.sync()
    return ExitCode.DONE


async def _for_each(
    session: Session, name: str, inbox: str, limit: int | None, handle: Handle
) -> int:
    """Handle the dead letters of an inbox, oldest first, and return how many there were.

    All stay leased until the last one is handled, so that none is found twice. Then those that are
    not acknowledged become unread again, and so do other messages that the inbox may hold.
    """
    handled = 0
    # If the output is slow, the first leases end meanwhile, and their messages are found again.
    seen: set[str] = set()
    async with AsyncExitStack() as held:
        while handled != limit:
            lease = await session.chat.lease(inbox, _TTL_S, _AT_ONCE)
            held.push_async_callback(_release, lease)
            found = [message for message in lease.messages if message.id not in seen]
            seen.update(message.id for message in found)
            for message in found:
                origin = message.dead
                if origin is not None and origin.username == name and handled != limit:
                    await handle(lease, message, origin)
                    handled += 1
            if not found:
                break
    return handled


async def _release(lease: Lease) -> None:
    # If this fails, the messages become unread when the lease ends.
    with suppress(ChatError):
        await lease.release(delivered=False)


async def _show(session: Session, lease: Lease, message: Delivered, origin: Origin) -> None:
    session.out.message(message, f"; leased {_times(origin.deliveries)} as {origin.id}")


async def _return(
    session: Session, lifetime_s: int, lease: Lease, message: Delivered, origin: Origin
) -> None:
    """Post a dead letter to the inbox that it was in, then acknowledge it.

    The post has a key that is made of the dead letter's id. So a repeat, after an interruption
    between the two requests, finds the message posted.
    """
    new_id = ""
    try:
        key = f"return-{message.id}"
        new_id = (await session.chat.post(origin.username, message.text, lifetime_s, key=key)).id
    except OutcomeUnknown as error:
        advice = "repeat the command; it returns no message twice"
        raise CommandError(ExitCode.UNKNOWN, f"the outcome is unknown: {error}; {advice}") from None
    except ProblemError as problem:
        # An earlier run, with another lifetime, has posted it.
        if problem.kind != "key-reused":
            raise
    try:
        await lease.acknowledge([message.id])
    except LeaseOver:
        session.out.note(f"{message.id}: the lease had ended; repeat the command to remove it")
    try:
        session.out.record(f"returned {message.id}", returned=message.id, id=new_id or None)
    except OutputError as failure:
        raise failure.with_advice("some messages are returned; repeat the command") from None


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"
