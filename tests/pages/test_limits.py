"""The web UI when the service refuses more: it counts down, keeps the text, and sends it later."""

import json
import re

import pytest
from playwright.async_api import Page, Route, expect

from chat_service.api.problems import Problem, of_service_error, rate_limited
from tests.conftest import Connect, StartService
from tests.pages.conftest import OpenBrowser
from tests.pages.inbox import button, check_countdown, open_inbox, send, watch_countdown
from tests.support.client import ChatClient
from tests.support.waiting import eventually
from workers.errors import StorageFull


async def refuse(page: Page, problem: Problem, *, path: str, times: int | None = None) -> None:
    """Let the service answer requests for a path with a problem."""

    async def answer(route: Route) -> None:
        await route.fulfill(
            status=problem.status,
            headers={"Content-Type": "application/problem+json", **problem.headers},
            body=problem.body("abc-1"),
        )

    await page.route(path, answer, times=times)


async def write(page: Page, username: str, text: str) -> None:
    """Fill in the form and send it."""
    await page.get_by_label("To", exact=True).fill(username)
    await page.get_by_label("Message", exact=True).fill(text)
    await button(page, "Send").click()


async def test_a_rate_limit_counts_down_and_then_sends(
    chat: ChatClient, browser: OpenBrowser
) -> None:
    async with browser() as page:
        await page.goto(chat.base)
        await watch_countdown(page, "#send-note")
        await refuse(page, rate_limited(3, {}, "stored"), path="**/chat", times=1)
        await write(page, "bob", "patience")
        await expect(page.locator("#sent > li")).to_have_count(1)
        await expect(page.locator("#send-note")).to_be_hidden()
        await check_countdown(page, 3)
    assert await chat.texts("bob") == ["patience"]


async def test_a_message_that_was_not_stored_is_not_in_doubt(
    chat: ChatClient, browser: OpenBrowser
) -> None:
    async with browser() as page:
        await page.goto(chat.base)
        await refuse(page, rate_limited(60, {}, "stored"), path="**/chat")
        await write(page, "bob", "later")
        await expect(page.locator("#send-note")).to_contain_text("Too many requests")
        await button(page, "Stop trying").click()
        await expect(page.locator("#send-note")).to_have_text(
            "Stopped. The message was not stored."
        )
        await expect(page.get_by_label("Message", exact=True)).to_have_value("later")


async def test_a_full_storage_is_named_and_waited_for(
    chat: ChatClient, browser: OpenBrowser
) -> None:
    problem = of_service_error(StorageFull(), "stored")
    async with browser() as page:
        await page.goto(chat.base)
        await refuse(page, problem, path="**/chat")
        await write(page, "bob", "large")
        said = page.locator("#send-note")
        await expect(said).to_contain_text("The storage is full")
        await expect(said).to_contain_text(re.compile(r"Retrying in \d s\."))
        await button(page, "Stop trying").click()
        await expect(said).to_have_text("Stopped. The message was not stored.")
        # The service itself answered: the connection is not lost.
        await expect(page.locator("#connection")).to_be_hidden()


async def test_a_message_waits_until_its_inbox_has_room(
    start_service: StartService, connect: Connect, browser: OpenBrowser
) -> None:
    chat = connect(await start_service(inbox_messages_max=8))
    body = json.dumps({"username": "bob", "text": "early"}).encode()
    while (await chat.request("POST", "/chat", body)).code == 201:
        pass
    async with browser() as page:
        await page.goto(chat.base)
        await write(page, "bob", "late")
        said = page.locator("#send-note")
        await expect(said).to_contain_text("The inbox is full")
        await expect(button(page, "Waiting…")).to_be_visible()
        assert set(await chat.texts("bob")) == {"early"}
        # The service asks to wait 10 s, and may count the inbox as full for a little longer.
        await expect(page.locator("#sent > li")).to_have_count(1, timeout=60_000)
        await expect(said).to_be_hidden()
    assert await chat.texts("bob") == ["late"]


@pytest.mark.parametrize("action", ["Read", "Lease 60 s"])
async def test_a_limited_read_continues_by_itself(
    chat: ChatClient, browser: OpenBrowser, action: str
) -> None:
    await chat.post("bob", "worth the wait")
    async with browser() as page:
        await open_inbox(page, chat.base, "bob", 1)
        await refuse(page, rate_limited(2, {}, "claimed"), path="**/chat/bob/*", times=1)
        await button(page, action).click()
        note = page.locator("#inboxes [data-note]").first
        await expect(note).to_contain_text(re.compile(r"Retrying in [12] s\."))
        await expect(page.get_by_text("worth the wait")).to_be_visible()


async def test_a_limited_count_waits_as_long_as_it_is_told(
    chat: ChatClient, browser: OpenBrowser
) -> None:
    async with browser() as page:
        await open_inbox(page, chat.base, "bob", 0)
        await refuse(page, rate_limited(5, {}, "claimed"), path="**/chat/bob", times=1)
        words = page.locator("[data-words]")
        await expect(words).to_have_text("not counted: too many requests. Again in 5 s.")
        counts: list[str] = []
        page.on("request", lambda request: counts.append(request.url))
        await expect(words).to_contain_text("unread in bob")
        assert len(counts) == 1


async def test_a_client_over_its_rate_sends_everything_later(
    start_service: StartService, connect: Connect, browser: OpenBrowser
) -> None:
    chat = connect(await start_service(client_requests_per_s=2, client_burst=4))
    statuses: list[int] = []
    async with browser() as page:
        page.on("response", lambda response: statuses.append(response.status))
        await page.goto(chat.base)
        for number in range(8):
            await send(page, "bob", str(number))
        await expect(page.locator("#sent > li")).to_have_count(8)
    assert 429 in statuses

    async def is_all_there() -> bool:
        answer = await chat.request("GET", "/chat/bob")
        if answer.code == 429:
            return False
        texts = [message["text"] for message in json.loads(answer.body)]
        assert texts == [str(number) for number in range(8)]
        return True

    await eventually(is_all_there)
