/* Calculates rates and percentiles from the raw counters of /ops/history.

   A measure is a function of a history, a slot, and the processes to combine. It returns NaN if the
   value is unknown. A slot is a period of `every` seconds, the same for all processes. Used by ops.js. */

/** The samples of one period, of all processes. */
export class History {
  every = 3;
  processes = [];
  #seen = 0;
  #places = new Map();
  #bounds = new Map();

  /** Add an answer of /ops/history and return the live processes. Adding one twice is harmless. */
  add(answer) {
    this.every = answer.every;
    const places = answer.series.map((name) => this.#place(name));
    return answer.processes.map(({ pid, started, samples }) => {
      // A restarted process counts from zero, even if it has the same id.
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

  /** Delete the samples before a slot. */
  forget(first) {
    for (const { rows } of this.processes) {
      for (const slot of rows.keys()) if (slot < first) rows.delete(slot);
    }
    this.processes = this.processes.filter(({ rows }) => rows.size > 0);
  }

  /** Return whether a series exists. */
  knows(name) {
    return this.#places.has(name);
  }

  /** Return the slot of a time in seconds since 1970. */
  slotOf(time) {
    return Math.floor(time / this.every);
  }

  /** Return the value of a series. */
  value(process, slot, name) {
    return process.rows.get(slot)?.values[this.#places.get(name)] ?? NaN;
  }

  /** Return by how much a counter grew since the previous sample, and in how many seconds. */
  growth(process, slot, name) {
    const row = process.rows.get(slot);
    // One sample may be missing if the process was busy; more of them are a gap.
    const before = process.rows.get(slot - 1) ?? process.rows.get(slot - 2);
    const place = this.#places.get(name);
    const now = row?.values[place];
    if (now == null || before?.values[place] == null || row.time <= before.time) return [NaN, NaN];
    const grown = now - before.values[place];
    return [grown < 0 ? now : grown, row.time - before.time];
  }

  /** Return the upper bounds of a histogram's buckets, with their series. */
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

/** Several slots of a history as one: counters grow over all of them, gauges have their last value.

    Measures take it like a history. */
export class Stretch {
  #history;
  #length;

  constructor(history, length) {
    this.#history = history;
    this.#length = length;
  }

  knows(name) {
    return this.#history.knows(name);
  }

  bounds(name, label) {
    return this.#history.bounds(name, label);
  }

  value(process, slot, name) {
    // A process whose last samples are missing does not run.
    const slots = [0, 1, 2].map((ago) => this.#history.value(process, slot - ago, name));
    return slots.find(isKnown) ?? NaN;
  }

  growth(process, slot, name) {
    const grown = Array.from({ length: this.#length }, (_, ago) =>
      this.#history.growth(process, slot - ago, name),
    );
    return [sum(grown.map(([growth]) => growth)), sum(grown.map(([, seconds]) => seconds))];
  }
}

/** The growth of one or several counters per second. */
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

/** What share of some counters' growth is that of `parts`. */
export const share = (parts, all) => (history, slot, processes) => {
  const whole = rate(...all)(history, slot, processes);
  return whole > 0 ? rate(...parts)(history, slot, processes) / whole : NaN;
};

/** The sum of a gauge over the processes. */
export const gauge = (name) => (history, slot, processes) =>
  sum(processes.map((process) => history.value(process, slot, name)));

/** The highest value of a gauge among the processes. */
export const highest = (name) => (history, slot, processes) => {
  const known = processes.map((process) => history.value(process, slot, name)).filter(isKnown);
  return known.length ? Math.max(...known) : NaN;
};

/** The mean of the values that a histogram counted since the previous sample. */
export const mean =
  (name, label = "") =>
  (history, slot, processes) => {
    const grown = (series) =>
      sum(processes.map((process) => history.growth(process, slot, series)[0]));
    return grown(sum_(name, label)) / grown(total(name, label));
  };

/** A percentile of these values, interpolated linearly within its bucket. */
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

/** The series of a histogram's sum. Its rate is seconds of work per second. */
export const sum_ = (name, label = "") => `${name}_sum${label && `{${label}}`}`;
/** The series of a histogram's count. */
export const total = (name, label = "") => `${name}_count${label && `{${label}}`}`;

/** Return the sum of the known values; NaN if there are none. */
export function sum(values) {
  const known = values.filter(isKnown);
  return known.length ? known.reduce((a, b) => a + b, 0) : NaN;
}

export const isKnown = (value) => !Number.isNaN(value);
