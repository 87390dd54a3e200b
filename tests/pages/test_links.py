"""Web addresses in the texts of messages are links. Everything else in a text is only text."""

import pytest
from playwright.async_api import expect

from tests.pages.conftest import CheckAccess, OpenBrowser, both_browsers
from tests.pages.inbox import SMALL_PHONE, button, open_inbox, post_many, read_here, send, width
from tests.support.client import ChatClient

#: Texts, and the addresses in them that are links.
CASES = {
    "see https://example.org/a?b=c#d for more": ["https://example.org/a?b=c#d"],
    "HTTP://EXAMPLE.ORG": ["HTTP://EXAMPLE.ORG"],
    "(https://example.org/), https://example.org/b!": [
        "https://example.org/",
        "https://example.org/b",
    ],
    "https://example.org/Q_(film). [x](https://example.org/y)": [
        "https://example.org/Q_(film)",
        "https://example.org/y",
    ],
    '<a href="https://example.org/x">y</a>': ["https://example.org/x"],
    "https://example.org/cut… http:// https://) xhttps://a.b javascript:alert(1)": [],
    "https://example.org/\u202egpj.exe": ["https://example.org/"],
    "ראה https://example.org/א, תודה": ["https://example.org/א"],
    "https://[::1]:8080/x http://[": ["https://[::1]:8080/x"],
    "": [],
}
#: Returns the text and the links that the module makes of a text.
SPLIT = """async (text) => {
    const {linked} = await import(new URL("assets/links.js", location.href));
    const place = document.createElement("p");
    place.append(...linked(text));
    const links = [...place.querySelectorAll("a")].map((link) => link.textContent);
    return [place.textContent, links];
}"""
#: Returns how many times as long it takes to split a text of 64 KiB as 16 texts of 4 KiB.
RATIO = """async (part) => {
    const {linked} = await import(new URL("assets/links.js", location.href));
    const text = (bytes) => part.repeat(bytes / part.length);
    const least = (act) => Math.min(...Array.from({length: 9}, () => {
        const began = performance.now();
        for (let n = 0; n < 4; n += 1) act();
        return performance.now() - began;
    }));
    const [long, short] = [`https://a${text(65536)}x`, `https://a${text(4096)}x`];
    const whole = least(() => linked(long));
    const parts = least(() => { for (let n = 0; n < 16; n += 1) linked(short); });
    return whole / parts;
}"""


async def test_only_web_addresses_in_a_text_are_links(
    chat: ChatClient, browser: OpenBrowser
) -> None:
    async with browser() as page:
        await page.goto(chat.base)
        for text, links in CASES.items():
            assert await page.evaluate(SPLIT, text) == [text, links]


@pytest.mark.parametrize("part", [")", ".", "(", "http://a ", "https://", "…"])
async def test_links_take_linear_time(chat: ChatClient, browser: OpenBrowser, part: str) -> None:
    async with browser() as page:
        await page.goto(chat.base)
        # It would be 16 if the time grew with the square of the length.
        assert await page.evaluate(RATIO, part) < 6


@both_browsers
async def test_a_link_opens_in_another_tab_without_a_referrer(
    chat: ChatClient, browser: OpenBrowser, check_access: CheckAccess
) -> None:
    text = f"Logs: {chat.base}/docs#read-inbox. <b>Bold</b>\nשרה {chat.base}/livez"
    async with browser(**SMALL_PHONE) as page:
        await page.goto(chat.base)
        await send(page, "bob", text)
        await expect(page.locator("#sent [data-text] a")).to_have_count(2)
        await open_inbox(page, chat.base, "bob", 1)
        await button(page, "Read").click()
        place = read_here(page)
        assert await place.evaluate("element => element.textContent") == text
        assert await place.locator("*:not(a)").count() == 0
        link = place.locator("a").first
        await expect(link).to_have_attribute("rel", "noopener noreferrer")
        await check_access(page)
        async with page.expect_popup() as opened:
            await link.click()
        other = await opened.value
        await other.wait_for_url(f"{chat.base}/docs#read-inbox")
        assert await other.evaluate("[document.referrer, window.opener]") == ["", None]


async def test_a_text_of_links_folds_and_fits(chat: ChatClient, browser: OpenBrowser) -> None:
    line = "https://example.org/" + "x" * 400
    text = f"{line}\n" * 150
    await post_many(chat, "bob", [text])
    async with browser(**SMALL_PHONE) as page:
        await open_inbox(page, chat.base, "bob", 1)
        await button(page, "Read").click()
        links = read_here(page).locator("a")
        # The text is cut within the fifth address, which is none.
        await expect(links).to_have_count(4)
        await page.locator("[data-shown] [data-more]").click()
        await expect(links).to_have_count(150)
        assert await read_here(page).evaluate("element => element.textContent") == text
        assert await width(page) == 375
