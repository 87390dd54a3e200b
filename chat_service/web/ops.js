/* The board: asks for new samples every three seconds and shows the last quarter of an hour.

   The page's parts are in ops.html, what is shown in board.js, what it means in measures.js, and
   how it is drawn in charts.js. While nobody sees it, it asks nothing. */

import { CHARTS, COLOURS, OPERATIONS, TILES, isAway, short, time, workerRestarts } from "./board.js";
import { Chart, element, extremes } from "./charts.js";
import { History, isKnown } from "./measures.js";

const SLOTS = 300;
/* By then every process has taken its sample, in seconds into a slot: they look once a second. */
const SETTLED_S = 1.5;
/* Asked for again, so that nothing is missed that was written just then. */
const OVERLAP_S = 9;
const TIMEOUT_MS = 5000;
const MINUTE_SLOTS = 20;

const find = (id) => document.getElementById(id);
const [said, state, why] = ["said", "state", "why"].map(find);
const scrub = find("scrub");
const clock = new Intl.DateTimeFormat([], { timeStyle: "medium", hourCycle: "h23" });

const history = new History();
/* The service's time when it last answered, in seconds, and the page's own then. */
let answered = null;
let restarts = 0;
let living = [];
/* The slot that is looked at; null: the last one. The pointer's goes before the slider's. */
let chosen = null;
let pointed = null;

const charts = CHARTS.map((spec) => ({ spec, chart: new Chart(spec, pointAt) }));
find("charts").append(...charts.map(({ chart }) => chart.node));
const tiles = TILES.map(({ title, unit, read }) => {
  const value = element("b", { class: "number" }, "–");
  const below = element("dd", { class: "small muted number" }, " ");
  const number = element("dd", {}, value, ...(unit ? [element("small", { class: "muted" }, unit)] : []));
  const node = element("div", { class: "card tile" }, element("dt", {}, title), number, below);
  find("tiles").append(node);
  return { node, value, below, read };
});

function now() {
  return answered.time + (performance.now() - answered.at) / 1000;
}

function lastSlot() {
  return history.slotOf(now() - SETTLED_S);
}

/** Ask for what is new and show it. */
async function refresh() {
  try {
    const since = answered ? `?since=${(answered.time - OVERLAP_S).toFixed(3)}` : "";
    const answer = await fetch(`/ops/history${since}`, {
      cache: "no-store",
      signal: AbortSignal.timeout(TIMEOUT_MS),
    });
    if (!answer.ok) {
      say("bad", "No answer", answer.status === 404
        ? "The board is switched off on this port."
        : `The service answered with ${answer.status}.`);
    } else {
      const document = await answer.json();
      living = history.add(document);
      restarts = document.restarts;
      answered = { time: document.now, at: performance.now() };
      say("good", "Live");
    }
  } catch (error) {
    // What fetch throws where nobody answers, or too late; all else is a fault of this page.
    if (!(error instanceof TypeError || error instanceof DOMException)) throw error;
    say("bad", "Away", navigator.onLine ? "The service does not answer." : "This device is offline.");
  }
  if (answered) draw();
}

/** Say how it is, in words, and when the last sample was. A screen reader is told of changes. */
function say(kind, word, reason = "") {
  const last = Math.max(...history.processes.flatMap(({ rows }) => [...rows.values()].map(({ time }) => time)));
  const sentence = reason && isFinite(last) ? `${reason} The last sample is from ${clock.format(last * 1000)}.` : reason;
  if (state.textContent === word && why.textContent === sentence) return;
  said.className = reason ? `notice ${kind}` : "";
  state.className = `state ${kind}`;
  state.textContent = word;
  why.textContent = sentence;
  why.hidden = !sentence;
}

function draw() {
  const last = lastSlot();
  const first = last - SLOTS + 1;
  history.forget(first - 2);
  if (chosen !== null && chosen < first) chosen = null;
  const slots = Array.from({ length: SLOTS }, (_, i) => first + i);
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
  drawTiles(last);
  sayProcesses(last);
  if (find("numbers").open) drawTables(last);
  scrub.value = chosen === null ? SLOTS - 1 : chosen - first;
  point();
}

/** The lines of a chart with their values: of all processes, or one for each. */
function linesOf({ lines, each }, slots) {
  if (isEach()) {
    return history.processes.map((process, i) => ({
      name: `process ${process.pid}`,
      colour: COLOURS[i % COLOURS.length],
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

function drawTiles(last) {
  const slot = pointed ?? chosen ?? last;
  for (const { node, value, below, read } of tiles) {
    const now = read((measure) => measure(history, slot, history.processes));
    value.textContent = now.value;
    below.textContent = now.below;
    node.className = `card tile ${now.kind ?? ""}`;
  }
}

/** Which processes there are, which of them hang, and what had to be started again. */
function sayProcesses(last) {
  const isSilent = ({ rows }) => ![0, 1, 2, 3].some((ago) => rows.has(last - ago));
  const ids = living.map((process) => `${process.pid}${isSilent(process) ? " is silent" : ""}`);
  const workers = workerRestarts(history, last, living);
  find("processes").textContent = [
    `${ids.length === 1 ? "1 process" : `${ids.length} processes`} (${ids.join(", ")})`,
    restarts === 1 ? "1 restart" : `${restarts} restarts`,
    ...(workers > 0 ? [`${workers} of shard workers`] : []),
  ].join(" · ");
}

/** All that the charts show as tables, and every operation of the database. */
function drawTables(last) {
  const slots = Array.from({ length: SLOTS }, (_, i) => last - SLOTS + 1 + i);
  const rows = charts.flatMap(({ spec }) => linesOf(spec, slots).map(({ name, values }) => {
    const { now, least, mean, most } = extremes(values);
    const cells = [now, least, mean, most].map((value) => (isKnown(value) ? spec.format(value) : "–"));
    return [`${spec.title}: ${name}`, ...cells];
  }));
  const minute = slots.slice(-MINUTE_SLOTS);
  const operations = OPERATIONS.map(({ name, calls, mean }) => {
    const over = (measure) => extremes(minute.map((slot) => measure(history, slot, history.processes))).mean;
    const [many, long] = [over(calls), over(mean)];
    return [name, isKnown(many) ? short(many) : "–", isKnown(long) ? time(long) : "–"];
  });
  find("numbers").querySelector(".tables").replaceChildren(
    table("The last 15 minutes", ["", "now", "least", "mean", "most"], rows),
    table("Database operations, the last minute", ["", "per second", "mean time"], operations),
  );
}

function table(caption, head, rows) {
  const row = (tag, cells) => element("tr", {}, ...cells.map((cell, i) =>
    i === 0 && tag === "td" ? element("th", { scope: "row" }, cell)
      : tag === "th" && cell ? element("th", { scope: "col" }, cell) : element("td", {}, cell)));
  return element(
    "table", { class: "number" }, element("caption", {}, caption),
    element("thead", {}, row("th", head)), element("tbody", {}, ...rows.map((cells) => row("td", cells))),
  );
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
  const last = lastSlot();
  const slot = pointed ?? chosen;
  for (const { chart } of charts) chart.point(slot);
  drawTiles(last);
  const words = slot === null ? "now" : `${clock.format(slot * history.every * 1000)}, ${ago((last - slot) * history.every)}`;
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
  chosen = at === SLOTS - 1 ? null : lastSlot() - SLOTS + 1 + at;
  point();
});
for (const choice of document.querySelectorAll("[name=view]")) {
  choice.addEventListener("change", () => answered && draw());
}
find("numbers").addEventListener("toggle", () => answered && drawTables(lastSlot()));

/* A port of operators' own has neither the inbox nor the API's documents. */
for (const link of document.querySelectorAll(".site a:not([aria-current])")) {
  fetch(link.href, { method: "HEAD" }).then(
    (answer) => answer.status === 404 && link.removeAttribute("href"),
    () => {},
  );
}

/** Wait until just after every process has taken its next sample, and the page is seen. */
async function pause() {
  const every = history.every;
  const into = answered ? (now() - SETTLED_S - 0.1) % every : 0;
  await new Promise((resolve) => setTimeout(resolve, (every - into) * 1000));
  if (document.hidden) {
    say("gone", "Paused", "");
    await new Promise((resolve) => document.addEventListener("visibilitychange", resolve, { once: true }));
  }
}

for (;;) {
  await refresh();
  await pause();
}
