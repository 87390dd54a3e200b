"""Long texts, many messages, and other writing systems in the web UI."""

from urllib.parse import quote

from playwright.async_api import Locator, expect

from tests.pages.conftest import OpenBrowser, both_browsers
from tests.pages.inbox import (
    SMALL_PHONE,
    button,
    open_inbox,
    post_many,
    post_with_receipt,
    read_here,
    send,
    status,
    width,
)
from tests.support.client import ChatClient
from tests.support.waiting import eventually

LONG = ("The quick brown fox jumps over the lazy dog. " * 1500)[:65_536]
FAMILY = "👩‍👩‍👧‍👦"
#: Counts the elements that each run of a script adds to the list, while others cannot use the page.
COUNT_SLICES = """() => {
    window.slices = [];
    const list = document.querySelector("#inboxes [data-messages]");
    new MutationObserver((records) => {
        window.slices.push(records.reduce((sum, {addedNodes}) => sum + addedNodes.length, 0));
    }).observe(list, {childList: true});
}"""
#: How many lines of text an element shows.
LINES = """element => {
    const style = getComputedStyle(element);
    return element.clientHeight / parseFloat(style.lineHeight);
}"""

#: Tells of each word in an element whether its letters are from left to right.
ORDER = """(element, words) => words.map((word) => {
    const walker = document.createTreeWalker(element, NodeFilter.SHOW_TEXT);
    while (!walker.nextNode().data.includes(word));
    const {currentNode: node} = walker;
    const at = node.data.indexOf(word);
    const lefts = [...word].map((_, n) => {
        const range = document.createRange();
        range.setStart(node, at + n);
        range.setEnd(node, at + n + 1);
        return range.getBoundingClientRect().left;
    });
    return lefts.every((left, n) => n === 0 || left > lefts[n - 1]);
})"""
#: The escapes that an element shows, each in a box with its width.
MARKS = """element => [...element.querySelectorAll(".turn")]
    .filter((box) => box.getBoundingClientRect().width > 20)
    .map((box) => box.dataset.escape)"""


async def lines(place: Locator) -> float:
    """Return how many lines of text are in view, to a tenth."""
    found: float = await place.evaluate(LINES)
    return round(found, 1)


async def test_a_browser_of_2023_shows_and_reads(chat: ChatClient, browser: OpenBrowser) -> None:
    posted = await post_with_receipt(chat, "bob", LONG)

    async def is_read() -> bool:
        return bool(await status(chat, posted) == "read")

    async with browser(**SMALL_PHONE) as page:
        await page.add_init_script(
            "delete Intl.Segmenter; delete Element.prototype.checkVisibility"
        )
        await open_inbox(page, chat.base, "bob", 1)
        await button(page, "Watch live").click()
        await expect(read_here(page)).to_have_text(f"{LONG[:2000].rstrip()}…")
        await eventually(is_read)


@both_browsers
async def test_a_long_text_shows_its_beginning_and_more(
    chat: ChatClient, browser: OpenBrowser
) -> None:
    async with browser(**SMALL_PHONE) as page:
        await page.goto(chat.base)
        await send(page, "bob", LONG)
        sent = page.locator("#sent [data-text]")
        # Whole lines, so no letter is cut.
        assert await lines(sent) == 2
        await page.locator("#sent a").click()
        await button(page, "Read").click()
        text = read_here(page)
        await expect(text).to_have_text(f"{LONG[:2000].rstrip()}…")
        assert await lines(text) == 8
        more = page.locator("[data-shown] [data-more]")
        await expect(more).to_have_accessible_name(f"More: {LONG[:40].rstrip()}…")
        await more.click()
        await expect(more).to_have_text("Less")
        await expect(more).to_have_attribute("aria-expanded", "true")
        assert await text.evaluate("element => element.textContent") == LONG
        # It does not take many swipes to fold the text again.
        await page.evaluate("scrollTo(0, 0)")
        await expect(more).to_be_in_viewport(ratio=1)
        # It hides whole lines, and no part of one.
        over, under = await more.bounding_box(), await text.bounding_box()
        assert over is not None
        assert under is not None
        assert over["x"] <= under["x"]
        assert over["x"] + over["width"] >= under["x"] + under["width"]
        assert over["y"] + over["height"] == await page.evaluate("innerHeight")
        await more.click()
        assert await lines(text) == 8
        await expect(text).to_be_in_viewport(ratio=1)
        await expect(more).to_be_focused()


async def test_only_a_text_that_is_cut_has_more(chat: ChatClient, browser: OpenBrowser) -> None:
    await post_many(chat, "bob", ["line\n" * 7 + "end", "line\n" * 8 + "end"])
    async with browser() as page:
        await open_inbox(page, chat.base, "bob", 2)
        await button(page, "Read").click()
        more = page.locator("[data-shown] [data-more]")
        await expect(more.first).to_be_visible()
        await expect(more.last).to_be_hidden()


async def test_five_hundred_messages_do_not_block_the_page(
    chat: ChatClient, browser: OpenBrowser
) -> None:
    await post_many(chat, "bob", [f"message {number}" for number in range(500)])
    async with browser(**SMALL_PHONE) as page:
        await open_inbox(page, chat.base, "bob", 500)
        await page.evaluate(COUNT_SLICES)
        await button(page, "Read").click()
        await expect(read_here(page)).to_have_count(500)
        await expect(page.locator("[data-done]")).to_have_text("500 read here")
        await expect(page.locator("[data-count]")).to_have_text("0")
        await expect(read_here(page).first).to_have_text("message 499")
        await expect(read_here(page).first).to_be_in_viewport()
        await expect(read_here(page).last).to_have_text("message 0")
        slices = await page.evaluate("window.slices")
        assert sum(slices) == 500
        assert max(slices) <= 50
        await page.reload()
        await expect(read_here(page)).to_have_count(500)
        await expect(read_here(page).last).to_have_text("message 0")


async def test_right_to_left_names_keep_the_sentence(
    chat: ChatClient, browser: OpenBrowser
) -> None:
    name = "שרה 1"
    await chat.post(name, "מה שלומך?")
    async with browser() as page:
        await open_inbox(page, chat.base, quote(name), 1)
        # In isolation, the name cannot change the order of the words around it.
        await expect(page.locator("[data-words]")).to_contain_text(
            f"unread in \N{FIRST STRONG ISOLATE}{name}\N{POP DIRECTIONAL ISOLATE}"
        )
        await button(page, "Read").click()
        align = """element => {
            const range = document.createRange();
            range.selectNodeContents(element);
            const [text, place] = [range.getBoundingClientRect(), element.getBoundingClientRect()];
            return text.left - place.left > place.right - text.right;
        }"""
        # The text begins on the right.
        assert await read_here(page).evaluate(align)


@both_browsers
async def test_no_character_of_a_text_turns_the_others(
    chat: ChatClient, browser: OpenBrowser
) -> None:
    texts = ["xx \u202eevil", "a\u2069\u2067 (שלום) \u202dcode\u202c end"]
    await post_many(chat, "bob", texts)
    async with browser() as page:
        await open_inbox(page, chat.base, "bob", 2)
        await button(page, "Read").click()
        await expect(read_here(page)).to_have_count(2)
        second, first = await read_here(page).all()
        assert await first.evaluate(ORDER, ["xx", "evil"]) == [True, True]
        # The mark of the escape has the place of the character.
        assert await first.evaluate(MARKS) == [r"\u202e"]
        # What is from right to left still is.
        assert await second.evaluate(ORDER, ["code", "end", "שלום"]) == [True, True, False]
        assert await second.evaluate(MARKS) == [r"\u2069", r"\u2067", r"\u202d", r"\u202c"]
        for place, text in zip((first, second), texts, strict=True):
            assert await place.evaluate("element => element.textContent") == text
        if await page.evaluate("navigator.userAgent.includes('Chrome')"):
            field = page.get_by_label("Message", exact=True)
            await page.locator("[data-shown] [data-copy]").last.click()
            await expect(page.get_by_text("Copied", exact=True)).to_be_visible()
            await field.focus()
            await page.keyboard.press("Control+V")
            await expect(field).to_have_value(texts[0])


async def test_emoji_are_never_cut_in_half(chat: ChatClient, browser: OpenBrowser) -> None:
    text = FAMILY * 300
    await chat.post("bob", text)
    async with browser(**SMALL_PHONE) as page:
        await open_inbox(page, chat.base, "bob", 1)
        await button(page, "Read").click()
        shown = await read_here(page).evaluate("element => element.textContent")
        assert shown.endswith("…")
        assert shown.removesuffix("…").replace(FAMILY, "") == ""
        copies = page.locator("[data-shown] [data-copy]")
        label = await copies.get_attribute("aria-label")
        assert label is not None
        assert label.removeprefix("Copy: ").removesuffix("…").replace(FAMILY, "") == ""
        assert await width(page) == 375
