"""The web UI as an app: it can be installed, and says honestly that the service is unreachable."""

import asyncio
import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

import pytest
from playwright.async_api import Page, expect

from chat_service.handlers.pages import WEB
from tests.faults.mongod_cluster import free_port
from tests.pages.conftest import CheckAccess, OpenBrowser, both_browsers
from tests.pages.icons import ICONS, draw
from tests.pages.inbox import PHONE, button, open_inbox, send
from tests.support.client import ChatClient
from tests.support.server import Server


@pytest.fixture
def server(mongo_uri: str, database: str, tmp_path: Path) -> Iterator[Server]:
    """The service as a process of its own, on a port that it keeps when it starts again."""
    with Server(
        *(tmp_path, "--mongo-uri", mongo_uri), port=free_port(), CHAT_MONGO_DATABASE=database
    ) as running:
        yield running


async def await_worker(page: Page) -> None:
    """Wait until the worker answers for the page."""
    await page.evaluate("""async () => {
        await navigator.serviceWorker.ready;
        while (!navigator.serviceWorker.controller) {
            await new Promise((done) => setTimeout(done, 20));
        }
    }""")


async def test_chromium_finds_nothing_against_installing(
    chat: ChatClient, browser: OpenBrowser
) -> None:
    async with browser(**PHONE) as page:
        await page.goto(chat.base)
        await await_worker(page)
        devtools = await page.context.new_cdp_session(page)
        found: dict[str, Any] = await devtools.send("Page.getAppManifest")
        assert (found["errors"], found["url"]) == ([], f"{chat.base}/assets/app.webmanifest")
        faults = await devtools.send("Page.getInstallabilityErrors")
        # A window of Playwright is like one in private mode.
        assert {each["errorId"] for each in faults["installabilityErrors"]} <= {"in-incognito"}


async def test_the_app_opens_the_inboxes_used_in_it(chat: ChatClient, browser: OpenBrowser) -> None:
    async with browser(**PHONE) as page:
        await open_inbox(page, chat.base, "ops", 0)
        manifest = await page.evaluate("document.querySelector('link[rel=manifest]').href")
        start = json.loads(WEB.joinpath("app.webmanifest").read_text("utf-8"))["start_url"]
        await page.goto(f"{chat.base}/docs")
        await page.goto(urljoin(manifest, start))
        await page.get_by_role("link", name="ops").click()
        await expect(page.locator("[data-words]")).to_contain_text("unread in ops")


async def test_the_icons_are_the_favicons_drawing(browser: OpenBrowser, tmp_path: Path) -> None:
    async with browser() as page:
        assert page.context.browser is not None
        for icon in ICONS:
            await draw(page.context.browser, icon, tmp_path)
            drawn, kept = [
                await pixels_of(page, folder.joinpath(icon.name).read_bytes())
                for folder in (tmp_path, WEB)
            ]
            assert drawn == kept
            assert kept[0] == icon.size


async def pixels_of(page: Page, image: bytes) -> Any:
    """Return the width of an image, and one number for each of 64 fields of it."""
    return await page.evaluate(
        """async (bytes) => {
            const image = await createImageBitmap(new Blob([new Uint8Array(bytes)]));
            const canvas = Object.assign(document.createElement("canvas"), {width: 8, height: 8});
            const context = canvas.getContext("2d");
            context.drawImage(image, 0, 0, 8, 8);
            return [image.width, [...context.getImageData(0, 0, 8, 8).data]];
        }""",
        list(image),
    )


@both_browsers
async def test_a_page_without_service_says_so_and_returns(
    server: Server, browser: OpenBrowser, check_access: CheckAccess
) -> None:
    async with browser(**PHONE) as page:
        await page.goto(f"{server.base}/#send")
        await await_worker(page)
        server.signal(signal.SIGTERM)
        await asyncio.to_thread(server.wait)
        # Firefox reports the failed request as that of the page, which loads nevertheless.
        await page.evaluate("location.reload()")
        heading = page.get_by_role("heading")
        await expect(heading).to_have_text("The service cannot be reached")
        await expect(page.locator("#why")).to_contain_text("It does not answer")
        await check_access(page)
        await asyncio.to_thread(server.start)
        await expect(page).to_have_title("Chat inbox")
        assert page.url == f"{server.base}/#send"
        await send(page, "bob", "after")


async def test_the_offline_page_goes_where_a_proxy_sends_it(
    server: Server, browser: OpenBrowser
) -> None:
    async with browser() as page:
        await page.goto(server.base)
        await await_worker(page)
        server.signal(signal.SIGTERM)
        await asyncio.to_thread(server.wait)
        await page.evaluate("location.reload()")
        await expect(page.get_by_role("heading")).to_have_text("The service cannot be reached")
        port = int(server.base.rpartition(":")[2])
        proxy = await asyncio.start_server(sign_in, "127.0.0.1", port)
        async with proxy:
            await expect(page).to_have_title("Sign in to the proxy")


async def sign_in(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer as a proxy that sends everybody without a session to a page at another origin."""
    head = await reader.readuntil(b"\r\n\r\n")
    host = head.lower().partition(b"host: ")[2].partition(b"\r\n")[0]
    body = b""
    if host.startswith(b"localhost"):
        body = b"<title>Sign in to the proxy</title>"
        answer = b"HTTP/1.1 200 OK\r\nContent-Type: text/html"
    else:
        answer = b"HTTP/1.1 302 Found\r\nLocation: http://localhost:%b/in" % host.partition(b":")[2]
    writer.write(b"%b\r\nContent-Length: %d\r\nConnection: close\r\n\r\n" % (answer, len(body)))
    if not head.startswith(b"HEAD"):
        writer.write(body)
    await writer.drain()
    writer.close()


@both_browsers
async def test_the_worker_keeps_no_answer(chat: ChatClient, browser: OpenBrowser) -> None:
    async with browser() as page:
        await page.goto(chat.base)
        await await_worker(page)
        await send(page, "bob", "once")
        await page.get_by_label("Name", exact=True).fill("bob")
        await button(page, "Open").click()
        await button(page, "Read").click()
        assert await page.evaluate("caches.keys()") == []
        # The worker leaves an inbox alone, because a GET of it reads messages.
        await chat.post("bob", "by address")
        answer = await page.goto(f"{chat.base}/chat/bob")
        assert answer is not None
        assert not answer.from_service_worker


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_the_browsers_own_bars_fit_the_page(
    chat: ChatClient, browser: OpenBrowser, scheme: str
) -> None:
    async with browser(color_scheme=scheme) as page:
        for path in ("", "docs", "ops"):
            await page.goto(f"{chat.base}/{path}")
            theme = await page.evaluate("""() => {
                const metas = [...document.querySelectorAll('meta[name=theme-color]')];
                const found = metas.find(({media}) => matchMedia(media).matches);
                const probe = Object.assign(document.body.appendChild(document.createElement("i")));
                probe.style.color = found.content;
                return getComputedStyle(probe).color;
            }""")
            header = page.locator("header.site")
            ground = await header.evaluate("element => getComputedStyle(element).backgroundColor")
            assert theme == ground
