"""The buttons of an inbox stay where they are, and addresses that nobody made still lead there."""

import pytest
from playwright.async_api import expect

from tests.pages.conftest import CheckAccess, OpenBrowser, both_browsers
from tests.pages.inbox import SMALL_PHONE, button, open_inbox, read_here
from tests.support.client import ChatClient

#: Returns the places of the buttons Read, Watch live and Lease 60 s, and of what follows them.
PLACES = """() => ["read", "watch", "lease", "about"].map((name) => {
    const {x, y, width} = document.querySelector(`[data-${name}]`).getBoundingClientRect();
    return [x, y + scrollY, width].map(Math.round);
})"""

#: Returns the buttons whose words do not fit.
CUT = """() => [...document.querySelectorAll(".ways button")]
    .filter((each) => each.scrollWidth > each.clientWidth)
    .map((each) => each.textContent)"""


@both_browsers
@pytest.mark.parametrize("width", [320, 375, 800, 1060, 1280])
async def test_watching_moves_no_button(
    chat: ChatClient, browser: OpenBrowser, check_access: CheckAccess, width: int
) -> None:
    async with browser(viewport={"width": width, "height": 700}) as page:
        await open_inbox(page, chat.base, "bob", 0)
        await page.get_by_text("What these do").click()
        before = await page.evaluate(PLACES)
        await button(page, "Watch live").click()
        await expect(page.locator("[data-live]")).to_have_text("live")
        assert await page.evaluate(PLACES) == before
        assert await page.evaluate(CUT) == []
        await check_access(page)


async def test_read_is_the_main_button_only_if_it_would_read(
    chat: ChatClient, browser: OpenBrowser
) -> None:
    async with browser() as page:
        await open_inbox(page, chat.base, "bob", 0)
        await expect(button(page, "Read")).not_to_contain_class("primary")
        await chat.post("bob", "hello")
        await expect(button(page, "Read")).to_contain_class("primary")
        await button(page, "Watch live").click()
        await expect(button(page, "Read")).not_to_contain_class("primary")


@pytest.mark.parametrize("address", ["#ops-2", "?inbox=ops-2", "?inbox=ops-2#"])
async def test_an_address_that_is_plainly_a_name_opens_its_inbox(
    chat: ChatClient, browser: OpenBrowser, address: str
) -> None:
    await chat.post("ops-2", "hello")
    async with browser(**SMALL_PHONE) as page:
        await page.goto(f"{chat.base}/{address}")
        await expect(page.locator("[data-count]")).to_have_text("1")
        assert page.url == f"{chat.base}/#inbox=ops-2"
    assert await chat.texts("ops-2") == ["hello"]


@pytest.mark.parametrize("address", ["#inbox=%ff", "#ops/2", "#inbox="])
async def test_an_address_that_means_nothing_says_how_links_look(
    chat: ChatClient, browser: OpenBrowser, address: str
) -> None:
    async with browser(**SMALL_PHONE) as page:
        await page.goto(f"{chat.base}/{address}")
        await expect(page.locator("#whose-fault")).to_have_text(
            "A link to an inbox ends with #inbox= and its name. "
            f"This one does not fit: “{address}”."
        )
        await expect(page.locator("#whose-fault")).to_be_in_viewport()


async def test_a_long_wrong_name_is_said_in_short(chat: ChatClient, browser: OpenBrowser) -> None:
    async with browser(**SMALL_PHONE) as page:
        await page.goto(f"{chat.base}/#inbox={'x' * 300}")
        await expect(page.locator("#whose-fault")).to_have_text(
            "A name has 1 to 128 characters, and no control characters. "
            f"This one does not fit: “{'x' * 40}…”."
        )


async def test_the_id_of_a_message_is_behind_a_tap(
    chat: ChatClient, browser: OpenBrowser, check_access: CheckAccess
) -> None:
    await chat.post("bob", "hello")
    async with browser(**SMALL_PHONE) as page:
        await open_inbox(page, chat.base, "bob", 1)
        await button(page, "Read").click()
        await expect(read_here(page)).to_have_text(["hello"])
        shown = page.locator("[data-shown] [data-id]")
        await expect(shown).to_be_hidden()
        await page.locator("[data-shown] summary").click()
        await expect(shown).to_be_visible()
        await check_access(page)
