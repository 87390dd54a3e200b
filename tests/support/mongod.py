"""A private mongod for a whole test run, started as the service starts its own."""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from workers.mongod.embedded import EmbeddedMongod


@contextmanager
def running_mongod(data_dir: Path) -> Iterator[str]:
    """Run one on a loop and thread of its own; gives its connection string."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="mongod")
    thread.start()
    mongod = EmbeddedMongod(data_dir, "")
    try:
        yield asyncio.run_coroutine_threadsafe(mongod.start(), loop).result(90)
    finally:
        asyncio.run_coroutine_threadsafe(mongod.stop(), loop).result(30)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
