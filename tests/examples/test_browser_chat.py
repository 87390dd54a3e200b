"""examples/chat.html in Chromium, behind haproxy with examples/chat.cfg: two people chat."""

import asyncio
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.async_api import Page, expect
from tornado.ioloop import IOLoop

from tests.examples.conftest import EXAMPLES, Start
from tests.pages.conftest import CheckAccess, OpenBrowser
from tests.support.client import ChatClient
from tests.support.server import Server
from tests.support.waiting import PATIENCE

_PHONE = {"viewport": {"width": 375, "height": 667}, "is_mobile": True, "has_touch": True}


@pytest.fixture
def chat(io_loop: IOLoop, server: Server) -> Iterator[ChatClient]:
    """A client of the service, without the proxy."""
    client = ChatClient(server.base)
    yield client
    client.close()


async def serve_page(server: Server, start: Start, folder: Path) -> str:
    """Start haproxy with the example's configuration on a free port. Return its address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    text = (EXAMPLES / "chat.cfg").read_text(encoding="utf-8")
    for shown, real in (("127.0.0.1:8000", f"127.0.0.1:{port}"), (":8080", f":{server.port}")):
        assert shown in text
        text = text.replace(shown, real)
    (folder / "chat.cfg").write_text(text, encoding="utf-8")
    await start("/usr/sbin/haproxy", "-db", "-f", folder / "chat.cfg", cwd=EXAMPLES)
    async with asyncio.timeout(10 * PATIENCE):
        while True:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except OSError:
                await asyncio.sleep(0.05)
            else:
                writer.close()
                return f"http://127.0.0.1:{port}"


async def say(page: Page, text: str) -> None:
    """Type a message and send it."""
    await page.get_by_label("Message", exact=True).fill(text)
    await page.get_by_role("button").click()


async def shows(page: Page, *texts: str) -> None:
    """Wait until the page shows exactly these messages, in this order."""
    await expect(page.locator("li")).to_have_text(list(texts))


async def test_two_people_chat(
    server: Server, start: Start, browser: OpenBrowser, check_access: CheckAccess, tmp_path: Path
) -> None:
    base = await serve_page(server, start, tmp_path)
    async with browser() as ann, browser(**_PHONE) as bob:
        await ann.goto(f"{base}/?me=ann&to=bob b")
        await bob.goto(f"{base}/?me=bob%20b&to=ann")
        await say(ann, "lunch?")
        await shows(bob, "lunch?")
        hostile = "<img src=x onerror='document.title=1'> \u0645\u0631\u062d\u0628\u0627 \U0001f600"
        await say(bob, hostile)
        await shows(ann, "lunch?", hostile)
        await shows(bob, "lunch?", hostile)
        assert await bob.title() == "bob b and ann"
        for page in (ann, bob):
            await check_access(page)
        for number in range(20):
            await say(ann, f"line {number}")
        await expect(bob.locator("li").last).to_be_in_viewport()
        # The whole page fits, so that nothing but the messages scrolls, and nobody zooms.
        wide, high = await bob.evaluate(
            "[document.documentElement.scrollWidth, document.documentElement.scrollHeight]"
        )
        assert (wide, high) == (375, 667)


async def test_a_chat_goes_on_after_a_restart(
    server: Server, chat: ChatClient, start: Start, browser: OpenBrowser, tmp_path: Path
) -> None:
    base = await serve_page(server, start, tmp_path)
    async with browser() as ann, browser() as bob:
        await ann.goto(f"{base}/?me=ann&to=bob")
        await bob.goto(f"{base}/?me=bob&to=ann")
        await say(ann, "before")
        await shows(bob, "before")
        port = server.port
        server.signal(signal.SIGKILL)
        server.wait()
        await say(ann, "meanwhile")
        server.command += ["--port", str(port)]
        server.start()
        await shows(bob, "before", "meanwhile")
        await say(bob, "after")
        await shows(ann, "before", "meanwhile", "after")


async def test_only_the_chat_is_reachable_through_it(
    server: Server, start: Start, tmp_path: Path
) -> None:
    base = await serve_page(server, start, tmp_path)
    through = ChatClient(base)
    through.contract = None
    for path, status in (("/", 200), ("/metrics", 403), ("/ops", 403), ("/chat/bob", 200)):
        assert (await through.request("GET", path)).code == status
    other = await through.request("POST", "/chat/bob", b"hi", Origin="http://evil.example")
    assert other.code == 403
    through.close()
