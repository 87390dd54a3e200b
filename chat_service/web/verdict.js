/* The state of the service in words: what is wrong, what to do next, and where the runbook says more.

   The service judges itself, in the `state` of /ops/history; without an answer, the page says so and
   since when. Everything here is pure. Used by ops.js. */

import { clock, span } from "./words.js";

/* From the best to the worst. `kind` chooses the color, `word` is what a tired operator reads first. */
const SEVERITIES = {
  ok: { kind: "good", word: "OK" },
  recovering: { kind: "pending", word: "Recovering" },
  degraded: { kind: "pending", word: "Degraded" },
  failing: { kind: "bad", word: "Failing" },
  down: { kind: "bad", word: "Down" },
};
const UNKNOWN = { kind: "gone", word: "Unknown" };

/** Return the verdict about the service's `state`: `{kind, word, says, conditions}`.

    `silent` has the ids of processes that take no samples; a hung process cannot say so itself. */
export function verdictOf(state, silent) {
  const hung = silent.length > 0 && {
    severity: "degraded",
    says:
      silent.length === 1
        ? `Process ${silent} does not respond.`
        : `Processes ${silent.join(", ")} do not respond.`,
    next_step:
      "Requests that reach such a process hang. Continue it if it is stopped, or end it with kill -9: the supervisor starts another one.",
    runbook: "node-is-slow",
  };
  if (!state) {
    const says = "The service does not report its state.";
    return { ...UNKNOWN, says, conditions: hung ? [hung] : [] };
  }
  const conditions = [...state.conditions, ...(hung ? [hung] : [])];
  const isWorse = hung && ["ok", "recovering"].includes(state.severity);
  const { kind, word } = SEVERITIES[isWorse ? "degraded" : state.severity] ?? UNKNOWN;
  return { kind, word, says: isWorse ? hung.says : state.says, conditions };
}

/** Return the verdict if the service did not answer since a time; both in seconds since 1970. */
export function verdictOfSilence({ since, now, isOnline, status }) {
  const long = `since ${clock(since)}${now - since >= 1 ? `, for ${span(now - since)}` : ""}`;
  if (!isOnline) {
    const says = `This device is offline. The page knows nothing ${long}.`;
    return { ...UNKNOWN, word: "Offline", says, conditions: [] };
  }
  const what = status ? `answers this page with ${status}` : "does not answer this page";
  const says = `The service ${what} ${long}.`;
  return { kind: "bad", word: "No answer", says, conditions: [{ severity: "down", next_step: NO_ANSWER }] };
}

/* No link: this node serves the runbook, and does not answer. */
const NO_ANSWER = [
  "Request /livez from the machine itself. If it answers, the network or a proxy in between is broken.",
  "If not, read the last lines of the service's log and start it again: accepted messages are not lost.",
  "The runbook is in docs/operations.md, and on every other node.",
].join(" ");

/** Return the words of a runbook entry for a link: `p99-is-up` becomes "p99 is up". */
export const entryOf = (runbook) => runbook.replaceAll("-", " ");
