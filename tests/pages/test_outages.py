"""The web UI while the database is unavailable: it does not show what it does not know."""

from pathlib import Path
from typing import Final

import pytest
from playwright.async_api import expect

from tests.conftest import Connect, StartService
from tests.pages.conftest import OpenBrowser
from tests.pages.inbox import button, open_inbox, read_here
from tests.support.client import ChatClient
from tests.support.proxy import MongoProxy
from workers.pool import WorkerPool

DASH: Final = "\N{EN DASH}"


async def test_an_unknown_count_is_a_dash_and_errors_disappear(
    start_service: StartService,
    connect: Connect,
    browser: OpenBrowser,
    mongo_uri: str,
    tmp_path: Path,
) -> None:
    async with MongoProxy(mongo_uri, tmp_path) as proxy:
        service = await start_service(mongo_uri=proxy.uri, mongo_timeout_s=1.0)
        chat = connect(service)
        async with browser() as page:
            await open_inbox(page, chat.base, "bob", 0)
            commands = ("hello", "ping", "find", "aggregate", "count", "update", "insert")
            proxy.cut_before.update(dict.fromkeys(commands, 100_000))
            await expect(page.locator("[data-count]")).to_have_text(DASH, timeout=30_000)
            await expect(page.locator("[data-words]")).to_contain_text("not counted")
            await button(page, "Read").click()
            note = page.locator("[data-note]").first
            await expect(note).to_contain_text("Retrying")
            proxy.cut_before.clear()
            await expect(page.locator("[data-count]")).to_have_text("0", timeout=30_000)
            await expect(page.locator("[data-words]")).to_contain_text("unread in bob")
            await expect(note).not_to_contain_text("Retrying", timeout=30_000)
            await chat.post("bob", "after")
            await expect(page.locator("[data-count]")).to_have_text("1", timeout=30_000)
            await button(page, "Read").click()
            await expect(read_here(page)).to_have_text(["after"])
        await service.stop()


async def test_an_error_disappears_when_the_count_is_back(
    chat: ChatClient, browser: OpenBrowser, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise RuntimeError("a bug")

    async with browser() as page:
        await open_inbox(page, chat.base, "bob", 0)
        note = page.locator("[data-note]").first
        with monkeypatch.context() as patched:
            patched.setattr(WorkerPool, "count", fails)
            patched.setattr(WorkerPool, "read_keyed", fails)
            await button(page, "Read").click()
            await expect(note).to_contain_text("Something went wrong")
            await expect(page.locator("[data-count]")).to_have_text(DASH, timeout=30_000)
            await expect(note).to_contain_text("Something went wrong")
        await expect(page.locator("[data-count]")).to_have_text("0", timeout=30_000)
        await expect(note).to_be_hidden()
