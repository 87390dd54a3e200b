// The form that sends. Every message has an idempotency key, the sender's or a generated one, so that the
// page can repeat a post whose answer was lost and no message is stored twice.

import { wordsOf } from "./access.js";
import { ask, newKey, persist, Problem, sentence } from "./api.js";
import { choice, delay, field as delayField, reset } from "./deliver.js";
import { follow } from "./receipts.js";
import { session } from "./session.js";
import { announce, byId, learnClock, note, now, onPress } from "./ui.js";

const TEXT_BYTES = 65_536;

const form = byId("send");
const to = byId("to");
const text = byId("text");
const key = byId("key");
const seconds = byId("seconds");
const stop = byId("stop");
const place = byId("send-note");
const faults = {
  username: [to, byId("to-fault")],
  text: [text, byId("text-fault")],
  timeout: [seconds, byId("timeout-fault")],
  delay: [byId("after"), byId("delay-fault")],
  "Idempotency-Key": [key, byId("key-fault")],
};

/** What a field must have, as far as the page knows. The service knows the rest, such as the longest lifetime. */
const rules = {
  username: () => /^[^\p{Cc}]{1,128}$/u.test(to.value.trim()),
  text: () => text.value !== "" && bytesOf(text.value) <= TEXT_BYTES,
  timeout: () => Number.isInteger(lifetime()) && lifetime() > 0,
  delay: () => delay() === undefined || (Number.isFinite(delay()) && delay() >= 0),
  "Idempotency-Key": () => /^[\x20-\x7e]{0,255}$/.test(key.value.trim()),
};
/** The value of a field. A key was refused for its message, so that it fits another one. */
const valueOf = {
  username: () => to.value.trim(),
  text: () => text.value,
  timeout: () => lifetime(),
  delay: () => choice(),
  "Idempotency-Key": () => JSON.stringify([key.value, to.value, text.value, lifetime(), choice()]),
};
/** The values that were refused, by field. */
const refused = new Map();

// A message that has no answer yet, and its key. Sending the same message again uses the same key. `body` is
// what the service may have stored: a repeat must have the same delay.
let owed = { key: "", message: "", body: null };
let giveUp = new AbortController();
let isSending = false;
// Whether the service may have stored a message without an answer that says so.
let isInDoubt = false;
// The name to which nobody may send who uses the page now, while the note says so.
let refusedTo = null;

function lifetime() {
  const chosen = new FormData(form).get("life");
  if (chosen !== "own") return Number(chosen);
  const own = seconds.value.trim();
  // The service refuses what is not a number, and explains why.
  return own === "" || Number.isNaN(Number(own)) ? own : Number(own);
}

async function send() {
  clearFaults();
  // Phones append a space, which would name another inbox.
  to.value = to.value.trim();
  if (text.value === "") {
    refuse([{ field: "text", detail: "is empty; enter a message" }]);
    return;
  }
  const message = { username: to.value, text: text.value, timeout: lifetime() };
  if (delay() < 0) {
    refuse([{ field: "delay", detail: "is in the past" }]);
    return;
  }
  const written = JSON.stringify([message, choice()]);
  if (owed.message !== written) owed = { key: newKey(), message: written, body: null };
  const ownKey = key.value.trim();
  if (/[^\x20-\xff]/.test(ownKey)) {
    // A header cannot contain it, so the request cannot be sent.
    refuse([{ field: "Idempotency-Key", detail: "must have 1 to 255 characters of printable ASCII" }]);
    return;
  }
  const headers = { "Idempotency-Key": ownKey || owed.key };
  if (byId("receipt").checked) headers.Prefer = "receipt";
  giveUp = new AbortController();
  let tries = 0;
  let askedAt = 0;
  let sentAt = 0;
  let body = null;
  isInDoubt = false;
  const tell = (words) => {
    note(place, words);
    byId("send-button").textContent = words === "" ? "Sending…" : "Waiting…";
    stop.hidden = words === "";
  };
  const post = async () => {
    tries += 1;
    askedAt = Date.now();
    sentAt = now();
    const seconds = delay();
    body = owed.body ?? { ...message, delay: seconds < 0 ? 0 : seconds };
    try {
      return await ask("POST", "chat", { headers, body });
    } catch (error) {
      if (error.stored !== false) {
        isInDoubt = true;
        owed.body = body;
      }
      throw error;
    }
  };
  const { document: stored, headers: said } = await persist(post, tell, giveUp.signal);
  const isRepeat = said.has("Idempotent-Replayed");
  const isScheduled = body.delay > 0;
  // The id of a scheduled message begins with the time of its delivery.
  if (!isScheduled) learnClock(stored.id, isRepeat ? null : askedAt);
  follow(stored.id, said.get("X-Receipt"), message, isScheduled ? sentAt : null);
  owed = { key: "", message: "", body: null };
  if (isRepeat && ownKey && tries === 1) {
    note(place, "Already stored with the same id: this key was used for the same message before.");
  } else {
    announce(`Sent to ${message.username}.`);
    reset();
    // Unless the next message is already being written.
    if (text.value === message.text) text.value = "";
    countBytes();
    showCommands();
  }
}

function clearFaults() {
  forget();
  for (const name of Object.keys(faults)) accept(name);
}

function accept(name) {
  const [field, fault] = faults[name];
  refused.delete(name);
  field.removeAttribute("aria-invalid");
  if (name === "delay") byId("at").removeAttribute("aria-invalid");
  fault.hidden = true;
}

function forget() {
  note(place, "");
  refusedTo = null;
}

/** Hide the errors of fields that were corrected, and what was refused for another name. */
function forgive() {
  if (refusedTo !== null && to.value !== refusedTo) forget();
  for (const [name, value] of refused) {
    if (valueOf[name]() !== value && rules[name]()) accept(name);
  }
}

async function explain(error) {
  if (giveUp.signal.aborted) {
    note(place, isInDoubt
      ? "Stopped. The message may have been stored. If you send it again, it is still stored only once."
      : "Stopped. The message was not stored.");
    return;
  }
  if (!(error instanceof Problem)) throw error;
  let { fields } = error;
  if (error.status === 413 && error.detail.startsWith("text ")) {
    fields = [{ field: "text", detail: error.detail.slice("text ".length) }];
  } else if (error.status === 422) {
    fields = [{ field: "Idempotency-Key", detail: error.detail.replace(/^this Idempotency-Key /, "") }];
  }
  if (refuse(fields)) return;
  const username = to.value;
  const words = await wordsOf(error, `send to ${username}`);
  if (error.status === 401 || error.kind === "forbidden") refusedTo = username;
  note(place, error.status === 401 ? `Not sent. ${words} Your text is still here.` : words, "bad");
}

/** Show each error at its field; return false if the form has none of the fields. */
function refuse(fields) {
  const known = fields.filter(({ field }) => field in faults);
  for (const { field: name, detail } of known) {
    const [, fault] = faults[name];
    const field = fieldOf(name);
    field.setAttribute("aria-invalid", "true");
    fault.textContent = sentence(detail);
    fault.hidden = false;
    refused.set(name, valueOf[name]());
    field.closest("details")?.setAttribute("open", "");
  }
  if (known.length === 0) return false;
  fieldOf(known[0].field).focus();
  announce("Not sent.");
  return true;
}

const fieldOf = (name) => (name === "delay" ? delayField() : faults[name][0]);

const bytesOf = (words) => new TextEncoder().encode(words).length;

function countBytes() {
  const bytes = bytesOf(text.value);
  const hint = byId("text-hint");
  const isOver = bytes > TEXT_BYTES;
  const size = `${bytes.toLocaleString("en")} of ${TEXT_BYTES.toLocaleString("en")} bytes`;
  hint.textContent = isOver ? `${size}: too long` : size;
  hint.classList.toggle("fault", isOver);
}

/** Show the shell commands for the values in the form, or for its placeholders. */
function showCommands() {
  const username = to.value.trim() || to.placeholder;
  const message = { text: text.value || text.placeholder, username, timeout: lifetime(), delay: delay() };
  const here = new URL(".", location.href).href;
  const quoted = JSON.stringify(message).replaceAll("'", "'\\''");
  let path = "…";
  try {
    path = encodeURIComponent(username).replaceAll("'", "%27");
  } catch {
    // It is not well-formed Unicode, so it is no name.
  }
  const curl = session.isOn ? 'curl -H "Authorization: Bearer $CHAT_TOKEN"' : "curl";
  byId("curl").textContent = `${curl} -d '${quoted}' ${here}chat
${curl} -X POST ${here}chat/${path}/read`;
}

form.addEventListener("submit", async (event) => {
  event.preventDefault();
  if (isSending) return;
  isSending = true;
  const button = byId("send-button");
  button.textContent = "Sending…";
  button.ariaBusy = "true";
  try {
    await send();
  } catch (error) {
    await explain(error);
  } finally {
    isSending = false;
    button.textContent = "Send";
    button.ariaBusy = null;
    if (document.activeElement === stop) button.focus();
    stop.hidden = true;
  }
});
form.addEventListener("change", () => {
  byId("own").hidden = new FormData(form).get("life") !== "own";
});
text.addEventListener("input", countBytes);
text.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) form.requestSubmit();
});
stop.addEventListener("click", () => giveUp.abort());
onPress(byId("make-key"), () => {
  key.value = newKey();
  forgive();
});
form.addEventListener("input", () => {
  forgive();
  showCommands();
});
session.addEventListener("change", () => {
  // It was refused to somebody else.
  if (refusedTo !== null) forget();
  showCommands();
});
countBytes();
showCommands();
