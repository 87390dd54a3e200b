/* Numbers and times as text. Used by all scripts of the dashboard. */

import { isKnown } from "./measures.js";

/** Return a number in a short form: 0.4, 12, 1,204, 12.3k. */
export function short(value) {
  if (value >= 1e6) return `${trim(value / 1e6)}M`;
  if (value >= 1e4) return `${trim(value / 1e3)}k`;
  if (value < 1) return String(Math.round(value * 100) / 100);
  return value < 10 ? trim(value) : Math.round(value).toLocaleString("en");
}

/** Return seconds in a suitable unit. */
export function time(seconds) {
  if (seconds >= 1) return `${trim(seconds)}\u00a0s`;
  const ms = seconds * 1000;
  return ms === 0 || ms >= 0.1
    ? `${ms < 10 ? trim(ms) : Math.round(ms)}\u00a0ms`
    : `${Math.round(ms * 1000)}\u00a0µs`;
}

/** Return a formatted value, or a dash if it is unknown. */
export const amount = (value, format) => (isKnown(value) ? format(value) : "–");

/** Return a sentence about a value, or `none` if it is unknown. */
export const worded = (value, words, none) => (isKnown(value) ? words(value) : none);

/** Return the local time of day of seconds since 1970, with or without seconds. */
export const clock = (seconds) => toSecond.format(seconds * 1000);
export const shortClock = (seconds) => toMinute.format(seconds * 1000);

const toSecond = new Intl.DateTimeFormat([], { timeStyle: "medium", hourCycle: "h23" });
const toMinute = new Intl.DateTimeFormat([], { timeStyle: "short", hourCycle: "h23" });

const trim = (value) => String(Math.round(value * 10) / 10);
