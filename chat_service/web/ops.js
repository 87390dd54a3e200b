/* The dashboard: asks for new samples every three seconds and shows the last quarter of an hour.

   The page's parts are in ops.html, what is shown in dashboard.js, what it means in measures.js, and
   how it is drawn in charts.js. While nobody sees it, it asks nothing. */

import { CHARTS, COLOURS, TILES, isAway, workerRestarts } from "./dashboard.js";
import { Chart, element } from "./charts.js";
import { History } from "./measures.js";
import { tables } from "./tables.js";
import { clock } from "./words.js";

const SLOTS = 300;
/* By then every process has taken its sample, in seconds into a slot: they look once a second. */
const SETTLED_S = 1.5;
/* Asked for again, so that nothing is missed that was written just then. */
const OVERLAP_S = 9;
const TIMEOUT_MS = 5000;

const find = (id) => document.getElementById(id);
const [said, state, why] = ["said", "state", "why"].map(find);
const scrub = find("scrub");

const history = new History();
/* The service's time when it last answered, in seconds, and the page's own then. */
let answered = null;
let restarts = 0;
let living = [];
/* The slot that is looked at; null: the last one. The pointer's goes before the slider's. */
let chosen = null;
let pointed = null;
/* The last slot that is drawn. */
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

/** Ask for what is new and show it. */
async function refresh() {
  const { status, news } = await ask();
  if (news) {
    living = history.add(news);
    restarts = news.restarts;
    answered = { time: news.now, at: performance.now() };
    say("good", "Live");
  } else if (status === 404) {
    say("bad", "Off", "The dashboard is switched off on this port.");
  } else if (status) {
    say("bad", "No answer", `The service answered with ${status}.`);
  } else {
    say(
      "bad",
      "Away",
      navigator.onLine ? "The service does not answer." : "This device is offline.",
    );
  }
  if (answered) draw();
}

/** The answer's status and content; nothing where there was none, or not all of it, in time. */
async function ask() {
  const since = answered ? `?since=${(answered.time - OVERLAP_S).toFixed(3)}` : "";
  const signal = AbortSignal.timeout(TIMEOUT_MS);
  try {
    const answer = await fetch(`ops/history${since}`, { cache: "no-store", signal });
    return { status: answer.status, news: answer.ok ? await answer.json() : null };
  } catch {
    return {};
  }
}

/** Say how it is, in words, and when the last sample was. A screen reader is told of changes. */
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
    away: slots.map((slot) => isAway(history, slot, processes)),
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

/** The lines of a chart with their values: of all processes, or one for each. */
function linesOf({ lines, each }, slots) {
  if (isEach()) {
    return history.processes.map((process) => ({
      name: `process ${process.pid}`,
      colour: COLOURS[process.number % COLOURS.length],
      values: slots.map((slot) => each(history, slot, [process])),
    }));
  }
  const chosenLines = typeof lines === "function" ? lines(history) : lines;
  return chosenLines.map(({ name, colour, measure }) => ({
    name,
    colour,
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

/** Which processes there are, which of them hang, and what had to be started again. */
function sayProcesses() {
  const isSilent = ({ rows }) => ![0, 1, 2, 3].some((ago) => rows.has(last - ago));
  const ids = living.map((process) => `${process.pid}${isSilent(process) ? " is silent" : ""}`);
  const workers = workerRestarts(history, last, living);
  find("processes").textContent = [
    `${ids.length === 1 ? "1 process" : `${ids.length} processes`} (${ids.join(", ")})`,
    restarts === 1 ? "1 restart" : `${restarts} restarts`,
    ...(workers > 0 ? [`${workers} of shard workers`] : []),
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

/** Look at a slot with the pointer; null: as before. */
function pointAt(slot) {
  pointed = slot;
  requestAnimationFrame(point);
}

/** Show the slot that is looked at in every chart, and say when that was. */
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

/** Wait until just after every process has taken its next sample, and the page is seen. */
async function pause() {
  const every = history.every;
  const into = answered ? (now() - SETTLED_S - 0.1) % every : 0;
  await new Promise((resolve) => setTimeout(resolve, (every - into) * 1000));
  if (document.hidden) {
    say("gone", "Paused", "");
    await new Promise((resolve) =>
      document.addEventListener("visibilitychange", resolve, { once: true }),
    );
  }
}

for (;;) {
  await refresh();
  await pause();
}
