"""nginx and haproxy between client and service, with default settings except for those below."""

import asyncio
import json
from pathlib import Path

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
