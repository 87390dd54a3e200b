// The open inbox: counts it repeatedly, and reads it only on request.
//
// Its name is in the address, `#inbox=bob`. Opening it reads nothing.

import { wordsOf } from "./access.js";
import { ask, newKey, persist, Problem, reachable, Unreachable } from "./api.js";
import { take } from "./leases.js";
import { Live } from "./live.js";
import { leadTo, onTab, showPane, showUnread } from "./panes.js";
import { lookAgain } from "./receipts.js";
import { session } from "./session.js";
import { announce, byId, copyOf, counted, inboxLink, messageOf, note, onPress, poll, storage } from "./ui.js";

const COUNT_MS = 2000;
const COUNT_SELDOM_MS = 6000;
/** After a 429: counts cost as much as several messages, and must leave room for them. */
const COUNT_LIMITED_MS = 30_000;
/** After this many equal counts, the page counts less often. */
const STEADY = 30;
const SHOWN_MAX = 1000;

const whose = byId("whose");
const fault = byId("whose-fault");
const views = new Map();
let current = null;
let isLimited = false;

class Inbox {
  #ids = new Set();
  #leases = new Set();
  #counts = { last: null, same: 0 };
  // Whether the last count failed, and whether the note is an error.
  #isUnknown = false;
  #isBad = false;

  constructor(name) {
    this.name = name;
    this.path = `chat/${encodeURIComponent(name)}`;
    const { element, parts } = copyOf("an-inbox");
    this.element = element;
    this.parts = parts;
    this.live = new Live(this, (message) => this.#arrived(message), this.#liveIs);
    onPress(parts.read, () => this.#try(() => this.#read()));
    onPress(parts.lease, () => this.#try(() => this.#lease()));
    parts.watch.addEventListener("click", () => (this.live.isOn ? this.live.stop() : void this.live.start()));
    parts.clear.addEventListener("click", () => this.#clear());
  }

  /** The element that gets the focus when the focused one is removed. */
  get focus() {
    return this.parts.read;
  }

  tell = (words, kind = "") => {
    this.#isBad = kind === "bad";
    note(this.parts.note, words, kind);
  };

  refresh() {
    this.#counts.same = 0;
    count();
  }

  /** Count the unread messages; return the pause until the next count, or null. */
  async count() {
    try {
      const { headers } = await ask("HEAD", this.path);
      const said = headers.get("X-Unread-Count");
      // The service counts up to a limit: ">10000".
      this.#counted(Number(said.replace(">", "")), said.startsWith(">"));
      // A node of an earlier version does not name it.
      if (headers.has("X-Dead-Letter-Inbox")) this.#linkDead(decodeURIComponent(headers.get("X-Dead-Letter-Inbox")));
    } catch (error) {
      if (error instanceof Unreachable) {
        this.#uncounted("not counted: the service does not answer. Retrying.");
        await reachable();
        return 0;
      }
      if (error.status === 400 && current === this) {
        close();
        refuse("is not a username: it must have 1 to 128 characters and no control characters");
        return null;
      }
      if (error.status === 401 || error.kind === "forbidden") {
        const why = await wordsOf(error, `read the inbox of ${this.name}`, { isAwaited: false });
        this.#uncounted(why);
        // Until somebody else uses the page.
        return session.isOn ? null : COUNT_SELDOM_MS;
      }
      if (error.status === 429) {
        isLimited = true;
        this.#uncounted(`not counted: too many requests. Again in ${error.retryAfterS} s.`);
        return (error.retryAfterS ?? 1) * 1000;
      }
      this.#uncounted(`not counted: the service answered ${error.status} (request ${error.requestId}). Retrying.`);
    }
    if (isLimited) return COUNT_LIMITED_MS;
    return this.#counts.same < STEADY ? COUNT_MS : COUNT_SELDOM_MS;
  }

  /** Show that the count is unknown. */
  #uncounted(why) {
    this.#isUnknown = true;
    this.#counts = { last: null, same: 0 };
    this.parts.count.textContent = "–";
    this.parts.words.textContent = why;
    if (current === this) showUnread("");
    if (current === this) document.title = `${this.name} · Chat inbox`;
  }

  #counted(unread, isMore) {
    const { last } = this.#counts;
    if (this.#isUnknown && this.#isBad) this.tell("");
    this.#isUnknown = false;
    this.#counts = { last: unread, same: unread === last ? this.#counts.same + 1 : 0 };
    const shown = `${isMore ? ">" : ""}${unread.toLocaleString("en")}`;
    this.parts.count.textContent = shown;
    this.parts.words.textContent = `unread in ${this.name}’s inbox`;
    if (current !== this) return;
    showUnread(unread > 0 ? shown : "");
    document.title = `${unread > 0 ? `(${isMore ? ">" : ""}${unread}) ` : ""}${this.name} · Chat inbox`;
    if (last === null || unread > last) announce(`${isMore ? `More than ${unread}` : unread || "Nothing"} unread in the inbox of ${this.name}.`);
  }

  /** Link the dead-letter inbox, or from there the inbox whose dead letters it has. */
  #linkDead(dead) {
    if (this.parts.dead.childElementCount > 0) return;
    const at = dead.lastIndexOf(this.name);
    const [before, after] = [dead.slice(0, at), dead.slice(at + this.name.length)];
    const origin = this.name.slice(before.length, this.name.length - after.length);
    const isDead = at >= 0 && origin !== "" && origin !== this.name && this.name === before + origin + after;
    this.parts.dead.append(isDead ? "Dead letters of " : "Its dead letters: ", inboxLink(isDead ? origin : dead));
    this.parts.dead.hidden = false;
  }

  async #try(act) {
    this.tell("");
    try {
      await act();
    } catch (error) {
      if (!(error instanceof Problem)) throw error;
      this.tell(await wordsOf(error, `read the inbox of ${this.name}`), "bad");
    }
    this.refresh();
    lookAgain();
  }

  /** A read keeps its key until its answer is shown, so a repeat after a lost answer or a reload gets the same. */
  async #read() {
    const name = `read ${this.name}`;
    const key = storage.getItem(name) ?? newKey();
    storage.setItem(name, key);
    const { document: messages, headers } = await persist(
      () => ask("POST", `${this.path}/read`, { headers: { "Idempotency-Key": key } }),
      this.tell,
    );
    for (const message of messages) this.#show(message);
    storage.removeItem(name);
    const more = headers.has("X-More") ? " There are more: read again." : "";
    const n = messages.length;
    const words = n === 0 ? "Nothing unread." : `${counted(n, "message")} read.${more}`;
    this.tell(n === 0 || more ? words : "");
    announce(words);
  }

  async #lease() {
    const lease = await take(this);
    if (lease === null) {
      this.tell("Nothing unread.");
      return;
    }
    this.#leases.add(lease);
    this.parts.leases.append(lease.element);
    announce(`${lease.parts.title.textContent} for a minute.`);
  }

  #arrived(message) {
    if (!this.#show(message)) return;
    announce(`New message: ${message.text.slice(0, 80)}`);
    this.#counts.same = 0;
    lookAgain(message.id);
  }

  /** Show a message; return false if it is already shown, because it was delivered again. */
  #show(message) {
    if (this.#ids.has(message.id)) return false;
    this.#ids.add(message.id);
    const element = messageOf(message);
    this.parts.messages.prepend(element);
    this.parts.shown.hidden = false;
    if (this.parts.messages.childElementCount > SHOWN_MAX) {
      this.parts.messages.lastElementChild.remove();
      this.tell(`Only the newest ${counted(SHOWN_MAX, "message")} are shown here.`);
    }
    return true;
  }

  #clear() {
    this.parts.messages.replaceChildren();
    this.parts.shown.hidden = true;
    this.focus.focus();
  }

  #liveIs = (state, why) => {
    const { live, watch } = this.parts;
    watch.ariaPressed = String(this.live.isOn);
    watch.textContent = this.live.isOn ? "Stop watching" : "Watch live";
    const [kind, word] = {
      connecting: ["pending", "connecting"],
      live: ["good", "live"],
      lost: ["pending", `${why} Reconnecting`],
      stopped: ["", ""],
      refused: ["", ""],
    }[state];
    live.className = `state ${kind}`;
    if (live.textContent !== word && state !== "refused") announce(word || "Stopped watching.");
    live.textContent = word;
    live.hidden = word === "";
    if (state === "live") this.tell(why, why && "bad");
    if (state === "refused") this.tell(`Stopped watching. ${why}`, "bad");
    this.refresh();
  };

  abandon() {
    this.live.stop();
    for (const lease of this.#leases) lease.abandon();
  }
}

function refuse(rule) {
  whose.setAttribute("aria-invalid", "true");
  fault.textContent = `“${whose.value}” ${rule}.`;
  fault.hidden = false;
  whose.focus();
  announce(fault.textContent);
}

function accept() {
  whose.removeAttribute("aria-invalid");
  fault.hidden = true;
}

function close() {
  current?.live.stop();
  current?.element.remove();
  current = null;
  document.title = "Chat inbox";
  for (const id of ["no-inbox", "whose-hint"]) byId(id).hidden = false;
  byId("others").hidden = true;
  leadTo("");
  showUnread("");
}

function open(name) {
  accept();
  if (current?.name === name) return;
  close();
  whose.value = name;
  // The service refuses these names, and a browser removes them from a path.
  if (name === "." || name === "..") {
    refuse("is not a username");
    return;
  }
  if (!views.has(name)) views.set(name, new Inbox(name));
  current = views.get(name);
  for (const id of ["no-inbox", "whose-hint"]) byId(id).hidden = true;
  byId("others").hidden = false;
  leadTo(address(name));
  byId("inboxes").append(current.element);
  current.refresh();
}

const address = (name) => `#inbox=${encodeURIComponent(name)}`;

function named() {
  const [, name] = /^#inbox=(.*)$/.exec(location.hash) ?? [];
  try {
    return name && decodeURIComponent(name);
  } catch {
    return undefined;
  }
}

function follow() {
  const name = named();
  if (name) {
    open(name);
    showPane("inbox");
  } else if (["", "#inbox"].includes(location.hash)) {
    close();
    showPane(location.hash === "" ? "send" : "inbox");
  } else if (location.hash === "#send") {
    showPane("send");
  } else if (current) {
    // A link within the page: keep the inbox in the address.
    history.replaceState(null, "", address(current.name));
  }
}

const count = poll(async () => (current === null ? null : current.count()));

byId("open").addEventListener("submit", (event) => {
  event.preventDefault();
  accept();
  // Phones append a space, which would name another inbox.
  const name = (whose.value = whose.value.trim());
  if (name === "") {
    fault.textContent = "Enter a username.";
    whose.setAttribute("aria-invalid", "true");
    fault.hidden = false;
    whose.focus();
    return;
  }
  try {
    location.hash = address(name);
  } catch {
    refuse("is not well-formed Unicode");
    return;
  }
  follow();
});
onTab(follow);
window.addEventListener("hashchange", () => {
  follow();
  // Move the focus to the inbox that a link opened.
  if (current && named() === current.name) current.element.focus();
});
session.addEventListener("change", () => {
  // A stream belongs to the identity that opened it.
  for (const { live } of views.values()) live.restart();
  current?.refresh();
});
window.addEventListener("pagehide", () => views.forEach((view) => view.abandon()));
follow();
