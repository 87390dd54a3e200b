"""The dashboard at `/ops` in a browser."""

import asyncio
import json
import re
import socket
from typing import Any

import pytest
from playwright.async_api import Page, Route, expect

from chat_service.service import Service
from tests.conftest import StartService
from tests.pages.access import Tokens, panel, sign_in
from tests.pages.conftest import CheckAccess, OpenBrowser, both_browsers
from tests.pages.dashboard import SOON, chart, fact, tile
from tests.pages.inbox import button
from tests.support.client import ChatClient
from tests.support.waiting import eventually

#: What the page says without an answer: since when, and for how long.
SILENCE = re.compile(
    r"No answer\s+The service does not answer this page since \d\d:\d\d:\d\d, for \d+ s\."
)

#: The lowest point of all lines in all charts, in pixels above the axis.
LOWEST = """() => Math.min(...[...document.querySelectorAll("figure > svg")].flatMap((svg) => {
    const axis = svg.querySelector(".ground").getBoundingClientRect().bottom;
    return [...svg.querySelectorAll(".plot .line")]
        .filter((line) => line.getAttribute("d"))
        .map((line) => axis + 1 - line.getBoundingClientRect().bottom);
}))"""


async def most(page: Page, title: str, name: str) -> float:
    """Return the highest value of a line in a chart, from the summary of the chart."""
    summary = await chart(page, title).get_by_role("img").get_attribute("aria-label") or ""
    found = re.search(rf"{name}: now \S+, from \S+ to ([0-9.,]+)", summary)
    return float(found[1].replace(",", "")) if found else 0.0


async def test_new_traffic_appears(chat: ChatClient, browser: OpenBrowser) -> None:
    async with browser() as page:
        await page.goto(f"{chat.base}/ops")
        await expect(page.locator("#link")).to_have_text("Live")
        assert await most(page, "Messages", "accepted") == 0
        for number in range(30):
            await chat.post("bob", str(number))

        async def is_seen() -> bool:
            return await most(page, "Messages", "accepted") > 0

        await eventually(is_seen, 20)
        assert await most(page, "Messages", "read") == 0
        assert await chat.texts("bob") == [str(number) for number in range(30)]

        async def is_updated() -> bool:
            return await most(page, "Messages", "read") > 0

        await eventually(is_updated, 20)
        assert await most(page, "Requests", "ok") > 0
        await expect(chart(page, "Latency").get_by_role("img")).to_have_attribute(
            "aria-label", re.compile("p99: now .*(ms|µs|s), from")
        )
        await expect(tile(page, "Database")).to_contain_text(re.compile("up|slow"))


async def test_earlier_samples_appear_at_once(
    service: Service,
    chat: ChatClient,
    browser: OpenBrowser,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Ten minutes with one post every three seconds.
    times = [service._history._own.started - 600 + 3 * number for number in range(200)]
    sample = service._history.sample
    with monkeypatch.context() as patch:
        # The service's own samples would interfere.
        patch.setattr(service._history, "sample", lambda now: None)
        for time in times:
            await chat.post("bob", "x")
            sample(time)
    async with browser() as page:
        await page.goto(f"{chat.base}/ops")
        await expect(page.locator("#link")).to_have_text("Live")
        assert await most(page, "Messages", "accepted") >= 0.3
        # Before that, there is nothing, which must not look like zero.
        gap = chart(page, "Messages").locator(".plot text.gap").first
        await expect(gap).to_contain_text("no samples")
        line = chart(page, "Messages").locator(".plot .line.n1")
        whole = await chart(page, "Messages").get_by_role("img").bounding_box()
        assert whole is not None
        half = whole["width"] / 2

        async def is_wide() -> bool:
            # There is no box while the page draws the line again.
            box = await line.bounding_box()
            return box is not None and box["width"] > half

        await eventually(is_wide)


async def test_an_outage_of_the_service_is_shown(
    service: Service,
    chat: ChatClient,
    start_service: StartService,
    browser: OpenBrowser,
) -> None:
    for number in range(40):
        await chat.post("bob", str(number))
    async with browser() as page:
        await page.goto(f"{chat.base}/ops")
        link, verdict = page.locator("#link"), page.locator("#verdict")
        await expect(link).to_have_text("Live")
        await eventually_sampled(page)
        await service.stop()
        await expect(link).to_have_text("No answer", timeout=SOON)
        await expect(verdict.get_by_role("heading")).to_have_text(SILENCE)
        await expect(verdict).to_contain_text("Next: Request /livez")
        await expect(page.get_by_role("status")).to_contain_text("does not answer this page")
        again = await start_service(port=service.port)
        await expect(link).to_have_text("Live", timeout=SOON)
        await expect(verdict).not_to_contain_text("No answer")
        # Its counters began at zero, which must not look like negative traffic.
        await expect(fact(page, "Processes")).to_contain_text(str(again._history._own.pid))
        await again_sampled(page)
        assert await page.evaluate(LOWEST) >= 0


async def test_the_node_that_leads_is_named(
    service: Service, start_service: StartService, browser: OpenBrowser
) -> None:
    other = await start_service()
    leader = service._pool.leader
    assert leader
    async with browser() as page:
        await page.goto(f"http://127.0.0.1:{service.port}/ops")
        named = fact(page, "Leader")
        await expect(named).to_have_text(f"{leader} (this node)", timeout=SOON)
        await page.goto(f"http://127.0.0.1:{other.port}/ops")
        await expect(named).to_have_text(leader, timeout=SOON)


async def eventually_sampled(page: Page) -> None:
    """Wait until the dashboard has a rate for the first process."""

    async def is_there() -> bool:
        return "nothing" not in await summary(page)

    await eventually(is_there, 20)


async def again_sampled(page: Page) -> None:
    """Wait until the current process has a rate as well."""

    async def is_there() -> bool:
        return "now nothing" not in await summary(page)

    await eventually(is_there, 20)


async def summary(page: Page) -> str:
    """Return the summary of the chart of messages."""
    return await chart(page, "Messages").get_by_role("img").get_attribute("aria-label") or ""


async def test_each_process_can_be_shown_separately(
    service: Service, chat: ChatClient, browser: OpenBrowser
) -> None:
    pid = service._history._own.pid
    await chat.post("bob", "x")
    async with browser() as page:
        await page.goto(f"{chat.base}/ops")
        await eventually_sampled(page)
        await page.get_by_role("radio", name="Each process").focus()
        await page.keyboard.press("Space")
        for title in ("Requests", "Latency", "Queued"):
            await expect(chart(page, title).locator(".legend li")).to_have_count(1)
            await expect(chart(page, title)).to_contain_text(f"process {pid}")


async def test_the_keyboard_selects_a_moment_in_all_charts(
    service: Service, chat: ChatClient, browser: OpenBrowser
) -> None:
    start = service._history._own.started
    for number in range(-40, 0):
        await chat.post("bob", "x")
        service._history.sample(start + 3 * number)
    async with browser() as page:
        await page.goto(f"{chat.base}/ops")
        await eventually_sampled(page)
        slider = page.get_by_role("slider", name="Time shown")
        assert await slider.get_attribute("aria-valuetext") == "now"
        await slider.focus()
        for _ in range(10):
            await page.keyboard.press("ArrowLeft")
        await expect(slider).to_have_attribute("aria-valuetext", re.compile(r", 3\d s ago$"))
        assert await page.locator("figure .hair").count() == await page.locator("figure").count()
        legend = chart(page, "Messages").locator(".legend li", has_text="accepted")
        await expect(legend).to_have_text("accepted 0.33")
        await page.keyboard.press("End")
        await expect(page.locator("figure .hair")).to_have_count(0)


async def test_a_hidden_dashboard_sends_no_requests(chat: ChatClient, browser: OpenBrowser) -> None:
    async with browser() as page:
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        await page.goto(f"{chat.base}/ops")
        await expect(page.locator("#link")).to_have_text("Live")
        await page.evaluate(HIDE, True)
        await expect(page.locator("#link")).to_have_text("Paused")
        before = len(asked)
        for number in range(20):
            await chat.post("bob", str(number))
        assert len(asked) == before
        await page.evaluate(HIDE, False)
        await expect(page.locator("#link")).to_have_text("Live")
        assert len(asked) == before + 1

        async def is_seen() -> bool:
            return await most(page, "Messages", "accepted") > 0

        await eventually(is_seen, 20)


#: What a browser does when another tab is selected.
HIDE = """(hidden) => {
    Object.defineProperty(document, "hidden", { value: hidden, configurable: true });
    document.dispatchEvent(new Event("visibilitychange"));
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 320])
async def test_it_is_accessible_on_every_screen(
    chat: ChatClient, browser: OpenBrowser, check_access: CheckAccess, scheme: str, width: int
) -> None:
    size: dict[str, Any] = {"viewport": {"width": width, "height": 800}, "color_scheme": scheme}
    await asyncio.gather(*(chat.post("bob", "x" * 100) for _ in range(100)))
    async with browser(**size) as page:
        await page.goto(f"{chat.base}/ops")
        await eventually_sampled(page)
        await page.get_by_text("Show the numbers").click()
        await expect(page.get_by_role("rowheader", name="Messages: accepted")).to_be_visible()
        await check_access(page)
        assert await page.evaluate("document.documentElement.scrollWidth") == width


async def test_it_needs_the_right_ops(
    guarded: ChatClient, tokens: Tokens, browser: OpenBrowser
) -> None:
    operator, worker = tokens.add("operator", ops=True), tokens.add("worker", send=["*"])
    async with browser() as page:
        await page.goto(f"{guarded.base}/ops")
        status = page.locator("#verdict")
        await expect(status).to_contain_text("Sign in to use the dashboard.")
        await expect(panel(page)).to_contain_text("a token with the right “ops”")
        await sign_in(page, worker, "worker")
        await expect(status).to_contain_text("worker, who may not use the dashboard.")
        await expect(page.locator("figure").first).to_be_hidden()
        await button(page, "Sign out").click()
        await sign_in(page, operator, "operator")
        await expect(page.locator("#link")).to_have_text("Live", timeout=SOON)
        await expect(page.locator("figure").first).to_be_visible()
        await eventually_sampled(page)


async def test_operators_sign_in_on_their_own_port(
    tokens: Tokens, start_service: StartService, browser: OpenBrowser
) -> None:
    operator = tokens.add("operator", ops=True)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    await start_service(ops_port=port, access="tokens", access_file=str(tokens.path))
    async with browser() as page:
        await page.goto(f"http://127.0.0.1:{port}/ops")
        await sign_in(page, operator, "operator")
        await expect(page.locator("#link")).to_have_text("Live", timeout=SOON)


async def test_a_revoked_operator_sees_nothing_more(
    guarded: ChatClient, tokens: Tokens, browser: OpenBrowser
) -> None:
    operator = tokens.add("operator", ops=True)
    async with browser() as page:
        await page.goto(f"{guarded.base}/ops")
        await sign_in(page, operator, "operator")
        await expect(page.locator("#link")).to_have_text("Live", timeout=SOON)
        tokens.remove("operator")
        alert = panel(page).get_by_role("alert")
        await expect(alert).to_contain_text("Your session has ended", timeout=SOON)
        await expect(page.locator(".tile").first).to_be_hidden()
        await expect(page.locator("figure").first).to_be_hidden()


#: Two processes: one restarts between its samples, the other has a gap in its samples.
MEASURES = """async () => {
    const { History, mean, percentile, rate } = await import("/assets/measures.js");
    const series = ["n_total", "s_sum", "s_count", 's_bucket{le="1.0"}', 's_bucket{le="2.0"}'];
    const history = new History();
    const answer = (processes) => history.add({ every: 3, series, processes });
    answer([
        { pid: 1, started: 1, samples: [[30, 90, 0, 0, 0, 0], [33, 120, 15, 10, 5, 10]] },
        { pid: 2, started: 1, samples: [[31, 5, 0, 0, 0, 0], [34, 8, 6, 2, 0, 0]] },
    ]);
    answer([
        { pid: 1, started: 35, samples: [[36, 0, 0, 0, 0, 0], [39, 6, 0, 0, 0, 0]] },
        { pid: 2, started: 1, samples: [[34, 8, 6, 2, 0, 0], [46, 20, 6, 2, 0, 0]] },
    ]);
    const measured = (measure, slot) => measure(history, slot, history.processes);
    return {
        rates: [10, 11, 12, 13, 14, 15].map((slot) => measured(rate("n_total"), slot)),
        mean: measured(mean("s"), 11),
        percentiles: [0.25, 0.5, 0.99].map((share) => measured(percentile(share, "s"), 11)),
        none: measured(percentile(0.5, "s"), 13),
    };
}"""


async def test_rates_and_percentiles_match_the_counters(
    chat: ChatClient, browser: OpenBrowser
) -> None:
    async with browser() as page:
        await page.goto(f"{chat.base}/ops")
        found = await page.evaluate(MEASURES)
    nan = pytest.approx(float("nan"), nan_ok=True)
    # 30 and 3 in three seconds; then one has just started and the other has no samples.
    assert found["rates"] == [nan, 11, nan, 2, nan, nan]
    assert found["mean"] == 21 / 12
    # Five of twelve values are up to 1, five more up to 2, and two above all bounds.
    assert found["percentiles"] == [0.6, 1.2, 2]
    assert found["none"] == nan


AXES = """async () => {
    const { linearAxis, logAxis, shareAxis } = await import("/assets/axes.js");
    const spike = (usual, most) => [...Array(299).fill(usual), most];
    const log = logAxis(spike(0.01, 4), 0.5);
    const linear = linearAxis(spike(50, 4000));
    const shares = shareAxis([0, 0.0002], 0.01);
    return {
        log: [log.place(0), log.place(0.01), log.place(0.5), log.place(4), log.top],
        linear: [linear.place(50), linear.place(4000), linear.top],
        few: linearAxis([1, 1, 4000]).top,
        near: linearAxis([9000], 10000).top,
        far: linearAxis([9], 10000).top,
        shares: [shares.place(0), shares.place(0.0002), shares.place(0.01), shares.top],
        all: shareAxis([1], 0.01).top,
    };
}"""


async def test_one_spike_flattens_no_axis(chat: ChatClient, browser: OpenBrowser) -> None:
    async with browser() as page:
        await page.goto(f"{chat.base}/ops")
        found = await page.evaluate(AXES)
    zero, usual, threshold, spike, top = found["log"]
    assert zero == 0 < 0.1 < usual < threshold < spike < 1
    assert top == 10
    usual, spike, top = found["linear"]
    assert 0.4 < usual < spike == 1
    assert top < 4000
    # Nothing tells what is usual. Then nothing is cut off.
    assert found["few"] >= 4000
    assert found["near"] > 10_000
    assert found["far"] < 100
    none, few, threshold, top = found["shares"]
    assert none == 0 < few < threshold < 1
    assert found["all"] == 1


VERDICTS = """async () => {
    const { verdictOf, verdictOfSilence } = await import("/assets/verdict.js");
    const { factsOf } = await import("/assets/facts.js");
    const state = (severity) => ({ severity, says: severity, conditions: [] });
    const silence = (more) => verdictOfSilence({ since: 100, now: 292, isOnline: true, ...more });
    return {
        kinds: ["ok", "recovering", "degraded", "failing", "down", "new"].map(
            (each) => verdictOf(state(each), []).kind,
        ),
        unknown: verdictOf(null, []).word,
        hung: verdictOf(state("ok"), [7]),
        hungWhileDown: verdictOf(state("down"), [7]),
        silent: silence({ status: 0 }),
        failed: silence({ status: 500 }).says,
        offline: silence({ isOnline: false }).word,
        facts: factsOf({ node: null, leader: "", restarts: 0, processes: [{ pid: 7 }] }, {}),
    };
}"""


async def test_what_is_unknown_is_neither_good_nor_a_number(
    chat: ChatClient, browser: OpenBrowser
) -> None:
    async with browser() as page:
        await page.goto(f"{chat.base}/ops")
        found = await page.evaluate(VERDICTS)
    assert found["kinds"] == ["good", "pending", "pending", "bad", "bad", "gone"]
    assert found["unknown"] == "Unknown"
    hung = found["hung"]
    assert (hung["kind"], hung["says"]) == ("pending", "Process 7 does not respond.")
    assert found["hungWhileDown"]["says"] == "down"
    assert len(found["hungWhileDown"]["conditions"]) == 1
    assert found["silent"]["kind"] == "bad"
    assert found["silent"]["says"].endswith(", for 3 min 12 s.")
    assert "answers this page with 500 since" in found["failed"]
    assert found["offline"] == "Offline"
    dash = "\N{EN DASH}"
    known = {term: text for term, text in found["facts"] if text != dash}
    assert known == {"Processes": "1 (7)"}


async def test_a_day_is_shown_with_its_restarts(chat: ChatClient, browser: OpenBrowser) -> None:
    async def recorded(route: Route) -> None:
        """Answer with two runs of the node: the second one began an hour ago."""
        document = json.loads((await chat.request("GET", "/ops/history")).body)
        now, series = document["now"], document["series"]
        posts = series.index("chat_messages_accepted_total")

        def run(pid: int, begin: float, end: float) -> dict[str, Any]:
            samples: list[list[float | None]] = []
            for number in range(int((end - begin) // 120)):
                row: list[float | None] = [begin + number * 120, *[0.0] * len(series)]
                row[posts + 1] = number * 240.0
                samples.append(row)
            return {"pid": pid, "started": begin, "samples": samples}

        runs = [run(1, now - 80_000, now - 7200), run(2, now - 3600, now)]
        changed = {**document, "every": 120, "span": 86_400, "processes": runs}
        await route.fulfill(body=json.dumps(changed), content_type="application/json")

    async with browser() as page:
        await page.route("**/ops/history?range=day*", recorded)
        await page.goto(f"{chat.base}/ops")
        await expect(page.locator("#link")).to_have_text("Live")
        await page.get_by_role("radio", name="1 day").check()
        image = chart(page, "Messages").get_by_role("img")
        await expect(image).to_have_attribute(
            "aria-label", re.compile(r"the last day. accepted: now \S+, from 2 to 2;")
        )
        await expect(image).to_have_attribute(
            "aria-label", re.compile(r"; no samples [0-9:]{5}.[0-9:]{5}\.")
        )
        await expect(chart(page, "Messages").locator(".plot rect.gap")).to_have_count(2)
        await expect(chart(page, "Messages").locator(".plot .start")).to_have_count(2)
        await expect(page.get_by_role("slider")).to_have_attribute("max", "719")
        await page.get_by_role("radio", name="Each run").check()
        await expect(chart(page, "Messages").locator(".legend li")).to_have_count(2)
        # What is now does not depend on the period.
        await expect(page.locator("#state")).to_have_text("OK")
        await page.get_by_role("radio", name="15 minutes").check()
        await expect(image).to_have_attribute("aria-label", re.compile("the last 15 minutes"))


@both_browsers
async def test_the_dashboard_of_a_real_day_opens(chat: ChatClient, browser: OpenBrowser) -> None:
    async with browser() as page:
        await page.goto(f"{chat.base}/ops")
        await expect(page.locator("#state")).to_have_text("OK", timeout=SOON)
        async with page.expect_response("**/ops/history?range=day*") as answer:
            await page.get_by_role("radio", name="1 day").check()
        assert (await answer.value).ok
        await expect(page.locator("#trouble")).to_be_hidden()
        await expect(chart(page, "Latency").get_by_role("img")).to_have_attribute(
            "aria-label", re.compile("the last day")
        )
