"""A real browser for the tests of the pages: Debian's Chromium, driven by Playwright."""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any, TypeAlias

import pytest
from axe_playwright_python.async_playwright import Axe
from playwright.async_api import BrowserContext, Page, async_playwright, expect

from tests.support.server import Server

#: Opens a browser's window, as a context: `async with browser(**options) as page`. The options are
#: those of Playwright's `Browser.new_context`, for phones, darkness and the like.
OpenBrowser: TypeAlias = Callable[..., AbstractAsyncContextManager[Page]]
#: Fails where a page as it stands has a serious fault of accessibility.
CheckAccess: TypeAlias = Callable[[Page], Awaitable[None]]

expect.set_options(timeout=10_000)
_PATH = "/usr/bin/chromium"
_FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """All tests of this folder need more than Python: tox has an environment for them."""
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker("clients")


@asynccontextmanager
async def _browser(**options: Any) -> AsyncIterator[Page]:
    complaints: list[str] = []
    async with async_playwright() as playwright:
        chromium = await playwright.chromium.launch(executable_path=_PATH, args=_FLAGS)
        context: BrowserContext = await chromium.new_context(**options)
        context.set_default_timeout(10_000)
        page = await context.new_page()
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on(
            "console",
            lambda message: (
                complaints.append(message.text)
                if "Content Security Policy" in message.text
                else None
            ),
        )
        yield page
        await chromium.close()
    assert not complaints


@pytest.fixture
def browser() -> OpenBrowser:
    """Opens a window; fails the test where a script of the page failed or broke the policy."""
    return _browser


@pytest.fixture
def check_access() -> CheckAccess:
    """Has axe look at a page."""

    async def check(page: Page) -> None:
        found = await Axe().run(page)
        serious = [
            f"{fault['id']} ({fault['impact']}): {[node['html'] for node in fault['nodes']]}"
            for fault in found.response["violations"]
            if fault["impact"] in ("serious", "critical")
        ]
        assert not serious, "\n".join(serious)

    return check


@pytest.fixture
def server(mongo_uri: str, database: str, tmp_path: Path) -> Iterator[Server]:
    """The service as a process, for what happens when it ends."""
    with Server(tmp_path, "--mongo-uri", mongo_uri, CHAT_MONGO_DATABASE=database) as running:
        yield running
