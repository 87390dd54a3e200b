"""The API reference at `/docs` in a browser."""

import gzip
import json
import re
from pathlib import Path

import pytest
from playwright.async_api import Locator, Page, expect

from tests.pages.access import Tokens, panel, sign_in
from tests.pages.conftest import CheckAccess, OpenBrowser
from tests.pages.inbox import button
from tests.support.client import ChatClient

PHONE = {"viewport": {"width": 360, "height": 740}}


async def open_docs(page: Page, chat: ChatClient, operation: str = "") -> Locator:
    """Open the reference and the form of an operation; return the card of the operation."""
    await page.goto(f"{chat.base}/docs#{operation}")
    await page.wait_for_selector("main:not([aria-busy])")
    card = page.locator(f"#{operation or 'main'}")
    if operation:
        await card.get_by_text("Try it").click()
    return card


async def test_every_operation_is_shown_with_all_its_answers(
    chat: ChatClient, browser: OpenBrowser
) -> None:
    document = json.loads((await chat.request("GET", "/openapi.json")).body)
    async with browser() as page:
        await open_docs(page, chat)
        listed = await page.locator("#links a").all_inner_texts()
        count = 0
        for path, methods in document["paths"].items():
            for method, said in methods.items():
                count += 1
                card = page.locator(f"article#{said['operationId']}")
                title = (await card.locator("h3").inner_text()).split()
                assert title == [method.upper(), path, "#"]
                statuses = await card.locator(".answers summary .status").all_inner_texts()
                assert statuses == list(said["responses"])
                warning = card.get_by_text("Consumes.", exact=True)
                assert await warning.count() == said.get("x-consumes", False)
        assert (await page.locator("article").count(), len(listed)) == (count, count)


async def test_a_read_asks_first_and_reads_nothing_if_declined(
    chat: ChatClient, browser: OpenBrowser
) -> None:
    await chat.post("anna", "only once")
    async with browser() as page:
        card = await open_docs(page, chat, "read-inbox")
        await card.get_by_role("textbox", name="username").fill("anna")
        send = card.get_by_role("button", name="Send, and mark the messages as read")
        await send.click()
        dialog = page.get_by_role("dialog")
        assert "anna" in await dialog.inner_text()
        await page.keyboard.press("Escape")
        await dialog.wait_for(state="hidden")
        await send.click()
        await dialog.get_by_role("button", name="Cancel").click()
        count = await chat.request("HEAD", "/chat/anna")
        assert count.headers["X-Unread-Count"] == "1"

        await send.click()
        await dialog.get_by_role("button", name="Send, and mark the messages as read").click()
        await card.get_by_text("only once").wait_for()
        assert await chat.texts("anna") == []
        # The page asks again only for another inbox.
        await send.click()
        await card.locator(".result pre", has_text="[]").wait_for()
        await card.get_by_role("textbox", name="username").fill("bob")
        await send.click()
        assert "bob" in await dialog.inner_text()


async def test_a_harmless_request_is_sent_at_once(chat: ChatClient, browser: OpenBrowser) -> None:
    async with browser() as page:
        card = await open_docs(page, chat, "livez")
        await card.get_by_role("button", name="Send", exact=True).click()
        await card.locator(".result .status", has_text="200").wait_for()
        assert "x-request-id: " in await card.locator(".result").inner_text()

        card = await open_docs(page, chat, "message-status")
        await card.get_by_label("X-Receipt").fill("junk")
        await card.get_by_role("button", name="Send", exact=True).click()
        await card.locator(".result .status", has_text="404").wait_for()
        assert "urn:chat:problem:not-found" in await card.locator(".result").inner_text()


async def test_a_request_without_a_required_field_is_not_sent(
    chat: ChatClient, browser: OpenBrowser
) -> None:
    async with browser() as page:
        card = await open_docs(page, chat, "read-inbox")
        name = card.get_by_role("textbox", name="username")
        await name.fill("")
        await card.get_by_role("button", name="Send, and").click()
        await expect(name).to_be_focused()
        await expect(name).to_have_accessible_description(re.compile("This field is required"))
        await expect(page.get_by_role("dialog")).to_be_hidden()


async def test_a_post_asks_with_the_inbox_of_its_body(
    chat: ChatClient, browser: OpenBrowser
) -> None:
    async with browser() as page:
        card = await open_docs(page, chat, "post-message")
        body = '{"text": "it\'s <b>bold</b>", "username": "zoe"}'
        await card.get_by_role("textbox", name="Body").fill(body)
        await card.get_by_label("Prefer").fill("receipt")
        sample = card.get_by_label("the sample for POST /chat", exact=True)
        assert "'it'\\''s <b>" not in await sample.inner_text()
        assert "it'\\''s <b>bold</b>" in await sample.inner_text()
        assert "-H 'Prefer: receipt'" in await sample.inner_text()
        await card.get_by_role("button", name="Send, and store the message").click()
        dialog = page.get_by_role("dialog")
        assert "zoe" in await dialog.inner_text()
        await dialog.get_by_role("button", name="Send, and store the message").click()
        await card.locator(".result .status", has_text="201").wait_for()
        assert "x-receipt: " in await card.locator(".result").inner_text()
        assert await chat.texts("zoe") == ["it's <b>bold</b>"]


async def test_a_stream_is_shown_live_and_can_be_stopped(
    chat: ChatClient, browser: OpenBrowser
) -> None:
    async with browser() as page:
        card = await open_docs(page, chat, "stream-inbox")
        await card.get_by_role("button", name="Send").click()
        await page.get_by_role("dialog").get_by_role("button", name="Send").click()
        await card.locator(".result pre", has_text="event: open").wait_for()
        await chat.post("bob", "while it is open")
        await card.locator(".result pre", has_text="while it is open").wait_for()
        await card.get_by_role("button", name="Stop").click()
        await card.get_by_text("Stopped after").wait_for()


async def test_an_operation_can_be_tried_without_a_mouse(
    chat: ChatClient, browser: OpenBrowser
) -> None:
    async with browser() as page:
        await open_docs(page, chat)
        await page.get_by_label("Find an operation").focus()
        await page.keyboard.type("readyz get")
        await page.get_by_text("1 found").or_(page.get_by_text("2 found")).wait_for()
        await page.keyboard.press("Enter")
        card = page.locator("#readyz")
        await page.wait_for_selector("#readyz h3:focus", state="attached")
        for _ in range(30):
            if await card.locator(".try > summary:focus").count():
                break
            await page.keyboard.press("Tab")
        await page.keyboard.press("Enter")
        await page.keyboard.press("Tab")
        await page.keyboard.press("Enter")
        await card.locator(".result .status", has_text="200").wait_for()


async def test_a_link_opens_an_operation(chat: ChatClient, browser: OpenBrowser) -> None:
    async with browser() as page:
        await page.goto(f"{chat.base}/docs#extend-lease")
        await page.wait_for_selector("#extend-lease:focus-within")
        top = await page.evaluate(
            "document.querySelector('#extend-lease').getBoundingClientRect().top"
        )
        assert 0 <= top < 200
        current = page.locator("#links a[aria-current]")
        assert await current.inner_text() == "POST\n/chat/{username}/extend"


async def test_nothing_is_wider_than_a_phone(
    chat: ChatClient, browser: OpenBrowser, check_access: CheckAccess
) -> None:
    async with browser(**PHONE) as page:
        await open_docs(page, chat)
        await page.evaluate("document.querySelectorAll('details').forEach((d) => (d.open = true))")
        assert await page.evaluate("document.documentElement.scrollWidth") == 360
        await check_access(page)


async def test_each_operation_names_the_right_it_needs(
    guarded: ChatClient, browser: OpenBrowser
) -> None:
    async with browser() as page:
        for operation, words in {
            "post-message": "Needs the right send for the username.",
            "read-inbox": "Needs the right read for the username.",
            "metrics": "Needs the right ops.",
            "message-status": "Needs a token with any right",
        }.items():
            card = await open_docs(page, guarded, operation)
            await expect(card).to_contain_text(words)
            statuses = await card.locator(".answers summary .status").all_inner_texts()
            assert {"401", "429"} <= {*statuses}
            sample = card.get_by_role("group", name="the sample for").locator("code")
            await expect(sample).to_contain_text('-H "Authorization: Bearer $CHAT_TOKEN"')
        card = await open_docs(page, guarded, "livez")
        await expect(card).not_to_contain_text("Needs")
        await expect(card).not_to_contain_text("Bearer")


async def test_requests_are_tried_with_a_token_until_it_is_forgotten(
    guarded: ChatClient, tokens: Tokens, browser: OpenBrowser
) -> None:
    token = tokens.add("worker", read=["jobs-*"])
    async with browser() as page:
        card = await open_docs(page, guarded, "count-unread")
        name = card.get_by_role("textbox", name="username")
        send = card.get_by_role("button", name="Send")
        status = card.locator(".result .status")
        await name.fill("jobs-1")
        await send.click()
        await expect(status).to_have_text("401")
        await page.get_by_label("Token").fill("cht_wrong")
        await button(page, "Use").click()
        await expect(page.locator("#token-fault")).to_contain_text("does not accept this token")
        await page.get_by_label("Token").fill(token)
        await button(page, "Use").click()
        await expect(button(page, "Forget the token")).to_be_focused()
        await expect(panel(page)).to_contain_text("those of worker, with the token")
        await send.click()
        await expect(status).to_have_text("200")
        await name.fill("bob")
        await send.click()
        await expect(status).to_have_text("403")
        await button(page, "Forget the token").click()
        await expect(panel(page)).to_contain_text("have no token")
        await send.click()
        await expect(status).to_have_text("401")
        assert not await page.context.cookies()


async def test_a_token_is_forgotten_when_the_page_is_left(
    guarded: ChatClient, tokens: Tokens, browser: OpenBrowser
) -> None:
    token = tokens.add("worker", read=["jobs-*"])
    async with browser() as page:
        await open_docs(page, guarded)
        await page.get_by_label("Token").fill(token)
        await button(page, "Use").click()
        await expect(panel(page)).to_contain_text("those of worker")
        await page.goto(guarded.base)
        await page.go_back()
        await expect(panel(page)).to_contain_text("have no token")
        await expect(page.get_by_label("Token")).to_have_value("")


async def test_requests_are_tried_as_who_is_signed_in(
    guarded: ChatClient, tokens: Tokens, browser: OpenBrowser
) -> None:
    token = tokens.add("worker", read=["jobs-*"])
    async with browser() as page:
        await page.goto(guarded.base)
        await sign_in(page, token, "worker")
        card = await open_docs(page, guarded, "count-unread")
        await expect(panel(page)).to_contain_text("those of worker, who is signed in here.")
        await card.get_by_role("textbox", name="username").fill("jobs-1")
        await card.get_by_role("button", name="Send").click()
        await expect(card.locator(".result .status")).to_have_text("200")


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_it_is_accessible(
    chat: ChatClient, browser: OpenBrowser, check_access: CheckAccess, scheme: str
) -> None:
    async with browser(color_scheme=scheme) as page:
        card = await open_docs(page, chat, "read-inbox")
        await page.evaluate("document.querySelectorAll('details').forEach((d) => (d.open = true))")
        await check_access(page)
        await card.get_by_role("button", name="Send").click()
        await page.get_by_role("dialog").wait_for()
        await check_access(page)


def test_it_is_small(request: pytest.FixtureRequest) -> None:
    web = Path(request.config.rootpath) / "chat_service/web"
    shared = ("base.css", "element.js", "session.js", "sign-in.js")
    files = [*web.glob("docs*"), *(web / name for name in shared)]
    assert sum(len(gzip.compress(path.read_bytes())) for path in files) < 40 * 1024


async def test_the_reference_loads_when_the_service_is_back(
    chat: ChatClient, browser: OpenBrowser
) -> None:
    async with browser() as page:
        await page.route("**/openapi.json", lambda route: route.abort())
        await page.goto(f"{chat.base}/docs")
        notice = page.get_by_role("alert")
        await expect(notice).to_contain_text("could not be loaded")
        await page.unroute("**/openapi.json")
        await expect(notice).to_have_count(0)
        card = page.locator("#count-unread")
        await card.get_by_text("Try it").click()
        name = card.locator("input").first
        await name.fill("")
        await card.get_by_role("button", name="Send").click()
        await expect(card.locator(".fault").first).to_be_visible()
        await name.fill("bob")
        await expect(card.locator(".fault").first).to_be_hidden()
