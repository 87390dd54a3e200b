// Keeps the messages that were read on the page, since they exist nowhere else: in the session storage, so that
// they survive a reload, and a phone that discards the tab, but not the end of the tab.

/** The session storage has room for about twice as much, and receipts need some of it. */
const CHARS_MAX = 2_000_000;
const PREFIX = "message ";

const keyOf = (inbox, id) => `${PREFIX}${id} ${inbox}`;
const keys = () => Object.keys(sessionStorage).filter((key) => key.startsWith(PREFIX));

let chars = 0;
try {
  for (const key of keys()) chars += key.length + sessionStorage.getItem(key).length;
} catch {
  // The browser forbids the storage.
  chars = Infinity;
}

/** Keep a message; return false if it cannot be kept. */
export function keep(inbox, message) {
  const key = keyOf(inbox, message.id);
  const value = JSON.stringify(message);
  if (chars + key.length + value.length > CHARS_MAX) return false;
  try {
    sessionStorage.setItem(key, value);
  } catch {
    // Its quota is used up.
    return false;
  }
  chars += key.length + value.length;
  return true;
}

/** Return the kept messages of an inbox, oldest first. */
export function keptOf(inbox) {
  if (chars === Infinity) return [];
  const own = keys().filter((key) => key === keyOf(inbox, key.split(" ", 2)[1]));
  return own.sort().map((key) => JSON.parse(sessionStorage.getItem(key)));
}

/** Keep a message no longer. */
export function drop(inbox, id) {
  if (chars === Infinity) return;
  const key = keyOf(inbox, id);
  const value = sessionStorage.getItem(key);
  if (value === null) return;
  sessionStorage.removeItem(key);
  chars -= key.length + value.length;
}
