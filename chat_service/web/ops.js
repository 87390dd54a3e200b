/* The dashboard: asks for new samples every three seconds and shows the last quarter of an hour or day.

   ops.html has the parts of the page, dashboard.js the contents, measures.js the calculations,
   charts.js the drawing, verdict.js the overall state, and facts.js the facts about the node. A hidden
   page asks nothing. */

import { CHARTS, LOOKS, TILES, isLeader, isUnavailable, workerRestarts } from "./dashboard.js";
import { Chart, element } from "./charts.js";
import { factsOf } from "./facts.js";
import { Feed } from "./feed.js";
import { Stretch } from "./measures.js";
import { refusal, session } from "./session.js";
import { showSession } from "./sign-in.js";
import { tables } from "./tables.js";
import { entryOf, verdictOf, verdictOfSilence } from "./verdict.js";
import { clock, shortClock, span } from "./words.js";

/* Seconds into a slot after which every process has taken its sample; processes check once a second. */
const SETTLED_S = 1.5;
/* Without the right to see the dashboard, the page asks this often, and when another identity uses it. */
const REFUSED_S = 30;
/* The day is asked for at most this often, and after a failure. A first answer has half a megabyte. */
const DAY_EVERY_S = 60;
const DAY_AGAIN_S = 15;
const TIMEOUT_MS = 5000;
const DAY_TIMEOUT_MS = 60_000;
/* A process that took none of this many samples does not run. */
const SILENT_SAMPLES = 4;
/* The period that the page calls now, the same that the service judges. */
const NOW_S = 60;

const find = (id) => document.getElementById(id);
const scrub = find("scrub");

const PERIODS = {
  quarter: { feed: new Feed({}, TIMEOUT_MS), name: "The last 15 minutes" },
  day: { feed: new Feed({ range: "day" }, DAY_TIMEOUT_MS), name: "The last day" },
};
/* The state, the tiles and the facts are always of the present, unlike the charts. */
const present = PERIODS.quarter.feed;
let period = PERIODS.quarter;
/* When the service answered for the last time, by this machine's clock, in seconds since 1970. */
let heard = Date.now() / 1000;
/* When the day is asked for again, by `performance.now`; never while an answer is awaited. */
let dayDue = 0;
/* The selected slot, or null for the last one. The pointer's takes precedence over the slider's. */
let chosen = null;
let pointed = null;
/* The last slot in the charts. */
let last = null;

const charts = CHARTS.map((spec) => ({ spec, chart: new Chart(spec, pointAt) }));
find("charts").append(...charts.map(({ chart }) => chart.node));
const tiles = TILES.map(({ title, unit, read }) => {
  const value = element("b", { class: "number" }, "–");
  const below = element("dd", { class: "small muted number" }, " ");
  const number = element(
    "dd",
    {},
    value,
    ...(unit ? [element("small", { class: "muted" }, unit)] : []),
  );
  const node = element("div", { class: "card tile" }, element("dt", {}, title), number, below);
  find("tiles").append(node);
  return { node, value, below, read };
});

showSession(
  find("access"),
  () => "The dashboard needs a token with the right “ops”. Ask an operator of this service for one.",
);

/** Ask for new samples and show them. Returns the seconds to wait at least. */
async function refresh() {
  const { status, problem, retryAfterS } = await present.refresh();
  if (status === 401 || status === 403) await session.look();
  const why = session.isOn && refusal({ status, kind: problem }, "use the dashboard");
  if (status) find("main").classList.toggle("refused", Boolean(why));
  const isAnswered = status === 200;
  if (isAnswered) {
    heard = Date.now() / 1000;
    showVerdict("Live", verdictOf(present.news.state, silent()));
  } else if (status === 404) {
    showVerdict("Off", about("Off", "The dashboard is disabled on this port."));
  } else if (why) {
    showVerdict("", about(session.isSignedIn ? "No access" : "Signed out", why));
    return REFUSED_S;
  } else if (status === 429) {
    const says = `Too many requests from here. The page continues in ${retryAfterS} s.`;
    showVerdict("Slowed down", about("Slowed down", says));
    return retryAfterS;
  } else {
    const now = Date.now() / 1000;
    const silence = { since: heard, now, isOnline: navigator.onLine, status };
    showVerdict("No answer", verdictOfSilence(silence));
  }
  if (period === PERIODS.day && isAnswered) void refreshDay();
  if (present.news) draw();
  return 0;
}

/** Ask for the day if it is due, and show it. Without an answer, the page keeps what it has and says so.

    The present does not wait for it: on a slow network, a day takes longer than the pause between samples. */
async function refreshDay() {
  if (performance.now() < dayDue) return;
  dayDue = Infinity;
  const { status } = await PERIODS.day.feed.refresh();
  dayDue = performance.now() + (status === 200 ? DAY_EVERY_S : DAY_AGAIN_S) * 1000;
  if (period !== PERIODS.day) return;
  const words = status ? `The service answered with ${status}` : "No answer came in time";
  sayTrouble(status === 200 ? "" : `The day cannot be shown, or is not up to date. ${words}. The page tries again.`);
  if (present.news) draw();
}

function sayTrouble(words) {
  find("trouble").textContent = words;
  find("trouble").hidden = !words;
}

const about = (word, says) => ({ kind: "gone", word, says, conditions: [] });

/** Return the ids of the processes that take no samples any more. */
function silent() {
  const { history, living, now } = present;
  const slot = history.slotOf(now - SETTLED_S);
  const isSilent = ({ rows, started }) =>
    now - started > SILENT_SAMPLES * history.every &&
    !Array.from({ length: SILENT_SAMPLES + 1 }, (_, ago) => rows.has(slot + 1 - ago)).includes(true);
  return living.filter(isSilent).map(({ pid }) => pid);
}

/** Show the overall state, and in `link` whether the page is up to date. A screen reader announces new ones. */
function showVerdict(link, { kind, word, says, conditions }) {
  find("link").textContent = link;
  find("as-of").textContent = present.news ? `as of ${clock(present.news.now)}` : "";
  find("verdict").className = `card verdict ${kind}`;
  find("state").textContent = word;
  find("verdict-says").textContent = says;
  document.title = `${word}: Dashboard · Chat inbox`;
  showConditions(conditions, says);
  // The numbers in the sentences change all the time; they are announced once for each state.
  const names = `${word} ${conditions.map(({ name, runbook }) => name ?? runbook)}`;
  if (find("said").dataset.names === names) return;
  find("said").dataset.names = names;
  find("said").textContent = `${word}. ${says}`;
}

/** Show what is wrong, the worst first and with its next step; the others often follow from it.

    The sentence `told` is not repeated. Links stay, and so does their focus. */
function showConditions(conditions, told) {
  const list = find("conditions");
  while (list.children.length > conditions.length) list.lastChild.remove();
  while (list.children.length < conditions.length) {
    const next = element("p", {}, element("b", {}, "Next: "), element("span", {}));
    list.append(element("li", {}, element("p", { class: "what" }), next, element("a", {})));
  }
  conditions.forEach(({ says = told, next_step: step, runbook }, i) => {
    const [what, next, link] = list.children[i].children;
    what.textContent = says;
    what.hidden = says === told;
    next.lastChild.textContent = step ?? "";
    next.hidden = !step || i > 0;
    link.href = `ops/runbook#${runbook}`;
    link.textContent = runbook ? `Runbook: ${entryOf(runbook)}` : "";
    link.hidden = !runbook;
  });
}

function draw() {
  const { feed, name } = period;
  if (!feed.news) return;
  const { history } = feed;
  last = history.slotOf(feed.now - SETTLED_S);
  const first = last - feed.slots + 1;
  history.forget(first - 2);
  if (chosen !== null && chosen < first) chosen = null;
  const slots = allSlots();
  const { processes } = history;
  const view = {
    first,
    every: history.every,
    period: name.toLowerCase(),
    sampled: slots.map((slot) => processes.some(({ rows }) => rows.has(slot))),
    unavailable: slots.map((slot) => isUnavailable(history, slot, processes)),
    starts: processes.map(({ started }) => started),
  };
  find("each").textContent = period === PERIODS.day ? "Each run" : "Each process";
  for (const { spec, chart } of charts) {
    const unit = (isEach() && spec.eachUnit) || spec.unit;
    const stacked = Boolean(spec.stacked) && !isEach();
    chart.draw({ ...view, unit, stacked, threshold: thresholdOf(spec), lines: linesOf(spec, slots) });
  }
  showFacts();
  drawTables();
  scrub.max = feed.slots - 1;
  scrub.value = chosen === null ? feed.slots - 1 : chosen - first;
  point();
}

/** Return the threshold of a chart, with a link to what to do above it, or null. */
function thresholdOf({ threshold }) {
  const { value, runbook } = present.news.thresholds?.[threshold] ?? {};
  if (!(value > 0)) return null;
  return { value, href: `ops/runbook#${runbook}`, says: `runbook: ${entryOf(runbook)}` };
}

/** Return the lines of a chart with their values: for all processes together, or one for each. */
function linesOf({ lines, each }, slots) {
  const { history } = period.feed;
  const line = (name, look, measure, chosenOnes) => ({
    name,
    look,
    values: slots.map((slot) => measure(history, slot, chosenOnes(history))),
    now: lately(measure, chosenOnes(present.history)),
  });
  if (isEach()) {
    return history.processes.map(({ pid, started, number }) => {
      const one = ({ processes }) => processes.filter((other) => other.pid === pid && other.started === started);
      // A day has the runs of the node, each with all its processes.
      const name = period === PERIODS.day ? `since ${shortClock(started)}` : `process ${pid}`;
      return line(name, LOOKS[number % LOOKS.length], each, one);
    });
  }
  const chosenLines = typeof lines === "function" ? lines(history) : lines;
  return chosenLines.map(({ name, look, measure }) => line(name, look, measure, ({ processes }) => processes));
}

/** Return a measure over the last minute, which is what the page calls now. */
function lately(measure, processes) {
  const { history, now } = present;
  const minute = new Stretch(history, Math.round(NOW_S / history.every));
  return measure(minute, history.slotOf(now - SETTLED_S), processes);
}

/** Show the numbers of the selected moment, or those of the last minute. */
function drawTiles() {
  const selected = pointed ?? chosen;
  const then = period.feed.history;
  const of =
    selected === null
      ? (measure) => lately(measure, present.history.processes)
      : (measure) => measure(then, selected, then.processes);
  const above = (name, value) => value > (present.news.thresholds?.[name]?.value ?? Infinity);
  for (const { node, value, below, read } of tiles) {
    const shown = read(of, above);
    value.textContent = shown.value;
    below.textContent = shown.below;
    node.className = `card tile ${shown.kind}`;
  }
}

function showFacts() {
  const { living, news } = present;
  const counted = {
    isLeading: lately(isLeader, living),
    workerRestarts: lately(workerRestarts, living),
  };
  const pairs = factsOf({ ...news, processes: living }, counted);
  find("facts").replaceChildren(
    ...pairs.map(([term, text]) =>
      element("div", {}, element("dt", { class: "muted" }, term), element("dd", { class: "number" }, text)),
    ),
  );
}

function drawTables() {
  if (!find("numbers").open) return;
  const slots = allSlots();
  const shown = charts.map(({ spec }) => ({ ...spec, lines: linesOf(spec, slots) }));
  find("numbers")
    .querySelector(".tables")
    .replaceChildren(...tables(period.feed.history, slots, shown, period.name));
}

function allSlots() {
  const { slots } = period.feed;
  return Array.from({ length: slots }, (_, i) => last - slots + 1 + i);
}

function isEach() {
  return document.querySelector("[name=view]:checked").value === "each";
}

/** Select a slot with the pointer; null ends that selection. */
function pointAt(slot) {
  pointed = slot;
  requestAnimationFrame(point);
}

/** Show the selected slot in every chart, and its time. */
function point() {
  if (!period.feed.news) return;
  const slot = pointed ?? chosen;
  for (const { chart } of charts) chart.point(slot);
  drawTiles();
  const { every } = period.feed.history;
  const at = slot * every;
  const when = every < 60 ? clock(at) : shortClock(at);
  const words = slot === null ? "now" : `${when}, ${span((last - slot) * every)} ago`;
  find("when").textContent = words;
  find("moment").textContent = slot === null ? "The last minute" : `At ${when}`;
  scrub.setAttribute("aria-valuetext", words);
}

scrub.addEventListener("input", () => {
  if (!period.feed.news) return;
  const at = Number(scrub.value);
  const end = period.feed.slots - 1;
  chosen = at === end ? null : last - end + at;
  point();
});
for (const choice of document.querySelectorAll("[name=view]")) {
  choice.addEventListener("change", () => present.news && draw());
}
for (const choice of document.querySelectorAll("[name=period]")) {
  choice.addEventListener("change", () => {
    period = PERIODS[choice.value];
    chosen = pointed = null;
    sayTrouble("");
    if (period === PERIODS.day) void refreshDay();
    if (present.news) draw();
  });
}
find("numbers").addEventListener("toggle", () => present.news && drawTables());

/** Wait until every process has taken its next sample, `least` seconds are over, and the page is visible. */
async function pause(least) {
  const { every } = present.history;
  const into = present.news ? (present.now - SETTLED_S - 0.1) % every : 0;
  await new Promise((resolve) => {
    setTimeout(resolve, Math.max(every - into, least) * 1000);
    if (least === REFUSED_S) session.addEventListener("change", resolve, { once: true });
  });
  if (document.hidden) {
    find("link").textContent = "Paused";
    await new Promise((resolve) =>
      document.addEventListener("visibilitychange", resolve, { once: true }),
    );
  }
}

session.watch();
for (;;) await pause(await refresh());
