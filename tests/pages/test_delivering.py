"""Sending with a delay in the web UI: scheduled messages, their times, and time zones."""

import json
import re
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import urlsplit
from zoneinfo import ZoneInfo

import pytest
from playwright.async_api import Page, Route, expect

from tests.pages.conftest import CheckAccess, OpenBrowser
from tests.pages.inbox import PHONE, button, lose, send, width
from tests.support.client import ChatClient

BERLIN = ZoneInfo("Europe/Berlin")


async def posted_by(page: Page) -> list[Any]:
    """Return a list that gets the body of every message that the page sends from now on."""
    bodies: list[Any] = []

    def keep(request: Any) -> None:
        if request.method == "POST" and urlsplit(request.url).path == "/chat":
            bodies.append(json.loads(request.post_data))

    page.on("request", keep)
    return bodies


async def choose(page: Page, name: str) -> None:
    """Choose when to deliver."""
    await page.get_by_role("group", name="Deliver").get_by_label(name, exact=True).check()


async def test_a_scheduled_message_shows_its_time_and_arrives(
    chat: ChatClient, browser: OpenBrowser
) -> None:
    async with browser() as page:
        await page.goto(chat.base)
        bodies = await posted_by(page)
        await choose(page, "In …")
        await page.get_by_label("Unit").select_option("seconds")
        await page.locator("#after").fill("3.5")
        await expect(page.locator("#delay-hint")).to_contain_text("expires begins then")
        await send(page, "bob", "later")
        assert bodies[0]["delay"] == 3.5
        state = page.locator("#sent [data-state]")
        await expect(state).to_contain_text("scheduled for")
        await expect(page.locator("#sent [data-left]")).to_contain_text("delivered in")
        await expect(page.locator("#sent [data-age]")).to_contain_text("just now")
        # The next message is not scheduled unless that is chosen again.
        await send(page, "bob", "now")
        assert "delay" not in bodies[1]
        assert await chat.texts("bob") == ["now"]
        await expect(state.last).to_have_text("pending")
        await expect(page.locator("#sent [data-left]").last).to_contain_text("left")
        assert await chat.texts("bob") == ["later"]


async def test_a_scheduled_message_is_revoked_after_a_reload(
    chat: ChatClient, browser: OpenBrowser
) -> None:
    async with browser() as page:
        await page.goto(chat.base)
        await choose(page, "In …")
        await send(page, "bob", "never")
        await expect(page.locator("#sent [data-state]")).to_contain_text("scheduled for")
        await page.reload()
        await expect(page.locator("#sent [data-state]")).to_contain_text("scheduled for")
        await expect(page.locator("#sent [data-left]")).to_contain_text("delivered in 9 min")
        await expect(page.locator("#sent [data-age]")).to_have_text("just now")
        await button(page, "Revoke").click()
        await expect(page.locator("#sent [data-state]")).to_contain_text("revoked at")


async def test_a_chosen_time_is_that_of_the_device(chat: ChatClient, browser: OpenBrowser) -> None:
    chosen = datetime.now(BERLIN).replace(hour=9, minute=30) + timedelta(days=2)
    async with browser(timezone_id="Europe/Berlin") as page:
        await page.goto(chat.base)
        bodies = await posted_by(page)
        await choose(page, "At …")
        # Some time that has a chance to be meant.
        assert await page.locator("#at").input_value() > datetime.now(BERLIN).isoformat()[:16]
        await page.locator("#at").fill(f"{chosen:%Y-%m-%dT%H:%M}")
        hint = page.locator("#delay-hint")
        offset = int((chosen.utcoffset() or timedelta()) / timedelta(hours=1))
        await expect(hint).to_contain_text(f"09:30 GMT+{offset}, the time of this device")
        await expect(hint).to_contain_text(re.compile(r"\(Europe/Berlin\): in (1 day|2 days)"))
        await send(page, "bob", "good morning")
        due = datetime.now(UTC) + timedelta(seconds=bodies[0]["delay"])
        assert abs(due - chosen.replace(second=0, microsecond=0)) < timedelta(minutes=2)
        await expect(page.locator("#sent [data-state]")).to_contain_text("09:30:00")


#: Local times of Berlin that do not exist, or exist twice, and what the page says about them.
UNUSUAL = {
    "2027-03-28T02:30": "28 Mar 2027, 03:30 GMT+2",
    "2027-10-31T02:30": "31 Oct 2027, 02:30 GMT+2",
}


@pytest.mark.parametrize("written", UNUSUAL)
async def test_a_time_that_clocks_skip_or_repeat_is_named(
    chat: ChatClient, browser: OpenBrowser, written: str
) -> None:
    async with browser(timezone_id="Europe/Berlin") as page:
        await page.goto(chat.base)
        await choose(page, "At …")
        await page.locator("#at").fill(written)
        await expect(page.locator("#delay-hint")).to_contain_text(UNUSUAL[written])


async def test_a_bad_delay_shows_its_error(
    chat: ChatClient, browser: OpenBrowser, check_access: CheckAccess
) -> None:
    async with browser() as page:
        await page.goto(chat.base)
        await page.get_by_label("To", exact=True).fill("bob")
        await page.get_by_label("Message", exact=True).fill("hi")
        fault = page.locator("#delay-fault")
        await choose(page, "In …")
        for wrong in ("", "soon", "-1", "99999"):
            await page.locator("#after").fill(wrong)
            await page.get_by_label("Unit").select_option("days")
            await button(page, "Send").click()
            await expect(fault).to_be_visible()
            await expect(page.locator("#after")).to_be_focused()
        await choose(page, "At …")
        await page.locator("#at").fill("2020-01-01T00:00")
        await button(page, "Send").click()
        await expect(fault).to_have_text("Is in the past.")
        await expect(page.locator("#at")).to_be_focused()
        await check_access(page)
        await page.locator("#at").fill("")
        await button(page, "Send").click()
        await expect(fault).to_contain_text("Must be")
    assert await chat.texts("bob") == []


async def test_a_lost_answer_schedules_one_message(chat: ChatClient, browser: OpenBrowser) -> None:
    async with browser() as page:
        await page.goto(chat.base)
        bodies = await posted_by(page)
        await choose(page, "At …")
        await page.route("**/chat", lose, times=1)
        await send(page, "bob", "once")
        await expect(page.locator("#sent [data-state]")).to_contain_text("scheduled for")
        # The service may have stored the first one, so its delay is repeated.
        assert bodies[0] == bodies[1]
        await expect(page.locator("#sent > li")).to_have_count(1)


async def test_a_refused_post_keeps_the_chosen_time(chat: ChatClient, browser: OpenBrowser) -> None:
    async def refuse(route: Route) -> None:
        headers = {"Content-Type": "application/problem+json", "Retry-After": "1"}
        await route.fulfill(status=503, headers=headers, body='{"stored": false}')

    async with browser() as page:
        await page.goto(chat.base)
        bodies = await posted_by(page)
        await choose(page, "At …")
        await page.route("**/chat", refuse, times=1)
        await send(page, "bob", "on time")
        await expect(page.locator("#sent > li")).to_have_count(1)
        # Nothing was stored, and a second has passed.
        assert bodies[1]["delay"] < bodies[0]["delay"]


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_scheduling_is_accessible_on_a_phone(
    chat: ChatClient, browser: OpenBrowser, check_access: CheckAccess, scheme: str
) -> None:
    async with browser(**PHONE, color_scheme=scheme, reduced_motion="reduce") as page:
        await page.goto(chat.base)
        for name in ("In …", "At …"):
            await choose(page, name)
            await expect(page.locator("#delay-hint")).to_be_visible()
            await check_access(page)
            assert await width(page) == 360
            fingers = page.locator("input:visible:not([type=checkbox]), select:visible")
            for box in [await each.bounding_box() for each in await fingers.all()]:
                assert box is not None
                assert box["height"] >= 44
        await send(page, "bob", "later")
        await expect(page.locator("#sent [data-state]")).to_contain_text("scheduled for")
        await check_access(page)
