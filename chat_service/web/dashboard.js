/* What the dashboard shows: for each chart its lines, and for each big number what it says.

   Used by ops.js. In a chart, `lines` are shown for all processes together, and `each` is what is
   shown of every process by itself. */

import { gauge, highest, mean, percentile, rate, sum_, total } from "./measures.js";
import { amount, short, time, worded } from "./words.js";

const REQUESTS = "chat_http_requests_total";
const LATENCY = "chat_http_request_duration_seconds";
const STORE = "chat_store_operation_seconds";
const REFUSED = "chat_requests_refused_total";
const answered = (code) => `${REQUESTS}{code="${code}"}`;
const refused = (reason) => `${REFUSED}{reason="${reason}"}`;
const operation = (name) => `operation="${name}"`;

const line = (name, colour, measure) => ({ name, colour, measure });

/** The database operations that are told apart, and all others. */
export const OPERATIONS = [
  ..."insert find claim lease release revoke count".split(" "),
  "lease end",
  "other",
].map((name) => ({
  name,
  calls: rate(total(STORE, operation(name))),
  mean: mean(STORE, operation(name)),
}));

const busy = (...names) => rate(...names.map((name) => sum_(STORE, operation(name))));
const ALL_OPERATIONS = OPERATIONS.map(({ name }) => name);
const REST = ALL_OPERATIONS.filter((name) => !["insert", "find", "claim"].includes(name));

const shards = (history) => {
  const found = [];
  while (history.knows(`chat_shard_queue_requests{shard="${found.length}"}`))
    found.push(found.length);
  return found.map((shard) =>
    line(
      `shard ${shard}`,
      COLOURS[shard % COLOURS.length],
      gauge(`chat_shard_queue_requests{shard="${shard}"}`),
    ),
  );
};

/** The names of the colours of lines that have no meaning of their own. */
export const COLOURS = ["c1", "c3", "c2", "c6", "c4", "c5"];

const allRequests = rate(...["ok", "4xx", "499", "5xx"].map(answered));
const queued = (history, slot, processes) =>
  shards(history)
    .map(({ measure }) => measure(history, slot, processes))
    .reduce((a, b) => a + b, 0);
const oldest = percentile(0.99, "chat_queue_wait_seconds");
const p99 = percentile(0.99, LATENCY);
const away = highest("chat_database_away");

export const CHARTS = [
  {
    title: "Requests",
    unit: "per second, by status",
    eachUnit: "per second",
    format: short,
    stacked: true,
    lines: [
      line("ok", "c1", rate(answered("ok"))),
      line("4xx", "c3", rate(answered("4xx"))),
      line("client left", "c6", rate(answered("499"))),
      line("5xx", "c5", rate(answered("5xx"))),
    ],
    each: allRequests,
  },
  {
    title: "Latency",
    unit: "head to answer, waits left out",
    format: time,
    lines: [
      line("p50", "c1", percentile(0.5, LATENCY)),
      line("p90", "c2", percentile(0.9, LATENCY)),
      line("p99", "c3", p99),
    ],
    each: p99,
    eachUnit: "p99",
  },
  {
    title: "Messages",
    unit: "per second",
    format: short,
    lines: [
      line("accepted", "c1", rate("chat_messages_accepted_total")),
      line("read", "c3", rate("chat_messages_read_total")),
      line("expired", "c5", rate("chat_messages_expired_unread_total")),
      line("revoked", "c6", rate("chat_messages_revoked_total")),
    ],
    each: rate("chat_messages_accepted_total"),
    eachUnit: "accepted per second",
  },
  {
    title: "Pending",
    unit: "messages nobody has read yet",
    format: short,
    lines: [line("pending", "c2", highest("chat_messages_pending"))],
    each: highest("chat_messages_pending"),
  },
  {
    title: "Queues",
    unit: "requests that wait, by shard",
    format: short,
    stacked: true,
    lines: shards,
    each: queued,
    eachUnit: "requests that wait",
  },
  {
    title: "Wait in a queue",
    unit: "the oldest of a batch",
    format: time,
    lines: [
      line("p50", "c1", percentile(0.5, "chat_queue_wait_seconds")),
      line("p99", "c3", oldest),
    ],
    each: oldest,
    eachUnit: "p99",
  },
  {
    title: "Batches",
    unit: "requests in one",
    format: short,
    lines: [
      line("posts", "c1", mean("chat_batch_posts")),
      line("reads", "c3", mean("chat_batch_reads")),
      line("largest (p99)", "c6", percentile(0.99, "chat_batch_requests", "", 1)),
    ],
    each: mean("chat_batch_requests"),
    eachUnit: "requests in one, mean",
  },
  {
    title: "Database, time",
    unit: "of one operation, p99",
    format: time,
    lines: [
      line("insert", "c1", percentile(0.99, STORE, operation("insert"))),
      line("find", "c3", percentile(0.99, STORE, operation("find"))),
      line("claim", "c2", percentile(0.99, STORE, operation("claim"))),
    ],
    each: percentile(0.99, STORE, operation("insert")),
    eachUnit: "insert, p99",
  },
  {
    title: "Database, load",
    unit: "operations at a time",
    format: short,
    stacked: true,
    lines: [
      line("insert", "c1", busy("insert")),
      line("find", "c3", busy("find")),
      line("claim", "c2", busy("claim")),
      line("others", "c6", busy(...REST)),
    ],
    each: busy(...ALL_OPERATIONS),
  },
  {
    title: "Connections",
    unit: "open, and waiting ones",
    format: short,
    lines: [
      line("open", "c1", gauge("chat_http_connections")),
      line("waiting", "c2", gauge("chat_waiters")),
    ],
    each: gauge("chat_http_connections"),
    eachUnit: "open",
  },
  {
    title: "Event loop",
    unit: "how late it woke up",
    format: time,
    lines: [line("lag", "c3", highest("chat_event_loop_lag_seconds"))],
    each: highest("chat_event_loop_lag_seconds"),
  },
  {
    title: "Turned away",
    unit: "requests per second, by reason",
    eachUnit: "requests per second",
    format: short,
    stacked: true,
    lines: [
      line("overloaded", "c3", rate(refused("overloaded"))),
      line("no database", "c5", rate(refused("unavailable"))),
      line("too late", "c2", rate(refused("expired"))),
      line("draining", "c6", rate(refused("draining"))),
      line("outcome unknown", "c4", rate("chat_outcomes_unknown_total")),
    ],
    each: rate(...["overloaded", "unavailable", "expired", "draining"].map(refused)),
  },
];

/** The big numbers: each is asked for a value, a word below it, and a kind where it is unusual. */
export const TILES = [
  {
    title: "Requests",
    unit: "/s",
    read: (of) => ({
      value: amount(of(allRequests), short),
      below: worded(
        of(rate(answered("5xx"))),
        (failed) => `${short(failed)} failed (5xx), ${short(of(rate(answered("4xx"))))} refused (4xx)`,
        "no samples",
      ),
      kind: of(rate(answered("5xx"))) > 0 ? "bad" : "",
    }),
  },
  {
    title: "Latency, p99",
    read: (of) => ({
      value: amount(of(p99), time),
      below: worded(
        of(percentile(0.5, LATENCY)),
        (half) => `half within ${time(half)}`,
        "no requests",
      ),
      kind: of(p99) > 1 ? "bad" : of(p99) > 0.25 ? "pending" : "",
    }),
  },
  {
    title: "Pending messages",
    read: (of) => ({
      value: amount(of(highest("chat_messages_pending")), short),
      below: worded(
        of(rate("chat_messages_accepted_total")),
        (accepted) =>
          `+${short(accepted)}/s new, −${short(of(rate("chat_messages_read_total")))}/s read`,
        "no samples",
      ),
    }),
  },
  {
    title: "Waiting in queues",
    read: (of) => ({
      value: amount(of(queued), short),
      below: worded(of(oldest), (wait) => `waits up to ${time(wait)}`, "no batch was taken"),
      kind: of(oldest) > 1 ? "bad" : of(oldest) > 0.1 ? "pending" : "",
    }),
  },
  {
    title: "Database",
    read: (of) => ({
      value: of(away) > 0 ? "away" : of(away) === 0 ? "up" : "–",
      below:
        of(away) > 0
          ? "requests are refused"
          : worded(
              of(mean(STORE, operation("insert"))),
              (mean) => `an insert takes ${time(mean)}`,
              "no inserts",
            ),
      kind: of(away) > 0 ? "bad" : "",
    }),
  },
];

/** Whether the database was away. */
export const isAway = (history, slot, processes) => away(history, slot, processes) > 0;
/** Shard workers that were started again, since their processes were. */
export const workerRestarts = gauge("chat_worker_restarts_total");
