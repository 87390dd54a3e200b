"""The parts of the dashboard, for its tests."""

from playwright.async_api import Locator, Page

#: Milliseconds; longer than a sample and the page's next request take together.
SOON = 20_000


def chart(page: Page, title: str) -> Locator:
    """Return the chart with this title."""
    return page.locator("figure", has=page.get_by_role("heading", name=title, exact=True))


def tile(page: Page, title: str) -> Locator:
    """Return the tile with this title."""
    return page.locator(".tile", has=page.get_by_text(title, exact=True))


def fact(page: Page, term: str) -> Locator:
    """Return the text of the fact about the node with this term."""
    return page.locator("#facts div", has=page.get_by_text(term, exact=True)).get_by_role(
        "definition"
    )


def verdict(page: Page) -> Locator:
    """Return the overall state in words."""
    return page.locator("#verdict")
