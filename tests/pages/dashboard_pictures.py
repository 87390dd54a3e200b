"""Makes the pictures of the dashboard in docs/pictures:
`python -m pytest -m clients --async-test-timeout=150 tests/pages/dashboard_pictures.py`.

A real service with real requests is sampled twenty times as often as usual, so a minute looks like
a quarter of an hour. The rates in the pictures are a twentieth of the real rates.
"""

import asyncio
import math
import random
import re
import time
from collections.abc import Callable
from typing import Literal

from playwright.async_api import expect

from chat_service.metrics.history import EVERY_S, SAMPLES
from chat_service.service import Service
from config.settings import PROJECT_ROOT
from tests.conftest import StartService
from tests.pages.conftest import OpenBrowser
from tests.support.load import Connection

_PICTURES = PROJECT_ROOT / "docs" / "pictures"
_SIZE = {"width": 1120, "height": 1040}
_CLIENTS = 24
_SAMPLE_S = 0.15
_OPENS_WITHIN_S = 20


async def test_pictures(start_service: StartService, browser: OpenBrowser) -> None:
    service = await start_service()
    progress = 0.0
    clients = [
        asyncio.create_task(_chat(service, f"user-{n}", lambda: progress)) for n in range(_CLIENTS)
    ]
    begin = time.time() - EVERY_S * SAMPLES
    history = service._history
    assert service._lag is not None
    assert service._store is not None
    service._lag.cancel()
    del history._own.rows[:]
    history._own = history._own._replace(started=begin)
    for number in range(SAMPLES):
        progress = number / SAMPLES
        service._sample()
        if number % 3 == 0:
            service._worker_metrics.pending.set(await service._store.count_pending())
        history.sample(begin + number * EVERY_S)
        await asyncio.sleep(_SAMPLE_S)
    # Shift the samples, so that there is a current one however long the page takes to open.
    rows, width = history._own.rows, len(history._own.series) + 1
    late = time.time() + _OPENS_WITHIN_S - rows[-width]
    for place in range(0, len(rows), width):
        rows[place] += late
    async with browser(viewport=_SIZE) as page:
        await page.goto(f"http://127.0.0.1:{service.port}/ops")
        await page.locator("#state.good").wait_for()
        schemes: dict[str, Literal["light", "dark"]] = {
            "dashboard": "light",
            "dashboard-dark": "dark",
        }
        for name, scheme in schemes.items():
            await page.emulate_media(color_scheme=scheme)
            await expect(page.locator(".tile b").first).to_have_text(re.compile(r"\d"))
            await page.screenshot(path=_PICTURES / f"{name}.png")
    for client in clients:
        client.cancel()
    await asyncio.gather(*clients, return_exceptions=True)


async def _chat(service: Service, name: str, progress: Callable[[], float]) -> None:
    """Post and read at a varying rate; for a while nobody reads."""
    connection = await Connection.open(service.port)
    while True:
        at = progress()
        is_rush = 0.5 < at < 0.56
        await connection.post(name, "hello", random.choice((2, 3600)))
        if not 0.7 < at < 0.8 and random.random() < 0.8:
            await connection.read(name)
        if random.random() < 0.004:
            await connection.ask(b"GET /chat/ HTTP/1.1\r\nHost: localhost\r\n\r\n")
        pause = 0.05 + 0.03 * math.sin(at * 12)
        await asyncio.sleep(0 if is_rush else pause * random.random() * 2)
