"""Actions on the web UI at `/` and the elements that it shows, for its tests."""

import json
from typing import Any

from playwright.async_api import Locator, Page, Route, expect

from tests.support.client import ChatClient

PHONE = {"viewport": {"width": 360, "height": 740}, "has_touch": True, "is_mobile": True}
#: A phone with little room: what matters must be in view without scrolling.
SMALL_PHONE = {**PHONE, "viewport": {"width": 375, "height": 667}}


#: Collects the seconds that the page counts down until it tries again.
_WATCH = r"""(place) => {
    window.seconds = [];
    new MutationObserver(() => {
        const words = document.querySelector(place).textContent;
        const found = words.match(/(?:Retrying|try again) in (\d+) s/);
        if (found && window.seconds.at(-1) !== Number(found[1])) {
            window.seconds.push(Number(found[1]));
        }
    }).observe(document.body, {subtree: true, childList: true, characterData: true});
}"""


async def watch_countdown(page: Page, place: str) -> None:
    """Record from now on which seconds the page counts down at a place, given as a selector."""
    await page.evaluate(_WATCH, place)


async def check_countdown(page: Page, first: int) -> None:
    """Check that the page counted down from `first` seconds. A busy machine may skip some."""
    seconds: list[int] = await page.evaluate("seconds")
    assert seconds[0] == first
    assert len(seconds) > 1
    assert seconds == sorted({*seconds}, reverse=True)


async def send(page: Page, username: str, text: str) -> None:
    """Fill in the form and send it; fail unless the message is stored."""
    await page.get_by_label("To", exact=True).fill(username)
    await page.get_by_label("Message", exact=True).fill(text)
    await button(page, "Send").click()
    await expect(page.get_by_label("Message", exact=True)).to_have_value("")


async def open_inbox(page: Page, base: str, name: str, unread: int) -> None:
    """Open the page with a link to an inbox, and wait for its number of unread messages."""
    await page.goto(f"{base}/#inbox={name}")
    await expect(page.locator("[data-count]")).to_have_text(str(unread))


def button(page: Page, name: str) -> Locator:
    """Return the button with this name."""
    return page.get_by_role("button", name=name, exact=True)


def read_here(page: Page) -> Locator:
    """Return the texts that were read on the page, newest first."""
    return page.locator("[data-shown] [data-text]")


def leased_here(page: Page) -> Locator:
    """Return the texts that the page has leased."""
    return page.locator(".lease [data-text]")


async def post_many(chat: ChatClient, username: str, texts: list[str]) -> None:
    """Post messages in this order."""
    messages = [{"username": username, "text": text} for text in texts]
    answer = await chat.request("POST", "/chat/batch", json.dumps(messages).encode())
    assert answer.code == 200, answer.body


async def post_with_receipt(chat: ChatClient, username: str, text: str) -> tuple[str, str]:
    """Post a message and return its id and receipt."""
    body = json.dumps({"username": username, "text": text}).encode()
    answer = await chat.request("POST", "/chat", body, Prefer="receipt")
    return json.loads(answer.body)["id"], answer.headers["X-Receipt"]


async def status(chat: ChatClient, posted: tuple[str, str]) -> Any:
    """Return the status of a message."""
    answer = await chat.request("GET", f"/messages/{posted[0]}/status", X_Receipt=posted[1])
    return json.loads(answer.body)["status"]


async def width(page: Page) -> int:
    """Return the width of the page, including parts outside the screen."""
    found: int = await page.evaluate("document.documentElement.scrollWidth")
    return found


async def lose(route: Route) -> None:
    """Let the service answer a request, and lose the answer."""
    await route.fetch()
    await route.abort()
