"""nginx and haproxy as docs/security.md configures them: TLS, tokens, and the client's address."""

import asyncio
import json
import re
import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest
from websockets.asyncio.client import connect

from config.settings import PROJECT_ROOT
from tests.clients.conftest import StartProxy
from tests.support.access import TOKENS, everybody, write
from tests.support.certificates import Authority
from tests.support.raw import Answer, Connection, get, message, post, request, texts_of
from tests.support.server import Server
from tests.support.waiting import eventually

HOST = b"Host: chat.example.org"
#: The client's address. The proxy connects to the service from 127.0.0.1.
CLIENT = "127.0.0.2"
#: What a client writes to pretend to be another.
FORGED = (b"X-Forwarded-For: 203.0.113.9, 127.0.0.1", b"Forwarded: for=203.0.113.9")
#: What a whole configuration of nginx needs around the documented part. The log has nginx's default
#: format.
_AROUND_NGINX = """
daemon off;
user root;
pid {folder}/nginx.pid;
events {}
http {
    access_log {folder}/access.log combined;
    %s
}
"""
#: haproxy's own format for HTTP, where the documented part has no log.
_AROUND_HAPROXY = """
global
    log stdout format raw local0
%s
"""


def documented(language: str) -> str:
    """Return the configuration in docs/security.md in this language."""
    page = (PROJECT_ROOT / "docs" / "security.md").read_text(encoding="utf-8")
    # The second one is for a path; test_below_a_path.py has it.
    text, _ = re.findall(rf"```{language}\n(.*?)```", page, re.DOTALL)
    return str(text)


def configuration(program: str, folder: Path, authority: Authority) -> str:
    """Return the documented configuration, with the addresses and files of this test."""
    pair = authority.issue("chat.example.org")
    if program == "nginx":
        text = _AROUND_NGINX % documented("nginx")
        changes = {
            "listen 443 ssl": "listen 127.0.0.1:{port} ssl",
            "/etc/nginx/chat.pem": str(pair.certificate),
            "/etc/nginx/chat.key": str(pair.key),
        }
    else:
        both = pair.together(folder / "chat.pem")
        text = _AROUND_HAPROXY % documented("haproxy").replace(
            "    mode http\n", "    mode http\n    log global\n    option httplog\n"
        )
        changes = {"bind :443": "bind 127.0.0.1:{port}", "/etc/haproxy/chat.pem": str(both)}
    for theirs, ours in {**changes, "127.0.0.1:8080": "{server}"}.items():
        assert text.count(theirs) == 1, theirs
        text = text.replace(theirs, ours)
    return text


@pytest.fixture
def server(mongo_uri: str, database: str, tmp_path: Path) -> Iterator[Server]:
    """The service behind a proxy, as a process of its own."""
    write(tmp_path / "access.toml", everybody())
    running = Server(
        *(tmp_path, "--mongo-uri", mongo_uri),
        CHAT_MONGO_DATABASE=database,
        CHAT_ACCESS="tokens",
        CHAT_ACCESS_FILE=str(tmp_path / "access.toml"),
        CHAT_TRUSTED_PROXIES="127.0.0.1",
        CHAT_ALLOWED_HOSTS="chat.example.org",
        CHAT_LOG_CLIENTS="clear",
        CHAT_LOG_REQUESTS_PER_S="1000",
    )
    with running:
        yield running


class Proxied:
    """A client behind a proxy with TLS."""

    def __init__(self, port: int, authority: Authority, folder: Path) -> None:
        self.port = port
        self.context = ssl.create_default_context(cafile=str(authority.certificate))
        self._folder = folder

    async def ask(self, sent: bytes) -> Answer:
        """Send one request on a connection of its own."""
        reader, writer = await self._open()
        connection = Connection(reader, writer)
        answer = await connection.ask(sent)
        await connection.close()
        return answer

    async def _open(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection(
            "127.0.0.1",
            self.port,
            ssl=self.context,
            server_hostname="chat.example.org",
            local_addr=(CLIENT, 0),
        )

    def logs(self) -> str:
        """Return what the proxy has logged."""
        files = (self._folder / "proxy.log", self._folder / "access.log")
        return "".join(file.read_text("utf-8", "replace") for file in files if file.exists())


@pytest.fixture(params=["nginx", "haproxy"])
def proxied(request: pytest.FixtureRequest, tmp_path: Path, start_proxy: StartProxy) -> Proxied:
    """The service behind each of the documented proxies."""
    authority = Authority(tmp_path)
    port = start_proxy(request.param, configuration(request.param, tmp_path, authority))
    return Proxied(port, authority, tmp_path)


def as_(name: str) -> bytes:
    """Return the header with a holder's token."""
    return f"Authorization: Bearer {TOKENS[name]}".encode()


async def test_tokens_and_rights_work_through_a_proxy(proxied: Proxied) -> None:
    sent = post(message("bob", "hello"), as_("alice"), host=HOST)
    assert (await proxied.ask(sent)).status == 201
    assert (await proxied.ask(get(b"/chat/bob", host=HOST))).status == 401
    assert (await proxied.ask(get(b"/chat/bob", as_("alice"), host=HOST))).status == 403
    assert texts_of(await proxied.ask(get(b"/chat/bob", as_("bob"), host=HOST))) == ["hello"]


@pytest.mark.parametrize("way", [b"X-Nothing: x", b"TE: trailers"], ids=["fast path", "Tornado"])
async def test_a_proxy_keeps_clients_from_forging_addresses(
    proxied: Proxied, server: Server, way: bytes
) -> None:
    read = get(b"/chat/bob", as_("bob"), *FORGED, way, host=HOST)
    assert (await proxied.ask(read)).status == 200
    clients: list[str] = []

    async def is_logged() -> bool:
        entries = [json.loads(line) for line in server.errors().splitlines()]
        clients[:] = [entry["client"] for entry in entries if entry["event"] == "request"]
        return bool(clients)

    await eventually(is_logged)
    assert clients == [CLIENT]


async def test_streams_pass_through_a_proxy_with_tokens(proxied: Proxied) -> None:
    reader, writer = await asyncio.open_connection(
        *("127.0.0.1", proxied.port), ssl=proxied.context, server_hostname="chat.example.org"
    )
    writer.write(get(b"/chat/bob/stream", as_("bob"), host=HOST))
    assert b" 200 " in await reader.readline()
    await reader.readuntil(b"event: open")
    for text in ("one", "two"):
        sent = post(message("bob", text), as_("alice"), host=HOST)
        assert (await proxied.ask(sent)).status == 201
        await reader.readuntil(f'"text":"{text}"'.encode())
    writer.close()


async def test_websockets_pass_through_a_proxy_with_tokens(proxied: Proxied) -> None:
    url = f"wss://chat.example.org:{proxied.port}/chat/bob/stream"
    async with connect(
        url,
        host="127.0.0.1",
        ssl=proxied.context,
        additional_headers={"Authorization": f"Bearer {TOKENS['bob']}"},
    ) as websocket:
        sent = post(message("bob", "hello"), as_("alice"), host=HOST)
        assert (await proxied.ask(sent)).status == 201
        assert json.loads(await websocket.recv())["text"] == "hello"


async def test_a_session_behind_a_proxy_is_secure(proxied: Proxied) -> None:
    origin = f"https://chat.example.org:{proxied.port}".encode()
    host = b"Host: " + origin.removeprefix(b"https://")
    answer = await proxied.ask(
        request(b"POST", b"/session", as_("bob"), b"Origin: " + origin, body=b"", host=host)
    )
    cookie = answer.headers["set-cookie"]
    assert cookie.startswith("__Host-")
    assert "; Secure" in cookie
    name_and_value = cookie.partition(";")[0].encode()
    read = get(b"/chat/bob", b"Cookie: " + name_and_value, b"Origin: " + origin, host=host)
    assert (await proxied.ask(read)).status == 200
    other = get(b"/chat/bob", b"Cookie: " + name_and_value, b"Origin: https://evil", host=host)
    assert (await proxied.ask(other)).status == 403


async def test_a_proxys_default_log_has_no_token(proxied: Proxied, server: Server) -> None:
    origin = f"https://chat.example.org:{proxied.port}".encode()
    ways = (
        as_("bob"),
        b"Cookie: __Host-chat=" + TOKENS["bob"].encode(),
        b"Sec-WebSocket-Protocol: chat.v1, chat.bearer." + TOKENS["bob"].encode(),
    )
    for header in ways:
        await proxied.ask(get(b"/chat/bob", header, b"Origin: " + origin, host=HOST))

    async def is_logged() -> bool:
        return proxied.logs().count("/chat/bob") >= len(ways)

    await eventually(is_logged)
    assert TOKENS["bob"] not in proxied.logs() + server.errors()
