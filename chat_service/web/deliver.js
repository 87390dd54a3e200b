// When a message is delivered: now, after some time, or at a time in the time zone of this device.

import { byId, lasting, now, tick } from "./ui.js";

const form = byId("send");
const after = byId("after");
const unit = byId("after-unit");
const at = byId("at");
const hint = byId("delay-hint");
const MINUTE_MS = 60_000;
const HOUR_MS = 3_600_000;

const moment = new Intl.DateTimeFormat("en-GB", {
  weekday: "short",
  day: "numeric",
  month: "short",
  year: "numeric",
  hour: "2-digit",
  minute: "2-digit",
  timeZoneName: "shortOffset",
});
const zone = moment.resolvedOptions().timeZone;

const kind = () => new FormData(form).get("deliver");

/** Return what is chosen. The delay until a chosen time becomes shorter; the choice stays the same. */
export const choice = () => [kind(), after.value, unit.value, at.value].join(" ");

/** The field of the choice, for its errors. */
export const field = () => (kind() === "at" ? at : after);

/** Return the delay in seconds, negative for a time that is over, or undefined. The service refuses anything
 *  but a number, and explains why. */
export function delay() {
  if (kind() === "now") return undefined;
  if (kind() === "at") return at.value === "" ? "" : Math.round(new Date(at.value).getTime() - now()) / 1000;
  const own = after.value.trim();
  return own === "" || Number.isNaN(Number(own)) ? own : Number(own) * Number(unit.value);
}

/** Deliver the next message now. */
export function reset() {
  form.elements.deliver.value = "now";
  show();
}

/** Show the chosen time with its offset from UTC, since a local time alone may be ambiguous. */
function explain() {
  const seconds = delay();
  const isKnown = Number.isFinite(seconds) && seconds > 0;
  hint.hidden = !isKnown;
  if (!isKnown) return true;
  const time = moment.format(now() + seconds * 1000);
  const where = `${time}, the time of this device (${zone})`;
  const when = kind() === "at" ? `${where}: in ${lasting(seconds * 1000)}.` : `At ${where}.`;
  const words = `${when} The time until it expires begins then.`;
  if (hint.textContent !== words) hint.textContent = words;
  return true;
}

function show() {
  byId("deliver-in").hidden = kind() !== "in";
  byId("deliver-at").hidden = kind() !== "at";
  explain();
}

/** Return a time as the field has it: local, without an offset. */
function local(ms) {
  const offset = new Date(ms).getTimezoneOffset() * MINUTE_MS;
  return new Date(ms - offset).toISOString().slice(0, "2026-11-28T09:00".length);
}

form.addEventListener("change", ({ target }) => {
  // A field that is filled in only in part is empty, too, and must not change meanwhile.
  if (target.name === "deliver" && kind() === "at" && at.value === "") {
    at.value = local(Math.ceil((now() + HOUR_MS / 2) / HOUR_MS) * HOUR_MS);
  }
  show();
});
form.addEventListener("input", explain);
show();
tick(explain);
