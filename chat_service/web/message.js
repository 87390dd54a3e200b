// The element of a message that was read or leased here, with its buttons.

import { copy } from "./copy.js";
import { brief, copyOf, counted, inboxLink, onPress, showText, stamp } from "./ui.js";

const TITLE_MAX = 60;

/** Return the element of a message. `actions` are its buttons besides Copy. */
export function messageOf({ id, text, deliveries, dead }, actions = []) {
  const { element, parts } = copyOf("a-message");
  showText(parts, text);
  stamp(parts, id);
  parts.deliveries.hidden = !(deliveries > 1);
  parts.deliveries.textContent = `delivery ${deliveries}`;
  if (dead) parts.dead.append("Dead letter of ", inboxLink(dead.username), `, leased ${counted(dead.deliveries, "time")} there.`);
  parts.dead.hidden = !dead;
  parts.copy.ariaLabel = named("Copy", text);
  onPress(parts.copy, () => copy(text, parts.copy));
  parts.actions.prepend(...actions);
  return element;
}

/** Return a button for a message. Its name has the beginning of the text, since each message has such a button. */
export function messageButton(word, text, act, kind = "") {
  const button = document.createElement("button");
  button.textContent = word;
  button.className = kind;
  button.ariaLabel = named(word, text);
  onPress(button, act);
  return button;
}

const named = (word, text) => `${word}: ${brief(text, TITLE_MAX) || "empty text"}`;
