"""A worker that loses no job: it leases one, does it, answers its sender, and acknowledges it.

Run as many as you like; each job goes to one of them. Configure the service with
`CHAT_MAX_DELIVERIES=5`, so that a job that fails five times moves to the inbox `dead/squares`.

    CHAT_URL=http://127.0.0.1:8080 python worker.py

If the service needs a token, it is in `CHAT_TOKEN` or in the file that `CHAT_TOKEN_FILE` names.

A job is a message such as {"square": 12, "answer_to": "ann"} to the inbox `squares`.
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
import os
import signal
from pathlib import Path

from chat_inbox import (
    ChatClient,
    Delivered,
    Lease,
    LeaseOver,
    OutcomeUnknown,
    RateLimited,
    ServiceUnavailable,
)

INBOX = "squares"
#: How long a job stays leased if the worker is killed, in seconds. While it lives, it extends this.
LEASE_S = 30.0
#: How long an answer can be read, in seconds.
ANSWER_TIMEOUT_S = 3600
#: The longest time before a failed job is tried again, in seconds.
LONGEST_DELAY_S = 60.0

log = logging.getLogger("worker")


def square(number: int) -> int:
    """The work. It may block: it runs in a thread."""
    return number * number


async def do(chat: ChatClient, message: Delivered) -> None:
    """Do one job and answer its sender. Raise an exception if that fails."""
    job = json.loads(message.text)
    # In the event loop, blocking work would also stop the extension of the lease.
    result = await asyncio.to_thread(square, job["square"])
    # A job may be delivered twice, for example if the worker is killed after this line. The key
    # keeps the answer from being stored twice.
    await chat.post(job["answer_to"], str(result), ANSWER_TIMEOUT_S, key=f"answer-{message.id}")


async def work(chat: ChatClient, lease: Lease) -> None:
    """Do the jobs of a lease. Those that are done are acknowledged, and the others released."""
    # The block extends the lease for as long as the work takes. At its end, it acknowledges.
    async with lease:
        for message in lease:
            try:
                await do(chat, message)
            except (LeaseOver, OutcomeUnknown, RateLimited, ServiceUnavailable):
                raise  # This is not the job's fault. The block releases the lease.
            except Exception:
                log.exception("job %s failed, delivery %d", message.id, message.deliveries)
                # No worker gets it during the delay. This one goes on with other jobs.
                delay_s = min(2.0**message.deliveries / 4, LONGEST_DELAY_S)
                await lease.release(message.id, delay_s=delay_s)


async def next_lease(chat: ChatClient, stopping: asyncio.Event) -> Lease | None:
    """Wait for a job and lease it. Return None once the worker shall stop."""
    leasing = asyncio.create_task(chat.lease(INBOX, LEASE_S, limit=1, wait_s=math.inf))
    stop = asyncio.create_task(stopping.wait())
    await asyncio.wait({leasing, stop}, return_when=asyncio.FIRST_COMPLETED)
    if not leasing.done():
        # This closes the connection, and then the service leases nothing for it. A job that it was
        # leasing at this moment becomes unread again at the end of its lease.
        leasing.cancel()
        await asyncio.wait({leasing})
        return None
    stop.cancel()
    return leasing.result()


async def pause(seconds: float, stopping: asyncio.Event) -> None:
    """Sleep, but not once the worker shall stop."""
    stop = asyncio.create_task(stopping.wait())
    await asyncio.wait({stop}, timeout=seconds)
    stop.cancel()


def read_token() -> str | None:
    """Return the token of the worker, or None if it needs none."""
    token = os.environ.get("CHAT_TOKEN")
    file = os.environ.get("CHAT_TOKEN_FILE")
    if not token and file:
        return Path(file).read_text(encoding="utf-8").strip()
    return token or None


async def main() -> None:
    """Do jobs until SIGTERM or Ctrl-C. Then finish the job at hand, so that it is done once."""
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    url = os.environ.get("CHAT_URL", "http://127.0.0.1:8080")
    async with ChatClient(url, token=read_token()) as chat:
        log.info("waiting for jobs in the inbox %s at %s", INBOX, url)
        while not stopping.is_set():
            try:
                lease = await next_lease(chat, stopping)
                if lease is not None:
                    await work(chat, lease)
            except (LeaseOver, OutcomeUnknown, RateLimited, ServiceUnavailable) as error:
                # The service was away for longer than the client retries. Leased jobs become
                # unread again by themselves.
                log.warning("%s", error)
                await pause(5.0, stopping)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    asyncio.run(main())
