// Elements for the API reference. Strings become text, never markup.

import { element } from "./element.js";

/** Return a text as nodes; parts between backticks become code. */
export function prose(text) {
  return text.split("`").map((part, at) => (at % 2 ? element("code", {}, [part]) : part));
}

/** Return the paragraphs of a text. */
export function paragraphs(text) {
  return text.split("\n\n").map((part) => element("p", {}, prose(part)));
}

/** Return a block of code with a copy button. `name` describes it; `.fill(text)` replaces its text. */
export function codeBlock(name, text = "") {
  const code = element("code", {}, [text]);
  const copy = element("button", { type: "button", class: "quiet copy" }, ["Copy"]);
  copy.append(element("span", { class: "unseen" }, [` ${name}`]));
  const label = copy.firstChild;
  copy.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(code.textContent);
      label.textContent = "Copied";
    } catch {
      // No clipboard over plain HTTP: select the text, so that it can be copied by hand.
      getSelection().selectAllChildren(code);
      label.textContent = "Selected";
    }
    setTimeout(() => (label.textContent = "Copy"), 2000);
  });
  const made = element("div", { class: "block" }, [
    // Wide blocks can be scrolled without a mouse.
    element("pre", { tabindex: "0", role: "group", "aria-label": name }, [code]),
    copy,
  ]);
  made.fill = (other) => (code.textContent = other);
  return made;
}

/** Return a string as it is, and any other value as indented JSON. */
export function pretty(value) {
  return typeof value === "string" ? value : JSON.stringify(value, null, 2);
}
