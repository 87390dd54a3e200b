"""The web UI on a phone: one pane at a time, and what was asked for is in view."""

import pytest
from playwright.async_api import Locator, Page, expect

from tests.pages.conftest import CheckAccess, OpenBrowser, both_browsers
from tests.pages.inbox import (
    PHONE,
    SMALL_PHONE,
    button,
    leased_here,
    open_inbox,
    post_many,
    post_with_receipt,
    read_here,
    send,
    status,
)
from tests.support.client import ChatClient
from tests.support.waiting import eventually


async def tap(page: Page, name: str) -> None:
    """Choose a pane by its tab."""
    await page.get_by_role("navigation", name="Send or read").get_by_role("link", name=name).click()


@both_browsers
async def test_a_link_to_an_inbox_opens_it_on_a_phone(
    chat: ChatClient, browser: OpenBrowser
) -> None:
    await chat.post("bob", "hello")
    async with browser(**SMALL_PHONE) as page:
        await open_inbox(page, chat.base, "bob", 1)
        await expect(button(page, "Read")).to_be_in_viewport(ratio=1)
        await expect(page.locator("#send-pane")).to_be_hidden()
        tabs = page.get_by_role("navigation", name="Send or read")
        current = tabs.locator("[aria-current=page]")
        await expect(current).to_have_text("Inbox 1 unread", use_inner_text=False)
        await tap(page, "Send")
        await expect(page.get_by_label("To", exact=True)).to_be_in_viewport()
        await expect(page.locator("#inbox-pane")).to_be_hidden()
        await expect(current).to_have_text("Send")
        # The inbox stays open: its tab leads back to it, and so does the browser's button.
        await page.go_back()
        await expect(button(page, "Read")).to_be_in_viewport(ratio=1)
        await tap(page, "Send")
        await tap(page, "Inbox")
        await expect(button(page, "Read")).to_be_in_viewport(ratio=1)
        assert page.url.endswith("#inbox=bob")


@both_browsers
async def test_what_was_read_is_in_view_on_a_phone(chat: ChatClient, browser: OpenBrowser) -> None:
    await post_many(chat, "bob", [f"message {number} " * 30 for number in range(5)])
    async with browser(**SMALL_PHONE) as page:
        await open_inbox(page, chat.base, "bob", 5)
        await button(page, "Read").click()
        await expect(read_here(page)).to_have_count(5)
        await expect(read_here(page).first).to_be_in_viewport(ratio=1)
        await expect(page.locator("[data-done]")).to_have_text("5 read here")
        await expect(page.locator("[data-done]")).to_be_in_viewport(ratio=1)
        await chat.post("bob", "to lease")
        await button(page, "Lease 60 s").click()
        await expect(leased_here(page)).to_be_in_viewport(ratio=1)
        await expect(page.locator("[data-done]")).to_have_text("5 read, 1 leased here")
        await button(page, "Acknowledge all").click()
        # It was read as well, and it exists nowhere else.
        await expect(page.locator("[data-done]")).to_have_text("6 read here")
        await expect(read_here(page).first).to_have_text("to lease")
        await button(page, "Watch live").click()
        await chat.post("bob", "live")
        await expect(read_here(page).first).to_have_text("live")
        await expect(read_here(page).first).to_be_in_viewport(ratio=1)


async def test_a_hidden_pane_does_not_read_a_message_yet(
    chat: ChatClient, browser: OpenBrowser
) -> None:
    async with browser(**SMALL_PHONE) as page:
        await open_inbox(page, chat.base, "bob", 0)
        await button(page, "Watch live").click()
        await expect(page.locator("[data-live]")).to_have_text("live")
        await tap(page, "Send")
        posted = await post_with_receipt(chat, "bob", "psst")
        await expect(read_here(page)).to_have_text(["psst"])
        assert await status(chat, posted) == "leased"
        await tap(page, "Inbox")

        async def is_read() -> bool:
            return bool(await status(chat, posted) == "read")

        await eventually(is_read)


async def test_rows_fit_the_width_of_a_phone(chat: ChatClient, browser: OpenBrowser) -> None:
    async def are_beside(*places: Locator) -> bool:
        boxes = [await place.bounding_box() for place in places]
        first = boxes[0]
        assert first is not None
        return all(box is not None and box["y"] < first["y"] + first["height"] - 1 for box in boxes)

    async with browser(**PHONE) as page:
        await page.goto(chat.base)
        await page.get_by_label("In …").check()
        assert await are_beside(page.locator("#after"), page.locator("#after-unit"))
        await send(page, "bob", "later")
        sent = page.locator("#sent > li")
        await expect(sent.locator(".state")).to_contain_text("scheduled for")
        assert await are_beside(sent.locator(".state"), button(page, "Revoke"))
        await sent.locator("summary").click()
        digits = await sent.locator("[data-id]").bounding_box()
        assert digits is not None
        assert digits["height"] < 24
        await chat.post("bob", "now")
        await sent.get_by_role("link", name="bob").click()
        await button(page, "Lease 60 s").click()
        await page.locator(".lease .facts summary").click()
        digits = await page.locator(".lease [data-id]").bounding_box()
        assert digits is not None
        assert digits["height"] < 24
        names = ("Acknowledge: now", "Release: now", "Copy: now")
        assert await are_beside(*(button(page, name) for name in names))


async def test_a_tapped_button_looks_as_before(chat: ChatClient, browser: OpenBrowser) -> None:
    async with browser(**PHONE, reduced_motion="reduce") as page:
        await open_inbox(page, chat.base, "bob", 0)
        for name in ("Lease 60 s", "Read"):
            tapped = button(page, name)
            color = "element => getComputedStyle(element).backgroundColor"
            before = await tapped.evaluate(color)
            # A phone goes on to hover over what was tapped; the emulation does not.
            await tapped.hover()
            await expect(page.locator(":hover").last).to_have_text(name)
            assert await tapped.evaluate(color) == before


async def test_the_explanation_folds_once_it_was_used(
    chat: ChatClient, browser: OpenBrowser
) -> None:
    async with browser() as page:
        await open_inbox(page, chat.base, "bob", 0)
        about = page.get_by_text("Hides the messages from other readers")
        await expect(about).to_be_visible()
        await button(page, "Read").click()
        await expect(about).to_be_hidden()
        await page.reload()
        await expect(page.locator("[data-count]")).to_have_text("0")
        await expect(about).to_be_hidden()
        await page.get_by_text("What these do").click()
        await expect(about).to_be_visible()


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_both_panes_are_accessible_on_a_phone(
    chat: ChatClient, browser: OpenBrowser, check_access: CheckAccess, scheme: str
) -> None:
    async with browser(**SMALL_PHONE, color_scheme=scheme, reduced_motion="reduce") as page:
        await page.goto(f"{chat.base}/#inbox")
        await check_access(page)
        await tap(page, "Send")
        await send(page, "bob", "long " * 1000)
        await send(page, "bob", "short")
        await check_access(page)
        await page.locator("#sent a").first.click()
        await button(page, "Read").click()
        await expect(read_here(page)).to_have_count(2)
        await check_access(page)
        await page.locator("[data-shown] .more:visible").click()
        await check_access(page)
        await page.get_by_role("link", name="All inboxes").click()
        await expect(page.get_by_role("heading", name="Used in this browser")).to_be_visible()
        await check_access(page)
