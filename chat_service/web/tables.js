/* The values of the charts as tables. Used by ops.js. */

import { OPERATIONS } from "./dashboard.js";
import { element, extremes } from "./charts.js";
import { amount, short, time } from "./words.js";

const MINUTE_S = 60;

/** Return tables of the charts' lines, which have values, and of the database operations. */
export function tables(history, slots, charts, period) {
  const rows = charts.flatMap(({ title, format, lines }) =>
    lines.map(({ name, values, now }) => {
      const { least, mean, most } = extremes(values);
      return [`${title}: ${name}`, ...[now, least, mean, most].map((each) => amount(each, format))];
    }),
  );
  const minute = slots.slice(-Math.ceil(MINUTE_S / history.every));
  const over = (measure) =>
    extremes(minute.map((slot) => measure(history, slot, history.processes))).mean;
  const operations = OPERATIONS.map(({ name, calls, mean }) => [
    name,
    amount(over(calls), short),
    amount(over(mean), time),
  ]);
  return [
    table(period, ["now", "min", "mean", "max"], rows),
    table("Database operations, the latest", ["per second", "mean time"], operations),
  ];
}

function table(caption, columns, rows) {
  const head = columns.map((column) => element("th", { scope: "col" }, column));
  const body = rows.map(([name, ...cells]) =>
    element(
      "tr",
      {},
      element("th", { scope: "row" }, name),
      ...cells.map((cell) => element("td", {}, cell)),
    ),
  );
  return element(
    "table",
    { class: "number" },
    element("caption", {}, caption),
    element("thead", {}, element("tr", {}, element("td"), ...head)),
    element("tbody", {}, ...body),
  );
}
