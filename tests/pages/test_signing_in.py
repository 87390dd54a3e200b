"""The web UI with access control: signing in and out, and what it says without a right."""

import json
import re
import time
from datetime import UTC, datetime

import pytest
from playwright.async_api import Route, expect

from tests.conftest import Connect, StartService
from tests.pages.access import Tokens, panel, sign_in
from tests.pages.conftest import CheckAccess, OpenBrowser, both_browsers
from tests.pages.inbox import (
    PHONE,
    button,
    check_countdown,
    open_inbox,
    read_here,
    send,
    watch_countdown,
    width,
)
from tests.support.client import ChatClient
from tests.support.waiting import eventually


async def unread(chat: ChatClient, username: str, token: str) -> list[str]:
    """Read an inbox with a token and return the texts."""
    bearer = f"Bearer {token}"
    answer = await chat.request("GET", f"/chat/{username}", Authorization=bearer)
    assert answer.code == 200, (answer.code, answer.body)
    return [message["text"] for message in json.loads(answer.body)]


async def refused(chat: ChatClient, token: str) -> None:
    """Wait until the service refuses a token."""

    async def is_refused() -> bool:
        bearer = f"Bearer {token}"
        return (await chat.request("HEAD", "/chat/x", Authorization=bearer)).code == 401

    await eventually(is_refused)


async def test_nothing_about_access_appears_while_it_is_off(
    chat: ChatClient, browser: OpenBrowser
) -> None:
    async with browser() as page:
        async with page.expect_response("**/session") as asked:
            await open_inbox(page, chat.base, "bob", 0)
        assert (await (await asked.value).json())["access"] == "off"
        await send(page, "bob", "hello")
        await expect(panel(page)).to_be_hidden()
        await expect(page.locator("#curl")).not_to_contain_text("Authorization")


@pytest.mark.parametrize(("read", "asks"), [(["bob"], False), (["bob", "dead/*"], True)])
async def test_a_page_counts_dead_letters_only_with_the_right(
    start_service: StartService,
    connect: Connect,
    tokens: Tokens,
    browser: OpenBrowser,
    read: list[str],
    asks: bool,
) -> None:
    access = {"access": "tokens", "access_file": str(tokens.path)}
    chat = connect(await start_service(max_deliveries=3, **access))
    token = tokens.add("phone", read=read)
    asked: list[str] = []
    async with browser() as page:
        page.on("request", lambda request: asked.append(request.url))
        await page.goto(f"{chat.base}/#inbox=bob")
        await sign_in(page, token, "phone")
        await expect(page.locator("[data-words]")).to_contain_text("unread in bob")
        await button(page, "Read").click()
        await expect(page.locator("[data-count]")).to_have_text("0")
        # A refused count would be a line of the audit log, which tells operators of readers.
        assert any("/chat/dead%2Fbob" in url for url in asked) is asks


async def test_a_public_drop_box_takes_messages_without_a_token(
    guarded: ChatClient, tokens: Tokens, browser: OpenBrowser
) -> None:
    tokens.allow_anonymous(send=["*"])
    token = tokens.add("owner", read=["box"])
    async with browser() as page:
        await page.goto(guarded.base)
        await expect(panel(page)).to_contain_text("Without a token you may send to any name.")
        await send(page, "box", "for the owner")
        await expect(page.locator("#sent .state")).to_have_text("pending")
        await page.get_by_label("Name", exact=True).fill("box")
        await button(page, "Open").click()
        await expect(page.locator("[data-words]")).to_have_text("Sign in to read the inbox of box.")
        await button(page, "Read").click()
        await expect(page.get_by_label("Token")).to_be_focused()
        await expect(panel(page).get_by_role("alert")).to_have_text(
            "Sign in to read the inbox of box."
        )
        await sign_in(page, token, "owner")
        await expect(page.locator("[data-count]")).to_have_text("1")
        await button(page, "Read").click()
        await expect(read_here(page)).to_have_text(["for the owner"])


async def test_the_page_says_who_it_is_and_what_they_may_do(
    guarded: ChatClient, tokens: Tokens, browser: OpenBrowser
) -> None:
    until = datetime.fromtimestamp(time.time() + 300, UTC).isoformat(timespec="seconds")
    token = tokens.add("worker", send=["*"], read=["jobs-*", "{sub}"], ops=True, until=until)
    async with browser() as page:
        await page.goto(guarded.base)
        await expect(panel(page)).to_contain_text("Sending and reading need a token.")
        await sign_in(page, token, "worker")
        rights = panel(page).get_by_role("listitem")
        await expect(rights).to_have_text(
            [
                "You may send to any name.",
                "You may read the inbox of “worker” and any name that begins with “jobs-”.",
                "You may use the dashboard and the metrics.",
            ]
        )
        await expect(panel(page)).to_contain_text(re.compile(r"until \d\d:\d\d, 4 min left"))
        await page.reload()
        await expect(rights).to_have_count(3)
        await button(page, "Sign out").click()
        await expect(page.get_by_label("Token")).to_be_focused()
        await expect(panel(page).get_by_role("alert")).to_be_hidden()
        await page.reload()
        await expect(panel(page).get_by_role("heading")).to_have_text("Sign in")
        cookies = await page.context.cookies()
        assert not [each for each in cookies if each.get("value")]


@both_browsers
async def test_a_session_ends_with_the_browser_unless_it_is_kept(
    guarded: ChatClient, tokens: Tokens, browser: OpenBrowser
) -> None:
    token = tokens.add("phone", read=["ops"])
    async with browser() as page:
        await page.goto(guarded.base)
        await sign_in(page, token, "phone")
        await expect(panel(page)).to_contain_text("until you sign out or close the browser")
        # Playwright says -1 for a cookie that the browser forgets when it ends.
        (cookie,) = await page.context.cookies()
        assert cookie.get("expires") == -1
        await button(page, "Sign out").click()
        keep = page.get_by_label("Stay signed in on this device")
        await expect(keep).not_to_be_checked()
        await sign_in(page, token, "phone", keep=True)
        (cookie,) = await page.context.cookies()
        end = cookie.get("expires", 0)
        assert 29.9 < (end - time.time()) / 86_400 <= 30.1
        # What the page says is the same after a reload, which has only the cookie.
        year = datetime.fromtimestamp(end, UTC).strftime("%Y")
        await page.reload()
        said = panel(page).get_by_text(re.compile(rf"^until .*{year}"))
        await expect(said).not_to_contain_text("close the browser")
        await button(page, "Sign out").click()
        await expect(panel(page).get_by_role("heading")).to_have_text("Sign in")
        await expect(keep).not_to_be_checked()
        assert not await page.context.cookies()


async def test_a_wrong_token_is_refused_and_not_kept(
    guarded: ChatClient, browser: OpenBrowser
) -> None:
    async with browser() as page:
        await page.goto(guarded.base)
        field = page.get_by_label("Token")
        await button(page, "Sign in").click()
        await expect(field).to_have_accessible_description(re.compile("Enter a token."))
        await field.fill("two words")
        await button(page, "Sign in").click()
        await expect(field).to_have_accessible_description(re.compile("not a token"))
        await field.fill("cht_unknown")
        await button(page, "Sign in").click()
        await expect(field).to_have_accessible_description(re.compile("does not accept this token"))
        await expect(field).to_have_value("")
        await expect(field).to_be_focused()
        await expect(field).to_have_attribute("aria-invalid", "true")


async def test_unsent_text_survives_a_revoked_token(
    guarded: ChatClient, tokens: Tokens, browser: OpenBrowser
) -> None:
    first = tokens.add("first", send=["*"])
    async with browser() as page:
        await page.goto(guarded.base)
        await sign_in(page, first, "first")
        await page.get_by_label("To", exact=True).fill("bob")
        await page.get_by_label("Message", exact=True).fill("written long ago")
        tokens.remove("first")
        second = tokens.add("second", send=["*"], read=["bob"])
        await refused(guarded, first)
        await button(page, "Send").click()
        await expect(page.locator("#send-note")).to_have_text(
            "Not sent. Sign in to send to bob. Your text is still here."
        )
        await expect(panel(page).get_by_role("alert")).to_contain_text("Your session has ended")
        await expect(page.get_by_label("Message", exact=True)).to_have_value("written long ago")
        await sign_in(page, second, "second")
        await button(page, "Send").click()
        await expect(page.locator("#sent > li")).to_have_count(1)
    assert await unread(guarded, "bob", second) == ["written long ago"]


async def test_an_ended_session_still_sends_as_anyone_may(
    guarded: ChatClient, tokens: Tokens, browser: OpenBrowser
) -> None:
    tokens.allow_anonymous(send=["*"])
    token = tokens.add("worker", send=["*"])
    async with browser() as page:
        await page.goto(guarded.base)
        await sign_in(page, token, "worker")
        await page.get_by_label("To", exact=True).fill("bob")
        await page.get_by_label("Message", exact=True).fill("urgent")
        tokens.remove("worker")
        await refused(guarded, token)
        await button(page, "Send").click()
        await expect(page.locator("#send-note")).to_contain_text("Try again without it")
        await button(page, "Send").click()
        await expect(page.locator("#sent > li")).to_have_count(1)


async def test_a_stream_of_a_revoked_token_stops_and_says_so(
    guarded: ChatClient, tokens: Tokens, browser: OpenBrowser
) -> None:
    token = tokens.add("reader", send=["*"], read=["bob"])
    async with browser() as page:
        await page.goto(f"{guarded.base}/#inbox=bob")
        await sign_in(page, token, "reader")
        await page.get_by_label("Message", exact=True).fill("half a sente")
        await button(page, "Watch live").click()
        await expect(page.locator("[data-live]")).to_have_text("live")
        tokens.remove("reader")
        note = page.locator("#inboxes [data-note]").first
        await expect(note).to_have_text("Stopped watching. Sign in to read the inbox of bob.")
        await expect(button(page, "Watch live")).to_be_visible()
        await expect(panel(page).get_by_role("alert")).to_contain_text("Your session has ended")
        await expect(page.get_by_label("Message", exact=True)).to_have_value("half a sente")


async def test_a_session_that_expires_says_so(
    guarded: ChatClient, tokens: Tokens, browser: OpenBrowser
) -> None:
    until = datetime.fromtimestamp(time.time() + 15, UTC).isoformat(timespec="seconds")
    token = tokens.add("brief", send=["*"], until=until)
    async with browser() as page:
        await page.goto(guarded.base)
        await sign_in(page, token, "brief")
        await expect(panel(page)).to_contain_text("less than a minute left")
        await page.get_by_label("Message", exact=True).fill("unsent")
        alert = panel(page).get_by_role("alert")
        await expect(alert).to_contain_text("Your session has expired", timeout=60_000)
        await expect(page.get_by_label("Message", exact=True)).to_have_value("unsent")


async def test_a_missing_right_names_who_may_not_do_what(
    guarded: ChatClient, tokens: Tokens, browser: OpenBrowser
) -> None:
    token = tokens.add("worker", send=["jobs-*"], read=["worker"])
    async with browser() as page:
        await page.goto(f"{guarded.base}/#inbox=bob")
        await sign_in(page, token, "worker")
        await expect(page.locator("[data-words]")).to_have_text(
            "You are signed in as worker, who may not read the inbox of bob."
        )
        await button(page, "Watch live").click()
        note = page.locator("#inboxes [data-note]").first
        await expect(note).to_contain_text("worker, who may not read the inbox of bob.")
        await page.get_by_label("To", exact=True).fill("bob")
        await page.get_by_label("Message", exact=True).fill("hello")
        await button(page, "Send").click()
        await expect(page.locator("#send-note")).to_have_text(
            "You are signed in as worker, who may not send to bob."
        )
        await expect(page.get_by_label("Message", exact=True)).to_have_value("hello")


async def test_too_many_wrong_tokens_count_down(guarded: ChatClient, browser: OpenBrowser) -> None:
    async def refuse(route: Route) -> None:
        await route.fulfill(status=429, headers={"Retry-After": "3"})

    async with browser() as page:
        await page.goto(guarded.base)
        await expect(panel(page)).to_be_visible()
        await page.route("**/session", refuse)
        field = page.get_by_label("Token")
        await field.fill("cht_perhaps")
        await watch_countdown(page, "body")
        await button(page, "Sign in").click()
        await expect(field).to_have_accessible_description(re.compile("try again in [1-3] s"))
        await expect(button(page, "Sign in")).to_have_attribute("aria-disabled", "true")
        await expect(button(page, "Sign in")).not_to_have_attribute("aria-disabled", "true")
        await check_countdown(page, 3)
        # It was not judged, so it can be tried again.
        await expect(field).to_have_value("cht_perhaps")


async def test_guessing_tokens_is_slowed_down(
    tokens: Tokens, start_service: StartService, connect: Connect, browser: OpenBrowser
) -> None:
    token = tokens.add("worker", send=["*"])
    access = {"access": "tokens", "access_file": str(tokens.path)}
    chat = connect(await start_service(client_requests_per_s=4, client_burst=8, **access))
    async with browser() as page:
        await page.goto(chat.base)
        field = page.get_by_label("Token")
        await field.fill("cht_first_guess")
        await button(page, "Sign in").click()
        await expect(field).to_have_accessible_description(re.compile("does not accept"))
        await field.fill("cht_second_guess")
        await button(page, "Sign in").click()
        await expect(field).to_have_accessible_description(re.compile(r"try again in \d s"))
        await expect(button(page, "Sign in")).not_to_have_attribute("aria-disabled", "true")
        await sign_in(page, token, "worker")


async def test_signing_in_works_with_the_keyboard(
    guarded: ChatClient, tokens: Tokens, browser: OpenBrowser
) -> None:
    token = tokens.add("typist", send=["*"])
    async with browser() as page:
        await page.goto(guarded.base)
        await expect(panel(page)).to_be_visible()
        pages = page.get_by_role("navigation", name="Pages")
        await pages.get_by_role("link").last.focus()
        await page.keyboard.press("Tab")
        await expect(page.get_by_label("Token")).to_be_focused()
        await page.keyboard.type(token)
        await page.keyboard.press("Enter")
        await expect(panel(page).get_by_role("heading")).to_have_text("Signed in as typist")
        await page.keyboard.press("Tab")
        await expect(button(page, "Sign out")).to_be_focused()


@both_browsers
async def test_a_session_takes_one_line_on_a_phone(
    guarded: ChatClient, tokens: Tokens, browser: OpenBrowser, check_access: CheckAccess
) -> None:
    token = tokens.add("phone", send=["*"], read=["ops"])
    async with browser(**PHONE) as page:
        await page.goto(guarded.base)
        await sign_in(page, token, "phone")
        box = await panel(page).bounding_box()
        assert box is not None
        assert box["height"] <= 60
        rights = panel(page).get_by_text("You may read the inbox of “ops”.", exact=True)
        lasting = panel(page).get_by_text("until you sign out or close the browser", exact=True)
        await expect(rights).to_be_hidden()
        await expect(lasting).to_be_hidden()
        await expect(button(page, "Sign out")).to_be_in_viewport(ratio=1)
        await panel(page).get_by_text("Signed in as phone").click()
        await expect(rights).to_be_visible()
        await expect(lasting).to_be_visible()
        await check_access(page)
        # The scrollbar of Firefox takes a part of it.
        assert await width(page) <= 360


async def test_a_session_that_ends_soon_says_so_in_its_line(
    guarded: ChatClient, tokens: Tokens, browser: OpenBrowser
) -> None:
    until = datetime.fromtimestamp(time.time() + 300, UTC).isoformat(timespec="seconds")
    token = tokens.add("phone", send=["*"], until=until)
    async with browser(**PHONE) as page:
        await page.goto(guarded.base)
        await sign_in(page, token, "phone")
        await expect(panel(page).get_by_text("4 min left")).to_be_visible()
        rights = panel(page).get_by_text("You may send to any name.", exact=True)
        await expect(rights).to_be_hidden()


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_the_form_and_the_session_are_accessible(
    guarded: ChatClient,
    tokens: Tokens,
    browser: OpenBrowser,
    check_access: CheckAccess,
    scheme: str,
) -> None:
    token = tokens.add("W" * 128, send=["W" * 500, "x"], read=["W" * 500])
    async with browser(**PHONE, color_scheme=scheme, reduced_motion="reduce") as page:
        for path in ("/", "/ops", "/docs"):
            await page.goto(guarded.base + path)
            await expect(panel(page)).to_be_visible()
            await page.get_by_label("Token").fill("cht_unknown")
            await panel(page).get_by_role("button").last.click()
            await expect(page.locator("#token-fault")).to_be_visible()
            await check_access(page)
            assert await width(page) == 360
        await page.goto(guarded.base)
        await sign_in(page, token, "W" * 128)
        for path in ("/", "/ops", "/docs"):
            await page.goto(guarded.base + path)
            await expect(panel(page)).to_contain_text("WWW")
            await check_access(page)
            assert await width(page) == 360, path
