"""A real browser for the tests of the pages: Debian's Chromium, controlled by Playwright."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any, TypeAlias

import pytest
from axe_playwright_python.async_playwright import Axe
from playwright.async_api import BrowserContext, Page, async_playwright, expect
from tornado.ioloop import IOLoop

from chat_service.service import Service
from tests.conftest import Connect, StartService
from tests.pages.access import Tokens
from tests.support.client import ChatClient

#: Opens a browser window as a context: `async with browser(**options) as page`. The options are
#: those of Playwright's `Browser.new_context`, for example for phones and dark mode.
OpenBrowser: TypeAlias = Callable[..., AbstractAsyncContextManager[Page]]
#: Fails if a page in its current state has a serious accessibility problem.
CheckAccess: TypeAlias = Callable[[Page], Awaitable[None]]

expect.set_options(timeout=30_000)
_PATH = "/usr/bin/chromium"
_FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]


@asynccontextmanager
async def _browser(**options: Any) -> AsyncIterator[Page]:
    complaints: list[str] = []
    async with async_playwright() as playwright:
        chromium = await playwright.chromium.launch(executable_path=_PATH, args=_FLAGS)
        context: BrowserContext = await chromium.new_context(**options)
        context.set_default_timeout(30_000)
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
    """Open a window; fail the test if a script of the page fails or violates the policy."""
    return _browser


@pytest.fixture
def check_access() -> CheckAccess:
    """Check a page with axe."""

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
def tokens(tmp_path: Path) -> Tokens:
    """An access file, by which requests without a token may do nothing."""
    return Tokens(tmp_path / "access.toml")


@pytest.fixture
def guarded(
    io_loop: IOLoop, tokens: Tokens, start_service: StartService, connect: Connect
) -> ChatClient:
    """A client of a service that takes the tokens of that file."""

    async def start() -> Service:
        return await start_service(access="tokens", access_file=str(tokens.path))

    started: Service = io_loop.run_sync(start, timeout=120)
    return connect(started)
