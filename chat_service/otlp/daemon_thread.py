"""Runs what blocks on a thread that the end of the process does not wait for.

The loop's own threads are joined when it closes: an exporter whose collector hangs would hold
that up.
"""

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress


async def on_daemon_thread(work: Callable[[], object]) -> None:
    """Do it, and wait until it is done. Cancelled, it goes on, and nobody waits for it."""
    loop = asyncio.get_running_loop()
    done = asyncio.Event()

    def run() -> None:
        try:
            work()
        finally:
            # The loop may not have waited, and be closed.
            with suppress(RuntimeError):
                loop.call_soon_threadsafe(done.set)

    threading.Thread(target=run, name="otlp", daemon=True).start()
    await done.wait()
