"""Messages that were read exist only in the web UI: it keeps them, copies them and saves them."""

import json
from pathlib import Path
from urllib.parse import quote

import pytest
from playwright.async_api import Dialog, Page, expect

from tests.pages.conftest import OpenBrowser, both_browsers
from tests.pages.inbox import button, open_inbox, post_many, read_here
from tests.support.client import ChatClient

#: Uses up the session storage, to the last character.
FILL = """() => {
    for (let size = 1 << 22; size >= 1; size /= 2) {
        try {
            for (;;) sessionStorage.setItem(`fill ${size} ${Math.random()}`, "x".repeat(size));
        } catch {}
    }
}"""
NO_CLIPBOARD = "Object.defineProperty(navigator, 'clipboard', {value: undefined})"


async def read_all(page: Page, chat: ChatClient, texts: list[str]) -> None:
    """Post messages to bob and read them on the page."""
    await post_many(chat, "bob", texts)
    await open_inbox(page, chat.base, "bob", len(texts))
    await button(page, "Read").click()
    await expect(read_here(page)).to_have_count(len(texts))


@both_browsers
async def test_what_was_read_survives_a_reload(chat: ChatClient, browser: OpenBrowser) -> None:
    async with browser() as page:
        await read_all(page, chat, ["one", "two"])
        await page.reload()
        await expect(read_here(page)).to_have_text(["two", "one"])
        await expect(page.locator("[data-done]")).to_have_text("2 read here")
        await expect(page.get_by_text("Only this tab has them")).to_be_visible()
        # Only in its own inbox.
        await page.goto(f"{chat.base}/#inbox=eve")
        await expect(page.locator("[data-words]")).to_contain_text("unread in eve")
        await expect(read_here(page)).to_have_count(0)
        # It is not read again, and what comes later is above it.
        await chat.post("bob", "three")
        await page.go_back()
        await button(page, "Read").click()
        await expect(read_here(page)).to_have_text(["three", "two", "one"])


async def test_cleared_messages_are_gone_from_the_browser(
    chat: ChatClient, browser: OpenBrowser
) -> None:
    questions: list[str] = []

    async def answer(dialog: Dialog) -> None:
        questions.append(dialog.message)
        await (dialog.accept() if len(questions) > 1 else dialog.dismiss())

    async with browser() as page:
        page.on("dialog", answer)
        await read_all(page, chat, ["confidential", "secret"])
        await button(page, "Clear").click()
        await expect(read_here(page)).to_have_count(2)
        await button(page, "Clear").click()
        await expect(read_here(page)).to_have_count(0)
        await expect(button(page, "Read")).to_be_focused()
        kept = await page.evaluate("JSON.stringify({...sessionStorage, ...localStorage})")
        assert "confidential" not in kept
        await page.reload()
        await expect(page.locator("[data-count]")).to_have_text("0")
        await expect(read_here(page)).to_have_count(0)
    assert questions == ["Clear 2 messages? Nothing else has them."] * 2


@pytest.mark.parametrize("script", [FILL, None], ids=["full", "forbidden"])
async def test_the_browser_asks_before_messages_are_lost(
    chat: ChatClient, browser: OpenBrowser, script: str | None
) -> None:
    kinds: list[str] = []

    async def answer(dialog: Dialog) -> None:
        kinds.append(dialog.type)
        await dialog.accept()

    async with browser() as page:
        page.on("dialog", answer)
        if script is None:
            throws = "{get() { throw new Error('no'); }}"
            await page.add_init_script(f"Object.defineProperty(window, 'sessionStorage', {throws})")
        await open_inbox(page, chat.base, "bob", 0)
        if script is not None:
            await page.evaluate(script)
        await page.reload()
        assert kinds == []
        await chat.post("bob", "precious")
        await button(page, "Read").click()
        await expect(read_here(page)).to_have_text(["precious"])
        await expect(page.locator("[data-lifetime]")).to_contain_text(
            "A reload destroys 1 message for which this tab has no room"
        )
        await page.reload()
        assert kinds == ["beforeunload"]
        await expect(page.locator("[data-count]")).to_have_text("0")
        await expect(read_here(page)).to_have_count(0)
        await page.reload()
        assert kinds == ["beforeunload"]


@both_browsers
async def test_messages_are_copied(chat: ChatClient, browser: OpenBrowser) -> None:
    async with browser() as page:
        await read_all(page, chat, ["first\nline", "second 👩‍👩‍👧"])
        field = page.get_by_label("Message", exact=True)
        await button(page, "Copy: second 👩‍👩‍👧").click()
        await expect(page.get_by_text("Copied", exact=True)).to_be_visible()
        await field.focus()
        await page.keyboard.press("Control+V")
        await expect(field).to_have_value("second 👩‍👩‍👧")
        await field.fill("")
        # Over plain HTTP from elsewhere, a page has no clipboard.
        await page.evaluate(NO_CLIPBOARD)
        await button(page, "Copy all").click()
        await button(page, "Copied").click()
        await expect(page.get_by_role("status")).to_contain_text("Copied.")
        # The button has its own word again.
        await button(page, "Copy all").click()
        await field.focus()
        await page.keyboard.press("Control+V")
        lines = (await field.input_value()).splitlines()
    # Each has its time, and the oldest is the first.
    assert lines[1:4] == ["first", "line", ""]
    assert lines[5:] == ["second 👩‍👩‍👧"]


async def test_messages_are_saved_to_a_file(
    chat: ChatClient, browser: OpenBrowser, tmp_path: Path
) -> None:
    name = "a/b bücher"
    await post_many(chat, name, ["one\n", "שלום"])
    async with browser() as page:
        await open_inbox(page, chat.base, quote(name, safe=""), 2)
        await button(page, "Read").click()
        await expect(read_here(page)).to_have_count(2)
        async with page.expect_download() as download:
            await button(page, "Save").click()
        file = await download.value
        assert file.suggested_filename.startswith("inbox-a_b_bücher-20")
        await file.save_as(tmp_path / "saved.json")
    saved = json.loads((tmp_path / "saved.json").read_text(encoding="utf-8"))
    assert [message["text"] for message in saved] == ["one\n", "שלום"]
    assert all(message["at"].endswith("Z") and message["id"] for message in saved)


async def test_opened_inboxes_are_listed_and_forgotten(
    chat: ChatClient, browser: OpenBrowser
) -> None:
    async with browser() as page:
        requests: list[str] = []
        page.on("request", lambda request: requests.append(request.post_data or ""))
        for name in ("bob", "a/b", "שרה", "bob"):
            await page.goto(f"{chat.base}/#inbox={quote(name, safe='')}")
            await expect(page.locator("[data-words]")).to_contain_text(name)
        await page.get_by_role("link", name="All inboxes").click()
        await expect(page.get_by_role("heading", name="Used in this browser")).to_be_focused()
        names = page.locator("#used-names a")
        await expect(names).to_have_text(["bob", "שרה", "a/b"])
        await page.reload()
        await expect(names).to_have_text(["bob", "שרה", "a/b"])
        await button(page, "Forget bob").click()
        await expect(names).to_have_text(["שרה", "a/b"])
        # The focus stays in the list.
        await expect(page.locator("#used-names button").first).to_be_focused()
        await names.last.click()
        await expect(page.locator("[data-words]")).to_contain_text("unread in a/b")
        await page.get_by_role("link", name="All inboxes").click()
        await button(page, "Forget all").click()
        await expect(names).to_have_count(0)
        assert await page.evaluate("localStorage.inboxes") == "[]"
        assert not any(requests)


async def test_a_refused_inbox_is_not_listed(chat: ChatClient, browser: OpenBrowser) -> None:
    async with browser() as page:
        await page.goto(chat.base)
        await page.get_by_label("Name", exact=True).fill("x" * 129)
        await button(page, "Open").click()
        await expect(page.locator("#whose-fault")).to_be_visible()
        assert await page.evaluate("localStorage.inboxes") is None
