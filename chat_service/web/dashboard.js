/* The contents of the dashboard: the lines of each chart, and the tiles with big numbers.

   Used by ops.js. A chart shows `lines` for all processes together, or `each` once for every process.
   What is wrong comes first. A word means the same figure everywhere on the page. The look of a line
   is "bad" or "attention" if it has that meaning, else one of the neutral LOOKS. */

import { logAxis, shareAxis } from "./axes.js";
import { gauge, highest, isKnown, mean, percentile, rate, share, sum_, total } from "./measures.js";
import { amount, percent, short, size, time, worded } from "./words.js";

const REQUESTS = "chat_http_requests_total";
const LATENCY = "chat_http_request_duration_seconds";
const STORE = "chat_store_operation_seconds";
const REFUSED = "chat_requests_refused_total";
const answered = (code) => `${REQUESTS}{code="${code}"}`;
const operation = (name) => `operation="${name}"`;

const line = (name, look, measure) => ({ name, look, measure });

/** The looks of lines without a meaning of their own. They differ in color and in dashes. */
export const LOOKS = ["n1", "n2", "n3", "n4", "n5"];
const lookOf = (number) => LOOKS[number % LOOKS.length];

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
/* The operations that each message needs. */
const HOT = ["insert", "find", "claim"].map((name) => ({
  name,
  p99: percentile(0.99, STORE, operation(name)),
}));
const REST = ALL_OPERATIONS.filter((name) => !HOT.some((hot) => hot.name === name));

const shards = (history) => {
  const found = [];
  while (history.knows(`chat_shard_queue_requests{shard="${found.length}"}`))
    found.push(found.length);
  return found.map((shard) =>
    line(
      `shard ${shard}`,
      lookOf(shard),
      gauge(`chat_shard_queue_requests{shard="${shard}"}`),
    ),
  );
};

const CODES = ["ok", "4xx", "499", "5xx"].map(answered);
const allRequests = rate(...CODES);
const failed = share([answered("5xx")], CODES);
const queued = (history, slot, processes) =>
  shards(history)
    .map(({ measure }) => measure(history, slot, processes))
    .reduce((a, b) => a + b, 0);
const queueTime = percentile(0.99, "chat_queue_wait_seconds");
const p99 = percentile(0.99, LATENCY);
const pending = highest("chat_messages_pending");
const lag = highest("chat_event_loop_lag_seconds");
const unavailable = highest("chat_database_away");
const REASONS = ["unavailable", "storage-full", "overloaded", "expired", "inbox-full", "draining"];
const refusedFor = (...reasons) => share(reasons.map((reason) => `${REFUSED}{reason="${reason}"}`), CODES);

/** The charts. `threshold` names the one in /ops/history that belongs to the chart.

    Those that tell why the latency is high follow it, in the order of the runbook. */
export const CHARTS = [
  {
    title: "Failed",
    unit: "share of requests answered with 5xx",
    format: percent,
    axis: shareAxis,
    threshold: "failed",
    lines: [line("failed", "bad", failed)],
    each: failed,
  },
  {
    title: "Refused",
    unit: "share of requests not executed, by reason",
    format: percent,
    axis: shareAxis,
    threshold: "refused",
    stacked: true,
    lines: [
      line("unavailable", "bad", refusedFor("unavailable")),
      line("storage full", "bad", refusedFor("storage-full")),
      line("overloaded", "attention", refusedFor("overloaded")),
      line("queued too long", "attention", refusedFor("expired")),
      line("inbox full", "n2", refusedFor("inbox-full")),
      line("draining", "n3", refusedFor("draining")),
    ],
    each: refusedFor(...REASONS),
  },
  {
    title: "Latency",
    unit: "head to answer, without long polls",
    format: time,
    axis: logAxis,
    threshold: "latency",
    lines: [
      line("p99", "n1", p99),
      line("p90", "n2", percentile(0.9, LATENCY)),
      line("p50", "n3", percentile(0.5, LATENCY)),
    ],
    each: p99,
    eachUnit: "p99",
  },
  {
    title: "Event loop lag",
    unit: "how late it woke up",
    format: time,
    axis: logAxis,
    threshold: "loop_lag",
    lines: [line("lag", "n1", lag)],
    each: lag,
  },
  {
    title: "Database time",
    unit: "per operation, p99",
    format: time,
    axis: logAxis,
    threshold: "database_time",
    lines: HOT.map(({ name, p99 }, i) => line(name, lookOf(i), p99)),
    each: HOT[0].p99,
    eachUnit: "insert, p99",
  },
  {
    title: "Queue time",
    unit: "of the oldest request in a batch",
    format: time,
    axis: logAxis,
    threshold: "queue_time",
    lines: [
      line("p99", "n1", queueTime),
      line("p50", "n3", percentile(0.5, "chat_queue_wait_seconds")),
    ],
    each: queueTime,
    eachUnit: "p99",
  },
  {
    title: "Outcome unknown",
    unit: "requests per second",
    format: short,
    lines: [line("outcome unknown", "attention", rate("chat_outcomes_unknown_total"))],
    each: rate("chat_outcomes_unknown_total"),
  },
  {
    title: "Requests",
    unit: "per second, by status",
    eachUnit: "per second",
    format: short,
    stacked: true,
    lines: [
      line("ok", "n1", rate(answered("ok"))),
      line("4xx", "n2", rate(answered("4xx"))),
      line("client left", "n3", rate(answered("499"))),
      line("5xx", "bad", rate(answered("5xx"))),
    ],
    each: allRequests,
  },
  {
    title: "Messages",
    unit: "per second",
    format: short,
    lines: [
      line("accepted", "n1", rate("chat_messages_accepted_total")),
      line("read", "n2", rate("chat_messages_read_total")),
      line("revoked", "n3", rate("chat_messages_revoked_total")),
      line("expired unread", "attention", rate("chat_messages_expired_unread_total")),
      line("dead", "bad", rate("chat_messages_dead_total")),
    ],
    each: rate("chat_messages_accepted_total"),
    eachUnit: "accepted per second",
  },
  {
    title: "Pending",
    unit: "messages, all nodes",
    format: short,
    threshold: "pending",
    lines: [line("pending", "n1", pending)],
    each: pending,
  },
  {
    title: "Queued",
    unit: "requests, by shard",
    format: short,
    stacked: true,
    lines: shards,
    each: queued,
    eachUnit: "requests",
  },
  {
    title: "Batches",
    unit: "requests per batch",
    format: short,
    lines: [
      line("largest (p99)", "n3", percentile(0.99, "chat_batch_requests", "", 1)),
      line("posts", "n1", mean("chat_batch_posts")),
      line("reads", "n2", mean("chat_batch_reads")),
    ],
    each: mean("chat_batch_requests"),
    eachUnit: "requests per batch, mean",
  },
  {
    title: "Database load",
    unit: "concurrent operations",
    format: short,
    stacked: true,
    lines: [
      line("insert", "n1", busy("insert")),
      line("find", "n2", busy("find")),
      line("claim", "n3", busy("claim")),
      line("other", "n4", busy(...REST)),
    ],
    each: busy(...ALL_OPERATIONS),
  },
  {
    title: "Disk",
    unit: "of the database",
    format: size,
    threshold: "storage_free",
    lines: [
      line("free", "n1", highest("chat_storage_free_bytes")),
      line("used by messages", "n2", highest("chat_storage_used_bytes")),
    ],
    each: highest("chat_storage_free_bytes"),
    eachUnit: "free",
  },
  {
    title: "Connections",
    unit: "open, and those with a waiter",
    format: short,
    lines: [
      line("connections", "n1", gauge("chat_http_connections")),
      line("waiters", "n2", gauge("chat_waiters")),
    ],
    each: gauge("chat_http_connections"),
    eachUnit: "open",
  },
];

/** The tiles: `read` returns a value, the text below it, and a kind if the value is unusual.

    `of` takes a measure, `above(name, value)` tells whether a value is above that threshold. While
    requests fail, what was measured of requests says little: fast errors make the latency small. */
export const TILES = [
  {
    title: "Failed",
    read: (of, above) => {
      const now = of(failed);
      return {
        value: of(allRequests) === 0 ? "0%" : amount(now, percent),
        below: worded(
          of(rate(answered("5xx"))),
          (errors) => `${short(errors)} of ${short(of(allRequests))} requests/s`,
          "no samples",
        ),
        kind: above("failed", now) ? "bad" : "",
      };
    },
  },
  {
    title: "Latency, p99",
    read: (of, above) => {
      const now = of(p99);
      const isMisleading = above("failed", of(failed));
      return {
        value: amount(now, time),
        below: isMisleading
          ? "failed requests included"
          : worded(of(percentile(0.5, LATENCY)), (half) => `half within ${time(half)}`, "no requests"),
        kind: above("latency", now) ? "pending" : isMisleading ? "doubtful" : "",
      };
    },
  },
  {
    title: "Requests",
    unit: "/s",
    read: (of, above) => ({
      value: amount(of(allRequests), short),
      below: worded(
        of(rate(answered("ok"))),
        (ok) => `${short(ok)} ok, ${short(of(rate(answered("4xx"))))} with 4xx`,
        "no samples",
      ),
      kind: above("failed", of(failed)) ? "doubtful" : "",
    }),
  },
  {
    title: "Pending",
    read: (of, above) => {
      const now = of(pending);
      const read = short(of(rate("chat_messages_read_total")));
      const rates = worded(
        of(rate("chat_messages_accepted_total")),
        (accepted) => `+${short(accepted)}/s accepted, −${read}/s read`,
        "no samples",
      );
      return {
        value: amount(now, short),
        below: isKnown(now) ? rates : "not counted now",
        kind: above("pending", now) ? "pending" : isKnown(now) ? "" : "doubtful",
      };
    },
  },
  {
    title: "Queued",
    read: (of, above) => ({
      value: amount(of(queued), short),
      below: worded(of(queueTime), (wait) => `queue time up to ${time(wait)}`, "no batches"),
      kind: above("queue_time", of(queueTime)) ? "pending" : above("failed", of(failed)) ? "doubtful" : "",
    }),
  },
  {
    title: "Database",
    read: (of, above) => {
      const isDown = of(unavailable) > 0;
      const taken = HOT.map(({ name, p99 }) => ({ name, p99: of(p99) })).filter(({ p99 }) => isKnown(p99));
      const slowest = taken.sort((a, b) => b.p99 - a.p99)[0];
      const isSlow = above("database_time", slowest?.p99);
      const none = isKnown(of(unavailable)) ? "no operations" : "no samples";
      return {
        value: isDown ? "down" : of(unavailable) === 0 ? (isSlow ? "slow" : "up") : "–",
        below: isDown
          ? "requests are refused"
          : slowest
            ? `p99 of ${slowest.name} ${time(slowest.p99)}`
            : none,
        kind: isDown ? "bad" : isSlow ? "pending" : "",
      };
    },
  },
];

/** Whether the database was unavailable. */
export const isUnavailable = (history, slot, processes) => unavailable(history, slot, processes) > 0;
/** Whether one of these processes leads. */
export const isLeader = (history, slot, processes) =>
  highest("chat_leader")(history, slot, processes) > 0;
/** How many shard workers were restarted since their processes started. */
export const workerRestarts = gauge("chat_worker_restarts_total");
