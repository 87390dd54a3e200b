"""Real browsers for the tests of the pages: Debian's Chromium and Firefox, driven by Playwright."""

import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import pytest
from axe_playwright_python.async_playwright import Axe
from playwright.async_api import Browser, BrowserContext, Page, Playwright, async_playwright, expect
from tornado.ioloop import IOLoop

from chat_service.service import Service
from tests.conftest import Connect, StartService
from tests.pages.access import Tokens
from tests.support.client import ChatClient

#: Opens a browser window as a context: `async with browser(**options) as page`. The options are
#: those of Playwright's `Browser.new_context`, for example for phones and dark mode.
OpenBrowser: TypeAlias = Callable[..., AbstractAsyncContextManager[Page]]
#: Fails if axe finds anything to improve in the current state of a page, however small.
CheckAccess: TypeAlias = Callable[[Page], Awaitable[None]]

#: Runs a test once in each browser; other tests use Chromium.
both_browsers = pytest.mark.parametrize("browser", ["chromium", "firefox"], indirect=True)

expect.set_options(timeout=30_000)
_FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
_FIREFOX = Path(__file__).with_name("firefox_relay.py")
#: Marks the console messages of scripts that violate the content security policy.
_VIOLATION = "violates the content security policy"
_WATCH_POLICY = f"""document.addEventListener("securitypolicyviolation", (event) =>
    console.error(`${{event.blockedURI}} {_VIOLATION}: ${{event.violatedDirective}}`));"""


async def _chromium(playwright: Playwright, options: dict[str, Any]) -> Browser:
    return await playwright.chromium.launch(executable_path="/usr/bin/chromium", args=_FLAGS)


async def _firefox(playwright: Playwright, options: dict[str, Any]) -> Browser:
    """Start Firefox, and set its media features as preferences instead of options of a window."""
    preferences: dict[str, bool | float | str] = {
        "layout.css.prefers-color-scheme.content-override": (
            0 if options.pop("color_scheme", "light") == "dark" else 1
        ),
        "ui.prefersReducedMotion": int(options.pop("reduced_motion", "") == "reduce"),
    }
    options.pop("is_mobile", None)
    if options.pop("has_touch", False):
        # A finger: coarse, and it cannot hover.
        preferences |= {"ui.primaryPointerCapabilities": 1, "ui.allPointerCapabilities": 1}
    return await playwright.firefox.launch(
        channel="moz-firefox",
        executable_path=_FIREFOX,
        firefox_user_prefs=preferences,
        env={**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
    )


_LAUNCHERS = {"chromium": _chromium, "firefox": _firefox}


@asynccontextmanager
async def _browser(kind: str, **options: Any) -> AsyncIterator[Page]:
    complaints: list[str] = []
    async with async_playwright() as playwright:
        started = await _LAUNCHERS[kind](playwright, options)
        context: BrowserContext = await started.new_context(**options)
        context.set_default_timeout(30_000)
        await context.add_init_script(_WATCH_POLICY)
        page = await context.new_page()
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on(
            "console",
            lambda message: complaints.append(message.text) if _VIOLATION in message.text else None,
        )
        yield page
        await started.close()
    assert not complaints


@pytest.fixture
def browser(request: pytest.FixtureRequest) -> OpenBrowser:
    """Open a window; fail the test if a script of the page fails or violates the policy."""
    return partial(_browser, getattr(request, "param", "chromium"))


@pytest.fixture
def check_access() -> CheckAccess:
    """Check a page with axe."""

    async def check(page: Page) -> None:
        found = await Axe().run(page)
        faults = [
            f"{fault['id']} ({fault['impact']}): {[node['html'] for node in fault['nodes']]}"
            for fault in found.response["violations"]
        ]
        assert not faults, "\n".join(faults)

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
