// The messages that were read on the page, of one inbox: shown, kept over a reload, copied, saved, and cleared.

import { wordsOf } from "./access.js";
import { Problem } from "./api.js";
import { copy, save } from "./copy.js";
import { giveBack } from "./dead.js";
import { drop, keep, keptOf } from "./kept.js";
import { messageButton, messageOf } from "./message.js";
import { acceptedAt, announce, counted, dateOf, inSlices, isolated, onPress, reveal, takeAway } from "./ui.js";

/** The maximum number of messages on the page. All of them are copied and saved. */
const SHOWN_MAX = 1000;

/** The messages, of all inboxes, that a reload would destroy. */
const unkept = new Set();

function warn(event) {
  event.preventDefault();
  // For older browsers.
  event.returnValue = true;
}

/** Have the browser ask before it closes the page, if that destroys messages. */
function guard() {
  if (unkept.size > 0) window.addEventListener("beforeunload", warn);
  else window.removeEventListener("beforeunload", warn);
}

export class Shown {
  #inbox;
  #parts;
  // By id, in the order of reading.
  #messages = new Map();

  constructor(inbox) {
    this.#inbox = inbox;
    this.#parts = inbox.parts;
    const { copyAll, save: saves, clear } = inbox.parts;
    onPress(copyAll, () => copy(this.#asText(), copyAll));
    saves.addEventListener("click", () => this.#save());
    clear.addEventListener("click", () => this.#clear());
    for (const message of keptOf(inbox.name)) this.#messages.set(message.id, message);
    void this.#draw([...this.#messages.values()]);
  }

  get size() {
    return this.#messages.size;
  }

  /** Show messages, and keep them; return those that are new, since some may be delivered again. */
  add(messages) {
    const fresh = messages.filter(({ id }) => !this.#messages.has(id));
    for (const message of fresh) {
      this.#messages.set(message.id, message);
      if (!keep(this.#inbox.name, message)) unkept.add(message);
    }
    void this.#draw(fresh);
    return fresh;
  }

  /** Scroll to the newest message. */
  reveal() {
    const newest = this.#parts.messages.firstElementChild;
    if (newest) reveal(newest);
  }

  async #draw(messages) {
    this.#tell();
    const { messages: list } = this.#parts;
    const older = list.firstElementChild;
    await inSlices(messages.slice(-SHOWN_MAX).reverse(), (message) => {
      if (!this.#messages.has(message.id)) return;
      list.insertBefore(this.#elementOf(message), older?.isConnected ? older : null);
      if (list.childElementCount > SHOWN_MAX) list.lastElementChild.remove();
    });
  }

  #elementOf(message) {
    const back = () => this.#giveBack(message, element);
    const actions = message.dead ? [messageButton("Return", message.text, back)] : [];
    const element = messageOf(message, actions);
    return element;
  }

  /** Say how long the messages exist, and that only this page has them. */
  #tell() {
    const lost = [...this.#messages.values()].filter((message) => unkept.has(message)).length;
    const rest = this.size > SHOWN_MAX
      ? ` Copy all and Save have all ${this.size.toLocaleString("en")}; the newest ${SHOWN_MAX.toLocaleString("en")} are shown.`
      : "";
    this.#parts.lifetime.textContent = lost === 0
      ? `Only this tab has them, until you close it.${rest}`
      : `Only this page has them. A reload destroys ${counted(lost, "message")} for which this tab has no room: `
        + `save them first.${rest}`;
    this.#parts.lifetime.classList.toggle("fault", lost > 0);
    this.#parts.shown.hidden = this.size === 0;
    guard();
    this.#inbox.sum();
  }

  #remove(messages) {
    for (const message of messages) {
      this.#messages.delete(message.id);
      unkept.delete(message);
      drop(this.#inbox.name, message.id);
    }
    this.#tell();
  }

  #clear() {
    if (!confirm(`Clear ${counted(this.size, "message")}? Nothing else has them.`)) return;
    this.#parts.messages.replaceChildren();
    this.#remove([...this.#messages.values()]);
    announce("Cleared.");
    this.#inbox.focus.focus();
  }

  async #giveBack(message, element) {
    const { username } = message.dead;
    try {
      await giveBack(message, this.#inbox.tell);
    } catch (error) {
      if (!(error instanceof Problem)) throw error;
      this.#inbox.tell(await wordsOf(error, `send to ${isolated(username)}`), "bad");
      return;
    }
    takeAway(element, this.#inbox.focus);
    this.#remove([message]);
    this.#inbox.tell(`Returned to ${isolated(username)} as a new message.`, "good");
  }

  #asText() {
    return [...this.#messages.values()].map(({ id, text }) => `${dateOf(acceptedAt(id))}\n${text}\n`).join("\n");
  }

  #save() {
    const messages = [...this.#messages.values()]
      .map((message) => ({ ...message, at: new Date(acceptedAt(message.id)).toISOString() }));
    const name = this.#inbox.name.replace(/[^\p{L}\p{N}._-]+/gu, "_");
    const day = new Date().toISOString().slice(0, 10);
    save(`${JSON.stringify(messages, null, 2)}\n`, `inbox-${name}-${day}.json`, "application/json");
  }
}
