// Shared helpers: templates, times as text, announcements, timers.

import { connection } from "./api.js";

const TICK_MS = 500;
const NOW_MS = 5000;
const MINUTE_MS = 60_000;
/** The maximum number of simultaneous announcements. */
const SAID_MAX = 3;

export const byId = (id) => document.getElementById(id);

/** The session storage, or a substitute that does not survive a reload if the browser forbids it. */
export const storage = (() => {
  try {
    return window.sessionStorage;
  } catch {
    const kept = new Map();
    return {
      getItem: (name) => kept.get(name) ?? null,
      setItem: (name, value) => kept.set(name, value),
      removeItem: (name) => kept.delete(name),
    };
  }
})();

// A long text can be scrolled with the keyboard.
const lengths = new ResizeObserver((entries) => {
  for (const { target } of entries) {
    if (target.scrollHeight > target.clientHeight + 1) target.tabIndex = 0;
    else target.removeAttribute("tabindex");
  }
});

/** Copy a template; return its element, and its parts by the names of their data attributes. */
export function copyOf(templateId) {
  const element = byId(templateId).content.firstElementChild.cloneNode(true);
  const parts = {};
  for (const part of [element, ...element.querySelectorAll("*")]) {
    for (const name of Object.keys(part.dataset)) parts[name] = part;
  }
  if (parts.text) lengths.observe(parts.text);
  return { element, parts };
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

/** Return the element of a message that was read here. Its text becomes text, never markup. */
export function messageOf({ id, text, deliveries, dead }) {
  const { element, parts } = copyOf("a-message");
  parts.text.textContent = text;
  stamp(parts, id);
  parts.deliveries.hidden = !(deliveries > 1);
  parts.deliveries.textContent = `delivery ${deliveries}`;
  if (dead) parts.dead.append("Dead letter of ", inboxLink(dead.username), `, leased ${counted(dead.deliveries, "time")} there.`);
  parts.dead.hidden = !dead;
  return element;
}

/** Return a link that opens an inbox. */
export function inboxLink(username) {
  const link = document.createElement("a");
  link.href = `#inbox=${encodeURIComponent(username)}`;
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
