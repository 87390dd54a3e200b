"""The web pages: which files are served, and what their policy forbids."""

import asyncio
import gzip
import json
from urllib.request import Request, urlopen

import pytest

from chat_service.handlers.pages import WEB
from tests.conftest import Connect, StartService
from tests.support.client import ChatClient

PAGES = ["/", "/docs", "/ops", "/ops/runbook"]


@pytest.mark.parametrize("page", PAGES)
async def test_pages_load_nothing_foreign_and_run_nothing_inline(
    chat: ChatClient, page: str
) -> None:
    answer = await chat.request("GET", page)
    assert (answer.code, answer.headers["Content-Type"]) == (200, "text/html; charset=utf-8")
    policy = answer.headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self'")
    assert "unsafe" not in policy
    assert answer.headers["X-Content-Type-Options"] == "nosniff"


@pytest.mark.parametrize("page", PAGES)
async def test_a_page_that_has_not_changed_is_not_sent_again(chat: ChatClient, page: str) -> None:
    first = await chat.request("GET", page)
    again = await chat.request("GET", page, If_None_Match=first.headers["ETag"])
    assert (again.code, again.body) == (304, b"")
    assert (await chat.request("GET", page)).body == first.body
    assert (await chat.request("HEAD", page)).code == 200


async def test_the_openapi_document_has_the_configured_limits(
    start_service: StartService, connect: Connect
) -> None:
    chat = connect(await start_service(max_text_bytes=77))
    answer = await chat.request("GET", "/openapi.json")
    assert (answer.code, answer.headers["Content-Type"]) == (200, "application/json")
    document = json.loads(answer.body)
    message = document["components"]["schemas"]["NewMessage"]
    assert message["properties"]["text"]["maxLength"] == 77
    again = await chat.request("GET", "/openapi.json", If_None_Match=answer.headers["ETag"])
    assert (again.code, again.body) == (304, b"")
    assert (await chat.request("HEAD", "/openapi.json")).code == 200


async def test_a_page_is_compressed_for_who_takes_it(chat: ChatClient) -> None:
    def fetch(encoding: str) -> tuple[str | None, bytes]:
        request = Request(chat.base, headers={"Accept-Encoding": encoding})
        with urlopen(request, timeout=60) as answer:
            return answer.headers["Content-Encoding"], answer.read()

    page = (WEB / "inbox.html").read_bytes()
    assert await asyncio.to_thread(fetch, "identity") == (None, page)
    encoding, zipped = await asyncio.to_thread(fetch, "br, gzip")
    assert (encoding, gzip.decompress(zipped)) == ("gzip", page)


async def test_the_manifest_and_its_icons_are_relative(chat: ChatClient) -> None:
    answer = await chat.request("GET", "/assets/app.webmanifest")
    assert answer.headers["Content-Type"] == "application/manifest+json"
    manifest = json.loads(answer.body)
    assert (manifest["start_url"], manifest["scope"]) == ("../#inbox", "../")
    for icon in manifest["icons"]:
        shown = await chat.request("GET", f"/assets/{icon['src']}")
        assert shown.headers["Content-Type"] == icon["type"]
    assert {icon.get("purpose", "any") for icon in manifest["icons"]} == {"any", "maskable"}


async def test_the_worker_is_for_all_pages_below_a_path(chat: ChatClient) -> None:
    answer = await chat.request("GET", "/assets/worker.js")
    assert answer.headers["Service-Worker-Allowed"] == "../"
    other = await chat.request("GET", "/assets/api.js")
    assert "Service-Worker-Allowed" not in other.headers


@pytest.mark.parametrize(
    "path",
    ["/assets/inbox.html", "/assets/openapi.json", "/assets/..", "/assets/x.css", "/assets/"],
)
async def test_nothing_but_the_pages_own_files_is_served(chat: ChatClient, path: str) -> None:
    assert (await chat.request("GET", path)).code == 404
