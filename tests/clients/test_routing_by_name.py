"""A balancer that routes by name: posts and reads of a name meet on one node."""

import json
import re
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

import pytest
from tornado.ioloop import IOLoop

from config.settings import PROJECT_ROOT
from tests.clients.balancer import balancer_configuration
from tests.clients.conftest import StartProxy
from tests.support.client import ChatClient
from tests.support.raw import Wire, chunked, message, request
from tests.support.server import Server

_NODES = 3


class Balanced(NamedTuple):
    """Nodes by the name that the balancer gives them, and a client of the balancer."""

    nodes: dict[str, Server]
    client: ChatClient

    async def node_of(self, method: str, path: str, body: str | None = None) -> str:
        """Send a request, which must succeed. Return the name of the node that answered."""
        sent = None if body is None else body.encode()
        answer = await self.client.request(method, path, sent)
        assert answer.code in (200, 201), (path, body, answer.code, answer.body)
        return answer.headers["X-Node"]

    async def node_of_read(self, name: str) -> str:
        """Read an inbox. Return the name of the node that answered."""
        return await self.node_of("GET", f"/chat/{quote(name, safe='')}")


@pytest.fixture
def nodes(server: Server, mongo_uri: str, tmp_path: Path) -> Iterator[list[Server]]:
    """Several nodes on one database."""
    database = server.environ["CHAT_MONGO_DATABASE"]
    with ExitStack() as stack:
        started = [server]
        for number in range(1, _NODES):
            folder = tmp_path / f"node{number}"
            folder.mkdir()
            node = Server(folder, "--mongo-uri", mongo_uri, CHAT_MONGO_DATABASE=database)
            started.append(stack.enter_context(node))
        yield started


@pytest.fixture
def route(request: pytest.FixtureRequest) -> str:
    """What the balancer routes by; `name` unless the test says otherwise."""
    return str(getattr(request, "param", "name"))


@pytest.fixture
def balanced(
    io_loop: IOLoop,
    nodes: list[Server],
    start_proxy: StartProxy,
    monkeypatch: pytest.MonkeyPatch,
    route: str,
) -> Iterator[Balanced]:
    """The nodes behind the balancer."""
    monkeypatch.setenv("BALANCER_ROUTE", route)
    configuration = balancer_configuration(*(f"127.0.0.1:{each.port}" for each in nodes))
    backend = "    default_backend chat\n"
    assert configuration.count(backend) == 1
    configuration = configuration.replace(
        backend, f"    http-response set-header X-Node %s\n{backend}"
    )
    client = ChatClient(f"http://127.0.0.1:{start_proxy('haproxy', configuration)}")
    client.contract = None
    yield Balanced({f"node{number}": node for number, node in enumerate(nodes)}, client)
    client.close()


#: Names, and other spellings of each as they occur in bodies and in paths.
SPELLINGS = [
    ("bob", [r"b\u006fb", r"\u0062\u006F\u0062"], ["b%6fb", "b%6Fb", "bob/read"]),
    ("a b", [r"a\u0020b"], ["a%20b"]),
    ("a+b", [], ["a+b", "a%2bb"]),
    ("100%", [], ["100%25"]),
    ("x/y", [], ["x%2Fy", "x%2fy"]),
    ('say "x"', [r"say \u0022x\u0022"], []),
    ("back\\slash", [r"back\u005cslash"], []),
    ("jürgen", [], ["j%c3%bcrgen"]),
    ("日本語", [], []),
    ("🦊", [], []),
    ("batch", [], ["batch/read"]),
    *((f"name-{number}", [], []) for number in range(8)),
]


def requests_of(name: str, texts: list[str], paths: list[str]) -> Iterator[tuple[str, str, str]]:
    """Yield method, path and body of posts and reads of one name, in all spellings."""
    plain = json.dumps(name, ensure_ascii=False)
    for literal in (plain, *(f'"{each}"' for each in texts)):
        yield "POST", "/chat", f'{{"text": "x", "username": {literal}}}'
        yield "POST", "/chat", f'{{ "username" :{literal},"text":"{"x" * 50_000}" }}'
    for path in (quote(name, safe=""), *paths):
        method = "POST" if path.endswith("/read") else "GET"
        yield method, f"/chat/{path}", ""


async def test_all_spellings_of_a_name_meet_on_one_node(balanced: Balanced) -> None:
    used = set()
    for name, texts, paths in SPELLINGS:
        nodes = {
            await balanced.node_of(method, path, body or None)
            for method, path, body in requests_of(name, texts, paths)
        }
        assert len(nodes) == 1, name
        used |= nodes
    assert used == balanced.nodes.keys()


@pytest.mark.parametrize("route", [""], indirect=True)
async def test_without_routing_names_do_not_meet(balanced: Balanced) -> None:
    apart = 0
    for name, texts, paths in SPELLINGS:
        nodes = {
            await balanced.node_of(method, path, body or None)
            for method, path, body in requests_of(name, texts, paths)
        }
        apart += len(nodes) > 1
    assert apart > len(SPELLINGS) / 2


async def test_only_the_names_of_a_lost_node_move(balanced: Balanced) -> None:
    names = [f"name-{number}" for number in range(30)]
    before = {name: await balanced.node_of_read(name) for name in names}
    lost = before[names[0]]
    balanced.nodes[lost].process.kill()
    balanced.nodes[lost].process.wait()
    after = {name: await balanced.node_of_read(name) for name in names}
    assert lost not in after.values()
    assert {name for name in names if after[name] != before[name]} == {
        name for name in names if before[name] == lost
    }
    assert {after[name] for name in names if before[name] == lost} == balanced.nodes.keys() - {lost}


#: Bodies whose name the balancer does not find, or finds wrong.
UNREADABLE = [
    ("behind a long text", f'{{"text": "{"x" * 50_000}", "username": "bob"}}', "bob"),
    ("escaped beyond ASCII", r'{"text": "x", "username": "\u65e5\u672c\u8a9e"}', "日本語"),
    ("escaped Latin", r'{"text": "x", "username": "j\u00fcrgen"}', "jürgen"),
    ("an escaped slash", r'{"text": "x", "username": "x\/y"}', "x/y"),
    ("twice", '{"text": "x", "username": "eve", "username": "bob"}', "bob"),
]


async def test_names_that_are_not_found_are_served(balanced: Balanced) -> None:
    for reason, body, name in UNREADABLE:
        await balanced.node_of("POST", "/chat", body)
        assert len(await balanced.client.read(name)) == 1, reason


async def test_batches_and_bad_bodies_go_anywhere(balanced: Balanced) -> None:
    count = 12
    batch = '[{"text": "x", "username": "bob"}]'
    assert len({await balanced.node_of("POST", "/chat/batch", batch) for _ in range(count)}) > 1
    assert len(await balanced.client.read("bob")) == count
    refused = [
        await balanced.client.request("POST", "/chat", b'{"username":') for _ in range(count)
    ]
    assert {each.code for each in refused} == {400}
    assert len({each.headers["X-Node"] for each in refused}) > 1


async def test_a_body_in_chunks_is_routed_by_its_name(balanced: Balanced) -> None:
    home = await balanced.node_of_read("bob")
    wire = Wire(int(balanced.client.base.rpartition(":")[2]))
    body = message("bob", "x")
    half = len(body) // 2
    head = request(b"POST", b"/chat", b"Transfer-Encoding: chunked", host=b"Host: localhost")
    for _ in range(_NODES):
        answer = await wire.ask(head + chunked(body[:half], body[half:]))
        assert (answer.status, answer.headers["x-node"]) == (201, home)
    await wire.close()


NGINX = """
daemon off;
user root;
pid {folder}/nginx.pid;
events {}
http {
    access_log off;
    MAPS
    server {
        listen 127.0.0.1:{port};
        client_body_in_single_buffer on;
        location / {
            proxy_next_upstream off;
            proxy_set_header Host $http_host;
            proxy_pass http://chat;
            add_header X-Node $upstream_addr;
        }
    }
}
"""


async def test_the_documented_nginx_routes_plain_names(
    nodes: list[Server], start_proxy: StartProxy
) -> None:
    page = (PROJECT_ROOT / "docs" / "containers.md").read_text(encoding="utf-8")
    (shown,) = re.findall(r"```nginx\n(map .*?)```", page, re.DOTALL)
    servers = "".join(f"server 127.0.0.1:{each.port};\n" for each in nodes)
    maps, found = re.subn(r"(?:    server \S+\n)+", servers, shown)
    assert found == 1
    port = start_proxy("nginx", NGINX.replace("MAPS", maps))
    client = ChatClient(f"http://127.0.0.1:{port}")
    client.contract = None
    nginx = Balanced({}, client)
    homes = set()
    for name in ("bob", "a b", "a+b", "jürgen", "日本語", "batch", "name-1", "name-2", "name-3"):
        body = json.dumps({"username": name, "text": "x"}, ensure_ascii=False)
        home = await nginx.node_of_read(name)
        assert await nginx.node_of("POST", "/chat", body) == home, name
        homes.add(home)
    assert len(homes) > 1
    for escaped in (r"b\u006fb", r"j\u00fcrgen", r"x\/y"):
        await nginx.node_of("POST", "/chat", f'{{"text": "x", "username": "{escaped}"}}')
    batch = '[{"text": "x", "username": "bob"}]'
    assert len({await nginx.node_of("POST", "/chat/batch", batch) for _ in range(12)}) > 1
    client.close()
