"""Makes the pictures of docs/web-ui.md and docs/api.md: `python -m tests.pages.screenshots`.

They show a real service with real messages. It fails if a picture is too large.
"""

import asyncio
import tempfile
from pathlib import Path
from typing import Any, Literal

from playwright.async_api import Browser, Page, async_playwright, expect

from config.settings import PROJECT_ROOT
from tests.pages.access import Tokens, sign_in
from tests.support.client import ChatClient
from tests.support.mongod import running_mongod
from tests.support.server import Server

FOLDER = PROJECT_ROOT / "docs" / "pictures"
BYTES_MAX = 200_000

expect.set_options(timeout=60_000)

_DESK: dict[str, Any] = {"viewport": {"width": 1080, "height": 1380}}
_PHONE: dict[str, Any] = {
    "viewport": {"width": 375, "height": 760},
    "device_scale_factor": 2,
    "has_touch": True,
    "is_mobile": True,
}
#: What carol reads on her phone.
_LETTERS = (
    "Minutes of Monday:\n" + "The release waits for the last review. " * 9,
    "نلتقي غدًا في المقهى الساعة العاشرة.",
    "The backup of the mail server is done.",
)


async def _send(page: Page, username: str, text: str) -> None:
    await page.get_by_label("To", exact=True).fill(username)
    await page.get_by_label("Message", exact=True).fill(text)
    await page.get_by_role("button", name="Send", exact=True).click()
    await expect(page.get_by_label("Message", exact=True)).to_have_value("")


async def _use(page: Page, chat: ChatClient, name: str) -> None:
    """Make messages of every kind: read, leased, unread, and one that is being written."""
    await page.goto(chat.base)
    await _send(page, name, "The tests are green again.\nWho brings the cake?")
    await page.locator("#sent a").first.click()
    await page.get_by_role("button", name="Watch live").click()
    await expect(page.locator("[data-shown] [data-text]")).to_have_count(1)
    await page.get_by_role("button", name="Stop watching").click()
    await expect(page.locator("[data-live]")).to_be_hidden()
    await _send(page, name, "Parcel 4711 is at the front desk.")
    await page.get_by_role("button", name="Lease 60 s").click()
    await _send(page, name, "Lunch at one?")
    await expect(page.locator("[data-count]")).to_have_text("1")
    await expect(page.locator("#sent .state").last).to_contain_text("read at")
    await expect(page.locator("#sent .state.leased")).to_have_count(1)


async def _picture(page: Page, name: str) -> None:
    path = FOLDER / f"{name}.png"
    await page.screenshot(path=path)
    size = path.stat().st_size
    assert size < BYTES_MAX, f"{path} has {size} bytes"


async def _desk(
    chromium: Browser, chat: ChatClient, name: str, username: str, scheme: Literal["light", "dark"]
) -> None:
    page = await chromium.new_page(**_DESK, color_scheme=scheme, reduced_motion="reduce")
    await _use(page, chat, username)
    await _picture(page, name)


async def _phone(chromium: Browser, chat: ChatClient) -> None:
    page = await chromium.new_page(**_PHONE, reduced_motion="reduce")
    for text in _LETTERS:
        await chat.post("carol", text)
    await page.goto(f"{chat.base}/#inbox=carol")
    await page.get_by_role("button", name="Read", exact=True).click()
    await expect(page.locator("[data-shown] [data-text]")).to_have_count(len(_LETTERS))
    await chat.post("carol", "On my way.")
    await expect(page.locator("[data-count]")).to_have_text("1")
    await _picture(page, "inbox-phone")


async def _reference(chromium: Browser, chat: ChatClient) -> None:
    page = await chromium.new_page(viewport={"width": 1240, "height": 860}, reduced_motion="reduce")
    await page.goto(f"{chat.base}/docs#read-inbox")
    await page.wait_for_selector("#read-inbox:focus-within")
    await _picture(page, "api")


async def _session(chromium: Browser, chat: ChatClient, token: str) -> None:
    page = await chromium.new_page(viewport={"width": 1080, "height": 720}, reduced_motion="reduce")
    await page.goto(f"{chat.base}/#inbox=jobs-print")
    await sign_in(page, token, "worker")
    await expect(page.locator("[data-count]")).to_have_text("0")
    await _picture(page, "signed-in")


async def _make(base: str, guarded: str, token: str) -> None:
    chat, other = ChatClient(base), ChatClient(guarded)
    async with async_playwright() as playwright:
        flags = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
        chromium = await playwright.chromium.launch(executable_path="/usr/bin/chromium", args=flags)
        await _desk(chromium, chat, "inbox", "bob", "light")
        await _desk(chromium, chat, "inbox-dark", "dave", "dark")
        await _phone(chromium, chat)
        await _reference(chromium, chat)
        await _session(chromium, other, token)
        await chromium.close()
    chat.close()
    other.close()


def main() -> None:
    """Start a service with access control and one without, use them, and take the pictures."""
    FOLDER.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as name, running_mongod(Path(name)) as uri:
        folder = Path(name)
        tokens = Tokens(folder / "access.toml")
        rights = {"send": ["*"], "read": ["jobs-*", "{sub}"], "until": "2027-01-01T12:00:00Z"}
        token = tokens.add("worker", **rights)
        with (
            Server(folder, "--mongo-uri", uri) as server,
            Server(
                folder,
                *("--mongo-uri", uri),
                CHAT_MONGO_DATABASE="guarded",
                CHAT_ACCESS="tokens",
                CHAT_ACCESS_FILE=str(tokens.path),
            ) as guarded,
        ):
            asyncio.run(_make(server.base, guarded.base, token))


if __name__ == "__main__":
    main()
