/* How numbers and times are said. Used by all scripts of the dashboard. */

import { isKnown } from "./measures.js";

/** A number as short as it can be read: 0.4, 12, 1,204, 12.3k. */
export function short(value) {
  if (value >= 1e6) return `${trim(value / 1e6)}M`;
  if (value >= 1e4) return `${trim(value / 1e3)}k`;
  if (value < 1) return String(Math.round(value * 100) / 100);
  return value < 10 ? trim(value) : Math.round(value).toLocaleString("en");
}

/** Seconds, in a unit that suits them. */
export function time(seconds) {
  if (seconds >= 1) return `${trim(seconds)}\u00a0s`;
  const ms = seconds * 1000;
  return ms === 0 || ms >= 0.1
    ? `${ms < 10 ? trim(ms) : Math.round(ms)}\u00a0ms`
    : `${Math.round(ms * 1000)}\u00a0µs`;
}

/** A value in words, or a dash for one that nobody knows. */
export const amount = (value, format) => (isKnown(value) ? format(value) : "–");

/** A sentence about a value, or another one where there is none. */
export const worded = (value, words, none) => (isKnown(value) ? words(value) : none);

/** The time of day where the reader is, from seconds since 1970: to the second, or the minute. */
export const clock = (seconds) => toSecond.format(seconds * 1000);
export const shortClock = (seconds) => toMinute.format(seconds * 1000);

const toSecond = new Intl.DateTimeFormat([], { timeStyle: "medium", hourCycle: "h23" });
const toMinute = new Intl.DateTimeFormat([], { timeStyle: "short", hourCycle: "h23" });

const trim = (value) => String(Math.round(value * 10) / 10);
