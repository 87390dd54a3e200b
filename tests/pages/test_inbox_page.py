"""The page at `/`, as its users see it."""

from tests.pages.conftest import CheckAccess, OpenBrowser
from tests.support.client import ChatClient


async def test_the_page_opens_and_everybody_can_use_it(
    chat: ChatClient, browser: OpenBrowser, check_access: CheckAccess
) -> None:
    async with browser() as page:
        await page.goto(chat.base)
        assert await page.title() == "Chat inbox"
        await check_access(page)
