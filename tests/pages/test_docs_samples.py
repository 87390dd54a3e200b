"""The samples of the API reference, in each language, are run as they are."""

import asyncio
import json
import os
import re
import sys

from playwright.async_api import Locator, Page, expect

from config.settings import PROJECT_ROOT
from tests.pages.access import Tokens
from tests.pages.conftest import OpenBrowser
from tests.pages.test_docs_page import open_docs
from tests.support.client import ChatClient
from tests.support.provider import node

LANGUAGES = ("curl", "Python", "JavaScript")
TEXT = 'it\'s "q" \\ $HOME `x` é \u2028\n${y} {z}'


async def sample_of(page: Page, card: Locator, language: str) -> str:
    """Choose a language and return the sample of an operation."""
    await card.locator(".languages").get_by_role("button", name=language, exact=True).click()
    shown = card.get_by_label(re.compile("^the sample for")).locator("code")
    return str(await shown.inner_text())


async def run(language: str, sample: str, token: str = "") -> str:
    """Run a sample and return its output."""
    command = {
        "curl": ["bash", "-ec", f"set -u\n{sample}"],
        "Python": [sys.executable, "-c", sample],
        "JavaScript": [str(node()), "--input-type=module", "--eval", sample],
    }[language]
    process = await asyncio.create_subprocess_exec(
        *command,
        env={
            **os.environ,
            "PYTHONPATH": str(PROJECT_ROOT / "clients/python"),
            "PYTHONIOENCODING": "utf-8",
            "CHAT_TOKEN": token,
        },
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    said, complaints = await process.communicate()
    assert process.returncode == 0, f"{sample}\n{complaints.decode()}"
    return said.decode()


async def samples(
    page: Page, chat: ChatClient, operation: str, **filled: str
) -> list[tuple[str, str]]:
    """Return the samples of an operation by language, with some fields of its form filled in."""
    # A new page, with the form as it is at first.
    await page.goto("about:blank")
    card = await open_docs(page, chat, operation)
    if media := filled.pop("media", ""):
        await card.get_by_label("Media type").select_option(media)
    for name, value in filled.items():
        await card.get_by_role("textbox", name=name, exact=True).fill(value)
    return [(language, await sample_of(page, card, language)) for language in LANGUAGES]


async def test_a_sample_posts_what_the_form_has(chat: ChatClient, browser: OpenBrowser) -> None:
    async with browser() as page:
        body = {"text": TEXT, "username": "zoe", "timeout": 60}
        for language, sample in await samples(
            page, chat, "post-message", Body=json.dumps(body), Prefer="receipt"
        ):
            said = await run(language, sample)
            assert re.search(r"\b[0-9a-f]{32}\b", said)
            assert language == "curl" or re.search(r"\s[\w-]{32}\s*$", said), said
            assert await chat.texts("zoe") == [TEXT], sample


async def test_a_sample_posts_a_batch(chat: ChatClient, browser: OpenBrowser) -> None:
    drafts = [
        {"text": TEXT, "username": "zoe"},
        {"text": "two", "username": "zoe", "timeout": None},
    ]
    lines = "".join(f"{json.dumps(each)}\n" for each in drafts)
    array = json.dumps(drafts, ensure_ascii=False, indent=1)
    async with browser() as page:
        for media, body in {"application/json": array, "application/x-ndjson": lines}.items():
            for language, sample in await samples(page, chat, "post-batch", media=media, Body=body):
                await run(language, sample)
                assert await chat.texts("zoe") == [TEXT, "two"], sample


async def test_a_sample_posts_a_text(chat: ChatClient, browser: OpenBrowser) -> None:
    # curl would take a body that begins with @ for the name of a file.
    text = "@all it's\n100% ok"
    async with browser() as page:
        for language, sample in await samples(
            page, chat, "post-text", username="a/b é", Body=text, timeout="90"
        ):
            await run(language, sample)
            assert await chat.texts("a/b é") == [text], sample
        body = '{"text": "y", "delay": 1.5}'
        found = dict(await samples(page, chat, "post-text", media="application/json", Body=body))
        assert 'chat.post("bob", "y", delay_s=1.5)' in found["Python"]


async def test_a_sample_reads_and_leases(chat: ChatClient, browser: OpenBrowser) -> None:
    async with browser() as page:
        for operation, filled in {
            "read-inbox-by-post": {"limit": "1"},
            "read-inbox": {"limit": "1", "Prefer": "wait=2"},
            "lease-messages": {"limit": "1", "ttl": "20", "wait": "1.5"},
        }.items():
            filled["username"] = operation
            for language, sample in await samples(page, chat, operation, **filled):
                await chat.post(operation, "one")
                await chat.post(operation, "two")
                said = await run(language, sample)
                assert re.findall("one|two", said) == ["one"], sample
                assert await chat.texts(operation) == ["two"], sample


async def test_a_sample_without_a_method_of_the_client(
    chat: ChatClient, browser: OpenBrowser
) -> None:
    async with browser() as page:
        for language, sample in await samples(page, chat, "livez"):
            assert '{"status":"ok"}' in await run(language, sample)
        # The client does not send what is not valid.
        body = '{"text": "x", "username": 1}'
        for language, sample in await samples(page, chat, "post-message", Body=body):
            assert "urn:chat:problem:invalid-request" in await run(language, sample)
        for _, sample in await samples(page, chat, "read-inbox", limit="all"):
            assert "limit=all" in sample
        for _, sample in await samples(page, chat, "post-text", timeout="soon"):
            assert "timeout=soon" in sample


async def test_a_sample_sends_the_token_of_the_environment(
    guarded: ChatClient, tokens: Tokens, browser: OpenBrowser
) -> None:
    token = tokens.add("worker", read=["jobs-*"])
    async with browser() as page:
        for language, sample in await samples(page, guarded, "count-unread", username="jobs-1"):
            assert token not in sample
            said = await run(language, sample, token)
            assert re.search("^0$|x-unread-count(: |': '|: ')0", said, re.MULTILINE | re.IGNORECASE)


async def test_the_language_is_remembered(chat: ChatClient, browser: OpenBrowser) -> None:
    async with browser() as page:
        card = await open_docs(page, chat, "post-message")
        assert (await sample_of(page, card, "Python")).startswith("from chat_inbox import")
        await page.reload()
        await page.wait_for_selector("main:not([aria-busy])")
        for operation in ("post-message", "livez"):
            languages = page.locator(f"#{operation} .languages")
            pressed = languages.locator("[aria-pressed=true]")
            await expect(pressed).to_have_text("Python")
        await page.evaluate("localStorage.setItem('sample language', 'toString')")
        await page.reload()
        await expect(page.locator("#livez .languages [aria-pressed=true]")).to_have_text("curl")


async def test_a_sample_is_copied(chat: ChatClient, browser: OpenBrowser) -> None:
    async with browser(permissions=["clipboard-read", "clipboard-write"]) as page:
        card = await open_docs(page, chat, "post-text")
        sample = await sample_of(page, card, "JavaScript")
        await card.get_by_role("button", name=re.compile("^Copy the sample")).click()
        await expect(card.get_by_text("Copied")).to_be_visible()
        assert await page.evaluate("navigator.clipboard.readText()") == sample
