"""The runbook at `/ops/runbook`: current, with working anchors, and usable on a phone at night."""

import pytest
from playwright.async_api import expect

from tests.pages.conftest import CheckAccess, OpenBrowser
from tests.pages.inbox import PHONE, width
from tests.pages.runbook_page import PAGE, make_page
from tests.support.client import ChatClient
from tests.support.runbook import DOCUMENT, ENTRIES


def test_the_page_is_made_from_the_current_document() -> None:
    made = make_page(DOCUMENT.read_text(encoding="utf-8"))
    is_current = PAGE.read_text(encoding="utf-8") == made
    assert is_current, "run: python -m tests.pages.runbook_page"


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_the_runbook_is_accessible_on_a_phone(
    chat: ChatClient, browser: OpenBrowser, check_access: CheckAccess, scheme: str
) -> None:
    async with browser(color_scheme=scheme, **PHONE) as page:
        await page.goto(f"{chat.base}/ops/runbook")
        assert await width(page) == 360
        await check_access(page)
        for anchor in ENTRIES:
            await page.evaluate("anchor => { location.hash = anchor; }", anchor)
            await expect(page.locator(f"#{anchor}")).to_be_in_viewport()
        await page.get_by_role("link", name="Dashboard").click()
        await expect(page).to_have_title("OK: Dashboard · Chat inbox")
