// Leases: the remaining time of each, and the actions on its messages.

import { wordsOf } from "./access.js";
import { ask, persist, Problem } from "./api.js";
import { giveBack } from "./dead.js";
import { messageButton, messageOf } from "./message.js";
import { lookAgain } from "./receipts.js";
import { announce, copyOf, counted, inSlices, isolated, lasting, note, onPress, storage, takeAway, tick } from "./ui.js";

export const TTL_S = 60;
/** The leases of pages that have closed in this tab. */
const ABANDONED = "abandoned";

const abandoned = () => JSON.parse(storage.getItem(ABANDONED) ?? "[]");

/** Release what closed pages had leased, in case their own request was lost. Each is tried once. */
export function releaseAbandoned() {
  const leases = abandoned();
  storage.removeItem(ABANDONED);
  for (const { path, lease } of leases) ask("POST", path, { body: { lease } }).catch(() => {});
}

/** Lease the unread messages of an inbox; null if there are none. Safe to repeat: if an answer is lost, its
 *  messages become unread again when the lease ends. */
export async function take(inbox) {
  let askedAt = 0;
  const { document: taken } = await persist(() => {
    askedAt = Date.now();
    return ask("POST", `${inbox.path}/lease?ttl=${TTL_S}`);
  }, inbox.tell);
  return taken.lease === null ? null : new Lease(inbox, taken, askedAt);
}

class Lease {
  #inbox;
  #messages = new Map();
  #ends;
  #ttlMs;
  #asking = 0;

  constructor(inbox, { lease, ttl, messages }, askedAt) {
    this.#inbox = inbox;
    this.lease = lease;
    this.#holdUntil(askedAt, ttl);
    const { element, parts } = copyOf("a-lease");
    this.element = element;
    this.parts = parts;
    element.ariaLabel = `Leased from ${isolated(inbox.name)}`;
    for (const message of messages) this.#messages.set(message.id, { message, element: null });
    void inSlices(messages, (message) => this.#draw(message));
    onPress(parts.ack, () => this.#settle("ack", null));
    onPress(parts.release, () => this.#settle("release", null));
    onPress(parts.extend, () => this.#extend());
    onPress(parts.giveBack, () => this.#giveBack(null));
    this.#count();
    tick(() => this.#runDown());
  }

  get size() {
    return this.#messages.size;
  }

  get isOver() {
    return this.size === 0;
  }

  /** Release everything because the page closes. A browser may drop this last request: a page that opens next in
   *  the same tab repeats it, and otherwise the lease ends within a minute. */
  abandon() {
    if (this.isOver) return;
    const path = `${this.#inbox.path}/release`;
    const body = JSON.stringify({ lease: this.lease });
    navigator.sendBeacon(path, new Blob([body], { type: "application/json" }));
    storage.setItem(ABANDONED, JSON.stringify([...abandoned(), { path, lease: this.lease }]));
    this.#leave([...this.#messages.keys()]);
  }

  #holdUntil(askedAt, ttlS) {
    this.#ttlMs = ttlS * 1000;
    // The service starts the lease when it gets the request, so the lease never ends earlier than shown.
    this.#ends = askedAt + this.#ttlMs;
  }

  #draw(message) {
    const held = this.#messages.get(message.id);
    // Meanwhile all were acknowledged or released.
    if (held === undefined) return;
    const { id, text, dead } = message;
    held.element = messageOf(message, [
      ...(dead ? [messageButton("Return", text, () => this.#giveBack(id))] : []),
      // That deletes a dead letter.
      messageButton("Acknowledge", text, () => this.#settle("ack", id), dead ? "quiet" : ""),
      messageButton("Release", text, () => this.#settle("release", id), "quiet"),
    ]);
    this.parts.messages.append(held.element);
  }

  async #settle(action, id) {
    const ids = id === null ? [...this.#messages.keys()] : [id];
    await this.#ask(async () => {
      const { document: said } = await persist(
        () => ask("POST", `${this.#inbox.path}/${action}`, { body: { lease: this.lease, ids } }),
        this.#tell,
      );
      const n = said.acknowledged ?? said.released;
      const lost = n < ids.length ? ` ${counted(ids.length - n, "message")} expired in the meantime.` : "";
      const done = action === "ack" ? "acknowledged." : "released and unread again.";
      const words = `${counted(n, "message")} ${done}${lost}`;
      this.#inbox.tell(words, "good");
      announce(words);
      // What was acknowledged exists only here, unless some of it had expired.
      if (action === "ack") this.#inbox.shown.add(this.#chosen(ids));
      this.#leave(ids);
    }, ids);
  }

  /** Return a dead letter, or all, to the inbox that they were in: post them, then acknowledge them. */
  #giveBack(id) {
    const letters = this.#chosen(id === null ? [...this.#messages.keys()] : [id]).filter(({ dead }) => dead);
    const ids = letters.map((letter) => letter.id);
    const origins = new Set(letters.map(({ dead }) => dead.username));
    const where = origins.size === 1 ? isolated(...origins) : "their inboxes";
    return this.#ask(async () => {
      const done = [];
      try {
        for (const letter of letters) {
          await giveBack(letter, this.#tell);
          done.push(letter.id);
        }
      } finally {
        if (done.length > 0) await this.#finish(done, where);
      }
    }, ids, `send to ${where}`);
  }

  /** Remove dead letters that were returned. */
  async #finish(ids, where) {
    const end = await this.#acknowledge(ids);
    const words = `${counted(ids.length, "dead letter")} returned to ${where}${end}.`;
    this.#inbox.tell(words, end === "" ? "good" : "");
    announce(words);
    this.#leave(ids);
  }

  /** Acknowledge dead letters that were returned; return what went wrong with some, if their lease had ended. */
  async #acknowledge(ids) {
    const body = { lease: this.lease, ids };
    try {
      await persist(() => ask("POST", `${this.#inbox.path}/ack`, { body }), this.#tell);
      return "";
    } catch (error) {
      if (error.status !== 410) throw error;
      return ", but the lease had ended: they are still here as well. Return them again to remove them; they are posted only once";
    }
  }

  #chosen(ids) {
    return ids.filter((id) => this.#messages.has(id)).map((id) => this.#messages.get(id).message);
  }

  #extend() {
    return this.#ask(async () => {
      const askedAt = Date.now();
      const { document: said } = await persist(
        () => ask("POST", `${this.#inbox.path}/extend`, { body: { lease: this.lease, ttl: TTL_S } }),
        this.#tell,
      );
      this.#holdUntil(askedAt, said.ttl);
      announce(`Leased for ${said.ttl} seconds from now.`);
    }, [...this.#messages.keys()]);
  }

  /** Send a request about messages that may no longer be leased. */
  async #ask(act, ids, need = this.#inbox.need) {
    this.#asking += 1;
    try {
      await act();
    } catch (error) {
      if (!(error instanceof Problem)) throw error;
      if (error.status !== 410) {
        this.#tell(await wordsOf(error, need), "bad");
        return;
      }
      this.#inbox.shown.add(this.#chosen(error.acknowledged));
      this.#leave(ids);
      const done = error.acknowledged.length;
      const words = done > 0
        ? `${counted(done, "message")} acknowledged. ${counted(ids.length - done, "message")} could not be `
          + "acknowledged because the lease had ended."
        : ids.length === 1
        ? "The message is no longer leased: it expired, or its lease ended."
        : "The lease ended.";
      this.#inbox.tell(words);
      announce(words);
    } finally {
      this.#asking -= 1;
    }
    this.#inbox.refresh();
    lookAgain();
  }

  #tell = (words, kind = "") => note(this.parts.note, words, kind);

  #runDown() {
    if (this.isOver) return false;
    const left = this.#ends - Date.now();
    this.parts.bar.style.setProperty("--left", Math.max(0, Math.min(1, left / this.#ttlMs)));
    this.parts.left.textContent = `${lasting(left)} left`;
    // A request in progress may have succeeded; its answer will tell.
    if (left > 0 || this.#asking > 0) return true;
    const what = `${counted(this.size, "message")} of ${isolated(this.#inbox.name)} became`;
    const words = `The lease ended: ${what} unread again.`;
    this.#leave([...this.#messages.keys()]);
    this.#inbox.tell(words);
    announce(words);
    this.#inbox.refresh();
    lookAgain();
    return false;
  }

  #leave(ids) {
    for (const id of ids) {
      const held = this.#messages.get(id);
      if (!held) continue;
      this.#messages.delete(id);
      if (held.element) takeAway(held.element, this.element);
    }
    this.#count();
    if (this.isOver) takeAway(this.element, this.#inbox.focus);
  }

  #count() {
    this.parts.title.textContent = `${counted(this.size, "message")} leased`;
    const hasDead = [...this.#messages.values()].some(({ message }) => message.dead);
    this.parts.giveBack.hidden = !hasDead;
    this.parts.ack.classList.toggle("primary", !hasDead);
    this.#inbox.sum();
  }
}
