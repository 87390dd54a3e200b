"""Runs blocking calls on a daemon thread, which does not delay the exit of the process.

The event loop's own executor threads are joined when the loop closes, so an exporter would delay
the exit if its collector hangs.
"""

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress


async def on_daemon_thread(work: Callable[[], object]) -> None:
    """Call `work` on a daemon thread and wait for it. If cancelled, the call continues alone."""
    loop = asyncio.get_running_loop()
    done = asyncio.Event()

    def run() -> None:
        try:
            work()
        finally:
            # The loop may be closed by now.
            with suppress(RuntimeError):
                loop.call_soon_threadsafe(done.set)

    threading.Thread(target=run, name="otlp", daemon=True).start()
    await done.wait()
