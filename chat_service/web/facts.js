/* The facts about this node as pairs of a term and its text. Unknown ones are a dash.

   Everything here is pure. Used by ops.js. */

import { clock, day, size, span } from "./words.js";

const DASH = "–";

/** Return `[term, text]` pairs for an answer of /ops/history. `isLeading` tells whether this node leads. */
export function factsOf({ node, leader, restarts, mongod_restarts: ends, processes, now }, { isLeading, workerRestarts }) {
  const { name, version, started, disk, database, python } = node ?? {};
  const pids = processes.map(({ pid }) => pid).join(", ");
  const again = [
    restarts > 0 && `${restarts} ${restarts === 1 ? "restart" : "restarts"}`,
    workerRestarts > 0 && `${workerRestarts} of shard workers`,
  ].filter(Boolean);
  return [
    ["Node", name || DASH],
    ["Version", join([version, python && `Python ${python}`])],
    ["Up for", known(started) ? `${span(now - started)}, since ${moment(started, now)}` : DASH],
    ["Processes", join([`${processes.length} (${pids})`, ...again])],
    ["Leader", leader ? `${leader}${isLeading ? " (this node)" : ""}` : DASH],
    ["Database", databaseOf(database, ends)],
    ["Disk of the database", diskOf(disk)],
  ];
}

function databaseOf(database, ends) {
  if (!database) return DASH;
  const { state, kind, version, members } = database;
  const set = known(members) && `${members} ${members === 1 ? "member" : "members"}`;
  const again = ends > 0 && `${ends} ${ends === 1 ? "restart" : "restarts"}`;
  return join([state, version && `MongoDB ${version}`, [kind, set && `of ${set}`].filter(Boolean).join(" "), again]);
}

function diskOf(disk) {
  if (!known(disk?.free_bytes)) return DASH;
  const { free_bytes: free, total_bytes: total } = disk;
  if (!(total > 0)) return `${size(free)} free`;
  return `${size(free)} of ${size(total)} free (${Math.floor((100 * free) / total)}%)`;
}

const moment = (time, now) => (now - time < 86_400 ? clock(time) : day(time));
const known = (value) => value !== undefined && value !== null;
const join = (parts) => parts.filter(Boolean).join(", ") || DASH;
