/* The vertical axes of the charts: which values they show, and where.

   An axis has `ticks`, the values with a label; `place`, which returns where a value lies, from 0 at
   the bottom to 1 at the top; and `top`, its largest value. Larger values are drawn at the top, and
   the chart marks them. Everything here is pure. Used by charts.js. */

/* Points above this share of the others may be cut off, if they are this many times as large. */
const USUAL_SHARE = 0.98;
const SPIKE_FACTOR = 3;
/* With fewer points than this, there is nothing to tell what is usual. */
const ENOUGH = 20;
/* A threshold up to this many times the height of the values still fits into their chart. */
const THRESHOLD_FACTOR = 2;
/* Where the smallest values above zero lie, so that they do not look like zero. */
const SEEN = 0.015;
/* The range of a logarithmic axis, in powers of ten. */
const [DECADES_MIN, DECADES_MAX] = [2, 5];

/** Return an axis from zero, which a few spikes do not flatten. NaN means no threshold.

    A threshold far above the values is left out. */
export function linearAxis(values, threshold = NaN) {
  const positive = values.filter((value) => value > 0).sort((a, b) => a - b);
  const most = positive.at(-1) ?? 0;
  const usual = positive[Math.ceil(positive.length * USUAL_SHARE) - 1] ?? 0;
  const isCut = positive.length >= ENOUGH && most > SPIKE_FACTOR * usual;
  const top = niceAbove(isCut ? usual : most);
  if (most === 0 && threshold > 0) return fromZero(niceAbove(threshold));
  const isNear = threshold <= THRESHOLD_FACTOR * top;
  return fromZero(isNear ? Math.max(top, niceAbove(threshold)) : top);
}

/** Return an axis for shares of one, which includes the threshold and cuts nothing off. */
export function shareAxis(values, threshold = NaN) {
  const most = Math.max(0, ...[...values, threshold].filter((value) => value > 0));
  return fromZero(Math.min(1, niceAbove(most)));
}

function fromZero(top) {
  const place = (value) => (value > 0 ? Math.min(1, Math.max(SEEN, value / top)) : value);
  return { ticks: [0, top / 2, top], top, place };
}

/** Return an axis of powers of ten that includes the threshold. Values too small for it are at its bottom. */
export function logAxis(values, threshold = NaN) {
  const positive = [...values, threshold].filter((value) => value > 0);
  const [least, most] = positive.length ? [Math.min(...positive), Math.max(...positive)] : [1, 1];
  // The tolerance keeps a value of exactly 10 ms from adding a decade to the axis.
  const high = Math.ceil(Math.log10(most) - 1e-9);
  // Strictly below the smallest value, which would look like zero at the bottom.
  const wanted = Math.ceil(Math.log10(least) - 1e-9) - 1;
  const low = Math.max(high - DECADES_MAX, Math.min(high - DECADES_MIN, wanted));
  const ticks = Array.from({ length: high - low + 1 }, (_, i) => 10 ** (low + i));
  const place = (value) => {
    if (!(value > 0)) return value === 0 ? 0 : NaN;
    return Math.min(1, Math.max(0, (Math.log10(value) - low) / (high - low)));
  };
  return { ticks, top: 10 ** high, place };
}

/** Return a round number above a value, whose half is round as well. */
function niceAbove(value) {
  if (!(value > 0)) return 1;
  const decade = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 4, 6, 8, 10].find((step) => step * decade >= value * 1.02) * decade || 20 * decade;
}
