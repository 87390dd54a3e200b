// Elements for the reference. Text only ever becomes text: nothing here reads markup.

/** An element with attributes and children, which are elements or text. */
export function element(name, attributes = {}, children = []) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (value !== undefined && value !== false) made.setAttribute(key, value === true ? "" : value);
  }
  made.append(...children);
  return made;
}

/** A text in which what is between backticks is code. */
export function prose(text) {
  return text.split("`").map((part, at) => (at % 2 ? element("code", {}, [part]) : part));
}

/** The same, with a paragraph for each. */
export function paragraphs(text) {
  return text.split("\n\n").map((part) => element("p", {}, prose(part)));
}

/** A block of code that can be copied; `name` says what it is. Give its text by `.fill(text)`. */
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
      // Not over plain HTTP: what is selected can be copied by hand.
      getSelection().selectAllChildren(code);
      label.textContent = "Selected";
    }
    setTimeout(() => (label.textContent = "Copy"), 2000);
  });
  const made = element("div", { class: "block" }, [
    // Wide ones are scrolled, also without a mouse.
    element("pre", { tabindex: "0", role: "group", "aria-label": name }, [code]),
    copy,
  ]);
  made.fill = (other) => (code.textContent = other);
  return made;
}

/** A value as it is read best. */
export function pretty(value) {
  return typeof value === "string" ? value : JSON.stringify(value, null, 2);
}
