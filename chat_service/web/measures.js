/* What the raw counters of /ops/history mean: samples in, rates and percentiles out.

   A measure is a function of a history, a slot, and the processes that are to be taken together;
   it gives NaN where there is nothing to say. A slot is a span of the clock, of `every` seconds,
   and the same for all processes. Used by ops.js. */

/** All samples of the last quarter of an hour, of every process that was seen. */
export class History {
  every = 3;
  processes = [];
  #seen = 0;
  #places = new Map();
  #bounds = new Map();

  /** Take in an answer of /ops/history; gives the processes that live. A repeat is harmless. */
  add(answer) {
    this.every = answer.every;
    const places = answer.series.map((name) => this.#place(name));
    return answer.processes.map(({ pid, started, samples }) => {
      // A process that starts again counts from zero, even where it has the same id.
      let process = this.processes.find((each) => each.pid === pid && each.started === started);
      if (!process) {
        process = { pid, started, number: this.#seen++, rows: new Map() };
        this.processes.push(process);
      }
      for (const [time, ...values] of samples) {
        const row = { time, values: [] };
        values.forEach((value, i) => (row.values[places[i]] = value));
        process.rows.set(this.slotOf(time), row);
      }
      return process;
    });
  }

  /** Forget what was before a slot. */
  forget(first) {
    for (const { rows } of this.processes) {
      for (const slot of rows.keys()) if (slot < first) rows.delete(slot);
    }
    this.processes = this.processes.filter(({ rows }) => rows.size > 0);
  }

  /** Whether there is a series. */
  knows(name) {
    return this.#places.has(name);
  }

  /** The slot that a time is in, in seconds since 1970. */
  slotOf(time) {
    return Math.floor(time / this.every);
  }

  /** The value of a series. */
  value(process, slot, name) {
    return process.rows.get(slot)?.values[this.#places.get(name)] ?? NaN;
  }

  /** How much a counter grew since the sample before, and in how many seconds. */
  growth(process, slot, name) {
    const row = process.rows.get(slot);
    // One sample may be missing where the process was busy; more of them are a gap.
    const before = process.rows.get(slot - 1) ?? process.rows.get(slot - 2);
    const place = this.#places.get(name);
    const now = row?.values[place];
    if (now == null || before?.values[place] == null || row.time <= before.time) return [NaN, NaN];
    const grown = now - before.values[place];
    return [grown < 0 ? now : grown, row.time - before.time];
  }

  /** The upper bounds of a histogram's buckets, and the series of each. */
  bounds(name, label) {
    const key = `${name}{${label}`;
    if (!this.#bounds.has(key)) {
      const start = `${name}_bucket{${label ? `${label},` : ""}le="`;
      const found = [...this.#places.keys()]
        .filter((series) => series.startsWith(start))
        .map((series) => [parseFloat(series.slice(start.length)), series]);
      this.#bounds.set(key, [...found.sort(([a], [b]) => a - b), [Infinity, total(name, label)]]);
    }
    return this.#bounds.get(key);
  }

  #place(name) {
    if (!this.#places.has(name)) {
      this.#places.set(name, this.#places.size);
      this.#bounds.clear();
    }
    return this.#places.get(name);
  }
}

/** How often a counter, or several, grew in a second. */
export const rate =
  (...names) =>
  (history, slot, processes) =>
    sum(
      processes.map((process) =>
        sum(
          names.map((name) => {
            const [grown, seconds] = history.growth(process, slot, name);
            return grown / seconds;
          }),
        ),
      ),
    );

/** A gauge of all processes together. */
export const gauge = (name) => (history, slot, processes) =>
  sum(processes.map((process) => history.value(process, slot, name)));

/** The highest value of a gauge. */
export const highest = (name) => (history, slot, processes) => {
  const known = processes.map((process) => history.value(process, slot, name)).filter(isKnown);
  return known.length ? Math.max(...known) : NaN;
};

/** The mean of what a histogram took in since the sample before. */
export const mean =
  (name, label = "") =>
  (history, slot, processes) => {
    const grown = (series) =>
      sum(processes.map((process) => history.growth(process, slot, series)[0]));
    return grown(sum_(name, label)) / grown(total(name, label));
  };

/** A percentile of it, which is in a bucket, and taken to be where a straight line would put it. */
export const percentile =
  (share, name, label = "", least = 0) =>
  (history, slot, processes) => {
    const bounds = history.bounds(name, label);
    const counts = bounds.map(([, series]) =>
      sum(processes.map((process) => history.growth(process, slot, series)[0])),
    );
    const all = counts.at(-1);
    if (!(all > 0)) return NaN;
    const at = counts.findIndex((count) => count >= share * all);
    const [upper] = bounds[at];
    if (upper === Infinity) return bounds[at - 1][0];
    const [lower, below] = at > 0 ? [bounds[at - 1][0], counts[at - 1]] : [least, 0];
    return lower + (upper - lower) * ((share * all - below) / (counts[at] - below));
  };

/** The series of a histogram's sum: seconds of work in a second, as a rate. */
export const sum_ = (name, label = "") => `${name}_sum${label && `{${label}}`}`;
/** And of how many there were. */
export const total = (name, label = "") => `${name}_count${label && `{${label}}`}`;

/** The sum of what is known; NaN where nothing is. */
export function sum(values) {
  const known = values.filter(isKnown);
  return known.length ? known.reduce((a, b) => a + b, 0) : NaN;
}

export const isKnown = (value) => !Number.isNaN(value);
