"""Reading in the web UI: only on a click, and without losing messages."""

from playwright.async_api import expect

from tests.pages.conftest import OpenBrowser
from tests.pages.inbox import (
    button,
    leased_here,
    lose,
    open_inbox,
    post_with_receipt,
    read_here,
    send,
    status,
)
from tests.support.client import ChatClient

HOSTILE = '<img src=x onerror="document.title=1"><script>document.title=2</script>\n& <b>bold</b>'


async def test_the_page_explains_what_to_do(chat: ChatClient, browser: OpenBrowser) -> None:
    async with browser() as page:
        await page.goto(chat.base)
        assert await page.title() == "Chat inbox"
        await expect(page.get_by_text("Opening an inbox only counts")).to_be_visible()
        await expect(page.get_by_text("Send a message to a name")).to_be_visible()
        await expect(page.get_by_text("Nothing yet.")).to_be_visible()


async def test_opening_a_link_to_an_inbox_reads_nothing(
    chat: ChatClient, browser: OpenBrowser
) -> None:
    posted = await post_with_receipt(chat, "bob", "secret")
    async with browser() as page:
        await open_inbox(page, chat.base, "bob", 1)
        await page.reload()
        await expect(page.locator("[data-count]")).to_have_text("1")
        await expect(page.get_by_text("secret")).to_have_count(0)
        assert await status(chat, posted) == "pending"
    assert await chat.texts("bob") == ["secret"]


async def test_entering_a_name_reads_nothing_and_keeps_counting(
    chat: ChatClient, browser: OpenBrowser
) -> None:
    await chat.post("eve/ÿ #1", "one")
    async with browser() as page:
        await page.goto(chat.base)
        await page.get_by_label("Name", exact=True).fill("eve/ÿ #1")
        await page.get_by_label("Name", exact=True).press("Enter")
        await expect(page.locator("[data-count]")).to_have_text("1")
        assert page.url.endswith("#inbox=eve%2F%C3%BF%20%231")
        await chat.post("eve/ÿ #1", "two")
        await expect(page.locator("[data-count]")).to_have_text("2")
        await page.go_back()
        # The list is not empty any more, so nothing says how to begin.
        await expect(page.get_by_role("heading", name="Used in this browser")).to_be_visible()
        await expect(page.get_by_text("Send a message to a name")).to_be_hidden()
    assert await chat.texts("eve/ÿ #1") == ["one", "two"]


async def test_an_empty_inbox_says_so(chat: ChatClient, browser: OpenBrowser) -> None:
    async with browser() as page:
        await open_inbox(page, chat.base, "bob", 0)
        await button(page, "Read").click()
        await expect(page.get_by_text("Nothing unread.").first).to_be_visible()


async def test_markup_in_a_text_is_shown_as_text(chat: ChatClient, browser: OpenBrowser) -> None:
    async with browser() as page:
        await page.goto(chat.base)
        await send(page, HOSTILE, HOSTILE)
        await expect(page.locator("#sent [data-text]")).to_have_text(HOSTILE)
        await page.locator("#sent a").click()
        await button(page, "Lease 60 s").click()
        await expect(leased_here(page)).to_have_text(HOSTILE)
        await button(page, "Release all").click()
        await button(page, "Read").click()
        await expect(read_here(page)).to_have_text(HOSTILE)
        assert await page.locator("main img, main script, main b").count() == 0
        assert "Chat inbox" in await page.title()


async def test_a_read_with_a_lost_answer_is_repeated(
    chat: ChatClient, browser: OpenBrowser
) -> None:
    await chat.post("bob", "precious")
    async with browser() as page:
        await open_inbox(page, chat.base, "bob", 1)
        await page.route("**/read", lose, times=1)
        await button(page, "Read").click()
        await expect(read_here(page)).to_have_text(["precious"])


async def test_a_read_survives_a_reload(chat: ChatClient, browser: OpenBrowser) -> None:
    await chat.post("bob", "precious")
    async with browser() as page:
        await open_inbox(page, chat.base, "bob", 1)
        # It does not retry on its own.
        await page.route("**/livez", lambda route: route.abort())
        await page.route("**/read", lose)
        await button(page, "Read").click()
        await expect(page.get_by_text("No answer from the service").first).to_be_visible()
        await page.unroute("**/read")
        await page.reload()
        await expect(page.locator("[data-count]")).to_have_text("0")
        await button(page, "Read").click()
        await expect(read_here(page)).to_have_text(["precious"])


async def test_the_page_continues_after_a_lost_connection(
    chat: ChatClient, browser: OpenBrowser
) -> None:
    async with browser() as page:
        await open_inbox(page, chat.base, "bob", 0)
        await page.context.set_offline(True)
        banner = page.locator("#connection")
        await expect(banner).to_be_visible()
        await expect(page.get_by_role("status")).to_contain_text(
            "The connection to the service is lost"
        )
        await page.get_by_label("To", exact=True).fill("bob")
        await page.get_by_label("Message", exact=True).fill("later")
        await button(page, "Send").click()
        await expect(page.locator("#send-note")).to_contain_text("No answer from the service")
        await expect(button(page, "Stop trying")).to_be_visible()
        await page.context.set_offline(False)
        await expect(banner).to_be_hidden()
        await expect(page.locator("#sent > li")).to_have_count(1)
        await expect(page.locator("[data-count]")).to_have_text("1")
    assert await chat.texts("bob") == ["later"]
