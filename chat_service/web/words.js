/* Numbers and times as text. Used by all scripts of the dashboard. */

import { isKnown } from "./measures.js";

/** Return a number in a short form: 0.4, 12, 1,204, 12.3k. */
export function short(value) {
  if (value >= 1e6) return `${trim(value / 1e6)}M`;
  if (value >= 1e4) return `${trim(value / 1e3)}k`;
  if (value < 1) return value < 0.0005 ? "0" : String(Number(value.toPrecision(value < 0.1 ? 1 : 2)));
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

/** Return the local date and time of day of seconds since 1970. */
export const day = (seconds) => toDay.format(seconds * 1000);

/** Return how long some seconds are: 8 s, 3 min 12 s, 5 h 20 min, 12 d 4 h. */
export function span(seconds) {
  const whole = Math.max(0, Math.round(seconds));
  const [d, h, min] = [86_400, 3600, 60].map((unit) => Math.floor(whole / unit));
  if (d) return `${d} d ${h % 24} h`;
  if (h) return `${h} h ${min % 60} min`;
  return min ? `${min} min ${whole % 60} s` : `${whole} s`;
}

/** Return a share of one as a percentage. */
export function percent(share) {
  const value = share * 100;
  return `${value < 1 ? Number(value.toPrecision(1)) : value < 10 ? trim(value) : Math.floor(value)}%`;
}

/** Return a number of bytes in a suitable unit. */
export function size(bytes) {
  const step = [4, 3, 2, 1].find((power) => bytes >= 1024 ** power) ?? 0;
  const value = bytes / 1024 ** step;
  return `${value < 10 && step ? trim(value) : Math.round(value)}\u00a0${["B", "KiB", "MiB", "GiB", "TiB"][step]}`;
}

const toDay = new Intl.DateTimeFormat([], { dateStyle: "medium", timeStyle: "short", hourCycle: "h23" });
const toSecond = new Intl.DateTimeFormat([], { timeStyle: "medium", hourCycle: "h23" });
const toMinute = new Intl.DateTimeFormat([], { timeStyle: "short", hourCycle: "h23" });

const trim = (value) => String(Math.round(value * 10) / 10);
