"""The dashboard during real faults: a stopped or killed mongod, overload, stopped processes."""

import asyncio
import os
import re
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, Final

from playwright.async_api import Page, Route, expect

from tests.pages.conftest import CheckAccess, OpenBrowser
from tests.pages.dashboard import SOON, chart, fact, tile, verdict
from tests.support.client import ChatClient
from tests.support.load import Connection
from tests.support.server import Server, mongods_on

PHONE: Final[dict[str, Any]] = {
    "viewport": {"width": 375, "height": 667},
    "color_scheme": "dark",
}


@asynccontextmanager
async def traffic(server: Server, clients: int, pause_s: float) -> AsyncIterator[None]:
    """Post all the time. Every answer is welcome, also an error."""

    async def post(number: int) -> None:
        connection = await Connection.open(server.port)
        body = b'{"text": "x", "username": "user-%d", "timeout": 60}' % number
        head = b"POST /chat HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(body)
        while True:
            try:
                await connection.ask(head + body)
            except ConnectionResetError:
                connection = await Connection.open(server.port)
            await asyncio.sleep(pause_s)

    tasks = [asyncio.create_task(post(number)) for number in range(clients)]
    yield
    for task in tasks:
        task.cancel()
    for task in tasks:
        with suppress(asyncio.CancelledError, OSError):
            await task


async def in_view(page: Page, what: str) -> bool:
    """Whether an element lies completely in the window, without scrolling."""
    box = await page.locator(what).bounding_box()
    size = page.viewport_size
    assert box is not None
    assert size is not None
    return bool(0 <= box["y"] <= size["height"] - box["height"])


async def test_a_stopped_database_is_said_with_the_next_step(
    tmp_path: Path, browser: OpenBrowser, check_access: CheckAccess
) -> None:
    data_dir = tmp_path / "data"
    arguments = ("--data-dir", str(data_dir))
    with Server(tmp_path, *arguments, CHAT_MONGO_TIMEOUT_S="1") as server:
        async with browser(**PHONE) as page, traffic(server, 8, 0.05):
            await page.goto(f"{server.base}/ops")
            await expect(verdict(page)).to_contain_text("Everything works.", timeout=SOON)
            (mongod,) = mongods_on(data_dir)
            os.kill(mongod, signal.SIGSTOP)
            await expect(page.locator("#state")).to_have_text("Down", timeout=SOON)
            await expect(page.get_by_role("status")).to_contain_text("The database does not answer")
            assert await in_view(page, "#state")
            assert await in_view(page, "#conditions li:first-child a")
            await expect(tile(page, "Database")).to_have_class(re.compile("bad"), timeout=SOON)
            await expect(tile(page, "Failed")).to_have_class(re.compile("bad"), timeout=SOON)
            for title in ("Latency, p99", "Requests", "Queued"):
                await expect(tile(page, title)).to_have_class(re.compile("doubtful|pending"))
            await check_access(page)
            await verdict(page).get_by_role("link", name="database unavailable").click()
            await expect(page).to_have_url(re.compile(r"/ops/runbook#database-unavailable$"))
            await expect(page.locator("#database-unavailable")).to_be_in_viewport()
            await page.go_back()
            os.kill(mongod, signal.SIGKILL)
            # Another mongod takes over, and the page says so without being opened again.
            await expect(tile(page, "Database")).to_contain_text(
                re.compile("up|slow"), timeout=SOON
            )
            await expect(page.locator("#state")).not_to_have_text("Down", timeout=SOON)
            await expect(verdict(page)).to_contain_text("The embedded mongod ended 1 time")
            await expect(fact(page, "Database")).to_contain_text("1 restart")
            refused = chart(page, "Refused").get_by_role("img")
            await expect(refused).to_have_attribute(
                "aria-label", re.compile(r"unavailable: now \S+, from \S+ to [1-9]")
            )


async def test_processes_that_hang_or_die_are_named(tmp_path: Path, browser: OpenBrowser) -> None:
    arguments = ("--processes", "2", "--data-dir", str(tmp_path / "data"))
    with Server(tmp_path, *arguments) as server:
        async with browser() as page:
            await page.goto(f"{server.base}/ops")
            await expect(page.locator("#state")).to_have_text("OK", timeout=SOON)
            for process in server.members():
                # The page's connection may be one to the stopped process. Then it has no answer.
                os.kill(process, signal.SIGSTOP)
                await expect(page.locator("#state")).to_have_text(
                    re.compile("Degraded|No answer"), timeout=SOON
                )
                said = await verdict(page).text_content() or ""
                assert f"Process {process} does not respond." in said or "No answer" in said
                os.kill(process, signal.SIGCONT)
                await expect(page.locator("#state")).to_have_text("OK", timeout=SOON)
            os.kill(process, signal.SIGKILL)
            await expect(verdict(page)).to_contain_text("1 process died", timeout=SOON)
            await expect(fact(page, "Processes")).to_contain_text("1 restart")


async def test_overload_is_named_and_no_tile_is_calm(tmp_path: Path, browser: OpenBrowser) -> None:
    arguments = ("--data-dir", str(tmp_path / "data"))
    with Server(tmp_path, *arguments, CHAT_QUEUE_MAX="2") as server:
        async with browser(**PHONE) as page, traffic(server, 60, 0.02):
            await page.goto(f"{server.base}/ops")
            await expect(page.locator("#state")).to_have_text("Failing", timeout=SOON)
            await expect(verdict(page)).to_contain_text("because the queues are full")
            await expect(verdict(page).get_by_role("link").first).to_have_text(
                "Runbook: clients get 503"
            )
            await expect(tile(page, "Failed")).to_have_class(re.compile("bad"), timeout=SOON)
            for title in ("Latency, p99", "Requests", "Queued"):
                await expect(tile(page, title)).to_have_class(re.compile("doubtful|pending"))
            await expect(tile(page, "Database")).to_contain_text(re.compile("up|slow"))


async def test_a_slow_day_is_asked_for_once_and_delays_nothing(
    chat: ChatClient, browser: OpenBrowser
) -> None:
    asked, is_over = [], asyncio.Event()

    async def slow(route: Route) -> None:
        asked.append(route.request.url)
        await is_over.wait()
        await route.abort()

    async with browser() as page:
        await page.route("**/ops/history?range=day*", slow)
        await page.goto(f"{chat.base}/ops")
        await expect(page.locator("#link")).to_have_text("Live")
        await page.get_by_role("radio", name="1 day").check()
        for _ in range(2):
            as_of = await page.locator("#as-of").inner_text()
            await expect(page.locator("#as-of")).not_to_have_text(as_of)
        is_over.set()
        await expect(page.locator("#trouble")).to_contain_text("No answer came in time")
        as_of = await page.locator("#as-of").inner_text()
        await expect(page.locator("#as-of")).not_to_have_text(as_of)
        assert len(asked) == 1
