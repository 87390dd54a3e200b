/* Small charts of the same quarter of an hour, with lines or stacked areas.

   They are SVG without a library: the code is short, takes its colors from the stylesheet, light and
   dark, and works under a policy that allows no inline style. Used by ops.js, which has the numbers. */

import { isKnown, sum } from "./measures.js";
import { amount, shortClock } from "./words.js";

const HEIGHT = 132;
const INSIDE = { left: 46, right: 10, top: 8, bottom: 20 };
const LABEL_EVERY_S = 300;

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

/** One chart. `format` turns a value into text; `onPoint` gets the slot under the pointer. */
export class Chart {
  #view = null;
  #width = 0;
  #cursor = null;

  constructor({ title, format }, onPoint) {
    this.title = title;
    this.format = format;
    this.unit = element("span", { class: "muted small" });
    this.svg = shape("svg", { role: "img", height: HEIGHT });
    this.legend = element("ul", { class: "legend small number", role: "list" });
    this.node = element(
      "figure",
      { class: "card chart" },
      element("figcaption", {}, element("h2", {}, title), this.unit),
      this.svg,
      this.legend,
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

  /** Draw `lines`, each `{name, color, values}`, with a value for each slot from `first` on.

      `unit` is the unit of the values, `stacked` whether the lines are stacked, `every` the seconds in
      a slot. `unavailable` has a boolean for each slot, `starts` the start times of processes. */
  draw(view) {
    this.#view = view;
    const { lines, unit, stacked, first, every, unavailable, starts } = view;
    this.unit.textContent = unit;
    this.svg.setAttribute("aria-label", this.#summary());
    this.#fillLegend();
    if (this.#width < 80) return;
    this.svg.setAttribute("viewBox", `0 0 ${this.#width} ${HEIGHT}`);
    const layers = stacked ? piled(lines) : lines.map(({ values }) => ({ values }));
    const known = layers.flatMap(({ values }) => values.filter(isKnown));
    const top = niceAbove(Math.max(0, ...known));
    const y = (value) => HEIGHT - INSIDE.bottom - (value / top) * this.#plotHeight;
    this.y = y;
    this.layers = layers;
    const plot = shape("g", { class: "plot" });
    for (const [from, to] of runs(unavailable.map((is) => (is ? 1 : NaN)))) {
      plot.append(this.#rect("unavailable", this.#x(from - 0.5), this.#x(to + 0.5)));
    }
    layers.forEach(({ values, base }, i) => {
      const classes = `series ${lines[i].color}`;
      if (base || lines.length === 1) {
        plot.append(shape("path", { class: `${classes} area`, d: this.#area(values, base, y) }));
      }
      // A layer without height would hide the edge of the layer below.
      const own = lines[i].values;
      const isSeen = (at) => i === 0 || own[at - 1] > 0 || own[at] > 0 || own[at + 1] > 0;
      const edge = base ? values.map((value, at) => (isSeen(at) ? value : NaN)) : values;
      plot.append(shape("path", { class: `${classes} line`, d: this.#line(edge, y) }));
    });
    for (const time of starts) {
      const x = this.#x(time / every - first);
      if (x > INSIDE.left) plot.append(this.#upright("start", x));
    }
    this.svg.replaceChildren(this.#axes(top, y), plot);
    this.point(this.#cursor);
  }

  /** Show the values of a slot in the legend; null means the last slot. */
  point(slot) {
    this.#cursor = slot;
    if (!this.#view) return;
    const { lines, first } = this.#view;
    const at = slot === null ? lines[0]?.values.length - 1 : slot - first;
    lines.forEach(({ values }, i) => {
      const said = amount(values[at] ?? NaN, this.format);
      this.legend.children[i].lastChild.textContent = said;
    });
    this.svg.querySelector(".cursor")?.remove();
    if (!this.layers || !(at >= 0)) return;
    const hair = slot === null ? [] : [this.#upright("hair", this.#x(at))];
    const cursor = shape("g", { class: "cursor" }, ...hair);
    this.layers.forEach(({ values, base }, i) => {
      if (isKnown(values[at] ?? NaN) && (!base || !i || lines[i].values[at] > 0)) {
        const place = { cx: this.#x(at), cy: this.y(values[at]), r: 3.5 };
        cursor.append(shape("circle", { class: lines[i].color, ...place }));
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

  #axes(top, y) {
    const { first, every } = this.#view;
    const right = this.#width - INSIDE.right;
    const axes = shape("g", { class: "axes number" });
    for (const value of [0, top / 2, top]) {
      const at = Math.round(y(value)) + 0.5;
      axes.append(
        shape("line", {
          class: value ? "grid" : "ground",
          x1: INSIDE.left,
          x2: right,
          y1: at,
          y2: at,
        }),
        shape("text", { class: "y", x: INSIDE.left - 6, y: at + 4 }, this.format(value)),
      );
    }
    const begin = first * every;
    const end = begin + (this.#slots - 1) * every;
    const spot = Math.ceil(begin / LABEL_EVERY_S) * LABEL_EVERY_S;
    for (let time = spot; time <= end; time += LABEL_EVERY_S) {
      const x = this.#x(time / every - first);
      // A label near an edge would be cut off.
      if (x < INSIDE.left + 16 || x > right - 12) continue;
      axes.append(
        this.#upright("grid", Math.round(x) + 0.5),
        shape("text", { class: "x", x, y: HEIGHT - 4 }, shortClock(time)),
      );
    }
    return axes;
  }

  #fillLegend() {
    const { lines } = this.#view;
    const names = lines.map(({ name, color }) => `${color} ${name}`).join("\n");
    if (this.legend.dataset.names === names) return;
    this.legend.dataset.names = names;
    this.legend.replaceChildren(
      ...lines.map(({ name, color }) =>
        element(
          "li",
          {},
          element("span", { class: `swatch ${color}`, "aria-hidden": "true" }),
          `${name} `,
          element("b", {}, "–"),
        ),
      ),
    );
  }

  #summary() {
    const said = this.#view.lines.map(({ name, values }) => {
      const { now, least, most } = extremes(values);
      if (!isKnown(most)) return `${name}: nothing`;
      const last = isKnown(now) ? this.format(now) : "nothing";
      return `${name}: now ${last}, from ${this.format(least)} to ${this.format(most)}`;
    });
    return `${this.title}, ${this.#view.unit}, the last 15 minutes. ${said.join("; ")}.`;
  }
}

/** Return the last, the smallest and the largest of some values, and their mean. */
export function extremes(values) {
  const known = values.filter(isKnown);
  const [least, most] = known.length ? [Math.min(...known), Math.max(...known)] : [NaN, NaN];
  return { now: values.at(-1) ?? NaN, least, most, mean: sum(known) / known.length };
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

/** Return the end of an axis: a round number above a value, whose half is round as well. */
function niceAbove(value) {
  if (!(value > 0)) return 1;
  const decade = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 4, 6, 8, 10].find((step) => step * decade >= value * 1.02) * decade || 20 * decade;
}
