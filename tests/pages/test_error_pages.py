"""The page that a browser shows if it opens a wrong address."""

import pytest
from playwright.async_api import expect

from tests.pages.conftest import CheckAccess, OpenBrowser, both_browsers
from tests.pages.inbox import PHONE, button, width
from tests.support.client import ChatClient


@both_browsers
async def test_a_wrong_address_leads_to_the_web_ui(chat: ChatClient, browser: OpenBrowser) -> None:
    async with browser() as page:
        answer = await page.goto(f"{chat.base}/some/where")
        assert answer is not None
        assert answer.status == 404
        await expect(page.get_by_role("heading")).to_have_text("There is nothing here")
        # The styles of all pages.
        ink = await page.evaluate("getComputedStyle(document.body).color")
        await page.get_by_role("link", name="Open the web UI").click()
        await expect(button(page, "Send")).to_be_visible()
        assert await page.evaluate("getComputedStyle(document.body).color") == ink


@both_browsers
async def test_a_refused_read_leads_to_the_inbox_and_reads_nothing(
    chat: ChatClient, browser: OpenBrowser
) -> None:
    await chat.post("عمر/1", "hello")
    async with browser() as page:
        await page.goto(f"{chat.base}/chat/%D8%B9%D9%85%D8%B1%2F1?limit=none")
        await expect(page.get_by_text("Limit must be one integer")).to_be_visible()
        await page.get_by_role("link", name="Open this inbox").click()
        await expect(page.locator("[data-count]")).to_have_text("1")
        await expect(page.get_by_label("Name", exact=True)).to_have_value("عمر/1")


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_an_error_is_accessible_on_a_phone(
    chat: ChatClient, browser: OpenBrowser, check_access: CheckAccess, scheme: str
) -> None:
    async with browser(**PHONE, color_scheme=scheme) as page:
        await page.goto(f"{chat.base}/chat/{'W' * 128}?{'W' * 200}")
        await expect(page.get_by_role("heading")).to_have_text("The request is not valid")
        await check_access(page)
        assert await width(page) == 360
