/* Small charts of the same period, with lines or stacked areas.

   They are SVG without a library: the code is short, takes its colors from the stylesheet, light and
   dark, and works under a policy that allows no inline style. Used by ops.js, which has the numbers;
   axes.js has the vertical axes. */

import { linearAxis } from "./axes.js";
import { isKnown, sum } from "./measures.js";
import { amount, shortClock } from "./words.js";

const HEIGHT = 140;
const INSIDE = { left: 54, right: 10, top: 12, bottom: 22 };
/* The distance of two labels on the time axis: the first that leaves this many pixels between them. */
const LABEL_EVERY_S = [300, 600, 3600, 7200, 14_400, 21_600];
const LABEL_WIDTH = 52;
/* So many slots without a sample are a gap with words. Fewer are a process that was busy. */
const GAP_MIN = 3;
/* The width of these words, with the times and without, in pixels. */
const GAP_WIDTHS = [150, 76];
/* How far outside the plot the mark of a spike reaches, in pixels. */
const MARK = 5;

/** Return an element with attributes and children. Strings become text, never markup. */
export function element(tag, attributes = {}, ...children) {
  return filled(document.createElement(tag), attributes, children);
}

function shape(tag, attributes = {}, ...children) {
  return filled(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);
}

function filled(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

/** One chart. `format` turns a value into text; `onPoint` gets the slot under the pointer.

    `axis` makes its vertical axis of the values and the threshold. */
export class Chart {
  #view = null;
  #width = 0;
  #cursor = null;

  constructor({ title, format, axis = linearAxis }, onPoint) {
    this.title = title;
    this.format = format;
    this.axis = axis;
    this.unit = element("span", { class: "muted small" });
    this.svg = shape("svg", { role: "img", height: HEIGHT });
    this.legend = element("ul", { class: "legend small number", role: "list" });
    this.limit = element("span", {});
    this.link = element("a", {});
    this.threshold = element(
      "span",
      { class: "limit" },
      element("i", { class: "mark limit", "aria-hidden": "true" }),
      this.limit,
      this.link,
    );
    this.peaks = element("span", {});
    const notes = element("p", { class: "notes small muted number" }, this.threshold, this.peaks);
    this.node = element(
      "figure",
      { class: "card chart" },
      element("figcaption", {}, element("h2", {}, title), this.unit),
      this.svg,
      this.legend,
      notes,
    );
    const point = (event) => {
      if (this.#view) onPoint(this.#slotAt(event.clientX - this.svg.getBoundingClientRect().left));
    };
    this.svg.addEventListener("pointermove", point);
    this.svg.addEventListener("pointerdown", point);
    this.svg.addEventListener("pointerleave", () => onPoint(null));
    new ResizeObserver(([entry]) => {
      this.#width = Math.floor(entry.contentRect.width);
      if (this.#view) this.draw(this.#view);
    }).observe(this.node.querySelector("figcaption"));
  }

  /** Draw `lines`, each `{name, look, values, now}`, with a value for each slot from `first` on.

      `now` is the value of the present, and what the legend shows while no slot is selected.

      `unit` is the unit of the values, `stacked` whether the lines are stacked, `every` the seconds in
      a slot, `period` the name of what is shown. `sampled` and `unavailable` have a boolean for each
      slot, `starts` the start times of processes. `threshold` is `{value, runbook}`, with `says` and `href` for its
      link, or null. */
  draw(view) {
    this.#view = view;
    const { lines, unit, stacked, first, every, unavailable, starts, threshold } = view;
    this.unit.textContent = unit;
    this.svg.setAttribute("aria-label", this.#summary());
    this.#fillLegend();
    const layers = stacked ? piled(lines) : lines.map(({ values }) => ({ values }));
    const known = layers.flatMap(({ values }) => values.filter(isKnown));
    const axis = this.axis(known, threshold?.value);
    const spikes = spikesOf(layers, axis.top);
    this.#fillNotes(axis, layers, spikes);
    if (this.#width < 80) return;
    this.svg.setAttribute("viewBox", `0 0 ${this.#width} ${HEIGHT}`);
    const y = (value) => HEIGHT - INSIDE.bottom - axis.place(value) * this.#plotHeight;
    this.y = y;
    this.layers = layers;
    const plot = shape("g", { class: "plot" });
    for (const gap of this.#gaps()) plot.append(...this.#gap(...gap));
    for (const [from, to] of runs(unavailable.map((is) => (is ? 1 : NaN)))) {
      plot.append(this.#rect("unavailable", this.#x(from - 0.5), this.#x(to + 0.5)));
    }
    // The first line comes last, on top: thin layers above the first must not hide it.
    plot.append(...layers.flatMap((layer, i) => this.#drawn(layer, lines[i], y, i === 0)).reverse());
    if (threshold && threshold.value <= axis.top) {
      const at = y(threshold.value);
      plot.append(shape("line", { class: "threshold", ...this.#across, y1: at, y2: at }));
    }
    for (const time of starts) {
      const x = this.#x(time / every - first);
      if (x > INSIDE.left) plot.append(this.#upright("start", x));
    }
    for (const at of spikes) plot.append(this.#peak(this.#x(at)));
    this.svg.replaceChildren(this.#axes(axis, y), plot);
    this.point(this.#cursor);
  }

  /** Return what a line consists of, from front to back. */
  #drawn({ values, base }, { look, values: own }, y, isFirst) {
    // A layer without height would hide the edge of the layer below.
    const isSeen = (at) => isFirst || isRaised(own, at);
    const edge = base ? values.map((value, at) => (isSeen(at) ? value : NaN)) : values;
    const line = (classes, points) => shape("path", { class: `series line ${classes}`, d: this.#line(points, y) });
    const hasArea = base || this.#view.lines.length === 1;
    const area = () => shape("path", { class: `series area ${look}`, d: this.#area(values, base, y) });
    // What means trouble has its color only where it is not zero.
    const isMeaning = ["bad", "attention"].includes(look);
    const drawn = isMeaning
      ? [line(look, edge.map((value, at) => (isRaised(own, at) ? value : NaN))), line("calm", edge)]
      : [line(look, edge)];
    return hasArea ? [...drawn, area()] : drawn;
  }

  /** Show the values of a slot in the legend; null means the present. */
  point(slot) {
    this.#cursor = slot;
    if (!this.#view) return;
    const { lines, first } = this.#view;
    const at = slot === null ? lines[0]?.values.length - 1 : slot - first;
    lines.forEach(({ values, now }, i) => {
      const said = amount((slot === null ? now : values[at]) ?? NaN, this.format);
      this.legend.children[i].lastChild.textContent = said;
    });
    this.svg.querySelector(".cursor")?.remove();
    if (!this.layers || !(at >= 0)) return;
    const hair = slot === null ? [] : [this.#upright("hair", this.#x(at))];
    const cursor = shape("g", { class: "cursor" }, ...hair);
    this.layers.forEach(({ values, base }, i) => {
      if (isKnown(values[at] ?? NaN) && (!base || !i || lines[i].values[at] > 0)) {
        const place = { cx: this.#x(at), cy: this.y(values[at]), r: 3.5 };
        cursor.append(shape("circle", { class: lines[i].values[at] > 0 ? lines[i].look : "calm", ...place }));
      }
    });
    this.svg.append(cursor);
  }

  get #plotHeight() {
    return HEIGHT - INSIDE.top - INSIDE.bottom;
  }

  get #slots() {
    return this.#view.unavailable.length;
  }

  #x(at) {
    return INSIDE.left + (at / (this.#slots - 1)) * (this.#width - INSIDE.left - INSIDE.right);
  }

  #slotAt(x) {
    const share = (x - INSIDE.left) / (this.#width - INSIDE.left - INSIDE.right);
    const at = Math.round(Math.min(1, Math.max(0, share)) * (this.#slots - 1));
    return this.#view.first + at;
  }

  #rect(name, left, right) {
    const x = Math.max(left, INSIDE.left);
    const size = { width: Math.max(1, right - x), height: this.#plotHeight };
    return shape("rect", { class: name, x, y: INSIDE.top, ...size });
  }

  /** Return a triangle above the plot: the values there are larger than the axis. */
  #peak(x) {
    const tip = INSIDE.top - MARK - 3;
    const d = `M${fixed(x)} ${tip}l${MARK} ${MARK + 1}h${-2 * MARK}Z`;
    return shape("path", { class: "peak", d });
  }

  /** Return the first and last index of each gap without a sample. */
  #gaps() {
    return runs(this.#view.sampled.map((is) => (is ? NaN : 1))).filter(([from, to]) => to - from + 1 >= GAP_MIN);
  }

  /** Return a band for a gap, with words if they fit: an empty plot looks like zero. */
  #gap(from, to) {
    const [left, right] = [Math.max(this.#x(from - 0.5), INSIDE.left), Math.min(this.#x(to + 0.5), this.#width - INSIDE.right)];
    const fits = GAP_WIDTHS.findIndex((width) => right - left >= width);
    const words = [this.#gapWords(from, to), "no samples"][fits];
    const place = { class: "gap", x: (left + right) / 2, y: INSIDE.top + this.#plotHeight / 2 };
    return [this.#rect("gap", left, right), ...(words ? [shape("text", place, words)] : [])];
  }

  #gapWords(from, to) {
    const { first, every } = this.#view;
    return `no samples ${shortClock((first + from) * every)}–${shortClock((first + to + 1) * every)}`;
  }

  get #across() {
    return { x1: INSIDE.left, x2: this.#width - INSIDE.right };
  }

  #upright(name, x) {
    const ends = { x1: x, x2: x, y1: INSIDE.top, y2: HEIGHT - INSIDE.bottom };
    return shape("line", { class: name, ...ends });
  }

  #line(values, y) {
    // A single value is a line without length; its round ends make it a dot.
    return runs(values)
      .map(([from, to]) => {
        const points = range(from, to).map((at) => `${fixed(this.#x(at))} ${fixed(y(values[at]))}`);
        return `M${points.join("L")}${from === to ? "h0" : ""}`;
      })
      .join("");
  }

  #area(values, base, y) {
    return runs(values)
      .map(([from, to]) => {
        const over = range(from, to).map((at) => `${fixed(this.#x(at))} ${fixed(y(values[at]))}`);
        const under = range(from, to)
          .reverse()
          .map((at) => `${fixed(this.#x(at))} ${fixed(y(base?.[at] || 0))}`);
        return `M${[...over, ...under].join("L")}Z`;
      })
      .join("");
  }

  #axes({ ticks }, y) {
    const { first, every } = this.#view;
    const right = this.#width - INSIDE.right;
    const axes = shape("g", { class: "axes number" });
    for (const value of ticks) {
      const at = Math.round(y(value)) + 0.5;
      const name = value === ticks[0] ? "ground" : "grid";
      axes.append(
        shape("line", { class: name, ...this.#across, y1: at, y2: at }),
        shape("text", { class: "y", x: INSIDE.left - 6, y: at + 4 }, this.format(value)),
      );
    }
    const begin = first * every;
    const end = begin + (this.#slots - 1) * every;
    const widthOf = (seconds) => (seconds / (end - begin)) * (right - INSIDE.left);
    const step = LABEL_EVERY_S.find((each) => widthOf(each) >= LABEL_WIDTH) ?? LABEL_EVERY_S.at(-1);
    for (const time of roundTimes(begin, end, step)) {
      const x = this.#x(time / every - first);
      // A label near an edge would be cut off.
      if (x < INSIDE.left + 16 || x > right - 12) continue;
      axes.append(
        this.#upright("grid", Math.round(x) + 0.5),
        shape("text", { class: "x", x, y: HEIGHT - 5 }, shortClock(time)),
      );
    }
    return axes;
  }

  /** Say where the threshold lies, what to do above it, and how far the spikes go that are cut off. */
  #fillNotes(axis, layers, spikes) {
    const { threshold, first, every } = this.#view;
    this.threshold.hidden = !threshold;
    if (threshold) {
      const isAbove = threshold.value > axis.top;
      const where = isAbove ? " (above this chart)" : "";
      this.limit.textContent = `threshold ${this.format(threshold.value)}${where}, `;
      this.link.href = threshold.href;
      this.link.textContent = threshold.says;
    }
    const most = (at) => Math.max(...layers.map(({ values }) => values[at]).filter(isKnown));
    const at = spikes.reduce((one, other) => (most(other) > most(one) ? other : one), spikes[0]);
    this.peaks.textContent = spikes.length
      ? `▲ up to ${this.format(most(at))} at ${shortClock((first + at) * every)}`
      : "";
  }

  #fillLegend() {
    const { lines } = this.#view;
    const names = lines.map(({ name, look }) => `${look} ${name}`).join("\n");
    if (this.legend.dataset.names === names) return;
    this.legend.dataset.names = names;
    this.legend.replaceChildren(
      ...lines.map(({ name, look }) =>
        element(
          "li",
          {},
          this.#swatch(look),
          `${name} `,
          element("b", {}, "–"),
        ),
      ),
    );
  }

  /** Return a piece of the line, or of the area, as in the chart. */
  #swatch(look) {
    const size = { width: 22, height: 10, viewBox: "0 0 22 10", "aria-hidden": "true" };
    const area = shape("rect", { class: `${look} area`, x: 0, y: 1, width: 22, height: 8 });
    const line = shape("path", { class: `${look} line`, d: this.#view.stacked ? "M1 1.5H21" : "M1 5H21" });
    return shape("svg", { class: "swatch", ...size }, ...(this.#view.stacked ? [area] : []), line);
  }

  #summary() {
    const said = this.#view.lines.map(({ name, values, now }) => {
      const { least, most } = extremes(values);
      if (!isKnown(most)) return `${name}: nothing`;
      const last = isKnown(now) ? this.format(now) : "nothing";
      return `${name}: now ${last}, from ${this.format(least)} to ${this.format(most)}`;
    });
    const { unit, period } = this.#view;
    const gaps = this.#gaps().map(([from, to]) => `; ${this.#gapWords(from, to)}`);
    return `${this.title}, ${unit}, ${period}. ${said.join("; ")}${gaps.join("")}.`;
  }
}

/** Return the smallest and the largest of some values, and their mean. */
export function extremes(values) {
  const known = values.filter(isKnown);
  const [least, most] = known.length ? [Math.min(...known), Math.max(...known)] : [NaN, NaN];
  return { least, most, mean: sum(known) / known.length };
}

/** Return the lines stacked on top of each other. */
function piled(lines) {
  let below = [];
  return lines.map(({ values }) => {
    const base = below;
    below = values.map((value, at) =>
      isKnown(value) ? value + (base[at] || 0) : (base[at] ?? NaN),
    );
    return { values: below, base };
  });
}

/** Return the first and last index of each run of known values. */
function runs(values) {
  const found = [];
  values.forEach((value, at) => {
    if (!isKnown(value)) return;
    if (at > 0 && isKnown(values[at - 1])) found.at(-1)[1] = at;
    else found.push([at, at]);
  });
  return found;
}

const range = (from, to) => Array.from({ length: to - from + 1 }, (_, i) => from + i);

const fixed = (value) => value.toFixed(1);

/** Whether a value, or one beside it, is above zero, so that a line leads from it to the next. */
const isRaised = (values, at) => values[at - 1] > 0 || values[at] > 0 || values[at + 1] > 0;

/** Return where the values are larger than the axis: the highest point of each run of such values. */
function spikesOf(layers, top) {
  const { length } = layers[0]?.values ?? [];
  const most = Array.from({ length }, (_, at) => {
    const above = layers.map(({ values }) => values[at]).filter((value) => value > top);
    return above.length ? Math.max(...above) : NaN;
  });
  return runs(most).map(([from, to]) => most.indexOf(Math.max(...most.slice(from, to + 1)), from));
}

/** Return the times within a period that are a multiple of `step` seconds, in local time. */
function roundTimes(begin, end, step) {
  const offset = new Date(begin * 1000).getTimezoneOffset() * 60;
  const found = [];
  for (let at = Math.ceil((begin - offset) / step) * step + offset; at <= end; at += step) found.push(at);
  return found;
}
