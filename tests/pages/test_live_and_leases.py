"""Watching live and leases in the web UI."""

import signal

import pytest
from playwright.async_api import expect

from tests.conftest import Connect, StartService
from tests.pages.conftest import OpenBrowser
from tests.pages.inbox import button, leased_here, open_inbox, post_with_receipt, read_here, status
from tests.support.client import ChatClient
from tests.support.server import Server
from tests.support.waiting import eventually


async def test_watching_live_shows_and_reads_new_messages(
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


async def test_a_hidden_tab_does_not_read_a_message_yet(
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
async def test_watching_live_survives_a_restart_and_loses_nothing(
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
        await expect(page.locator("[data-live]")).to_contain_text("Reconnecting")
        server.command += ["--port", str(port)]
        server.start()
        await chat.post("bob", "two", 600)
        await expect(read_here(page)).to_have_text(["two", "one"], timeout=30_000)
        await expect(page.locator("[data-live]")).to_have_text("live")
        await expect(page.locator("#connection")).to_be_hidden()
    chat.close()


async def test_a_lease_is_acknowledged_in_part_and_released_in_part(
    chat: ChatClient, browser: OpenBrowser
) -> None:
    for text in ("one", "two", "three"):
        await chat.post("bob", text)
    async with browser() as page:
        await open_inbox(page, chat.base, "bob", 3)
        await button(page, "Lease 60 s").click()
        await expect(leased_here(page)).to_have_text(["one", "two", "three"])
        await expect(page.locator("[data-count]")).to_have_text("0")
        await button(page, "Extend to 60 s").click()
        await expect(page.locator(".lease [data-left]")).to_contain_text("s left")
        await button(page, "Acknowledge: one").click()
        await expect(leased_here(page)).to_have_text(["two", "three"])
        await button(page, "Release: two").click()
        await expect(leased_here(page)).to_have_text(["three"])
        await expect(page.locator("[data-count]")).to_have_text("1")
        await button(page, "Release all").click()
        await expect(page.locator(".lease")).to_have_count(0)
        await expect(page.locator("[data-count]")).to_have_text("2")
    assert await chat.texts("bob") == ["two", "three"]


async def test_messages_of_an_ended_lease_are_unread_again(
    start_service: StartService, connect: Connect, browser: OpenBrowser
) -> None:
    chat = connect(await start_service(max_lease_s=1.0))
    await chat.post("bob", "again")
    async with browser() as page:
        await open_inbox(page, chat.base, "bob", 1)
        await button(page, "Lease 60 s").click()
        await expect(leased_here(page)).to_have_text(["again"])
        await expect(leased_here(page)).to_have_count(0)
        await expect(page.get_by_text("The lease ended: 1 message").first).to_be_visible()
        await expect(page.locator("[data-count]")).to_have_text("1")
    assert await chat.texts("bob") == ["again"]


async def test_a_reload_releases_leases_after_a_dropped_request(
    chat: ChatClient, browser: OpenBrowser
) -> None:
    await chat.post("bob", "leased")
    async with browser() as page:
        await open_inbox(page, chat.base, "bob", 1)
        await button(page, "Lease 60 s").click()
        await expect(leased_here(page)).to_have_text(["leased"])
        await page.evaluate("navigator.sendBeacon = () => false")
        await page.reload()
        await expect(page.locator("[data-count]")).to_have_text("1")


async def test_closing_the_page_releases_its_leases(chat: ChatClient, browser: OpenBrowser) -> None:
    await chat.post("bob", "leased")
    async with browser() as page:
        await open_inbox(page, chat.base, "bob", 1)
        await button(page, "Lease 60 s").click()
        await expect(leased_here(page)).to_have_text(["leased"])
        await page.reload()
        await expect(page.locator("[data-count]")).to_have_text("1")
