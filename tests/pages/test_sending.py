"""Sending in the web UI: messages are stored once, and each field shows its errors."""

import asyncio
import re

from playwright.async_api import Route, expect

from chat_service.api.problems import of_service_error
from tests.pages.conftest import OpenBrowser, both_browsers
from tests.pages.inbox import button, lose, send
from tests.support.client import ChatClient
from workers.errors import StoreUnavailable


async def test_a_post_with_a_lost_answer_is_repeated_and_stored_once(
    chat: ChatClient, browser: OpenBrowser
) -> None:
    async with browser() as page:
        await page.goto(chat.base)
        await page.route("**/chat", lose, times=1)
        await send(page, "bob", "once")
        await expect(page.locator("#sent > li")).to_have_count(1)
    assert await chat.texts("bob") == ["once"]


async def test_a_message_sent_again_after_stopping_is_stored_once(
    chat: ChatClient, browser: OpenBrowser
) -> None:
    async with browser() as page:
        await page.goto(chat.base)
        await page.route("**/chat", lose)
        await page.get_by_label("To", exact=True).fill("bob")
        await page.get_by_label("Message", exact=True).fill("once")
        await button(page, "Send").click()
        await button(page, "Stop trying").click()
        await expect(page.locator("#send-note")).to_contain_text("Stopped.")
        await page.unroute("**/chat")
        await button(page, "Send").click()
        await expect(page.locator("#sent > li")).to_have_count(1)
    assert await chat.texts("bob") == ["once"]


async def test_the_page_retries_while_the_service_is_unavailable(
    chat: ChatClient, browser: OpenBrowser
) -> None:
    problem = of_service_error(StoreUnavailable("unavailable"), "stored")

    async def refuse(route: Route) -> None:
        await route.fulfill(
            status=problem.status,
            headers={"Content-Type": "application/problem+json", "Retry-After": "3"},
            body=problem.body("abc-1"),
        )

    async with browser() as page:
        await page.goto(chat.base)
        await page.route("**/chat", refuse, times=1)
        await page.get_by_label("To", exact=True).fill("bob")
        await page.get_by_label("Message", exact=True).fill("patience")
        await button(page, "Send").click()
        said = page.locator("#send-note")
        await expect(said).to_contain_text(
            re.compile(r"nothing was stored\. \(Request abc-1\) Retrying in [1-3] s")
        )
        await expect(page.locator("#sent > li")).to_have_count(1)
        await expect(said).to_be_hidden()
    assert await chat.texts("bob") == ["patience"]


async def test_the_page_says_that_a_key_was_used_before(
    chat: ChatClient, browser: OpenBrowser
) -> None:
    async with browser() as page:
        await page.goto(chat.base)
        await page.get_by_text("Advanced").click()
        await button(page, "Generate").click()
        await expect(page.get_by_label("Idempotency key")).to_have_value(
            re.compile("^[0-9a-f]{32}$")
        )
        await send(page, "bob", "pay 10")
        await page.get_by_label("Message", exact=True).fill("pay 10")
        await button(page, "Send").click()
        await expect(page.get_by_text("Already stored").first).to_be_visible()
        await expect(page.locator("#sent > li")).to_have_count(1)
        await page.get_by_label("Message", exact=True).fill("pay 1000")
        await button(page, "Send").click()
        fault = page.locator("#key-fault")
        await expect(fault).to_contain_text("with another text, timeout or delay")
        await expect(page.get_by_label("Idempotency key")).to_be_focused()
    assert await chat.texts("bob") == ["pay 10"]


async def test_each_field_shows_the_service_error(chat: ChatClient, browser: OpenBrowser) -> None:
    async with browser() as page:
        await page.goto(chat.base)
        to = page.get_by_label("To", exact=True)
        await page.get_by_label("Message", exact=True).fill("hi")
        await page.get_by_label("Other", exact=True).check()
        await page.get_by_label("Seconds").fill("soon")
        await button(page, "Send").click()
        await expect(to).to_be_focused()
        await expect(to).to_have_accessible_description(
            "Any name. You do not have to create its inbox. Must have 1 to 128 characters."
        )
        await expect(to).to_have_attribute("aria-invalid", "true")
        await expect(page.locator("#timeout-fault")).to_have_text(
            "Must be an integer from 1 to 2592000."
        )
        await to.fill("bob")
        await page.get_by_label("Seconds").fill("90")
        await page.get_by_label("Message", exact=True).fill("ü" * 32_769)
        await expect(page.locator("#text-hint")).to_have_text("65,538 of 65,536 bytes: too long")
        await button(page, "Send").click()
        await expect(page.locator("#text-fault")).to_have_text("May have at most 65536 bytes.")
        await expect(page.locator("#timeout-fault")).to_be_hidden()
        await send(page, "bob", "fits")
        await expect(page.locator("#sent [data-left]")).to_contain_text("1 min")
        await page.get_by_label("Name", exact=True).fill("x" * 129)
        await button(page, "Open").click()
        await expect(page.locator("#whose-fault")).to_contain_text("1 to 128 characters")


@both_browsers
async def test_an_error_of_a_field_disappears_when_it_fits(
    chat: ChatClient, browser: OpenBrowser
) -> None:
    async with browser() as page:
        await page.goto(chat.base)
        to, text = page.get_by_label("To", exact=True), page.get_by_label("Message", exact=True)
        await text.fill("hi")
        await page.get_by_label("Other", exact=True).check()
        await page.get_by_label("Seconds").fill("soon")
        await page.get_by_label("In …").check()
        await page.locator("#after").fill("later")
        await button(page, "Send").click()
        for place in ("#to-fault", "#timeout-fault", "#delay-fault"):
            await expect(page.locator(place)).to_be_visible()
        await to.fill(" ")
        await page.get_by_label("Seconds").fill("0")
        await expect(page.locator("#to-fault")).to_be_visible()
        await expect(page.locator("#timeout-fault")).to_be_visible()
        await to.fill("bob")
        await expect(page.locator("#to-fault")).to_be_hidden()
        await expect(to).not_to_have_attribute("aria-invalid", "true")
        await page.get_by_label("Seconds").fill("60")
        await expect(page.locator("#timeout-fault")).to_be_hidden()
        await page.get_by_label("Now", exact=True).check()
        await expect(page.locator("#delay-fault")).to_be_hidden()
        await text.fill("")
        await button(page, "Send").click()
        await expect(page.locator("#text-fault")).to_be_visible()
        await page.keyboard.type("x")
        await expect(page.locator("#text-fault")).to_be_hidden()


async def test_a_refused_key_is_fine_for_its_own_message(
    chat: ChatClient, browser: OpenBrowser
) -> None:
    async with browser() as page:
        await page.goto(chat.base)
        await page.get_by_text("Advanced").click()
        await page.get_by_label("Idempotency key").fill("k-1")
        await send(page, "bob", "pay 10")
        text = page.get_by_label("Message", exact=True)
        await text.fill("pay 1000")
        await button(page, "Send").click()
        await expect(page.locator("#key-fault")).to_be_visible()
        await text.fill("pay 10")
        await expect(page.locator("#key-fault")).to_be_hidden()


async def test_an_empty_message_is_refused_and_spaces_are_trimmed(
    chat: ChatClient, browser: OpenBrowser
) -> None:
    async with browser() as page:
        await page.goto(chat.base)
        await send(page, "bob ", "hello")
        # The text is empty after the first message.
        await button(page, "Send").click()
        await expect(page.locator("#text-fault")).to_have_text("Is empty; enter a message.")
        await expect(page.get_by_label("Message", exact=True)).to_be_focused()
        await page.get_by_label("Name", exact=True).fill(" bob ")
        await button(page, "Open").click()
        await expect(page.locator("[data-count]")).to_have_text("1")
    assert await chat.texts("bob") == ["hello"]


async def test_the_curl_commands_match_the_form(chat: ChatClient, browser: OpenBrowser) -> None:
    async with browser() as page:
        await page.goto(chat.base)
        commands = page.locator("#curl")
        await expect(commands).to_contain_text('"username":"bob","timeout":600')
        await page.get_by_label("To", exact=True).fill("o'hara/1")
        await page.get_by_label("Message", exact=True).fill("it's done")
        await page.get_by_label("1 hour").check()
        await expect(commands).to_contain_text('"text":"it\'\\\'\'s done"')
        await expect(commands).to_contain_text('"timeout":3600')
        shown = await commands.inner_text()
    post, read = shown.splitlines()
    for command, words in (post, b'"id"'), (read, b"it's done"):
        shell = await asyncio.create_subprocess_shell(command, stdout=asyncio.subprocess.PIPE)
        assert words in (await shell.communicate())[0]
