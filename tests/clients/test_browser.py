"""A browser's own EventSource and WebSocket, in headless Chromium, through nginx."""

import json
import shutil
import signal
from pathlib import Path

import pytest

from tests.clients.conftest import OpenPage, StartProxy
from tests.clients.test_proxies import NGINX_UPGRADES
from tests.support.client import ChatClient
from tests.support.server import Server

#: The page beside the service, on one origin. While the service is away nginx closes connections
#: instead of answering 502, at which an EventSource would give up.
WITH_PAGE = NGINX_UPGRADES.replace(
    "location / {",
    "error_page 502 = @away; location @away { return 444; } "
    "location = /streams.html { root {folder}; } location / {",
)


class Page:
    """A page with a stream of bob's inbox, and what it has told so far."""

    def __init__(self, chat: ChatClient) -> None:
        self._chat = chat
        self.told: list[str] = []

    async def tells(self, wanted: str) -> None:
        """Wait until the page has told this, among other things."""
        for _ in range(25):
            if wanted in self.told:
                self.told.remove(wanted)
                return
            self.told += await self._chat.texts("told", "?wait=1")
        raise AssertionError(f"{wanted!r} was not told, only {self.told}")


@pytest.fixture
def origin(start_proxy: StartProxy, tmp_path: Path) -> str:
    """Where the service and the page are."""
    shutil.copy(Path(__file__).with_name("streams.html"), tmp_path)
    return f"http://127.0.0.1:{start_proxy('nginx', WITH_PAGE)}"


async def test_an_event_source_gets_what_comes_and_comes_again_after_a_restart(
    server: Server, chat: ChatClient, origin: str, open_page: OpenPage
) -> None:
    page = Page(chat)
    body = b'{"text": "before", "username": "bob"}'
    sent = await chat.request("POST", "/chat", body, Prefer="receipt")
    open_page(f"{origin}/streams.html?inbox=bob&kind=events")
    await page.tells("open")
    await page.tells("before true")
    await chat.post("bob", "meanwhile")
    await page.tells("meanwhile true")
    port = server.port
    server.signal(signal.SIGKILL)
    server.wait()
    server.command += ["--port", str(port)]
    server.start()
    await page.tells("open")
    await chat.post("bob", "after")
    await page.tells("after true")
    assert set(page.told) <= {"open", "error 0"}
    # Its Last-Event-ID has acknowledged what it had, though the server that leased it was killed.
    path = f"/messages/{json.loads(sent.body)['id']}/status"
    answer = await chat.request("GET", path, X_Receipt=sent.headers["X-Receipt"])
    assert json.loads(answer.body)["status"] == "read"


async def test_a_websocket_of_a_page_gets_again_what_it_did_not_acknowledge(
    server: Server, chat: ChatClient, origin: str, open_page: OpenPage
) -> None:
    page = Page(chat)
    open_page(f"{origin}/streams.html?inbox=bob&kind=socket")
    await page.tells("open")
    for text in ("one", "unacknowledged"):
        await chat.post("bob", text)
        await page.tells(text)
    port = server.port
    server.signal(signal.SIGTERM)
    server.wait()
    server.command += ["--port", str(port)]
    server.start()
    await page.tells("unacknowledged")
    assert "one" not in page.told
    assert "close 1001" in page.told
