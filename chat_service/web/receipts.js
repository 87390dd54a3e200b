// The messages sent from this tab and their status. `send.js` adds messages; `inbox.js` asks for an
// update when messages were read here.
//
// Receipts survive a reload in the session storage: ids, receipts, lifetimes and, for scheduled messages, when
// they were sent. Never a text or a name.

import { wordsOf } from "./access.js";
import { ask, connection, Problem, reachable, Unreachable } from "./api.js";
import { session } from "./session.js";
import { acceptedAt, announce, byId, copyOf, inboxLink, lasting, note, now, onPress } from "./ui.js";
import { poll, showText, stamp, storage, tick, timeOf } from "./ui.js";

const PAUSE_MS = 1000;
const PAUSE_MAX_MS = 8_000;
/** While it is scheduled, a message only changes if it is revoked elsewhere. */
const PAUSE_SCHEDULED_MS = 60_000;
/** After a 429: the limit is for the messages, not for their statuses. */
const PAUSE_LIMITED_MS = 30_000;
const KEPT = 50;
const STORE = "receipts";
/** A message is `sent` until its status is known. These states may still change. */
const OPEN = ["sent", "scheduled", "pending", "leased"];
const WORDS = {
  scheduled: "scheduled for",
  read: "read at",
  expired: "expired at",
  revoked: "revoked at",
  dead: "dead since",
  unknown: "no longer known",
};

const DEAD = "It was leased too often without an acknowledgement, and moved to the dead-letter inbox.";

const sent = new Map();

class Sent {
  /** `sentAt` is when a scheduled message was sent, in ms; null for other messages. */
  constructor(id, receipt, lifetimeS, sentAt, message) {
    const { element, parts } = copyOf("a-sent");
    Object.assign(this, { id, receipt, lifetimeS, sentAt, element, parts });
    this.username = message?.username;
    this.state = "sent";
    this.pause = PAUSE_MS;
    this.due = 0;
    // An id begins with the time from which the message can be read.
    this.begins = acceptedAt(id);
    this.ends = this.begins + lifetimeS * 1000;
    stamp(parts, id, sentAt);
    if (message) {
      parts.to.append("to ", inboxLink(message.username));
      showText(parts, message.text);
    } else {
      parts.to.textContent = "to –, sent before the page was loaded";
      parts.text.remove();
    }
    this.enter("sent");
    if (!receipt) note(parts.note, "Sent without a receipt, so its status is not available.");
    onPress(parts.revoke, () => this.revoke());
  }

  get isFinal() {
    return !OPEN.includes(this.state);
  }

  /** Show a state. `at` is when it began, in ms, if the service reports it. */
  enter(state, at = null) {
    const { parts } = this;
    const isNews = this.state !== state;
    this.state = state;
    parts.state.className = `state ${state}`;
    const word = WORDS[state] ?? state;
    parts.state.textContent = at === null ? word : `${word} ${timeOf(at)}`;
    parts.life.hidden = this.isFinal;
    const isRevocable = this.receipt && ["sent", "scheduled", "pending"].includes(state);
    if (!isRevocable && document.activeElement === parts.revoke) this.element.focus();
    parts.revoke.hidden = !isRevocable;
    if (!isNews) return;
    this.pause = PAUSE_MS;
    remember();
    announce(`The message sent at ${parts.time.textContent} is ${state}.`);
    if (state === "dead") note(parts.note, DEAD);
  }

  /** Show the remaining lifetime; return false if nothing is left. */
  runDown() {
    if (this.isFinal || sent.get(this.id) !== this) return false;
    if (this.isEarly) return this.#runToDelivery();
    const left = this.ends - now();
    this.#draw(left / (this.lifetimeS * 1000));
    this.parts.left.textContent = left > 0 ? `${lasting(left)} left` : "lifetime over";
    if (left > 0) return true;
    lookAgain(this.id);
    return false;
  }

  /** Whether the message is not delivered yet, as far as is known. */
  get isEarly() {
    return this.state === "scheduled" || (this.state === "sent" && this.sentAt !== null && now() < this.begins);
  }

  #runToDelivery() {
    const left = this.begins - now();
    this.#draw(left / (this.begins - this.sentAt));
    this.parts.left.textContent = left > 0 ? `delivered in ${lasting(left)}` : "delivered any moment";
    if (left <= 0 && this.due > Date.now() + PAUSE_MS) lookAgain(this.id);
    return true;
  }

  #draw(part) {
    this.parts.bar.style.setProperty("--left", Math.max(0, Math.min(1, part)));
  }

  async look() {
    let after = 0;
    try {
      const { document: said } = await this.#ask("GET", "/status");
      this.enter(said.status, said.at === null ? null : Date.parse(said.at));
      if (this.isTroubled) note(this.parts.note, "");
      this.isTroubled = false;
    } catch (error) {
      this.isTroubled = error.status !== 404;
      after = error.status === 429 ? Math.max(PAUSE_LIMITED_MS, error.retryAfterS * 1000) : 0;
      if (error instanceof Unreachable) await reachable();
      else if (error.status === 404) this.enter("unknown");
      else if (error.status === 401 || error.status === 403) {
        note(this.parts.note, await wordsOf(error, "follow this message", { isAwaited: false }));
        // Until somebody else uses the page.
        if (session.isOn) {
          this.due = Infinity;
          return;
        }
      } else if (error instanceof Problem && error.retryAfterS === null) note(this.parts.note, error.words);
    }
    this.pause = Math.min(this.pause * 1.5, PAUSE_MAX_MS);
    const quiet = this.state === "scheduled" ? Math.min(PAUSE_SCHEDULED_MS, this.begins - now()) : 0;
    this.due = Date.now() + Math.max(this.pause, after, quiet);
  }

  async revoke() {
    const { note: place } = this.parts;
    note(place, "");
    try {
      await this.#ask("DELETE");
    } catch (error) {
      if (error instanceof Unreachable) {
        note(place, "No answer. Revoke the message again when the service can be reached.");
        connection.addEventListener("found", () => note(place, ""), { once: true });
      } else if (error.status === 409 && error.fate) {
        note(place, `Too late: the message is ${error.fate === "leased" ? "leased by a reader" : error.fate}.`);
      } else if (error instanceof Problem) {
        note(place, await wordsOf(error, "revoke this message"));
      } else {
        throw error;
      }
    }
    lookAgain(this.id);
  }

  #ask(method, path = "") {
    return ask(method, `messages/${this.id}${path}`, { headers: { "X-Receipt": this.receipt } });
  }
}

/** Follow a message that was just sent. `receipt` is null if it has none; `sentAt` is null unless the message
 *  is scheduled. */
export function follow(id, receipt, message, sentAt) {
  sent.get(id)?.element.remove();
  add(new Sent(id, receipt, message.timeout, sentAt, message));
  remember();
  lookAgain(id);
}

/** Return when the messages to an inbox are due that were scheduled since the page was loaded, in ms. */
export function scheduledTo(username) {
  const early = [...sent.values()].filter((each) => each.username === username && each.isEarly);
  return early.map(({ begins }) => begins).sort((one, other) => one - other);
}

/** Update the status of all messages, or of one, at once. */
export function lookAgain(id = null) {
  if (id !== null && !sent.has(id)) return;
  for (const each of id === null ? sent.values() : [sent.get(id)]) {
    each.pause = PAUSE_MS;
    each.due = 0;
  }
  turn();
}

function add(item) {
  sent.set(item.id, item);
  byId("sent").prepend(item.element);
  tick(() => item.runDown());
  byId("sent-none").hidden = true;
  if (sent.size > KEPT) {
    const [oldest] = sent.keys();
    sent.get(oldest).element.remove();
    sent.delete(oldest);
  }
}

function remember() {
  const kept = [...sent.values()]
    .filter((each) => each.receipt && each.state !== "unknown")
    .map(({ id, receipt, lifetimeS, sentAt }) => ({ id, receipt, lifetimeS, sentAt }));
  storage.setItem(STORE, JSON.stringify(kept));
}

const turn = poll(async () => {
  const open = [...sent.values()].filter((each) => each.receipt && !each.isFinal);
  await Promise.all(open.filter((each) => each.due <= Date.now()).map((each) => each.look()));
  const due = open.filter((each) => !each.isFinal && each.due < Infinity).map((each) => each.due);
  return due.length === 0 ? null : Math.max(PAUSE_MS / 2, Math.min(...due) - Date.now());
});

session.addEventListener("change", () => lookAgain());

for (const { id, receipt, lifetimeS, sentAt } of JSON.parse(storage.getItem(STORE) ?? "[]")) {
  add(new Sent(id, receipt, lifetimeS, sentAt ?? null, null));
}
turn();
