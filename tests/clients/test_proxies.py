"""nginx and haproxy between client and service, with default settings except for those below."""

import asyncio
import json
from pathlib import Path
from urllib.parse import urljoin

import pytest
from websockets.asyncio.client import connect

from tests.clients.balancer import balancer_configuration
from tests.clients.conftest import StartProxy
from tests.faults.mongod_cluster import free_port
from tests.support.certificates import Authority
from tests.support.client import ChatClient
from tests.support.events import EventStream
from tests.support.waiting import eventually

NGINX = """
daemon off;
user root;
pid {folder}/nginx.pid;
events {}
http {
    access_log off;
    server {
        listen 127.0.0.1:{port};
        location / {
            proxy_pass http://{server};
        }
    }
}
"""
#: The settings that nginx needs for WebSockets.
NGINX_UPGRADES = NGINX.replace(
    "proxy_pass",
    "proxy_http_version 1.1; proxy_set_header Upgrade $http_upgrade; "
    'proxy_set_header Connection "upgrade"; proxy_set_header Host $http_host; proxy_pass',
)
#: haproxy with the option that closes the upstream connection of a client that disconnected.
HAPROXY = """
defaults
    mode http
    option abortonclose
    timeout connect 5s
    timeout client 50s
    timeout server 50s
listen chat
    bind 127.0.0.1:{port}
    server chat {server}
"""
PROXIES = pytest.mark.parametrize(
    ("program", "configuration"), [("nginx", NGINX), ("haproxy", HAPROXY)]
)


async def waiting(chat: ChatClient, number: int) -> None:
    async def wait() -> bool:
        return await chat.metric("chat_waiters") == number

    await eventually(wait)


@PROXIES
async def test_a_long_poll_works_through_a_proxy(
    chat: ChatClient, start_proxy: StartProxy, program: str, configuration: str
) -> None:
    through = ChatClient(f"http://127.0.0.1:{start_proxy(program, configuration)}")
    read = asyncio.create_task(through.texts("bob", "?wait=20"))
    await waiting(chat, 1)
    await through.post("bob", "hello")
    assert await read == ["hello"]
    through.close()


@PROXIES
async def test_a_client_that_disconnects_from_a_proxy_takes_nothing(
    chat: ChatClient, start_proxy: StartProxy, program: str, configuration: str
) -> None:
    port = start_proxy(program, configuration)
    _, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET /chat/bob?wait=20 HTTP/1.1\r\nHost: localhost\r\n\r\n")
    await waiting(chat, 1)
    writer.transport.abort()
    await waiting(chat, 0)
    await chat.post("bob", "hello")
    assert await chat.texts("bob") == ["hello"]


@PROXIES
async def test_a_proxy_passes_each_event_and_the_disconnect(
    chat: ChatClient, start_proxy: StartProxy, program: str, configuration: str
) -> None:
    port = start_proxy(program, configuration)
    async with EventStream(port) as stream:
        for number in range(5):
            await chat.post("bob", str(number))
            assert await stream.texts(1) == [str(number)]
    # They become unread one after the other, and a long poll takes the first one that it sees.
    unread: list[str] = []
    while len(unread) < 5 and (texts := await chat.texts("bob", "?wait=10")):
        unread += texts
    assert unread == ["0", "1", "2", "3", "4"]


@pytest.mark.parametrize(
    ("program", "configuration"), [("nginx", NGINX_UPGRADES), ("haproxy", HAPROXY)]
)
async def test_a_websocket_works_through_a_proxy(
    chat: ChatClient, start_proxy: StartProxy, program: str, configuration: str
) -> None:
    port = start_proxy(program, configuration)
    origin = f"http://127.0.0.1:{port}"
    url = f"ws://127.0.0.1:{port}/chat/bob/stream"
    async with connect(url, origin=origin) as socket:  # type: ignore[arg-type]
        for text in ("one", "two"):
            await chat.post("bob", text)
        first, second = [json.loads(await socket.recv()) for _ in range(2)]
        assert (first["text"], second["text"]) == ("one", "two")
        await socket.send(json.dumps({"type": "ack", "id": first["id"]}))

        async def read() -> bool:
            return await chat.metric("chat_messages_read_total") == 1

        await eventually(read)
    assert await chat.texts("bob", "?wait=10") == ["two"]


#: The service below a path of a site with other content.
SUB_PATH = {
    "nginx": NGINX_UPGRADES.replace("location / {", "location /inbox/ {").replace(
        "http://{server};", "http://{server}/;"
    ),
    "haproxy": HAPROXY.replace(
        "    server chat",
        "    http-request return status 404 unless { path_beg /inbox/ }\n"
        "    http-request replace-path /inbox(/.*) \\1\n    server chat",
    ),
}


@pytest.mark.parametrize("program", ["nginx", "haproxy"])
async def test_the_pages_work_below_a_path_of_a_proxy(
    chat: ChatClient, start_proxy: StartProxy, program: str
) -> None:
    # Only tox's environment `clients` has a browser's driver, but the others collect this file,
    # too.
    from playwright.async_api import async_playwright, expect

    from tests.pages.inbox import button, open_inbox, read_here, send

    site = f"http://127.0.0.1:{start_proxy(program, SUB_PATH[program])}"
    base = f"{site}/inbox"
    failed: list[str] = []
    async with async_playwright() as playwright:
        chromium = await playwright.chromium.launch(
            executable_path="/usr/bin/chromium", args=["--no-sandbox", "--disable-gpu"]
        )
        page = await chromium.new_page()
        page.on("response", lambda each: failed.append(each.url) if each.status >= 400 else None)
        await page.goto(f"{base}/")
        await send(page, "bob", "one")
        await open_inbox(page, base, "bob", 1)
        await button(page, "Read").click()
        await expect(read_here(page)).to_have_text(["one"])
        await button(page, "Watch live").click()
        await expect(page.locator("[data-live]")).to_have_text("live")
        await chat.post("bob", "two")
        await expect(read_here(page)).to_have_text(["two", "one"])
        await page.get_by_role("link", name="API").click()
        await page.wait_for_selector("#readyz h3", state="attached")
        await page.get_by_role("link", name="Dashboard").click()
        await expect(page.locator("main")).to_be_visible()
        assert page.url == f"{base}/ops"
        document = await page.evaluate(
            "fetch('openapi.json').then(async (answer) => [answer.url, await answer.json()])"
        )
        assert urljoin(document[0], document[1]["servers"][0]["url"]) == f"{base}/"
        await chromium.close()
    assert failed == []


@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_the_balancer_hides_the_operators_routes(
    chat: ChatClient,
    start_proxy: StartProxy,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    scheme: str,
) -> None:
    if scheme == "https":
        # As in docker-compose.access.yml.
        authority = Authority(tmp_path)
        both = authority.issue("localhost").together(tmp_path / "balancer.pem")
        monkeypatch.setenv("BALANCER_CERTIFICATE", str(both))
        monkeypatch.setenv("BALANCER_PROBE_PORT", str(free_port()))
        monkeypatch.setenv("SSL_CERT_FILE", str(authority.certificate))
    configuration = balancer_configuration("{server}")
    balancer = ChatClient(f"{scheme}://localhost:{start_proxy('haproxy', configuration)}")
    balancer.contract = None
    await balancer.post("bob", "x")
    assert await balancer.texts("bob") == ["x"]
    for path in ("/", "/readyz"):
        assert (await balancer.request("GET", path)).code == 200, path
    for path in ("/metrics", "/metrics?x", "/ops", "/ops/history?since=1"):
        assert (await chat.request("GET", path)).code == 200, path
        refusal = await balancer.request("GET", path)
        assert refusal.code == 404, path
        assert refusal.headers["Content-Type"] == "application/problem+json"
        assert json.loads(refusal.body)["type"] == "urn:chat:problem:not-found"
    balancer.close()
