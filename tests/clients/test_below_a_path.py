"""The service below a path of a proxy, as docs/security.md configures it, used by a browser."""

import asyncio
import json
import re
from collections.abc import Iterator
from pathlib import Path
from urllib.request import urlopen

import pytest
from playwright.async_api import expect

from chat_inbox import ChatClient
from config.settings import PROJECT_ROOT
from tests.clients.conftest import StartProxy
from tests.pages.access import Tokens, sign_in
from tests.pages.conftest import OpenBrowser, browser
from tests.pages.inbox import button, open_inbox, read_here, send
from tests.support.server import Server

__all__ = ["browser"]

_AROUND_NGINX = """
daemon off;
user root;
pid {folder}/nginx.pid;
events {}
http {
    access_log off;
    %s
}
"""


def documented(language: str) -> tuple[str, str]:
    """Return the configuration in docs/security.md, and what it has instead below a path."""
    page = (PROJECT_ROOT / "docs" / "security.md").read_text(encoding="utf-8")
    whole, below = re.findall(rf"```{language}\n(.*?)```", page, re.DOTALL)
    return whole, below


def configuration(program: str) -> str:
    """Return the documented configuration below a path, without TLS and with free ports."""
    text, below = documented(program)
    if program == "nginx":
        around, brace, locations = below.partition("location =")
        text = re.sub(
            r"    location / \{.*?\n    \}\n", lambda _: brace + locations, text, flags=re.S
        )
        text = re.sub(r" +ssl_.*\n", "", text).replace("443 ssl", "127.0.0.1:{port}")
        text = _AROUND_NGINX % (around + text)
    else:
        text = text[: text.index("    default_backend")] + below
        text = re.sub(r"bind .*", "bind 127.0.0.1:{port}", text)
    assert text.count("127.0.0.1:8080") == 1
    return text.replace("127.0.0.1:8080", "{server}")


@pytest.fixture
def token(tmp_path: Path) -> str:
    """A token with all rights, in the access file of the service."""
    return Tokens(tmp_path / "access.toml").add("carol", send=["*"], read=["*"], ops=True)


@pytest.fixture
def server(mongo_uri: str, database: str, tmp_path: Path, token: str) -> Iterator[Server]:
    """The service behind the proxy."""
    running = Server(
        *(tmp_path, "--mongo-uri", mongo_uri),
        CHAT_MONGO_DATABASE=database,
        CHAT_ACCESS="tokens",
        CHAT_ACCESS_FILE=str(tmp_path / "access.toml"),
        CHAT_TRUSTED_PROXIES="127.0.0.1",
    )
    with running:
        yield running


@pytest.mark.parametrize(
    ("program", "browser"),
    [("nginx", "chromium"), ("haproxy", "firefox")],
    indirect=["browser"],
)
async def test_all_pages_work_below_a_path(
    program: str, start_proxy: StartProxy, token: str, browser: OpenBrowser
) -> None:
    root = f"http://127.0.0.1:{start_proxy(program, configuration(program))}"
    base = f"{root}/inbox"
    async with browser() as page:
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        await page.goto(base)
        assert page.url == f"{base}/"
        await sign_in(page, token, "carol")
        await send(page, "a/b", "below")
        await expect(page.locator("#curl")).to_contain_text(f"{base}/chat")
        await open_inbox(page, base, "a%2Fb", 1)
        await button(page, "Watch live").click()
        await expect(read_here(page)).to_have_text(["below"])
        scope = await page.evaluate("navigator.serviceWorker.ready.then(({scope}) => scope)")
        assert scope == f"{base}/"
        await page.get_by_role("link", name="API", exact=True).click()
        card = page.locator("#count-unread")
        await card.get_by_text("Try it").click()
        await expect(card.locator("pre").first).to_contain_text(f"{base}/chat/bob")
        await card.get_by_role("button", name="Send").click()
        await expect(card.locator(".status").last).to_have_text("200")
        await page.get_by_role("link", name="Dashboard", exact=True).click()
        await expect(page).to_have_url(f"{base}/ops")
        await expect(page.locator("#charts svg").first).to_be_visible()
        await page.goto(f"{base}/ops/runbook")
        await page.get_by_role("link", name="Chat inbox").click()
        await expect(page).to_have_url(re.compile(f"^{base}/"))
        await page.goto(f"{base}/some/where")
        await page.get_by_role("link", name="Open the web UI").click()
        await expect(button(page, "Send")).to_be_visible()
    outside = {url for url in asked if not url.startswith((f"{base}/", "blob:", "data:"))}
    assert outside <= {base, f"{root}/favicon.ico"}


async def test_a_proxy_without_websockets_is_named(
    start_proxy: StartProxy, token: str, browser: OpenBrowser
) -> None:
    without = configuration("nginx").replace("proxy_set_header Upgrade $http_upgrade;", "")
    base = f"http://127.0.0.1:{start_proxy('nginx', without)}/inbox"
    async with browser() as page:
        await page.goto(f"{base}/")
        await sign_in(page, token, "carol")
        await open_inbox(page, base, "bob", 0)
        await button(page, "Watch live").click()
        note = page.locator("#inboxes [data-note]").first
        await expect(note).to_contain_text("no WebSocket reaches it")
        await button(page, "Read").click()
        await expect(note).to_have_text("Nothing unread.")


@pytest.mark.parametrize("program", ["nginx", "haproxy"])
async def test_clients_and_links_work_below_a_path(
    program: str, start_proxy: StartProxy, token: str
) -> None:
    base = f"http://127.0.0.1:{start_proxy(program, configuration(program))}/inbox"

    def document() -> str:
        with urlopen(f"{base}/openapi.json", timeout=60) as answer:
            return str(json.load(answer)["servers"][0]["url"])

    # Relative to the document, so that generated clients use the path, too.
    assert await asyncio.to_thread(document) == "."
    async with ChatClient(base, token=token) as client:
        await client.post("a/b %2F", "hello")
        assert [each.text for each in await client.read("a/b %2F")] == ["hello"]
