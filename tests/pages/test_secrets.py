"""A token that was entered on a page is only in a cookie, which no script can read."""

import json
from collections.abc import Awaitable, Callable

import pytest
from playwright.async_api import Page, Request, expect

from tests.pages.access import Tokens, panel, sign_in
from tests.pages.conftest import OpenBrowser
from tests.pages.inbox import button, send
from tests.support.client import ChatClient

#: Everything that a script of the page can find in the browser, as text.
EVERYTHING = """() => {
    const fields = [...document.querySelectorAll("input, textarea, select")];
    return JSON.stringify([
        {...localStorage}, {...sessionStorage}, document.cookie, location.href,
        document.referrer, document.title, window.name, history.state,
        document.documentElement.outerHTML, fields.map((field) => field.value),
        performance.getEntries().map((entry) => entry.name),
        Object.keys(window).map((name) => {
            try { return String(window[name]); } catch { return ""; }
        }),
    ]);
}"""


class Watch:
    """Notes everything that a page says or asks for, except for the headers of `POST /session`."""

    def __init__(self, page: Page) -> None:
        self._page = page
        self.said: list[str] = []
        #: The method and the path of each request with an `Authorization`.
        self.authorized: list[str] = []
        page.on("console", lambda message: self.said.append(message.text))
        page.on("pageerror", lambda error: self.said.append(repr(error)))
        page.on("framenavigated", lambda frame: self.said.append(frame.url))
        page.on("request", self._note)

    def _note(self, request: Request) -> None:
        self.said += (request.url, request.post_data or "")
        if "authorization" in request.headers:
            self.authorized.append(f"{request.method} /{request.url.split('/', 3)[3]}")

    async def everything(self) -> str:
        """Return all that was noted, and all that the page has now."""
        return "\n".join((*self.said, await self._page.evaluate(EVERYTHING)))


async def heap(page: Page) -> str:
    """Return all strings that the page's scripts still hold, after a garbage collection."""
    parts: list[str] = []
    session = await page.context.new_cdp_session(page)
    session.on("HeapProfiler.addHeapSnapshotChunk", lambda event: parts.append(event["chunk"]))
    await session.send("HeapProfiler.collectGarbage")
    await session.send("HeapProfiler.takeHeapSnapshot")
    await session.detach()
    return "".join(parts)


async def use_inbox(page: Page, token: str) -> None:
    """Sign in, work, fail, and sign out."""
    await sign_in(page, token, "canary")
    await send(page, "bob", "a message")
    await page.get_by_label("Name", exact=True).fill("nobody")
    await button(page, "Open").click()
    await button(page, "Read").click()
    await expect(page.locator("#inboxes [data-note]").first).to_contain_text(
        "may not read the inbox of nobody"
    )
    await page.reload()
    await expect(panel(page)).to_contain_text("Signed in as canary")


async def use_dashboard(page: Page, token: str) -> None:
    """Sign in and see it."""
    await sign_in(page, token, "canary")
    await expect(page.get_by_role("status")).to_contain_text("Everything works")


async def use_reference(page: Page, token: str) -> None:
    """Try a request with the token, then forget it."""
    await page.get_by_label("Token").fill(token)
    await button(page, "Use").click()
    await expect(panel(page)).to_contain_text("with the token that you entered")
    card = page.locator("#count-unread")
    await card.get_by_text("Try it").click()
    await card.get_by_role("textbox", name="username").fill("bob")
    await card.get_by_role("button", name="Send").click()
    await expect(card.locator(".result .status")).to_have_text("200")
    await button(page, "Forget the token").click()
    await expect(page.get_by_label("Token")).to_be_focused()


@pytest.mark.parametrize(
    ("path", "use", "authorized"),
    [
        ("/", use_inbox, ["POST /session"]),
        ("/ops", use_dashboard, ["POST /session"]),
        ("/docs", use_reference, ["GET /session", "HEAD /chat/bob"]),
    ],
)
async def test_a_token_is_nowhere_once_it_was_used(
    guarded: ChatClient,
    tokens: Tokens,
    browser: OpenBrowser,
    path: str,
    use: Callable[[Page, str], Awaitable[None]],
    authorized: list[str],
) -> None:
    token = tokens.add("canary", send=["*"], read=["bob"], ops=True)
    async with browser() as page:
        watch = Watch(page)
        await page.goto(guarded.base + path)
        await use(page, token)
        secret = token.removeprefix("cht_")
        assert secret not in await watch.everything()
        assert secret not in await heap(page)
        # Their contents were not searched.
        assert await page.evaluate("indexedDB.databases()") == []
        assert await page.evaluate("caches.keys()") == []
        assert watch.authorized == authorized


@pytest.mark.parametrize("path", ["/", "/ops", "/docs"])
async def test_a_refused_token_is_nowhere_either(
    guarded: ChatClient, browser: OpenBrowser, path: str
) -> None:
    async with browser() as page:
        watch = Watch(page)
        await page.goto(guarded.base + path)
        await page.get_by_label("Token").fill("cht_canary")
        await panel(page).locator("form button").click()
        await expect(page.locator("#token-fault")).to_be_visible()
        assert "canary" not in await watch.everything()
        assert "canary" not in await heap(page)


async def test_the_search_for_secrets_finds_one(guarded: ChatClient, browser: OpenBrowser) -> None:
    async with browser() as page:
        watch = Watch(page)
        await page.goto(guarded.base)
        assert "canary" not in await watch.everything()
        places = {
            "a field": "document.querySelector('#token').value = 'canary'",
            "an attribute": "document.body.setAttribute('data-x', 'canary')",
            "a storage": "localStorage.setItem('x', 'canary')",
            "the history": "history.pushState(null, '', '#canary')",
            "the console": "console.log('canary')",
            "an address": "fetch('/livez?canary')",
            "a variable": "window.kept = 'canary'",
        }
        for place, script in places.items():
            await page.goto(guarded.base)
            await page.evaluate("localStorage.clear()")
            watch.said.clear()
            await page.evaluate(f"() => {{ {script} }}")
            assert "canary" in await watch.everything(), place
            assert ("canary" in await heap(page)) or place != "a variable"


async def test_scripts_cannot_read_the_cookie(
    guarded: ChatClient, tokens: Tokens, browser: OpenBrowser
) -> None:
    token = tokens.add("canary", send=["*"])
    async with browser() as page:
        await page.goto(guarded.base)
        await sign_in(page, token, "canary")
        (cookie,) = await page.context.cookies()
        assert cookie.get("httpOnly")
        assert cookie.get("sameSite") == "Strict"
        assert cookie.get("path") == "/"
        assert json.loads(await page.evaluate("JSON.stringify(document.cookie)")) == ""
