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

#: The page and the service share one origin. While the service is unavailable, nginx closes
#: connections instead of answering 502, after which an EventSource would give up.
WITH_PAGE = NGINX_UPGRADES.replace(
    "location / {",
    "error_page 502 = @unavailable; location @unavailable { return 444; } "
    "location = /streams.html { root {folder}; } location / {",
)


class Page:
    """A page with a stream of bob's inbox, and its reports so far."""

    def __init__(self, chat: ChatClient) -> None:
        self._chat = chat
        self.told: list[str] = []

    async def tells(self, wanted: str) -> None:
        """Wait until the page has reported this, among other things."""
        for _ in range(25):
            if wanted in self.told:
                self.told.remove(wanted)
                return
            self.told += await self._chat.texts("told", "?wait=1")
        raise AssertionError(f"{wanted!r} was not reported, only {self.told}")


@pytest.fixture
def origin(start_proxy: StartProxy, tmp_path: Path) -> str:
    """The origin of the service and the page."""
    shutil.copy(Path(__file__).with_name("streams.html"), tmp_path)
    return f"http://127.0.0.1:{start_proxy('nginx', WITH_PAGE)}"


async def test_an_event_source_resumes_after_a_restart(
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
    # Its Last-Event-ID has acknowledged its messages, although the server that leased them was
    # killed.
    path = f"/messages/{json.loads(sent.body)['id']}/status"
    answer = await chat.request("GET", path, X_Receipt=sent.headers["X-Receipt"])
    assert json.loads(answer.body)["status"] == "read"


async def test_a_websocket_gets_unacknowledged_messages_again(
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
