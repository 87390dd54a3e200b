"""An embedded MongoDB for a whole test run, started in the same way as by the service."""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from workers.mongod.embedded import EmbeddedMongod


@contextmanager
def running_mongod(data_dir: Path) -> Iterator[str]:
    """Run a mongod on a separate loop and thread, and yield its connection string."""
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
