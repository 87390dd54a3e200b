/* The dashboard: asks for new samples every three seconds and shows the last quarter of an hour.

   ops.html has the parts of the page, dashboard.js the contents, measures.js the calculations, and
   charts.js the drawing. A hidden page asks nothing. */

import { CHARTS, COLORS, TILES, isLeader, isUnavailable, workerRestarts } from "./dashboard.js";
import { Chart, element } from "./charts.js";
import { History } from "./measures.js";
import { refusal, session } from "./session.js";
import { showSession } from "./sign-in.js";
import { tables } from "./tables.js";
import { clock } from "./words.js";

const SLOTS = 300;
/* Seconds into a slot after which every process has taken its sample; processes check once a second. */
const SETTLED_S = 1.5;
/* Each request repeats this many seconds, to include samples that were being written. */
const OVERLAP_S = 9;
const TIMEOUT_MS = 5000;
/* Without the right to see the dashboard, the page asks this often, and when another identity uses it. */
const REFUSED_S = 30;

const find = (id) => document.getElementById(id);
const [said, state, why] = ["said", "state", "why"].map(find);
const scrub = find("scrub");

const history = new History();
/* The service's time of its last answer, in seconds, and the page's time at that moment. */
let answered = null;
let restarts = 0;
/* The name of the node that leads, or an empty string. */
let leader = "";
let living = [];
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

function now() {
  return answered.time + (performance.now() - answered.at) / 1000;
}

showSession(find("access"), () => "The dashboard needs a token with the right “ops”. Ask an operator of this service for one.");

/** Ask for new samples and show them. Returns the seconds to wait at least. */
async function refresh() {
  const { status, news, problem, retryAfterS } = await ask();
  if (status === 401 || status === 403) await session.look();
  const why = session.isOn && refusal({ status, kind: problem }, "use the dashboard");
  if (status) find("main").classList.toggle("refused", Boolean(why));
  if (news) {
    living = history.add(news);
    restarts = news.restarts;
    leader = news.leader;
    answered = { time: news.now, at: performance.now() };
    say("good", "Live");
  } else if (status === 404) {
    say("bad", "Off", "The dashboard is disabled on this port.");
  } else if (why) {
    say("bad", session.isSignedIn ? "No access" : "Signed out", why);
    return REFUSED_S;
  } else if (status === 429) {
    say("bad", "Slowed down", `Too many requests from here. The page continues in ${retryAfterS} s.`);
    return retryAfterS;
  } else if (status) {
    say("bad", "No answer", `The service answered with ${status}.`);
  } else {
    say(
      "bad",
      "Unreachable",
      navigator.onLine ? "The service does not answer." : "This device is offline.",
    );
  }
  if (answered) draw();
  return 0;
}

/** Return the answer's status, and its content or problem; nothing if no complete answer came in time. */
async function ask() {
  const since = answered ? `?since=${(answered.time - OVERLAP_S).toFixed(3)}` : "";
  const signal = AbortSignal.timeout(TIMEOUT_MS);
  try {
    const answer = await fetch(`ops/history${since}`, { cache: "no-store", signal });
    if (answer.ok) return { status: answer.status, news: await answer.json() };
    const retryAfterS = Number(answer.headers.get("Retry-After")) || 1;
    const text = await answer.text();
    const isProblem = answer.headers.get("Content-Type")?.includes("problem+json");
    const problem = isProblem ? JSON.parse(text).type.split(":").at(-1) : "";
    return { status: answer.status, problem, retryAfterS };
  } catch {
    return {};
  }
}

/** Show the state and the time of the last sample. A screen reader announces changes. */
function say(kind, word, reason = "") {
  const times = history.processes.flatMap(({ rows }) => [...rows.values()].map(({ time }) => time));
  const when = times.length ? ` The last sample is from ${clock(Math.max(...times))}.` : "";
  const sentence = reason && reason + when;
  if (state.textContent === word && why.textContent === sentence) return;
  said.className = reason ? `notice ${kind}` : "";
  state.className = `state ${kind}`;
  state.textContent = word;
  why.textContent = sentence;
  why.hidden = !sentence;
}

function draw() {
  last = history.slotOf(now() - SETTLED_S);
  const first = last - SLOTS + 1;
  history.forget(first - 2);
  if (chosen !== null && chosen < first) chosen = null;
  const slots = allSlots();
  const { processes } = history;
  const view = {
    first,
    every: history.every,
    unavailable: slots.map((slot) => isUnavailable(history, slot, processes)),
    starts: processes.map(({ started }) => started),
  };
  for (const { spec, chart } of charts) {
    const unit = (isEach() && spec.eachUnit) || spec.unit;
    const stacked = spec.stacked && !isEach();
    chart.draw({ ...view, unit, stacked, lines: linesOf(spec, slots) });
  }
  sayProcesses();
  drawTables();
  scrub.value = chosen === null ? SLOTS - 1 : chosen - first;
  point();
}

/** Return the lines of a chart with their values: for all processes together, or one for each. */
function linesOf({ lines, each }, slots) {
  if (isEach()) {
    return history.processes.map((process) => ({
      name: `process ${process.pid}`,
      color: COLORS[process.number % COLORS.length],
      values: slots.map((slot) => each(history, slot, [process])),
    }));
  }
  const chosenLines = typeof lines === "function" ? lines(history) : lines;
  return chosenLines.map(({ name, color, measure }) => ({
    name,
    color,
    values: slots.map((slot) => measure(history, slot, history.processes)),
  }));
}

function drawTiles() {
  const slot = pointed ?? chosen ?? last;
  for (const { node, value, below, read } of tiles) {
    const now = read((measure) => measure(history, slot, history.processes));
    value.textContent = now.value;
    below.textContent = now.below;
    node.className = `card tile ${now.kind ?? ""}`;
  }
}

/** Show the processes, which of them do not respond, how many restarts there were, and who leads. */
function sayProcesses() {
  const isSilent = ({ rows }) => ![0, 1, 2, 3].some((ago) => rows.has(last - ago));
  const ids = living.map((process) => `${process.pid}${isSilent(process) ? " does not respond" : ""}`);
  const workers = workerRestarts(history, last, living);
  find("processes").textContent = [
    `${ids.length === 1 ? "1 process" : `${ids.length} processes`} (${ids.join(", ")})`,
    restarts === 1 ? "1 restart" : `${restarts} restarts`,
    ...(workers > 0 ? [`${workers} of shard workers`] : []),
    `leader: ${leader || "unknown"}${leader && isLeader(history, last, living) ? " (this node)" : ""}`,
  ].join(" · ");
}

function drawTables() {
  if (!find("numbers").open) return;
  const slots = allSlots();
  const shown = charts.map(({ spec }) => ({ ...spec, lines: linesOf(spec, slots) }));
  find("numbers")
    .querySelector(".tables")
    .replaceChildren(...tables(history, slots, shown));
}

function allSlots() {
  return Array.from({ length: SLOTS }, (_, i) => last - SLOTS + 1 + i);
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
  if (!answered) return;
  const slot = pointed ?? chosen;
  for (const { chart } of charts) chart.point(slot);
  drawTiles();
  const words =
    slot === null ? "now" : `${clock(slot * history.every)}, ${ago((last - slot) * history.every)}`;
  find("when").textContent = words;
  scrub.setAttribute("aria-valuetext", words);
}

function ago(seconds) {
  const minutes = Math.floor(seconds / 60);
  return `${minutes ? `${minutes} min ` : ""}${seconds % 60} s ago`;
}

scrub.addEventListener("input", () => {
  if (!answered) return;
  const at = Number(scrub.value);
  chosen = at === SLOTS - 1 ? null : last - SLOTS + 1 + at;
  point();
});
for (const choice of document.querySelectorAll("[name=view]")) {
  choice.addEventListener("change", () => answered && draw());
}
find("numbers").addEventListener("toggle", () => answered && drawTables());

/** Wait until every process has taken its next sample, `least` seconds are over, and the page is visible. */
async function pause(least) {
  const every = history.every;
  const into = answered ? (now() - SETTLED_S - 0.1) % every : 0;
  await new Promise((resolve) => {
    setTimeout(resolve, Math.max(every - into, least) * 1000);
    if (least === REFUSED_S) session.addEventListener("change", resolve, { once: true });
  });
  if (document.hidden) {
    say("gone", "Paused", "");
    await new Promise((resolve) =>
      document.addEventListener("visibilitychange", resolve, { once: true }),
    );
  }
}

session.watch();
for (;;) await pause(await refresh());
