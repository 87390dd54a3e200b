/* The contents of the dashboard: the lines of each chart, and the tiles with big numbers.

   Used by ops.js. A chart shows `lines` for all processes together, or `each` once for every process. */

import { gauge, highest, mean, percentile, rate, sum_, total } from "./measures.js";
import { amount, short, time, worded } from "./words.js";

const REQUESTS = "chat_http_requests_total";
const LATENCY = "chat_http_request_duration_seconds";
const STORE = "chat_store_operation_seconds";
const REFUSED = "chat_requests_refused_total";
const answered = (code) => `${REQUESTS}{code="${code}"}`;
const refused = (reason) => `${REFUSED}{reason="${reason}"}`;
const operation = (name) => `operation="${name}"`;

const line = (name, color, measure) => ({ name, color, measure });

/** The database operations that are shown separately; "other" stands for all others. */
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
      COLORS[shard % COLORS.length],
      gauge(`chat_shard_queue_requests{shard="${shard}"}`),
    ),
  );
};

/** The color names for lines without a meaning of their own. */
export const COLORS = ["c1", "c3", "c2", "c6", "c4", "c5"];

const allRequests = rate(...["ok", "4xx", "499", "5xx"].map(answered));
const queued = (history, slot, processes) =>
  shards(history)
    .map(({ measure }) => measure(history, slot, processes))
    .reduce((a, b) => a + b, 0);
const oldest = percentile(0.99, "chat_queue_wait_seconds");
const p99 = percentile(0.99, LATENCY);
const unavailable = highest("chat_database_away");

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
    unit: "head to answer, without long polls",
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
      line("dead", "c4", rate("chat_messages_dead_total")),
    ],
    each: rate("chat_messages_accepted_total"),
    eachUnit: "accepted per second",
  },
  {
    title: "Pending",
    unit: "unread or leased, all nodes",
    format: short,
    lines: [line("pending", "c2", highest("chat_messages_pending"))],
    each: highest("chat_messages_pending"),
  },
  {
    title: "Queues",
    unit: "waiting requests, by shard",
    format: short,
    stacked: true,
    lines: shards,
    each: queued,
    eachUnit: "waiting requests",
  },
  {
    title: "Wait in a queue",
    unit: "of the oldest request in a batch",
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
    unit: "requests per batch",
    format: short,
    lines: [
      line("posts", "c1", mean("chat_batch_posts")),
      line("reads", "c3", mean("chat_batch_reads")),
      line("largest (p99)", "c6", percentile(0.99, "chat_batch_requests", "", 1)),
    ],
    each: mean("chat_batch_requests"),
    eachUnit: "requests per batch, mean",
  },
  {
    title: "Database, time",
    unit: "per operation, p99",
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
    unit: "concurrent operations",
    format: short,
    stacked: true,
    lines: [
      line("insert", "c1", busy("insert")),
      line("find", "c3", busy("find")),
      line("claim", "c2", busy("claim")),
      line("other", "c6", busy(...REST)),
    ],
    each: busy(...ALL_OPERATIONS),
  },
  {
    title: "Connections",
    unit: "open, and waiting for a message",
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
    title: "Refused",
    unit: "requests per second, by reason",
    eachUnit: "requests per second",
    format: short,
    stacked: true,
    lines: [
      line("overloaded", "c3", rate(refused("overloaded"))),
      line("unavailable", "c5", rate(refused("unavailable"))),
      line("expired", "c2", rate(refused("expired"))),
      line("draining", "c6", rate(refused("draining"))),
      line("outcome unknown", "c4", rate("chat_outcomes_unknown_total")),
    ],
    each: rate(...["overloaded", "unavailable", "expired", "draining"].map(refused)),
  },
];

/** The tiles: `read` returns a value, the text below it, and a kind if the value is unusual. */
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
      below: worded(of(oldest), (wait) => `waits up to ${time(wait)}`, "no batches"),
      kind: of(oldest) > 1 ? "bad" : of(oldest) > 0.1 ? "pending" : "",
    }),
  },
  {
    title: "Database",
    read: (of) => ({
      value: of(unavailable) > 0 ? "down" : of(unavailable) === 0 ? "up" : "–",
      below:
        of(unavailable) > 0
          ? "requests are refused"
          : worded(
              of(mean(STORE, operation("insert"))),
              (mean) => `an insert takes ${time(mean)}`,
              "no inserts",
            ),
      kind: of(unavailable) > 0 ? "bad" : "",
    }),
  },
];

/** Whether the database was unavailable. */
export const isUnavailable = (history, slot, processes) => unavailable(history, slot, processes) > 0;
/** Whether one of these processes leads. */
export const isLeader = (history, slot, processes) =>
  highest("chat_leader")(history, slot, processes) > 0;
/** How many shard workers were restarted since their processes started. */
export const workerRestarts = gauge("chat_worker_restarts_total");
