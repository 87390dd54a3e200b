"""Makes the pictures of the dashboard in docs/pictures:
`python -m pytest -m clients --async-test-timeout=150 tests/pages/dashboard_pictures.py`.

A real service with real requests is sampled twenty times as often as usual, so a minute looks like
a quarter of an hour. The rates in the pictures are a twentieth of the real rates. In the end, its
connections to the database are cut.
"""

import asyncio
import math
import random
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from playwright.async_api import expect

from chat_service.metrics.history import EVERY_S, SAMPLES
from chat_service.service import Service
from config.settings import PROJECT_ROOT
from tests.conftest import StartService
from tests.pages.conftest import OpenBrowser
from tests.support.load import Connection
from tests.support.proxy import MongoProxy

_PICTURES = PROJECT_ROOT / "docs" / "pictures"
_DESKTOP: dict[str, Any] = {"viewport": {"width": 1120, "height": 1130}}
_PHONE: dict[str, Any] = {"viewport": {"width": 375, "height": 667}, "device_scale_factor": 2}
_CLIENTS = 12
_SAMPLE_S = 0.15
_FAULT_SAMPLES = 60
_OPENS_WITHIN_S = 20
_COMMANDS = ("hello", "ping", "find", "aggregate", "count", "update", "insert", "findAndModify")


async def test_pictures(
    start_service: StartService, browser: OpenBrowser, mongo_uri: str, tmp_path: Path
) -> None:
    async with MongoProxy(mongo_uri, tmp_path) as proxy:
        service = await start_service(mongo_uri=proxy.uri, mongo_timeout_s=1.0)
        progress = 0.0
        clients = [
            asyncio.create_task(_chat(service, f"user-{n}", lambda: progress))
            for n in range(_CLIENTS)
        ]
        assert service._lag is not None
        assert service._store is not None
        service._lag.cancel()
        own = service._history._own
        del own.rows[:]
        begin = time.time() - EVERY_S * SAMPLES
        service._history._own = own._replace(started=begin)
        for number in range(SAMPLES):
            progress = number / SAMPLES
            service._sample()
            if number % 3 == 0:
                service._worker_metrics.pending.set(await service._store.count_pending())
            service._history.sample(begin + number * EVERY_S)
            await asyncio.sleep(_SAMPLE_S)
        await _picture(service, browser, "dashboard", "OK", **_DESKTOP)
        await _picture(service, browser, "dashboard-dark", "OK", color_scheme="dark", **_DESKTOP)
        proxy.cut_before.update(dict.fromkeys(_COMMANDS, 100_000))
        last = service._history._own.rows[-len(own.series) - 1]
        for number in range(1, _FAULT_SAMPLES):
            service._sample()
            service._history.sample(last + number * EVERY_S)
            await asyncio.sleep(_SAMPLE_S)
        await _picture(service, browser, "dashboard-fault", "Down", **_DESKTOP)
        await _picture(service, browser, "dashboard-phone", "Down", color_scheme="dark", **_PHONE)
        for client in clients:
            client.cancel()
        await asyncio.gather(*clients, return_exceptions=True)
        await service.stop()


async def _picture(
    service: Service, browser: OpenBrowser, name: str, state: str, **options: Any
) -> None:
    # Shift the samples, so that there is a current one however long the page takes to open.
    rows, width = service._history._own.rows, len(service._history._own.series) + 1
    late = time.time() + _OPENS_WITHIN_S - rows[-width]
    for place in range(0, len(rows), width):
        rows[place] += late
    async with browser(**options) as page:
        await page.goto(f"http://127.0.0.1:{service.port}/ops")
        await expect(page.locator("#state")).to_have_text(state)
        await page.screenshot(path=_PICTURES / f"{name}.png")


async def _chat(service: Service, name: str, progress: Callable[[], float]) -> None:
    """Post and read at a varying rate; for a while nobody reads. Requests may fail."""
    connection = await Connection.open(service.port)
    while True:
        at = progress()
        is_rush = 0.5 < at < 0.56
        with suppress(AssertionError):
            await connection.post(name, "hello", random.choice((2, 3600)))
            if not 0.7 < at < 0.8 and random.random() < 0.8:
                await connection.read(name)
        if random.random() < 0.004:
            await connection.ask(b"GET /chat/ HTTP/1.1\r\nHost: localhost\r\n\r\n")
        pause = 0.05 + 0.03 * math.sin(at * 12)
        await asyncio.sleep(0 if is_rush else pause * random.random() * 2)
