// The form that sends. Every message has an idempotency key, the sender's or one of the page's own, so
// that a lost answer is asked for again and nothing is stored twice.

import { ask, newKey, persist, Problem, sentence } from "./api.js";
import { follow } from "./receipts.js";
import { announce, byId, learnClock, note, onPress } from "./ui.js";

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
  "Idempotency-Key": [key, byId("key-fault")],
};

// The key of a message whose answer is still owed, and that message: the same again has the same key.
let owed = { key: "", message: "" };
let giveUp = new AbortController();
let isSending = false;

function lifetime() {
  const chosen = new FormData(form).get("life");
  if (chosen !== "own") return Number(chosen);
  const own = seconds.value.trim();
  // What is no number the service refuses, with its rule.
  return own === "" || Number.isNaN(Number(own)) ? own : Number(own);
}

async function send() {
  clearFaults();
  // Phones put a space behind a word, which would be another inbox.
  to.value = to.value.trim();
  if (text.value === "") {
    refuse([{ field: "text", detail: "is empty: write something" }]);
    return;
  }
  const message = { username: to.value, text: text.value, timeout: lifetime() };
  const written = JSON.stringify(message);
  if (owed.message !== written) owed = { key: newKey(), message: written };
  const ownKey = key.value.trim();
  if (/[^\x20-\xff]/.test(ownKey)) {
    // No header can have it: the service cannot even be asked.
    refuse([{ field: "Idempotency-Key", detail: "must have 1 to 255 characters of printable ASCII" }]);
    return;
  }
  const headers = { "Idempotency-Key": ownKey || owed.key };
  if (byId("receipt").checked) headers.Prefer = "receipt";
  giveUp = new AbortController();
  let tries = 0;
  let askedAt = 0;
  const tell = (words) => {
    note(place, words);
    stop.hidden = words === "";
  };
  const post = () => {
    tries += 1;
    askedAt = Date.now();
    return ask("POST", "chat", { headers, body: message });
  };
  const { document: stored, headers: said } = await persist(post, tell, giveUp.signal);
  const isRepeat = said.has("Idempotent-Replayed");
  learnClock(stored.id, isRepeat ? null : askedAt);
  follow(stored.id, said.get("X-Receipt"), message);
  owed = { key: "", message: "" };
  if (isRepeat && ownKey && tries === 1) {
    note(place, "Already stored, with the same id: this key came with the same message before.");
  } else {
    announce(`Sent to ${message.username}.`);
    // Unless the next one is being written already.
    if (text.value === message.text) text.value = "";
    countBytes();
    showCommands();
  }
}

function clearFaults() {
  note(place, "");
  for (const [field, fault] of Object.values(faults)) {
    field.removeAttribute("aria-invalid");
    fault.hidden = true;
  }
}

function explain(error) {
  if (giveUp.signal.aborted) {
    note(place, "Given up. It may have been stored or not: to send the same again stores it once.");
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
  note(place, error.words, "bad");
}

/** Say at each field what is wrong with it; false where none of them is here. */
function refuse(fields) {
  const known = fields.filter(({ field }) => field in faults);
  for (const { field: name, detail } of known) {
    const [field, fault] = faults[name];
    field.setAttribute("aria-invalid", "true");
    fault.textContent = sentence(detail);
    fault.hidden = false;
    field.closest("details")?.setAttribute("open", "");
  }
  if (known.length === 0) return false;
  faults[known[0].field][0].focus();
  announce("Not sent.");
  return true;
}

function countBytes() {
  const bytes = new TextEncoder().encode(text.value).length;
  const hint = byId("text-hint");
  const isOver = bytes > TEXT_BYTES;
  const size = `${bytes.toLocaleString("en")} of ${TEXT_BYTES.toLocaleString("en")} bytes`;
  hint.textContent = isOver ? `${size}: too long` : size;
  hint.classList.toggle("fault", isOver);
}

/** The same for a shell: what the form says, or its placeholders where it says nothing. */
function showCommands() {
  const username = to.value.trim() || to.placeholder;
  const message = { text: text.value || text.placeholder, username, timeout: lifetime() };
  const here = new URL(".", location.href).href;
  const quoted = JSON.stringify(message).replaceAll("'", "'\\''");
  let path = "…";
  try {
    path = encodeURIComponent(username).replaceAll("'", "%27");
  } catch {
    // It is not well-formed Unicode, and no name.
  }
  byId("curl").textContent = `curl -d '${quoted}' ${here}chat
curl -X POST ${here}chat/${path}/read`;
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
    explain(error);
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
});
form.addEventListener("input", showCommands);
countBytes();
showCommands();
