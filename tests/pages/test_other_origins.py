"""Pages of other origins in a real browser: none of their requests touch an inbox."""

import re
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

import pytest
from playwright.async_api import Page, async_playwright, expect
from tornado.httpserver import HTTPServer
from tornado.netutil import bind_sockets
from tornado.web import Application, RequestHandler

from tests.conftest import Connect, StartService
from tests.pages.access import Tokens, sign_in
from tests.pages.inbox import button, open_inbox, read_here, send
from tests.support.client import ChatClient

_PATH = "/usr/bin/chromium"
#: Names of this machine that are not loopback names: browsers send them no `Sec-Fetch-*` headers.
_HERE = "--host-resolver-rules=MAP *.test 127.0.0.1"
_FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", _HERE]
#: All ways in which a page can send a request without revealing its origin.
_ATTEMPTS = {
    "an image": """
        const image = new Image();
        image.referrerPolicy = policy;
        image.onload = image.onerror = done;
        image.src = `${inbox}/chat/bob?limit=1`;
    """,
    "a script": """
        const script = document.createElement("script");
        script.referrerPolicy = policy;
        script.onload = script.onerror = done;
        script.src = `${inbox}/chat/bob?limit=1`;
        document.body.append(script);
    """,
    "a frame": """
        const frame = document.createElement("iframe");
        frame.referrerPolicy = policy;
        frame.onload = done;
        frame.src = `${inbox}/chat/bob?limit=1`;
        document.body.append(frame);
    """,
    "a fetch": """
        fetch(`${inbox}/chat/bob?limit=1`, {
          mode: "no-cors",
          referrerPolicy: policy,
          headers: {Accept: "application/json", "Accept-Language": ""},
        }).then(done, done);
    """,
    "a post": """
        const body = '{"username": "bob", "text": "forged"}';
        fetch(`${inbox}/chat`, {mode: "no-cors", method: "POST", referrerPolicy: policy, body})
          .then(done, done);
    """,
    "a beacon": """
        navigator.sendBeacon(`${inbox}/chat`, '{"username": "bob", "text": "forged"}');
        setTimeout(done, 300);
    """,
    "a read by POST": """
        fetch(`${inbox}/chat/bob/read`, {mode: "no-cors", method: "POST", referrerPolicy: policy})
          .then(done, done);
    """,
    "a lease": """
        fetch(`${inbox}/chat/bob/lease?ttl=600`, {
          mode: "no-cors", method: "POST", referrerPolicy: policy,
        }).then(done, done);
    """,
    "a form": """
        const frame = document.createElement("iframe");
        frame.name = "target";
        document.body.append(frame);
        const form = document.createElement("form");
        Object.assign(form, {
          action: `${inbox}/chat`, method: "POST", enctype: "text/plain", target: "target",
        });
        const field = document.createElement("input");
        field.name = '{"username": "bob", "text": "forged", "x": "';
        field.value = '"}';
        form.append(field);
        document.body.append(form);
        frame.onload = done;
        form.submit();
    """,
    "an event stream": """
        const events = new EventSource(`${inbox}/chat/bob/stream`);
        events.onopen = events.onerror = () => { events.close(); done(); };
    """,
    "a frame in a sandbox": """
        const frame = document.createElement("iframe");
        frame.sandbox = "allow-scripts";
        frame.srcdoc = `<script>
          const post = {mode: "no-cors", method: "POST", referrerPolicy: "${policy}"};
          fetch("${inbox}/chat/bob/read", post).finally(() => parent.postMessage("done", "*"));
        </script>`;
        addEventListener("message", done, {once: true});
        document.body.append(frame);
    """,
    "a WebSocket": """
        const socket = new WebSocket(`${inbox.replace("http", "ws")}/chat/bob/stream`);
        socket.onopen = socket.onerror = () => { socket.close(); done(); };
    """,
}


class _Elsewhere(RequestHandler):
    def get(self) -> None:
        self.write("<!doctype html><title>elsewhere</title><body></body>")


@contextmanager
def elsewhere() -> Iterator[int]:
    """Serve another site on this machine and return its port."""
    sockets = bind_sockets(0, "127.0.0.1")
    server = HTTPServer(Application([("/", _Elsewhere)]))
    server.add_sockets(sockets)
    yield sockets[0].getsockname()[1]
    server.stop()


@asynccontextmanager
async def page_at(url: str) -> AsyncIterator[Page]:
    """Load a page from this address in Chromium."""
    async with async_playwright() as playwright:
        chromium = await playwright.chromium.launch(executable_path=_PATH, args=_FLAGS)
        page = await chromium.new_page()
        page.set_default_timeout(15_000)
        await page.goto(url)
        yield page
        await chromium.close()


@pytest.mark.parametrize(
    ("site", "inbox"),
    [
        # Plain HTTP and no loopback address: no Sec-Fetch headers.
        ("http://evil.test:{elsewhere}", "http://inbox.test:{port}"),
        # Another port, which browsers treat as the same site.
        ("http://127.0.0.1:{elsewhere}", "http://127.0.0.1:{port}"),
        ("http://evil.test:{elsewhere}", "http://127.0.0.1:{port}"),
    ],
)
async def test_pages_of_other_origins_touch_no_inbox(
    start_service: StartService, connect: Connect, subtests: pytest.Subtests, site: str, inbox: str
) -> None:
    service = await start_service(allowed_hosts=("inbox.test",))
    chat = connect(service)
    await chat.post("bob", "secret", 3600)
    with elsewhere() as port:
        target = inbox.replace("{port}", str(service.port))
        async with page_at(site.replace("{elsewhere}", str(port))) as page:
            for policy in ("", "no-referrer", "unsafe-url"):
                await page.reload()
                for what, script in _ATTEMPTS.items():
                    with subtests.test(f"{what}, {policy or 'default'}"):
                        run = f"([inbox, policy]) => new Promise((done) => {{ {script} }})"
                        refused = await refusals(chat)
                        await page.evaluate(run, [target, policy])
                        # The request arrived and was refused.
                        assert await refusals(chat) > refused
                        assert await chat.metric("chat_messages_read_total") == 0
                        assert await chat.metric("chat_messages_accepted_total") == 1
    assert await chat.texts("bob") == ["secret"]


async def refusals(chat: ChatClient) -> float:
    """Return how many requests were answered with 403."""
    answer = await chat.request("GET", "/metrics")
    lines = answer.body.decode().splitlines()
    counted = [line for line in lines if line.startswith("chat_http_requests_total")]
    return sum(float(line.rpartition(" ")[2]) for line in counted if 'code="403"' in line)


async def test_an_address_opened_over_plain_http_reads_nothing(
    start_service: StartService, connect: Connect
) -> None:
    service = await start_service(allowed_hosts=("inbox.test",))
    chat = connect(service)
    await chat.post("bob", "secret")
    async with page_at(f"http://inbox.test:{service.port}/chat/bob") as page:
        assert "Nothing was read or lost." in await page.content()
        await page.goto(f"http://127.0.0.1:{service.port}/chat/bob")
        # For a loopback address, the browser says that no other site asked.
        assert "secret" in await page.content()


async def test_a_rebound_name_reads_nothing(start_service: StartService, connect: Connect) -> None:
    service = await start_service(allowed_hosts=())
    chat = connect(service)
    await chat.post("bob", "secret")
    async with page_at(f"http://rebound.test:{service.port}/livez") as page:
        said = await page.evaluate("fetch('/chat/bob').then((answer) => answer.status)")
        assert said == 421
    assert await chat.texts("bob") == ["secret"]


async def test_own_pages_work_over_plain_http(
    start_service: StartService, connect: Connect
) -> None:
    service = await start_service(allowed_hosts=("inbox.test",))
    chat = connect(service)
    base = f"http://inbox.test:{service.port}"
    await chat.post("bob", "one")
    async with page_at(base) as page:
        await open_inbox(page, base, "bob", 1)
        await send(page, "bob", "two")
        await expect(page.locator("[data-count]")).to_have_text("2")
        await button(page, "Read").click()
        await expect(read_here(page)).to_have_count(2)
        await page.goto(f"{base}/docs")
        read = "fetch('/chat/bob?limit=1').then((answer) => answer.status)"
        assert await page.evaluate(read) == 200


async def test_a_session_needs_https_or_this_machine(
    start_service: StartService, connect: Connect, tokens: Tokens
) -> None:
    token = tokens.add("worker", send=["*"])
    guards = {"access": "tokens", "access_file": str(tokens.path)}
    service = await start_service(allowed_hosts=("inbox.test",), **guards)
    async with page_at(f"http://inbox.test:{service.port}") as page:
        field = page.get_by_label("Token")
        await field.fill(token)
        await button(page, "Sign in").click()
        words = re.compile("the browser did not keep the session. Open this page over HTTPS.")
        await expect(field).to_have_accessible_description(words)
        await expect(field).to_have_value("")
        await page.goto(f"http://127.0.0.1:{service.port}")
        await sign_in(page, token, "worker")
