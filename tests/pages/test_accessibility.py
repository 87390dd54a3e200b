"""Accessibility of the web UI: keyboard, phone, dark mode, reduced motion, screen readers, size."""

import pytest
from playwright.async_api import Locator, expect

from tests.pages.conftest import CheckAccess, OpenBrowser, both_browsers
from tests.pages.inbox import PHONE, button, leased_here, read_here, send, width
from tests.support.client import ChatClient
from tests.support.waiting import eventually

#: The maximum size of `/` with everything that it loads, compressed, in bytes.
WEIGHT_MAX = 70 << 10


@both_browsers
async def test_everything_works_with_tab_and_enter(chat: ChatClient, browser: OpenBrowser) -> None:
    async with browser() as page:

        async def has_focus(place: Locator) -> bool:
            # Playwright's own check fails if the window of a headless browser is not active.
            return bool(await place.evaluate("element => element === document.activeElement"))

        async def tab_to(place: Locator) -> None:
            # Beyond the last element, Tab leaves the page, and Firefox ignores Enter from then on.
            await expect(place).to_be_visible()
            for _ in range(60):
                await page.keyboard.press("Tab")
                if await has_focus(place):
                    return
            raise AssertionError("Tab does not reach it")

        await page.goto(chat.base)
        await page.keyboard.press("Tab")
        await expect(page.get_by_role("link", name="Skip to the content")).to_be_in_viewport()
        await page.keyboard.press("Enter")
        await tab_to(page.get_by_label("To", exact=True))
        await page.keyboard.type("bob")
        await tab_to(page.get_by_label("Message", exact=True))
        await page.keyboard.type("by hand")
        await tab_to(button(page, "Send"))
        await page.keyboard.press("Enter")
        await expect(page.locator("#sent > li")).to_have_count(1)
        await tab_to(page.locator("#sent a"))
        await page.keyboard.press("Enter")
        await expect(page.locator("[data-count]")).to_have_text("1")
        await tab_to(button(page, "Lease 60 s"))
        await page.keyboard.press("Enter")
        await tab_to(button(page, "Release: by hand"))
        await page.keyboard.press("Enter")
        # The button is gone; the focus moved to another one.
        await eventually(lambda: has_focus(button(page, "Read")))
        await page.keyboard.press("Enter")
        await expect(read_here(page)).to_have_text(["by hand"])


async def test_a_phone_never_scrolls_sideways(chat: ChatClient, browser: OpenBrowser) -> None:
    name = "W" * 128
    async with browser(**PHONE) as page:
        await page.goto(chat.base)
        assert await width(page) == 360
        await page.get_by_text("Advanced").click()
        await send(page, name, "W" * 500)
        await send(page, name, "i")
        await page.locator("#sent a").first.click()
        await button(page, "Lease 60 s").click()
        await button(page, "Release: i").click()
        await button(page, "Read").click()
        await expect(read_here(page)).to_have_text(["i"])
        await button(page, "Watch live").click()
        assert await width(page) == 360
        fingers = page.locator(
            "button:visible, input:visible:not([type=checkbox]), nav a, summary:visible"
        )
        for box in [await each.bounding_box() for each in await fingers.all()]:
            assert box is not None
            assert box["height"] >= 44


async def test_choices_fit_in_their_card_on_a_small_phone(
    chat: ChatClient, browser: OpenBrowser
) -> None:
    async with browser(viewport={"width": 320, "height": 568}) as page:
        await page.goto(chat.base)
        card = await page.locator(".card:visible").first.bounding_box()
        assert card is not None
        for choice in await page.locator(".choices label").all():
            box = await choice.bounding_box()
            assert box is not None
            assert box["x"] + box["width"] < card["x"] + card["width"] - 8


@both_browsers
async def test_dark_mode_is_dark(chat: ChatClient, browser: OpenBrowser) -> None:
    async with browser(color_scheme="dark") as page:
        await page.goto(chat.base)
        found = await page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert sum(int(part) for part in found[4:-1].split(",")) < 100


@both_browsers
async def test_nothing_moves_with_reduced_motion(chat: ChatClient, browser: OpenBrowser) -> None:
    async with browser(reduced_motion="reduce") as page:
        await page.goto(chat.base)
        await send(page, "bob", "still")
        moves = """element => {
            const style = getComputedStyle(element);
            return [style.animationName, style.transitionDuration];
        }"""
        for place in ("#sent > li", "#sent .bar i", "#send-button"):
            assert await page.locator(place).evaluate(moves) == ["none", "0s"], place


@both_browsers
@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_every_state_of_the_page_is_accessible(
    chat: ChatClient, browser: OpenBrowser, check_access: CheckAccess, scheme: str
) -> None:
    async with browser(color_scheme=scheme, reduced_motion="reduce") as page:
        await page.goto(chat.base)
        await check_access(page)
        await page.get_by_text("Advanced").click()
        await page.get_by_label("Other", exact=True).check()
        await page.get_by_label("Message", exact=True).fill("x")
        await page.get_by_label("Seconds").fill("0")
        await button(page, "Send").click()
        await expect(page.locator("#to-fault")).to_be_visible()
        await check_access(page)
        await page.get_by_label("Seconds").fill("600")
        for text in ("one", "two\n" * 100, "three"):
            await send(page, "bob", text)
        await button(page, "Revoke").first.click()
        await page.locator("#sent a").first.click()
        await expect(page.locator("[data-count]")).to_have_text("2")
        await button(page, "Lease 60 s").click()
        await expect(leased_here(page)).to_have_count(2)
        await check_access(page)
        await button(page, "Acknowledge: one").click()
        await button(page, "Release all").click()
        await button(page, "Watch live").click()
        await expect(read_here(page)).to_have_count(2)
        await check_access(page)
        await page.context.set_offline(True)
        await expect(page.locator("#connection")).to_be_visible()
        await check_access(page)


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_sending_on_a_phone_is_accessible(
    chat: ChatClient, browser: OpenBrowser, check_access: CheckAccess, scheme: str
) -> None:
    async with browser(**PHONE, color_scheme=scheme, reduced_motion="reduce") as page:
        await page.goto(chat.base)
        await page.get_by_label("In …").check()
        await send(page, "bob", "later")
        await send(page, "bob", "A long text. " * 60)
        await expect(page.get_by_text("scheduled for")).to_be_visible()
        await page.locator("#sent [data-more]:visible").click()
        await page.get_by_label("At …").check()
        await page.get_by_text("Advanced").click()
        await button(page, "Send").click()
        await expect(page.locator("#text-fault")).to_be_visible()
        await check_access(page)
        await page.context.set_offline(True)
        await expect(page.locator("#connection")).to_be_visible()
        await check_access(page)
        assert await width(page) == 360


async def test_the_page_is_small(chat: ChatClient, browser: OpenBrowser) -> None:
    weights: dict[str, int] = {}
    async with browser() as page:
        requests = []
        page.on("requestfinished", lambda request: requests.append(request))
        await page.goto(chat.base, wait_until="networkidle")
        for request in requests:
            weights[request.url] = (await request.sizes())["responseBodySize"]
    assert any(url.endswith(".css") for url in weights)
    assert any(url.endswith(".js") for url in weights)
    assert sum(weights.values()) < WEIGHT_MAX, weights
