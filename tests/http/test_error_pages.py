"""Errors for a person who opens an address in a browser: a page. All other clients get JSON."""

import re
from html import unescape
from typing import Final
from urllib.parse import urljoin

import pytest
from tornado.testing import bind_unused_port

from chat_service.service import Service
from tests.conftest import StartService
from tests.support.access import ask, bearer, send
from tests.support.raw import Answer, Wire, assert_problem, get, request, texts_of

#: What Chromium and Firefox accept when they open an address.
CHROMIUM: Final = (
    b"Accept: text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,"
    b"image/apng,*/*;q=0.8,application/signed-exchange;v=b3;q=0.7"
)
FIREFOX: Final = b"Accept: text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"
#: What others accept: programs by default, scripts of pages, and clients that ask for either.
OTHERS: Final = {
    "nothing": (),
    "anything": (b"Accept: */*",),
    "JSON": (b"Accept: application/json",),
    "either": (b"Accept: text/html, application/json",),
    "JSON rather": (b"Accept: text/html;q=0.9, application/problem+json",),
    "no HTML": (b"Accept: text/html;q=0, */*;q=0.1",),
    "a broken weight": (b"Accept: text/html;q=much",),
    "Java": (b"Accept: text/html, image/gif, image/jpeg, *; q=.2, */*; q=.2",),
    "a script": (FIREFOX, b"Sec-Fetch-Mode: cors"),
}


def assert_page(answer: Answer, status: int) -> str:
    """Assert that an answer is a page with this status, and return it."""
    assert (answer.status, answer.headers["content-type"]) == (status, "text/html; charset=utf-8")
    assert answer.headers["cache-control"] == "no-store"
    policy = answer.headers["content-security-policy"]
    assert policy.startswith(
        "default-src 'none'; style-src 'self'; img-src 'self'; base-uri 'none'"
    )
    assert "script" not in policy
    page = answer.body.decode()
    assert page.startswith("<!doctype html>")
    assert answer.headers["x-request-id"] in page
    return page


def links_of(page: str, base: str) -> set[str]:
    """Return the addresses that a page at a base address links and loads."""
    return {urljoin(base, unescape(each)) for each in re.findall(r'(?:href|src)="(.*?)"', page)}


@pytest.mark.parametrize("accept", [CHROMIUM, FIREFOX, b"Accept: text/html"])
async def test_a_browser_gets_a_page_for_a_wrong_address(accept: bytes, service: Service) -> None:
    answer = await ask(service, get(b"/nothing/here", accept))
    page = assert_page(answer, 404)
    assert "<h1>There is nothing here</h1>" in page
    head = await ask(service, request(b"HEAD", b"/nothing/here", accept))
    assert (head.status, head.body) == (404, b"")
    assert head.headers["content-type"] == answer.headers["content-type"]


@pytest.mark.parametrize("accepted", OTHERS.values(), ids=OTHERS)
async def test_other_clients_get_their_errors_as_json(
    accepted: tuple[bytes, ...], service: Service
) -> None:
    assert_problem(await ask(service, get(b"/nothing", *accepted)), 404, "not-found")
    refused = await ask(service, get(b"/chat/bob?limit=0", *accepted))
    assert_problem(refused, 400, "invalid-request", {"limit"})


async def test_a_post_gets_its_errors_as_json(service: Service) -> None:
    answer = await ask(service, request(b"POST", b"/chat", CHROMIUM, body=b"{"))
    assert_problem(answer, 400, "invalid-json")


async def test_a_browser_still_reads_messages_as_json(service: Service) -> None:
    await ask(service, send("bob"))
    answer = await ask(service, get(b"/chat/bob", FIREFOX))
    assert (answer.status, answer.headers["content-type"]) == (200, "application/json")
    assert texts_of(answer) == ["hi"]


async def test_every_kind_of_error_has_a_page(guarded: Service) -> None:
    for target, status, *headers in (
        (b"/chat", 405),
        (b"/chat/bob", 401),
        (b"/chat/bob?limit=0", 400, bearer("bob")),
        (b"/chat/eve", 403, bearer("bob")),
        (b"/metrics", 401),
        (b"/assets/none.css", 404),
    ):
        answer = await ask(guarded, get(target, FIREFOX, *headers))
        says_where = "Nothing was read or lost." in assert_page(answer, status)
        assert says_where is (target in (b"/chat/bob", b"/chat/eve"))
        plain = await ask(guarded, get(target, *headers))
        assert (plain.status, plain.document["status"]) == (status, status)
        for name in ("allow", "www-authenticate", "retry-after"):
            assert answer.headers.get(name) == plain.headers.get(name)


@pytest.mark.parametrize("root", ["https://x.test/", "https://x.test/below/a/path/"])
async def test_a_page_links_the_web_ui_below_any_path(root: str, service: Service) -> None:
    for target in ("none", "none/", "a/b/c", "chat/bob/none", "docs/x", "x?y=/z/"):
        page = assert_page(await ask(service, get(f"/{target}".encode(), FIREFOX)), 404)
        expected = {root, f"{root}docs", f"{root}ops"}
        expected |= {f"{root}assets/base.css", f"{root}assets/favicon.svg"}
        if target.startswith("chat"):
            expected.add(f"{root}#inbox=bob")
        assert links_of(page, root + target) == expected, target


async def test_a_path_with_very_many_segments_has_a_short_page(service: Service) -> None:
    page = assert_page(await ask(service, get(b"/" * 5000, FIREFOX)), 404)
    assert len(page) < 2000
    assert "https://x.test/docs" in links_of(page, f"https://x.test{'/' * 5000}")


async def test_a_page_repeats_nothing_of_a_request_as_markup(service: Service) -> None:
    attack = b"/chat/%22%3E<script>alert('1')</script>\"onclick=\"x/none"
    page = assert_page(await ask(service, get(attack, FIREFOX)), 404)
    assert "<script" not in page
    assert '"onclick' not in page
    page = assert_page(await ask(service, get(b"/chat/bob?<b>&%3Cb%3E=1", FIREFOX)), 400)
    assert "<b>" not in page
    assert "&lt;b&gt;" in page
    named = await ask(service, get(b"/none", FIREFOX, b"X-Request-ID: <i>"))
    assert "<i>" not in assert_page(named, 404)


async def test_the_operators_port_links_the_dashboard(start_service: StartService) -> None:
    sock, port = bind_unused_port()
    sock.close()
    await start_service(ops="off", ops_port=port)
    wire = Wire(port)
    connection = await wire.connect()
    page = assert_page(await connection.ask(get(b"/none", FIREFOX)), 404)
    assert links_of(page, "http://x.test/none") == {
        f"http://x.test/{each}" for each in ("ops", "assets/base.css", "assets/favicon.svg")
    }
    await wire.close()
