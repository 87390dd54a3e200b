// The inboxes that were opened in this browser: links to them, and suggestions for the field.
//
// The names are in the local storage, and nowhere else.

import { announce, byId, inboxLink, isolated, lastingStorage } from "./ui.js";

const STORE = "inboxes";
const NAMES_MAX = 20;

function names() {
  try {
    const found = JSON.parse(lastingStorage.getItem(STORE) ?? "[]");
    return found.filter((name) => typeof name === "string");
  } catch {
    // Something else has written it.
    return [];
  }
}

/** Put a name first in the list. */
export function remember(name) {
  const [first] = names();
  if (first !== name) keep([name, ...names().filter((other) => other !== name)].slice(0, NAMES_MAX));
}

function keep(list) {
  lastingStorage.setItem(STORE, JSON.stringify(list));
  show();
}

function show() {
  const list = names();
  byId("used").hidden = list.length === 0;
  byId("used-names").replaceChildren(...list.map(itemOf));
  byId("suggestions").replaceChildren(...list.map((name) => new Option(name, name)));
}

function itemOf(name) {
  const item = document.createElement("li");
  item.className = "row between";
  const button = document.createElement("button");
  button.className = "quiet";
  button.textContent = "Forget";
  button.ariaLabel = `Forget ${isolated(name)}`;
  button.addEventListener("click", () => {
    const at = [...item.parentElement.children].indexOf(item);
    keep(names().filter((other) => other !== name));
    const next = byId("used-names").children[at] ?? byId("used-names").lastElementChild;
    (next?.querySelector("button") ?? byId("whose")).focus();
    announce(`Forgot ${name}.`);
  });
  item.append(inboxLink(name), button);
  return item;
}

byId("forget").addEventListener("click", () => {
  keep([]);
  byId("whose").focus();
  announce("Forgot all inboxes.");
});
// Another tab has changed it.
window.addEventListener("storage", ({ key }) => (key === STORE || key === null) && show());
show();
