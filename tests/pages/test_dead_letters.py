"""Deliveries and dead letters in the web UI."""

import json

import pytest
from playwright.async_api import Page, Route, expect

from tests.conftest import Connect, StartService
from tests.pages.conftest import CheckAccess, OpenBrowser
from tests.pages.inbox import button, leased_here, lose, open_inbox, read_here, send
from tests.support.client import ChatClient
from tests.support.waiting import eventually


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_a_message_is_followed_into_the_dead_letters(
    start_service: StartService,
    connect: Connect,
    browser: OpenBrowser,
    check_access: CheckAccess,
    scheme: str,
) -> None:
    chat = connect(await start_service(max_deliveries=2))
    async with browser(color_scheme=scheme, reduced_motion="reduce") as page:
        await page.goto(chat.base)
        await send(page, "bob", "poison")
        await page.locator("#sent a").click()
        delivery = page.locator(".lease [data-deliveries]")
        await button(page, "Lease 60 s").click()
        await expect(leased_here(page)).to_have_text(["poison"])
        await expect(delivery).to_be_hidden()
        await button(page, "Release all").click()
        await expect(page.locator("[data-count]")).to_have_text("1")
        await button(page, "Lease 60 s").click()
        await expect(delivery).to_have_text("delivery 2")
        await button(page, "Release all").click()
        await expect(page.locator("#sent [data-state]")).to_contain_text("dead since")
        await expect(page.locator("#sent [data-note]")).to_contain_text("dead-letter inbox")
        await expect(button(page, "Revoke")).to_be_hidden()
        await page.get_by_role("link", name="dead/bob").click()
        await expect(page.locator("[data-count]")).to_have_text("1")
        await button(page, "Lease 60 s").click()
        await expect(leased_here(page)).to_have_text(["poison"])
        await expect(page.locator(".lease [data-dead]")).to_have_text(
            "Dead letter of bob, leased 2 times there."
        )
        await check_access(page)
        # The way back.
        place = page.locator("#inboxes > div > [data-dead]")
        await expect(place).to_contain_text("Dead letters of bob. Read takes them for good")
        await place.get_by_role("link").click()
        await expect(page.locator("[data-words]")).to_contain_text("unread in bob")


@pytest.mark.settings(dead_letter_inbox="{username}.dead")
async def test_the_template_of_the_settings_is_followed(
    chat: ChatClient, browser: OpenBrowser
) -> None:
    await chat.post("a/ b.dead", "poison")
    async with browser() as page:
        await open_inbox(page, chat.base, "a%2F%20b", 0)
        place = page.locator("#inboxes > div > [data-dead]")
        await expect(place).to_have_text("Its dead letters: a/ b.dead (1 unread)")
        await place.get_by_role("link").click()
        await expect(place).to_contain_text("Dead letters of a/ b. ")


async def test_an_inbox_without_dead_letters_names_none(
    chat: ChatClient, browser: OpenBrowser
) -> None:
    async with browser() as page, page.expect_response("**/chat/dead%2Fbob") as counted:
        await open_inbox(page, chat.base, "bob", 0)
        await (await counted.value).finished()
        await expect(page.locator("#inboxes > div > [data-dead]")).to_be_hidden()


async def test_watching_live_shows_further_deliveries(
    chat: ChatClient, browser: OpenBrowser
) -> None:
    await chat.post("bob", "again")
    await chat.request("POST", "/chat/bob/lease?ttl=0.01", b"")
    async with browser() as page:
        await open_inbox(page, chat.base, "bob", 1)
        await button(page, "Watch live").click()
        await expect(page.locator("[data-shown] [data-deliveries]")).to_have_text("delivery 2")


async def test_a_node_without_dead_letters_is_counted(
    chat: ChatClient, browser: OpenBrowser
) -> None:
    async def of_an_earlier_version(route: Route) -> None:
        answer = await route.fetch()
        headers = {
            name: value
            for name, value in answer.headers.items()
            if name.lower() != "x-dead-letter-inbox"
        }
        await route.fulfill(response=answer, headers=headers)

    await chat.post("bob", "hi")
    async with browser() as page:
        await page.route("**/chat/bob", of_an_earlier_version)
        await open_inbox(page, chat.base, "bob", 1)
        await expect(page.locator("#inboxes > div > [data-dead]")).to_be_hidden()


async def open_dead_letters(page: Page, chat: ChatClient, texts: list[str]) -> None:
    """Let messages to bob become dead letters, and open their inbox with the link to it."""
    for text in texts:
        await chat.post("bob", text)
    await chat.request("POST", "/chat/bob/lease?ttl=0.01", b"")

    async def are_dead() -> bool:
        answer = await chat.request("HEAD", "/chat/dead%2Fbob")
        return bool(answer.headers["X-Unread-Count"] == str(len(texts)))

    await eventually(are_dead)
    await page.goto(f"{chat.base}/#inbox=bob")
    place = page.locator("#inboxes > div > [data-dead]")
    await expect(place).to_have_text(f"Its dead letters: dead/bob ({len(texts)} unread)")
    await place.get_by_role("link").click()
    await expect(page.locator("[data-count]")).to_have_text(str(len(texts)))


@pytest.mark.settings(max_deliveries=1)
async def test_dead_letters_are_returned_to_their_inbox(
    chat: ChatClient, browser: OpenBrowser
) -> None:
    async with browser() as page:
        await open_dead_letters(page, chat, ["one", "two", "three"])
        # What destroys them is not the main button.
        await expect(button(page, "Lease 60 s")).to_contain_class("primary")
        await expect(button(page, "Read")).not_to_contain_class("primary")
        await button(page, "Lease 60 s").click()
        await expect(leased_here(page)).to_have_text(["one", "two", "three"])
        await expect(button(page, "Return all")).to_contain_class("primary")
        await expect(button(page, "Acknowledge all")).not_to_contain_class("primary")
        # The page posts it again with the same key, and it is stored once.
        await page.route("**/chat", lose, times=1)
        await button(page, "Return: two").click()
        await expect(leased_here(page)).to_have_text(["one", "three"])
        note = page.locator("#inboxes [data-note]").first
        await expect(note).to_have_text("1 dead letter returned to bob.")
        await button(page, "Return all").click()
        await expect(leased_here(page)).to_have_count(0)
        await expect(note).to_have_text("2 dead letters returned to bob.")
    assert await chat.texts("bob") == ["two", "one", "three"]
    assert await chat.texts("dead/bob") == []


@pytest.mark.parametrize(("lifetime_max_s", "lifetime"), [(2_592_000, 86_400), (3600, None)])
async def test_returned_dead_letters_live_for_a_day(
    start_service: StartService,
    connect: Connect,
    browser: OpenBrowser,
    lifetime_max_s: int,
    lifetime: int | None,
) -> None:
    chat = connect(await start_service(max_deliveries=1, max_timeout_s=lifetime_max_s))
    async with browser() as page:
        await open_dead_letters(page, chat, ["one"])
        await button(page, "Lease 60 s").click()
        is_post = lambda answer: answer.url.endswith("/chat") and answer.status == 201  # noqa: E731
        async with page.expect_response(is_post) as stored:
            await button(page, "Return: one").click()
        posted = (await stored.value).request.post_data
        assert posted is not None
        assert json.loads(posted).get("timeout") == lifetime
    assert await chat.texts("bob") == ["one"]


@pytest.mark.settings(max_deliveries=1)
async def test_a_refused_return_keeps_only_what_was_not_returned(
    chat: ChatClient, browser: OpenBrowser
) -> None:
    async def refuse_two(route: Route) -> None:
        if "two" not in (route.request.post_data or ""):
            await route.continue_()
            return
        await route.fulfill(
            status=413,
            headers={"Content-Type": "application/problem+json"},
            body='{"title": "Too large", "detail": "no room"}',
        )

    async with browser() as page:
        await open_dead_letters(page, chat, ["one", "two"])
        await button(page, "Lease 60 s").click()
        await page.route("**/chat", refuse_two)
        await button(page, "Return all").click()
        await expect(leased_here(page)).to_have_text(["two"])
        await expect(page.locator(".lease [data-note]")).to_have_text("Too large: no room.")
        await button(page, "Release all").click()
        await expect(page.locator("[data-count]")).to_have_text("1")
    assert await chat.texts("bob") == ["one"]
    assert await chat.texts("dead/bob") == ["two"]


@pytest.mark.settings(max_deliveries=1)
async def test_a_late_acknowledgement_says_what_was_returned(
    chat: ChatClient, browser: OpenBrowser
) -> None:
    async with browser() as page:
        await open_dead_letters(page, chat, ["poison"])
        await button(page, "Lease 60 s").click()
        # The service does not learn that it was returned, so it is a dead letter again.
        await page.route("**/ack", lambda route: route.fulfill(status=410, body=""))
        await button(page, "Return: poison").click()
        note = page.locator("#inboxes [data-note]").first
        await expect(note).to_contain_text("returned to bob, but the lease had ended")
    assert await chat.texts("bob") == ["poison"]


@pytest.mark.settings(max_deliveries=1)
async def test_a_dead_letter_that_was_read_is_returned(
    chat: ChatClient, browser: OpenBrowser
) -> None:
    async with browser() as page:
        await open_dead_letters(page, chat, ["oops"])
        # Only a stream or a lease says where a dead letter comes from.
        await button(page, "Watch live").click()
        await expect(read_here(page)).to_have_text(["oops"])
        await page.reload()
        await button(page, "Return: oops").click()
        await expect(page.locator("#inboxes [data-note]").first).to_have_text(
            "Returned to bob as a new message."
        )
        await expect(read_here(page)).to_have_count(0)
        await page.reload()
        await expect(page.locator("[data-count]")).to_have_text("0")
        await expect(read_here(page)).to_have_count(0)
    assert await chat.texts("bob") == ["oops"]


async def test_a_scheduled_message_is_announced_in_its_inbox(
    chat: ChatClient, browser: OpenBrowser
) -> None:
    async with browser() as page:
        await page.goto(chat.base)
        await page.get_by_role("group", name="Deliver").get_by_label("In …", exact=True).check()
        await send(page, "bob", "later")
        await page.locator("#sent a").click()
        await expect(page.locator("[data-scheduled]")).to_contain_text(
            "1 scheduled message from this tab, to be delivered in 9 min"
        )
        await button(page, "Revoke").click()
        await expect(page.locator("[data-scheduled]")).to_be_hidden()
        await page.goto(f"{chat.base}/#inbox=eve")
        await expect(page.locator("[data-count]")).to_have_text("0")
        await expect(page.locator("[data-scheduled]")).to_be_hidden()
