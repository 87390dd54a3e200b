"""Watching live, and leases, on the page."""

import signal

import pytest
from playwright.async_api import expect

from tests.conftest import Connect, StartService
from tests.pages.conftest import OpenBrowser
from tests.pages.inbox import button, on_loan, open_inbox, post_with_receipt, read_here, status
from tests.support.client import ChatClient
from tests.support.server import Server
from tests.support.waiting import eventually


async def test_watching_live_shows_what_comes_and_reads_it(
    chat: ChatClient, browser: OpenBrowser
) -> None:
    first = await post_with_receipt(chat, "bob", "first")
    async with browser() as page:
        await open_inbox(page, chat.base, "bob", 1)
        await expect(page.get_by_text("counts as read once it is shown here")).to_be_visible()
        assert await status(chat, first) == "pending"
        await button(page, "Watch live").click()
        await expect(read_here(page)).to_have_text(["first"])
        second = await post_with_receipt(chat, "bob", "second")
        await expect(read_here(page)).to_have_text(["second", "first"])
        await expect(page.get_by_role("status")).to_contain_text("New message: second")

        async def is_read() -> bool:
            return bool(await status(chat, second) == "read")

        await eventually(is_read)
        await button(page, "Stop watching").click()
        await chat.post("bob", "third")
        await expect(page.locator("[data-count]")).to_have_text("1")
        await expect(read_here(page)).to_have_count(2)
    assert await chat.texts("bob") == ["third"]


async def test_a_message_that_comes_to_a_tab_nobody_looks_at_is_not_read_yet(
    chat: ChatClient, browser: OpenBrowser
) -> None:
    async with browser() as page:
        await open_inbox(page, chat.base, "bob", 0)
        await button(page, "Watch live").click()
        await expect(page.locator("[data-live]")).to_have_text("live")
        look = """(isHidden) => {
            Object.defineProperty(document, 'hidden', {configurable: true, value: isHidden});
            document.dispatchEvent(new Event('visibilitychange'));
        }"""
        await page.evaluate(look, True)
        posted = await post_with_receipt(chat, "bob", "psst")
        await expect(read_here(page)).to_have_text(["psst"])
        assert await status(chat, posted) == "leased"
        await page.evaluate(look, False)

        async def is_read() -> bool:
            return bool(await status(chat, posted) == "read")

        await eventually(is_read)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
async def test_watching_live_goes_on_after_a_restart_and_loses_nothing(
    server: Server, browser: OpenBrowser, how: signal.Signals
) -> None:
    chat = ChatClient(server.base)
    async with browser() as page:
        await open_inbox(page, chat.base, "bob", 0)
        await button(page, "Watch live").click()
        await chat.post("bob", "one", 600)
        await expect(read_here(page)).to_have_text(["one"])
        port = server.port
        server.signal(how)
        server.wait()
        await expect(page.locator("[data-live]")).to_contain_text("Connecting again")
        server.command += ["--port", str(port)]
        server.start()
        await chat.post("bob", "two", 600)
        await expect(read_here(page)).to_have_text(["two", "one"], timeout=30_000)
        await expect(page.locator("[data-live]")).to_have_text("live")
        await expect(page.locator("#connection")).to_be_hidden()
    chat.close()


async def test_a_lease_is_acknowledged_in_part_and_the_rest_given_back(
    chat: ChatClient, browser: OpenBrowser
) -> None:
    for text in ("one", "two", "three"):
        await chat.post("bob", text)
    async with browser() as page:
        await open_inbox(page, chat.base, "bob", 3)
        await button(page, "Lease 60 s").click()
        await expect(on_loan(page)).to_have_text(["one", "two", "three"])
        await expect(page.locator("[data-count]")).to_have_text("0")
        await button(page, "60 s more").click()
        await expect(page.locator(".lease [data-left]")).to_contain_text("s left")
        await button(page, "Acknowledge: one").click()
        await expect(on_loan(page)).to_have_text(["two", "three"])
        await button(page, "Give back: two").click()
        await expect(on_loan(page)).to_have_text(["three"])
        await expect(page.locator("[data-count]")).to_have_text("1")
        await button(page, "Give all back").click()
        await expect(page.locator(".lease")).to_have_count(0)
        await expect(page.locator("[data-count]")).to_have_text("2")
    assert await chat.texts("bob") == ["two", "three"]


async def test_a_lease_that_ends_gives_its_messages_back_and_the_page_shows_it(
    start_service: StartService, connect: Connect, browser: OpenBrowser
) -> None:
    chat = connect(await start_service(max_lease_s=1.0))
    await chat.post("bob", "again")
    async with browser() as page:
        await open_inbox(page, chat.base, "bob", 1)
        await button(page, "Lease 60 s").click()
        await expect(on_loan(page)).to_have_text(["again"])
        await expect(on_loan(page)).to_have_count(0)
        await expect(page.get_by_text("The lease is over: 1 message").first).to_be_visible()
        await expect(page.locator("[data-count]")).to_have_text("1")
    assert await chat.texts("bob") == ["again"]


async def test_a_page_that_is_closed_gives_back_what_it_has_on_loan(
    chat: ChatClient, browser: OpenBrowser
) -> None:
    await chat.post("bob", "on loan")
    async with browser() as page:
        await open_inbox(page, chat.base, "bob", 1)
        await button(page, "Lease 60 s").click()
        await expect(on_loan(page)).to_have_text(["on loan"])
        await page.reload()
        await expect(page.locator("[data-count]")).to_have_text("1")
