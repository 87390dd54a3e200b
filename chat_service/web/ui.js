// Shared helpers: templates, times as text, announcements, timers.

import { connection } from "./api.js";
import { linked } from "./links.js";

const TICK_MS = 500;
const NOW_MS = 5000;
const MINUTE_MS = 60_000;
/** The maximum number of simultaneous announcements. */
const SAID_MAX = 3;

export const byId = (id) => document.getElementById(id);

/** Return a storage of the browser. What it does not keep, because it is full or forbidden, lasts until a reload;
 *  `setItem` returns whether it is kept. */
function storageOf(kind) {
  const rest = new Map();
  let own = null;
  try {
    own = window[kind];
  } catch {
    // The browser forbids it.
  }
  return {
    getItem: (name) => rest.get(name) ?? own?.getItem(name) ?? null,
    setItem(name, value) {
      this.removeItem(name);
      try {
        own?.setItem(name, value);
      } catch {
        rest.set(name, value);
        return false;
      }
      if (own === null) rest.set(name, value);
      return own !== null;
    },
    removeItem(name) {
      rest.delete(name);
      own?.removeItem(name);
    },
  };
}

/** What this tab keeps, and what the browser keeps. */
export const storage = storageOf("sessionStorage");
export const lastingStorage = storageOf("localStorage");

/** The characters of a long text that are shown until More is pressed. */
const BEGINNING = 2000;
/** The elements that `inSlices` handles before others may use the page. */
const SLICE = 50;

// The style cuts a text after some lines, with an ellipsis. How many lines it has depends on the width.
const lengths = new ResizeObserver((entries) => {
  for (const { target } of entries) {
    if (target.classList.contains("whole")) continue;
    target.nextElementSibling.hidden = !isCut(target);
  }
});

const isCut = (place) => "isLong" in place.dataset || place.scrollHeight > place.clientHeight + 1;

/** Copy a template; return its element, and its parts by the names of their data attributes. */
export function copyOf(templateId) {
  const element = byId(templateId).content.firstElementChild.cloneNode(true);
  const parts = {};
  for (const part of [element, ...element.querySelectorAll("*")]) {
    for (const name of Object.keys(part.dataset)) parts[name] = part;
  }
  return { element, parts };
}

/** Show a text as text, never as markup, and its web addresses as links: its beginning and an ellipsis if it is long, and all of it after
 *  More. The parts are those of a template with `data-text` and, next to it, `data-more`. */
export function showText({ text: place, more }, text) {
  const beginning = text.length > BEGINNING ? brief(text, BEGINNING) : text;
  if (beginning !== text) place.dataset.isLong = "";
  place.replaceChildren(...linked(beginning));
  more.ariaLabel = `More: ${brief(text, 40)}`;
  more.addEventListener("click", () => {
    const isWhole = place.classList.toggle("whole");
    place.replaceChildren(...linked(isWhole ? text : beginning));
    more.textContent = isWhole ? "Less" : "More";
    more.ariaLabel = `${more.textContent}: ${brief(text, 40)}`;
    more.ariaExpanded = String(isWhole);
    if (!isWhole) reveal(place);
  });
  lengths.observe(place);
}

// Firefox has it since version 125.
const letters = Intl.Segmenter && new Intl.Segmenter();

/** Return a text, or its beginning with an ellipsis if it has more than `max` characters. Emoji and letters with
 *  accents stay whole, as far as the browser knows them. */
export function brief(text, max) {
  if (text.length <= max) return text;
  const { index } = letters?.segment(text.slice(0, max + 64)).containing(max) ?? { index: max };
  return `${text.slice(0, index).trimEnd()}…`;
}

const RIGHT_TO_LEFT = /[\u0590-\u08ff\u200f\u202a-\u202e\u2066-\u2069\ufb1d-\ufdff\ufe70-\ufeff\u{10800}-\u{10fff}\u{1e800}-\u{1efff}]/u;

/** Return a name for use within a sentence, whose order a name in Arabic or Hebrew must not change. */
export const isolated = (name) => (RIGHT_TO_LEFT.test(name) ? `\u2068${name}\u2069` : name);

/** Scroll as little as it takes to see an element. */
export const reveal = (element) => element.scrollIntoView({ block: "nearest" });

/** Call `act` with each item, and leave the page usable meanwhile. Return when all are done. */
export async function inSlices(items, act) {
  for (let from = 0; from < items.length; from += SLICE) {
    if (from > 0) await new Promise((done) => setTimeout(done));
    items.slice(from, from + SLICE).forEach(act);
  }
}

/** Show a sentence, or hide its place if the sentence is empty. Sentences that replace each other, such as
 *  those of retries, are announced once. */
export function note(place, text, kind = "") {
  if (text !== "" && (place.hidden || kind === "bad")) announce(text);
  place.textContent = text;
  place.hidden = text === "";
  place.classList.toggle("bad", kind === "bad");
  place.classList.toggle("good", kind === "good");
}

const waiting = [];

/** Have a screen reader announce a text after the current one. */
export function announce(text) {
  if (waiting.includes(text)) return;
  if (waiting.push(text) === 1) {
    setTimeout(() => {
      byId("announcer").textContent = waiting.splice(0).slice(-SAID_MAX).join(" ");
    }, 150);
  }
}

/** Run an asynchronous action when a button is pressed, one at a time; the button keeps the focus. */
export function onPress(button, act) {
  button.addEventListener("click", async () => {
    if (button.ariaDisabled === "true") return;
    button.ariaDisabled = "true";
    button.ariaBusy = "true";
    try {
      await act();
    } finally {
      button.ariaDisabled = null;
      button.ariaBusy = null;
    }
  });
}

/** Remove an element. If it has the focus, its neighbor or `heir` gets it. */
export function takeAway(element, heir) {
  if (element.contains(document.activeElement)) {
    (element.nextElementSibling ?? element.previousElementSibling ?? heir).focus();
  }
  element.remove();
}

export const counted = (n, word) => `${n.toLocaleString("en")} ${word}${n === 1 ? "" : "s"}`;

/** Return a duration in its two largest units. */
export function lasting(ms) {
  const seconds = Math.max(0, Math.ceil(ms / 1000));
  const units = [["day", 86400], ["h", 3600], ["min", 60], ["s", 1]];
  const first = units.findIndex(([, size]) => seconds >= size);
  if (first < 0) return "0 s";
  let rest = seconds;
  const words = units.slice(first, first + 2).map(([name, size]) => {
    const n = Math.floor(rest / size);
    rest -= n * size;
    return n === 0 ? "" : `${n} ${name === "day" && n > 1 ? "days" : name}`;
  });
  return words.filter(Boolean).join(" ");
}

const clock = new Intl.DateTimeFormat("en-GB", { timeStyle: "medium" });
const calendar = new Intl.DateTimeFormat("en-GB", { dateStyle: "medium", timeStyle: "medium" });

export const dateOf = (ms) => calendar.format(ms);

export const timeOf = (ms) =>
  (new Date(ms).toDateString() === new Date().toDateString() ? clock : calendar).format(ms);

/** Return when a message could be read first, by the service's clock: when it was accepted, unless it was
 *  scheduled. An id begins with that time. */
export const acceptedAt = (id) => parseInt(id.slice(0, 12), 16);

// This machine's clock is used unless an id shows that the service's clock differs.
let skewMin = -Infinity;
let skewMax = Infinity;

/** Return the current time by the service's clock, as far as it is known. */
export const now = () => Date.now() + Math.min(Math.max(0, skewMin), skewMax);

/** Learn from a message that was accepted before now, and after `since` by this machine's clock. */
export function learnClock(id, since = null) {
  const least = acceptedAt(id) - Date.now();
  skewMin = Math.max(skewMin, least);
  if (since === null) return;
  const most = acceptedAt(id) - since;
  skewMax = Math.min(skewMax, most);
  // One of the clocks was changed in the meantime.
  if (skewMin > skewMax) [skewMin, skewMax] = [least, most];
}

/** Fill in a message's id, its time and its age. `sentAt` is when it was sent, if it is scheduled. */
export function stamp(parts, id, sentAt = null) {
  if (sentAt === null) learnClock(id);
  parts.id.textContent = id;
  const at = sentAt ?? acceptedAt(id);
  parts.time.dateTime = new Date(at).toISOString();
  parts.time.textContent = timeOf(at);
  parts.age.dataset.since = at;
  showAge(parts.age);
}

/** Return a link that opens an inbox. */
export function inboxLink(username) {
  const link = document.createElement("a");
  link.href = `#inbox=${encodeURIComponent(username)}`;
  // Its direction must not change the order of the sentence.
  link.dir = "auto";
  link.textContent = username;
  link.title = "Open this inbox";
  return link;
}

function showAge(element) {
  const age = now() - Number(element.dataset.since);
  // After a minute, count in minutes.
  const step = age < MINUTE_MS ? 1 : MINUTE_MS;
  const text = age < NOW_MS ? "just now" : `${lasting(Math.floor(age / step) * step)} ago`;
  if (element.textContent !== text) element.textContent = text;
}

const ticking = new Set();

/** Call `act` twice a second while the page is visible, until it returns false. */
export function tick(act) {
  if (act() !== false) ticking.add(act);
}

setInterval(() => {
  if (document.hidden) return;
  for (const act of ticking) if (act() === false) ticking.delete(act);
  document.querySelectorAll("[data-since]").forEach(showAge);
}, TICK_MS);

/** Call `look` repeatedly while the page is visible. It returns the pause until the next call in ms, or
 *  null to stop, and must not throw. Returns a function that calls it at once. */
export function poll(look) {
  let timer = 0;
  let isLooking = false;
  let isWanted = false;
  async function turn() {
    clearTimeout(timer);
    isWanted = true;
    if (isLooking || document.hidden) return;
    isLooking = true;
    let pause = null;
    while (isWanted && !document.hidden) {
      isWanted = false;
      pause = await look();
    }
    isLooking = false;
    if (pause !== null) timer = setTimeout(turn, pause);
  }
  document.addEventListener("visibilitychange", turn);
  return turn;
}

connection.addEventListener("lost", () => {
  byId("connection").hidden = false;
  announce("The connection to the service is lost. Retrying.");
});
connection.addEventListener("found", () => {
  byId("connection").hidden = true;
  announce("The connection to the service is back.");
});
