// The open inbox: counts it repeatedly, and reads it only on request.
//
// Its name is in the address, `#inbox=bob`. Opening it reads nothing.

import { wordsOf } from "./access.js";
import { ask, newKey, persist, Problem, reachable, Unreachable } from "./api.js";
import { releaseAbandoned, take } from "./leases.js";
import { Live } from "./live.js";
import { leadTo, onTab, showPane, showUnread } from "./panes.js";
import { lookAgain, scheduledTo } from "./receipts.js";
import { session } from "./session.js";
import { Shown } from "./shown.js";
import { announce, brief, byId, copyOf, counted, inboxLink, isolated, lasting, lastingStorage, note } from "./ui.js";
import { now, onPress, poll, reveal, storage, timeOf } from "./ui.js";
import { remember } from "./used.js";

const COUNT_MS = 2000;
const COUNT_SELDOM_MS = 6000;
/** After a 429: counts cost as much as several messages, and must leave room for them. */
const COUNT_LIMITED_MS = 30_000;
/** After this many equal counts, the page counts less often. */
const STEADY = 30;
/** How often the dead letters of an inbox are counted. */
const DEAD_MS = 15_000;
/** Whether the explanation of Read, Watch live and Lease was used in this browser, so that it can fold away. */
const EXPLAINED = "explained";

const whose = byId("whose");
const fault = byId("whose-fault");
const views = new Map();
let current = null;
let isLimited = false;

class Inbox {
  #leases = new Set();
  /** When its dead letters are counted again, in ms. */
  #deadDue = 0;
  #isWanted = false;
  /** Whether it is a dead-letter inbox. */
  #isDead = false;
  /** Whether it was put first in the list of inboxes since it was opened. */
  isListed = false;
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
    this.shown = new Shown(this);
    this.sum();
    this.live = new Live(this, (message) => this.#arrived(message), this.#liveIs);
    parts.about.open = lastingStorage.getItem(EXPLAINED) === null;
    onPress(parts.read, () => this.#try(() => this.#read()));
    onPress(parts.lease, () => this.#try(() => this.#lease()));
    parts.watch.addEventListener("click", () => (this.live.isOn ? this.live.stop() : this.#watch()));
  }

  /** What a reader must have a right to, for `wordsOf`. */
  get need() {
    return `read the inbox of ${isolated(this.name)}`;
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

  /** Read is the main button, unless nothing is unread or the messages come by themselves. Of dead letters it is Lease,
   *  because those that are read cannot be returned. */
  #weigh() {
    const isMain = this.#counts.last !== 0 && !this.live.isOn;
    this.parts.read.classList.toggle("primary", isMain && !this.#isDead);
    this.parts.lease.classList.toggle("primary", isMain && this.#isDead);
  }

  /** Say how many messages were read and are leased here. */
  sum() {
    const leased = [...this.#leases].reduce((sum, { size }) => sum + size, 0);
    const words = [[this.shown?.size, "read"], [leased, "leased"]]
      .filter(([n]) => n > 0)
      .map(([n, what]) => `${n.toLocaleString("en")} ${what}`);
    this.parts.done.textContent = `${words.join(", ")} here`;
    this.parts.done.hidden = words.length === 0;
  }

  /** Count the unread messages; return the pause until the next count, or null. */
  async count() {
    try {
      const { headers } = await ask("HEAD", this.path);
      const said = headers.get("X-Unread-Count");
      // The service counts up to a limit: ">10000".
      this.#counted(Number(said.replace(">", "")), said.startsWith(">"));
      if (!this.isListed) remember(this.name);
      this.isListed = true;
      this.#showScheduled();
      // A node of an earlier version does not name it.
      if (headers.has("X-Dead-Letter-Inbox")) await this.#countDead(decodeURIComponent(headers.get("X-Dead-Letter-Inbox")));
    } catch (error) {
      if (error instanceof Unreachable) {
        this.#uncounted("not counted: the service does not answer. Retrying.");
        await reachable();
        return 0;
      }
      if (error.status === 400 && current === this) {
        close();
        refuse("A name has 1 to 128 characters, and no control characters");
        return null;
      }
      if (error.status === 401 || error.kind === "forbidden") {
        const why = await wordsOf(error, this.need, { isAwaited: false });
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
    this.#weigh();
    this.parts.count.textContent = "–";
    this.parts.words.textContent = why;
    if (current === this) showUnread("");
    if (current === this) document.title = `${isolated(this.name)} · Chat inbox`;
  }

  #counted(unread, isMore) {
    const { last } = this.#counts;
    if (this.#isUnknown && this.#isBad) this.tell("");
    this.#isUnknown = false;
    this.#counts = { last: unread, same: unread === last ? this.#counts.same + 1 : 0 };
    this.#weigh();
    const shown = `${isMore ? ">" : ""}${unread.toLocaleString("en")}`;
    this.parts.count.textContent = shown;
    this.parts.words.textContent = `unread in ${isolated(this.name)}’s inbox`;
    if (current !== this) return;
    showUnread(unread > 0 ? shown : "");
    document.title = `${unread > 0 ? `(${isMore ? ">" : ""}${unread}) ` : ""}${isolated(this.name)} · Chat inbox`;
    if (last === null || unread > last) announce(`${isMore ? `More than ${unread}` : unread || "Nothing"} unread in the inbox of ${isolated(this.name)}.`);
  }

  /** Link the dead-letter inbox while it has unread messages, or link from there to the inbox whose dead letters it has. */
  async #countDead(dead) {
    const { dead: place } = this.parts;
    const at = dead.lastIndexOf(this.name);
    const [before, after] = [dead.slice(0, at), dead.slice(at + this.name.length)];
    const origin = this.name.slice(before.length, this.name.length - after.length);
    const isDead = at >= 0 && origin !== "" && origin !== this.name && this.name === before + origin + after;
    if (place.childElementCount === 0) {
      const end = isDead ? ". Read takes them for good; Lease, and they can be returned." : "";
      place.append(isDead ? "Dead letters of " : "Its dead letters: ", inboxLink(isDead ? origin : dead), end);
      place.classList.toggle("bad", !isDead);
    }
    if (isDead) place.hidden = false;
    this.#isDead = isDead;
    this.#weigh();
    // Each refused count would be a line of the audit log, which tells operators of unwanted readers.
    if (isDead || isLimited || !session.may("read", dead) || Date.now() < this.#deadDue) return;
    this.#deadDue = Date.now() + DEAD_MS;
    try {
      const { headers } = await ask("HEAD", `chat/${encodeURIComponent(dead)}`);
      const unread = headers.get("X-Unread-Count");
      place.lastChild.data = ` (${unread} unread)`;
      place.hidden = unread === "0";
    } catch (error) {
      if (!(error instanceof Problem || error instanceof Unreachable)) throw error;
      // Not counted, for want of a right or because the service is busy. That is no news about this inbox.
      place.lastChild.data = "";
    }
  }

  /** The service tells nobody about the scheduled messages of an inbox, but this tab knows those that it sent. */
  #showScheduled() {
    const { scheduled: place } = this.parts;
    const [next, ...others] = scheduledTo(this.name);
    place.hidden = next === undefined;
    if (place.hidden) return;
    const which = others.length === 0 ? "to be delivered" : "the next to be delivered";
    place.textContent = `${counted(others.length + 1, "scheduled message")} from this tab, ${which} in `
      + `${lasting(next - now())} (${timeOf(next)}).`;
  }

  async #try(act) {
    this.#fold();
    this.tell("");
    try {
      await act();
    } catch (error) {
      if (!(error instanceof Problem)) throw error;
      this.tell(await wordsOf(error, this.need), "bad");
    }
    this.refresh();
    lookAgain();
  }

  /** Fold the explanation away: it was read, or what it explains was used. */
  #fold() {
    lastingStorage.setItem(EXPLAINED, "yes");
    this.parts.about.open = false;
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
    this.shown.add(messages);
    storage.removeItem(name);
    if (messages.length > 0) this.shown.reveal();
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
    this.sum();
    reveal(lease.element.querySelector(".message"));
    announce(`${lease.parts.title.textContent} for a minute.`);
  }

  #watch() {
    this.#fold();
    this.#isWanted = true;
    void this.live.start();
  }

  #arrived(message) {
    if (this.shown.add([message]).length === 0) return;
    // Only the first one: later ones must not move what somebody reads.
    if (this.#isWanted) this.shown.reveal();
    this.#isWanted = false;
    announce(`New message: ${brief(message.text, 80)}`);
    this.#counts.same = 0;
    lookAgain(message.id);
  }

  #liveIs = (state, why) => {
    const { live, watch } = this.parts;
    watch.classList.toggle("on", this.live.isOn);
    this.#weigh();
    watch.textContent = this.live.isOn ? "Stop watching" : "Watch live";
    const [kind, word] = {
      connecting: ["pending", "connecting"],
      live: ["good", "live"],
      lost: ["pending", `${why} Reconnecting`],
      blocked: ["pending", `${why} Reconnecting`],
      stopped: ["", ""],
      refused: ["", ""],
    }[state];
    live.className = `state ${kind}`;
    if (live.textContent !== word && state !== "refused") announce(word || "Stopped watching.");
    live.textContent = word;
    live.hidden = word === "";
    if (state === "live") this.tell(why, why && "bad");
    if (state === "blocked") this.tell("The service answers, but no WebSocket reaches it. A proxy in front of it must pass them on. Read works without.", "bad");
    if (state === "refused") this.tell(`Stopped watching. ${why}`, "bad");
    this.refresh();
  };

  abandon() {
    this.live.stop();
    for (const lease of this.#leases) lease.abandon();
  }
}

/** Say which rule a name breaks. The name may be long. */
function refuse(rule, name = whose.value) {
  whose.setAttribute("aria-invalid", "true");
  fault.textContent = `${rule}. This one does not fit: “${isolated(brief(name, 40))}”.`;
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
    refuse("A name is neither “.” nor “..”");
    return;
  }
  if (!views.has(name)) views.set(name, new Inbox(name));
  current = views.get(name);
  current.isListed = false;
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

/** Return the inbox that an address means although no link has it: `/?inbox=ops` or, if it is plainly a name, `/#ops`. */
function meant() {
  const { hash, search } = location;
  if (hash === "") return new URLSearchParams(search).get("inbox");
  return /^#[\w.-]{1,128}$/.test(hash) ? hash.slice(1) : null;
}

/** Make such an address that of a link. Return what of the address nobody understands, if there is something. */
function correct() {
  const { hash, pathname } = location;
  if (["#inbox", "#send"].includes(hash) || named() || (hash !== "" && byId(hash.slice(1)))) return "";
  const name = meant();
  if (name || hash !== "") history.replaceState(null, "", pathname + (name ? address(name) : "#inbox"));
  return name ? "" : hash;
}

function follow() {
  const wrong = correct();
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
  if (wrong) refuse("A link to an inbox ends with #inbox= and its name", wrong);
}

const count = poll(async () => (current === null ? null : current.count()));

byId("open").addEventListener("submit", (event) => {
  event.preventDefault();
  accept();
  // Phones append a space, which would name another inbox.
  const name = (whose.value = whose.value.trim());
  if (name === "") {
    fault.textContent = "Enter a name.";
    whose.setAttribute("aria-invalid", "true");
    fault.hidden = false;
    whose.focus();
    return;
  }
  try {
    location.hash = address(name);
  } catch {
    refuse("A name is well-formed Unicode");
    return;
  }
  follow();
});
onTab(follow);
whose.addEventListener("input", accept);
window.addEventListener("hashchange", () => {
  follow();
  if (location.hash === "#inbox") {
    whose.value = "";
    (byId("used").hidden ? whose : byId("used-title")).focus({ preventScroll: true });
  }
  if (!current || named() !== current.name) return;
  // Move the focus to the inbox that a link opened.
  current.element.focus({ preventScroll: true });
  reveal(whose);
});
session.addEventListener("change", () => {
  // A stream belongs to the identity that opened it.
  for (const { live } of views.values()) live.restart();
  current?.refresh();
});
window.addEventListener("pagehide", () => views.forEach((view) => view.abandon()));
// A page that the browser kept as it was shows nothing of what it had leased.
window.addEventListener("pageshow", releaseAbandoned);
follow();
