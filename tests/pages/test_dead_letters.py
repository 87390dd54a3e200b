"""Deliveries and dead letters in the web UI."""

import pytest
from playwright.async_api import Route, expect

from tests.conftest import Connect, StartService
from tests.pages.conftest import CheckAccess, OpenBrowser
from tests.pages.inbox import button, leased_here, open_inbox, send
from tests.support.client import ChatClient


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
        await expect(place).to_have_text("Dead letters of bob")
        await place.get_by_role("link").click()
        await expect(page.locator("[data-words]")).to_contain_text("unread in bob")


@pytest.mark.settings(dead_letter_inbox="{username}.dead")
async def test_the_template_of_the_settings_is_followed(
    chat: ChatClient, browser: OpenBrowser
) -> None:
    async with browser() as page:
        await open_inbox(page, chat.base, "a%2F%20b", 0)
        place = page.locator("#inboxes > div > [data-dead]")
        await expect(place).to_have_text("Its dead letters: a/ b.dead")
        await place.get_by_role("link").click()
        await expect(place).to_have_text("Dead letters of a/ b")


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
