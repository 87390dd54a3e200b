"""Sent messages in the web UI: their status, and revoking them."""

from playwright.async_api import expect

from tests.pages.conftest import OpenBrowser
from tests.pages.inbox import button, read_here, send
from tests.support.client import ChatClient


async def test_a_sender_sees_a_message_pending_and_read(
    chat: ChatClient, browser: OpenBrowser
) -> None:
    async with browser() as page:
        await page.goto(chat.base)
        await send(page, "bob", "lunch?")
        sent = page.locator("#sent > li")
        await expect(sent.locator("[data-state]")).to_have_text("pending")
        await expect(sent.locator("[data-left]")).to_contain_text("left")
        await sent.get_by_role("link", name="bob").click()
        await expect(page.locator("[data-count]")).to_have_text("1")
        await expect(page).to_have_title("(1) bob · Chat inbox")
        await button(page, "Read").click()
        await expect(read_here(page)).to_have_text(["lunch?"])
        await expect(page.locator("[data-count]")).to_have_text("0")
        await expect(sent.locator("[data-state]")).to_contain_text("read at")
        await expect(sent.locator("[data-left]")).to_be_hidden()
    assert await chat.texts("bob") == []


async def test_an_unread_message_is_revoked(chat: ChatClient, browser: OpenBrowser) -> None:
    async with browser() as page:
        await page.goto(chat.base)
        await send(page, "bob", "oops")
        await button(page, "Revoke").click()
        await expect(page.locator("#sent [data-state]")).to_contain_text("revoked at")
        await expect(button(page, "Revoke")).to_be_hidden()
    assert await chat.texts("bob") == []


async def test_a_message_that_was_read_cannot_be_revoked(
    chat: ChatClient, browser: OpenBrowser
) -> None:
    async with browser() as page:
        await page.goto(chat.base)
        # The page does not learn that the message was read.
        await page.route("**/status", lambda route: route.abort("timedout"))
        await page.route("**/livez", lambda route: route.abort())
        await send(page, "bob", "oops")
        assert await chat.texts("bob") == ["oops"]
        await button(page, "Revoke").click()
        await expect(page.get_by_text("Too late: the message is read.").first).to_be_visible()


async def test_receipts_survive_a_reload_but_texts_and_names_do_not(
    chat: ChatClient, browser: OpenBrowser
) -> None:
    async with browser() as page:
        await page.goto(chat.base)
        await send(page, "somebody", "confidential")
        await page.reload()
        state = page.locator("#sent [data-state]")
        await expect(state).to_have_text("pending")
        kept = await page.evaluate("JSON.stringify({...sessionStorage, ...localStorage})")
        assert "confidential" not in kept
        assert "somebody" not in kept
        assert await chat.texts("somebody") == ["confidential"]
        await expect(state).to_contain_text("read at")


async def test_the_page_works_without_session_storage(
    chat: ChatClient, browser: OpenBrowser
) -> None:
    async with browser() as page:
        await page.add_init_script(
            "Object.defineProperty(window, 'sessionStorage', {get() { throw new Error('no'); }})"
        )
        await page.goto(chat.base)
        await send(page, "bob", "hi")
        await page.locator("#sent a").click()
        await button(page, "Read").click()
        await expect(read_here(page)).to_have_text(["hi"])


async def test_an_unread_message_expires(chat: ChatClient, browser: OpenBrowser) -> None:
    async with browser() as page:
        await page.goto(chat.base)
        await page.get_by_label("Other", exact=True).check()
        await page.get_by_label("Seconds").fill("1")
        await send(page, "bob", "quick")
        await expect(page.locator("#sent [data-state]")).to_contain_text("expired at")
