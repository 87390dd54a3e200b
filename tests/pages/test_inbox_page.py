"""The page at `/`, as its users see it."""

import json
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.async_api import Locator, Page, Route, expect

from chat_service.problems import of_service_error
from tests.conftest import Connect, StartService
from tests.pages.conftest import CheckAccess, OpenBrowser
from tests.support.client import ChatClient
from tests.support.server import Server
from tests.support.waiting import eventually
from workers.errors import StoreUnavailable

#: What `/` may weigh with all that it loads, as it is sent, in bytes.
WEIGHT_MAX = 60 << 10
PHONE = {"viewport": {"width": 360, "height": 740}, "has_touch": True, "is_mobile": True}
HOSTILE = '<img src=x onerror="document.title=1"><script>document.title=2</script>\n& <b>bold</b>'

expect.set_options(timeout=10_000)


@pytest.fixture
def server(mongo_uri: str, database: str, tmp_path: Path) -> Iterator[Server]:
    """The service as a process, for what happens when it ends."""
    with Server(tmp_path, "--mongo-uri", mongo_uri, CHAT_MONGO_DATABASE=database) as running:
        yield running


async def send(page: Page, username: str, text: str) -> None:
    """Fill in the form and send it; it must be stored."""
    await page.get_by_label("To", exact=True).fill(username)
    await page.get_by_label("Message", exact=True).fill(text)
    await button(page, "Send").click()
    await expect(page.get_by_label("Message", exact=True)).to_have_value("")


async def open_inbox(page: Page, base: str, name: str, unread: int) -> None:
    """Open the page by a link to an inbox, in which so many messages are unread."""
    await page.goto(f"{base}/#inbox={name}")
    await expect(page.locator("[data-count]")).to_have_text(str(unread))


def button(page: Page, name: str) -> Locator:
    """The button of this name."""
    return page.get_by_role("button", name=name, exact=True)


def read_here(page: Page) -> Locator:
    """The texts that were read on the page, the newest first."""
    return page.locator("[data-shown] [data-text]")


def on_loan(page: Page) -> Locator:
    """The texts that the page has on loan."""
    return page.locator(".lease [data-text]")


async def post_with_receipt(chat: ChatClient, username: str, text: str) -> tuple[str, str]:
    """Post a message; its id and receipt."""
    body = json.dumps({"username": username, "text": text}).encode()
    answer = await chat.request("POST", "/chat", body, Prefer="receipt")
    return json.loads(answer.body)["id"], answer.headers["X-Receipt"]


async def status(chat: ChatClient, posted: tuple[str, str]) -> Any:
    """What became of a message."""
    answer = await chat.request("GET", f"/messages/{posted[0]}/status", X_Receipt=posted[1])
    return json.loads(answer.body)["status"]


async def width(page: Page) -> int:
    """How wide the page is, with what one has to scroll to."""
    found: int = await page.evaluate("document.documentElement.scrollWidth")
    return found


async def lose(route: Route) -> None:
    """Have a request arrive and be served, and its answer be lost."""
    await route.fetch()
    await route.abort()


async def test_the_page_opens_and_says_what_to_do(chat: ChatClient, browser: OpenBrowser) -> None:
    async with browser() as page:
        await page.goto(chat.base)
        assert await page.title() == "Chat inbox"
        await expect(page.get_by_text("Opening an inbox reads nothing")).to_be_visible()
        await expect(page.get_by_text("Send something to a name")).to_be_visible()
        await expect(page.get_by_text("Nothing yet.")).to_be_visible()


async def test_a_message_is_sent_pending_and_read_and_its_sender_sees_it(
    chat: ChatClient, browser: OpenBrowser
) -> None:
    async with browser() as page:
        await page.goto(chat.base)
        await send(page, "bob", "lunch?")
        sent = page.locator("#sent > li")
        await expect(sent.locator("[data-state]")).to_have_text("pending")
        await expect(sent.locator("[data-left]")).to_contain_text("left")
        await sent.get_by_role("link", name="bob").click()
        await expect(page.locator("[data-count]")).to_have_text("1")
        await expect(page).to_have_title("(1) bob · Chat inbox")
        await button(page, "Read").click()
        await expect(read_here(page)).to_have_text(["lunch?"])
        await expect(page.locator("[data-count]")).to_have_text("0")
        await expect(sent.locator("[data-state]")).to_contain_text("read at")
        await expect(sent.locator("[data-left]")).to_be_hidden()
    assert await chat.texts("bob") == []


async def test_opening_a_link_to_an_inbox_reads_nothing(
    chat: ChatClient, browser: OpenBrowser
) -> None:
    posted = await post_with_receipt(chat, "bob", "secret")
    async with browser() as page:
        await open_inbox(page, chat.base, "bob", 1)
        await page.reload()
        await expect(page.locator("[data-count]")).to_have_text("1")
        await expect(page.get_by_text("secret")).to_have_count(0)
        assert await status(chat, posted) == "pending"
    assert await chat.texts("bob") == ["secret"]


async def test_naming_another_inbox_reads_nothing_and_the_count_is_kept_fresh(
    chat: ChatClient, browser: OpenBrowser
) -> None:
    await chat.post("eve/ÿ #1", "one")
    async with browser() as page:
        await page.goto(chat.base)
        await page.get_by_label("Whose inbox").fill("eve/ÿ #1")
        await page.get_by_label("Whose inbox").press("Enter")
        await expect(page.locator("[data-count]")).to_have_text("1")
        assert page.url.endswith("#inbox=eve%2F%C3%BF%20%231")
        await chat.post("eve/ÿ #1", "two")
        await expect(page.locator("[data-count]")).to_have_text("2")
        await page.go_back()
        await expect(page.get_by_text("Send something to a name")).to_be_visible()
    assert await chat.texts("eve/ÿ #1") == ["one", "two"]


async def test_an_empty_inbox_says_that_nothing_is_unread(
    chat: ChatClient, browser: OpenBrowser
) -> None:
    async with browser() as page:
        await open_inbox(page, chat.base, "bob", 0)
        await button(page, "Read").click()
        await expect(page.get_by_text("Nothing unread.").first).to_be_visible()


async def test_a_text_is_shown_as_text_whatever_is_in_it(
    chat: ChatClient, browser: OpenBrowser
) -> None:
    async with browser() as page:
        await page.goto(chat.base)
        await send(page, HOSTILE, HOSTILE)
        await expect(page.locator("#sent [data-text]")).to_have_text(HOSTILE)
        await page.locator("#sent a").click()
        await button(page, "Lease 60 s").click()
        await expect(on_loan(page)).to_have_text(HOSTILE)
        await button(page, "Give all back").click()
        await button(page, "Read").click()
        await expect(read_here(page)).to_have_text(HOSTILE)
        assert await page.locator("main img, main script, main b").count() == 0
        assert "Chat inbox" in await page.title()


async def test_a_read_whose_answer_is_lost_is_asked_again_and_loses_nothing(
    chat: ChatClient, browser: OpenBrowser
) -> None:
    await chat.post("bob", "precious")
    async with browser() as page:
        await open_inbox(page, chat.base, "bob", 1)
        await page.route("**/read", lose, times=1)
        await button(page, "Read").click()
        await expect(read_here(page)).to_have_text(["precious"])


async def test_a_read_that_a_reload_interrupts_is_not_lost(
    chat: ChatClient, browser: OpenBrowser
) -> None:
    await chat.post("bob", "precious")
    async with browser() as page:
        await open_inbox(page, chat.base, "bob", 1)
        # It does not ask again by itself.
        await page.route("**/livez", lambda route: route.abort())
        await page.route("**/read", lose)
        await button(page, "Read").click()
        await expect(page.get_by_text("No answer from the service")).to_be_visible()
        await page.unroute("**/read")
        await page.reload()
        await expect(page.locator("[data-count]")).to_have_text("0")
        await button(page, "Read").click()
        await expect(read_here(page)).to_have_text(["precious"])


async def test_a_message_whose_answer_is_lost_is_sent_again_and_stored_once(
    chat: ChatClient, browser: OpenBrowser
) -> None:
    async with browser() as page:
        await page.goto(chat.base)
        await page.route("**/chat", lose, times=1)
        await send(page, "bob", "once")
        await expect(page.locator("#sent > li")).to_have_count(1)
    assert await chat.texts("bob") == ["once"]


async def test_a_message_that_was_given_up_and_is_sent_again_is_stored_once(
    chat: ChatClient, browser: OpenBrowser
) -> None:
    async with browser() as page:
        await page.goto(chat.base)
        await page.route("**/chat", lose)
        await page.get_by_label("To", exact=True).fill("bob")
        await page.get_by_label("Message", exact=True).fill("once")
        await button(page, "Send").click()
        await button(page, "Stop trying").click()
        await expect(page.locator("#send-note")).to_contain_text("Given up")
        await page.unroute("**/chat")
        await button(page, "Send").click()
        await expect(page.locator("#sent > li")).to_have_count(1)
    assert await chat.texts("bob") == ["once"]


async def test_a_service_that_is_not_available_is_asked_again_and_says_so(
    chat: ChatClient, browser: OpenBrowser
) -> None:
    problem = of_service_error(StoreUnavailable("away"), "stored")

    async def refuse(route: Route) -> None:
        await route.fulfill(
            status=problem.status,
            headers={"Content-Type": "application/problem+json", **problem.headers},
            body=problem.body("abc-1"),
        )

    async with browser() as page:
        await page.goto(chat.base)
        await page.route("**/chat", refuse, times=1)
        await page.get_by_label("To", exact=True).fill("bob")
        await page.get_by_label("Message", exact=True).fill("patience")
        await button(page, "Send").click()
        said = page.locator("#send-note")
        await expect(said).to_contain_text("nothing was stored. (Request abc-1)")
        await expect(said).to_contain_text("tried again in 1 s")
        await expect(page.locator("#sent > li")).to_have_count(1)
        await expect(said).to_be_hidden()
    assert await chat.texts("bob") == ["patience"]


async def test_a_message_with_a_key_is_stored_once_and_the_page_says_so(
    chat: ChatClient, browser: OpenBrowser
) -> None:
    async with browser() as page:
        await page.goto(chat.base)
        await page.get_by_text("Advanced").click()
        await button(page, "Make one").click()
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
        await expect(fault).to_contain_text("another message before")
        await expect(page.get_by_label("Idempotency key")).to_be_focused()
    assert await chat.texts("bob") == ["pay 10"]


async def test_what_is_wrong_is_said_at_its_field_in_the_words_of_the_service(
    chat: ChatClient, browser: OpenBrowser
) -> None:
    async with browser() as page:
        await page.goto(chat.base)
        to = page.get_by_label("To", exact=True)
        await page.get_by_label("Message", exact=True).fill("hi")
        await page.get_by_label("Other", exact=True).check()
        await page.get_by_label("Seconds").fill("soon")
        await button(page, "Send").click()
        await expect(to).to_be_focused()
        await expect(to).to_have_accessible_description(
            "Any name. Its inbox is there as soon as you write to it. "
            "Must have 1 to 128 characters."
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
        await page.get_by_label("Whose inbox").fill("x" * 129)
        await button(page, "Open").click()
        await expect(page.locator("#whose-fault")).to_contain_text("1 to 128 characters")


async def test_a_message_is_taken_back_while_it_is_unread(
    chat: ChatClient, browser: OpenBrowser
) -> None:
    async with browser() as page:
        await page.goto(chat.base)
        await send(page, "bob", "oops")
        await button(page, "Take back").click()
        await expect(page.locator("#sent [data-state]")).to_contain_text("taken back at")
        await expect(button(page, "Take back")).to_be_hidden()
    assert await chat.texts("bob") == []


async def test_what_is_read_already_cannot_be_taken_back_and_the_page_says_so(
    chat: ChatClient, browser: OpenBrowser
) -> None:
    async with browser() as page:
        await page.goto(chat.base)
        # The page does not hear that it was read.
        await page.route("**/status", lambda route: route.abort("timedout"))
        await page.route("**/livez", lambda route: route.abort())
        await send(page, "bob", "oops")
        assert await chat.texts("bob") == ["oops"]
        await button(page, "Take back").click()
        await expect(page.get_by_text("Too late: it is read.").first).to_be_visible()


async def test_receipts_survive_a_reload_and_neither_text_nor_name_is_kept(
    chat: ChatClient, browser: OpenBrowser
) -> None:
    async with browser() as page:
        await page.goto(chat.base)
        await send(page, "somebody", "confidential")
        await page.reload()
        state = page.locator("#sent [data-state]")
        await expect(state).to_have_text("pending")
        kept = await page.evaluate("JSON.stringify({...sessionStorage, ...localStorage})")
        assert "confidential" not in kept
        assert "somebody" not in kept
        assert await chat.texts("somebody") == ["confidential"]
        await expect(state).to_contain_text("read at")


async def test_a_browser_that_keeps_nothing_can_use_the_page(
    chat: ChatClient, browser: OpenBrowser
) -> None:
    async with browser() as page:
        await page.add_init_script(
            "Object.defineProperty(window, 'sessionStorage', {get() { throw new Error('no'); }})"
        )
        await page.goto(chat.base)
        await send(page, "bob", "hi")
        await page.locator("#sent a").click()
        await button(page, "Read").click()
        await expect(read_here(page)).to_have_text(["hi"])


async def test_a_message_that_nobody_reads_runs_down_and_expires(
    chat: ChatClient, browser: OpenBrowser
) -> None:
    async with browser() as page:
        await page.goto(chat.base)
        await page.get_by_label("Other", exact=True).check()
        await page.get_by_label("Seconds").fill("1")
        await send(page, "bob", "quick")
        await expect(page.locator("#sent [data-state]")).to_contain_text("expired at")


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


async def test_a_page_without_a_connection_says_so_and_goes_on_when_it_is_back(
    chat: ChatClient, browser: OpenBrowser
) -> None:
    async with browser() as page:
        await open_inbox(page, chat.base, "bob", 0)
        await page.context.set_offline(True)
        banner = page.locator("#connection")
        await expect(banner).to_be_visible()
        await expect(page.get_by_role("status")).to_contain_text(
            "The connection to the service is lost"
        )
        await page.get_by_label("To", exact=True).fill("bob")
        await page.get_by_label("Message", exact=True).fill("later")
        await button(page, "Send").click()
        await expect(page.locator("#send-note")).to_contain_text("No answer from the service")
        await expect(button(page, "Stop trying")).to_be_visible()
        await page.context.set_offline(False)
        await expect(banner).to_be_hidden()
        await expect(page.locator("#sent > li")).to_have_count(1)
        await expect(page.locator("[data-count]")).to_have_text("1")
    assert await chat.texts("bob") == ["later"]


async def test_everything_can_be_done_with_tab_and_enter_alone(
    chat: ChatClient, browser: OpenBrowser
) -> None:
    async with browser() as page:

        async def tab_to(place: Locator) -> None:
            for _ in range(60):
                await page.keyboard.press("Tab")
                if await place.evaluate("element => element === document.activeElement"):
                    return
            raise AssertionError("it cannot be reached")

        await page.goto(chat.base)
        await page.keyboard.press("Tab")
        await expect(page.get_by_role("link", name="Skip to the content")).to_be_in_viewport()
        await page.keyboard.press("Enter")
        await tab_to(page.get_by_label("To", exact=True))
        await page.keyboard.type("bob")
        await tab_to(page.get_by_label("Message", exact=True))
        await page.keyboard.type("by hand")
        await tab_to(button(page, "Send"))
        await page.keyboard.press("Enter")
        await expect(page.locator("#sent > li")).to_have_count(1)
        await tab_to(page.locator("#sent a"))
        await page.keyboard.press("Enter")
        await expect(page.locator("[data-count]")).to_have_text("1")
        await tab_to(button(page, "Lease 60 s"))
        await page.keyboard.press("Enter")
        await tab_to(button(page, "Give back: by hand"))
        await page.keyboard.press("Enter")
        # The button is gone, the focus is not lost.
        await expect(button(page, "Read")).to_be_focused()
        await page.keyboard.press("Enter")
        await expect(read_here(page)).to_have_text(["by hand"])


async def test_a_phone_shows_everything_without_scrolling_sideways(
    chat: ChatClient, browser: OpenBrowser
) -> None:
    name = "W" * 128
    async with browser(**PHONE) as page:
        await page.goto(chat.base)
        assert await width(page) == 360
        await page.get_by_text("Advanced").click()
        await send(page, name, "W" * 500)
        await send(page, name, "i")
        await page.locator("#sent a").first.click()
        await button(page, "Lease 60 s").click()
        await button(page, "Give back: i").click()
        await button(page, "Read").click()
        await expect(read_here(page)).to_have_text(["i"])
        await button(page, "Watch live").click()
        assert await width(page) == 360
        fingers = page.locator(
            "button:visible, input:visible:not([type=checkbox]), nav a, summary:visible"
        )
        for box in [await each.bounding_box() for each in await fingers.all()]:
            assert box is not None
            assert box["height"] >= 44


async def test_at_night_the_page_is_dark(chat: ChatClient, browser: OpenBrowser) -> None:
    async with browser(color_scheme="dark") as page:
        await page.goto(chat.base)
        found = await page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert sum(int(part) for part in found[4:-1].split(",")) < 100


async def test_nothing_moves_for_those_who_want_no_motion(
    chat: ChatClient, browser: OpenBrowser
) -> None:
    async with browser(reduced_motion="reduce") as page:
        await page.goto(chat.base)
        await send(page, "bob", "still")
        moves = """element => {
            const style = getComputedStyle(element);
            return [style.animationName, style.transitionDuration];
        }"""
        for place in ("#sent > li", "#sent .bar i", "#send-button"):
            assert await page.locator(place).evaluate(moves) == ["none", "0s"], place


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_everybody_can_use_the_page_in_each_of_its_states(
    chat: ChatClient, browser: OpenBrowser, check_access: CheckAccess, scheme: str
) -> None:
    async with browser(color_scheme=scheme, reduced_motion="reduce") as page:
        await page.goto(chat.base)
        await check_access(page)
        await page.get_by_text("Advanced").click()
        await page.get_by_label("Other", exact=True).check()
        await page.get_by_label("Seconds").fill("0")
        await button(page, "Send").click()
        await expect(page.locator("#to-fault")).to_be_visible()
        await check_access(page)
        await page.get_by_label("Seconds").fill("600")
        for text in ("one", "two\n" * 100, ""):
            await send(page, "bob", text)
        await button(page, "Take back").first.click()
        await page.locator("#sent a").first.click()
        await expect(page.locator("[data-count]")).to_have_text("2")
        await button(page, "Lease 60 s").click()
        await expect(on_loan(page)).to_have_count(2)
        await check_access(page)
        await button(page, "Acknowledge: one").click()
        await button(page, "Give all back").click()
        await button(page, "Watch live").click()
        await expect(read_here(page)).to_have_count(1)
        await check_access(page)
        await page.context.set_offline(True)
        await expect(page.locator("#connection")).to_be_visible()
        await check_access(page)


async def test_the_page_weighs_little(chat: ChatClient, browser: OpenBrowser) -> None:
    weights: dict[str, int] = {}
    async with browser() as page:
        requests = []
        page.on("requestfinished", lambda request: requests.append(request))
        await page.goto(chat.base, wait_until="networkidle")
        for request in requests:
            weights[request.url] = (await request.sizes())["responseBodySize"]
    assert any(url.endswith(".css") for url in weights)
    assert any(url.endswith(".js") for url in weights)
    assert sum(weights.values()) < WEIGHT_MAX, weights
