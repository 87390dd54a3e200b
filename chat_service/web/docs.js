// The API reference: shows /openapi.json as a page, with a list, a filter and links. docs-operation.js
// makes an operation, docs-try.js its form.
//
// Not Swagger UI, Redoc or Scalar: these are megabytes, need inline styles, and fail axe.

import { showAccess } from "./docs-access.js";
import { paragraphs } from "./docs-dom.js";
import { answersOf, badge, operationOf } from "./docs-operation.js";
import { element } from "./element.js";

const RETRY_MS = 3000;

const filter = document.querySelector("#filter");
const found = document.querySelector("#found");
const list = document.querySelector("#list");
const main = document.querySelector("#main");

/** Yield every operation of a document in its order: {path, method, said}. */
function* operationsOf(api) {
  for (const [path, methods] of Object.entries(api.paths)) {
    for (const [method, said] of Object.entries(methods)) {
      yield { path, method: method.toUpperCase(), said };
    }
  }
}

function show(api) {
  document.querySelector("#about").append(
    ...paragraphs(api.info.description),
    element("p", { class: "muted small" }, [
      `Version ${api.info.version}, license ${api.info.license.name}. For programs: `,
      element("a", { href: "openapi.json" }, ["/openapi.json"]),
      ` (OpenAPI ${api.openapi}).`,
    ]),
  );
  const all = [...operationsOf(api)];
  for (const tag of api.tags) {
    const those = all.filter(({ said }) => said.tags.includes(tag.name));
    if (!those.length) continue;
    document.querySelector("#links").append(
      element("section", { class: "tag" }, [
        element("h2", {}, [tag.name]),
        element("ul", {}, those.map(linkTo)),
      ]),
    );
    document.querySelector("#operations").append(
      element("section", { class: "stack tag", "aria-labelledby": `tag-${tag.name}` }, [
        element("h2", { id: `tag-${tag.name}` }, [tag.name]),
        element("p", { class: "muted" }, [tag.description]),
        ...those.map((operation) => operationOf(api, operation)),
      ]),
    );
  }
  document.querySelector("#operations").append(
    element("section", { class: "stack tag", "aria-labelledby": "others" }, [
      element("h2", { id: "others" }, ["All other requests"]),
      element("div", { class: "card" }, [answersOf(api, api["x-other-requests"].responses)]),
    ]),
  );
}

function linkTo({ path, method, said }) {
  const words = `${method} ${path} ${said.summary} ${said.description} ${Object.keys(said.responses)} ${said["x-right"] ?? ""}`;
  return element("li", { "data-words": words.toLowerCase() }, [
    element("a", { href: `#${said.operationId}`, title: said.summary }, [
      badge(method),
      element("span", { class: "path" }, [path]),
    ]),
  ]);
}

function narrow() {
  const words = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
  let count = 0;
  for (const section of document.querySelectorAll("#links section")) {
    let any = false;
    for (const item of section.querySelectorAll("li")) {
      item.hidden = !words.every((word) => item.dataset.words.includes(word));
      count += item.hidden ? 0 : 1;
      any ||= !item.hidden;
    }
    section.hidden = !any;
  }
  if (words.length) list.open = true;
  found.textContent = words.length ? `${count} found` : "";
}

/** Scroll to the operation in the address. The browser tried before the page had content. */
function follow() {
  const id = decodeURIComponent(location.hash.slice(1));
  for (const link of document.querySelectorAll("#links a")) {
    if (link.hash === location.hash) link.setAttribute("aria-current", "location");
    else link.removeAttribute("aria-current");
  }
  const target = document.getElementById(id);
  if (!target?.classList.contains("operation")) return;
  if (isNarrow.matches) list.open = false;
  target.scrollIntoView();
  target.querySelector("h3").focus({ preventScroll: true });
}

const isNarrow = matchMedia("(max-width: 60rem)");
list.open = !isNarrow.matches;
isNarrow.addEventListener("change", () => (list.open = !isNarrow.matches));
filter.addEventListener("input", narrow);
filter.addEventListener("keydown", (event) => {
  if (event.key === "Enter") document.querySelector("#links li:not([hidden]) a")?.click();
});
addEventListener("hashchange", follow);

/** Load the document; say so and try again until it is there. */
async function load() {
  const notice = element("p", { class: "notice bad", role: "alert", hidden: true });
  document.querySelector("#about").append(notice);
  for (;;) {
    try {
      const answer = await fetch("openapi.json");
      if (!answer.ok) throw new Error(`the answer was ${answer.status}`);
      const api = await answer.json();
      notice.remove();
      return api;
    } catch (error) {
      const words = `The document could not be loaded: ${error.message}. The page keeps trying.`;
      // A screen reader announces each change.
      if (notice.textContent !== words) notice.textContent = words;
      notice.hidden = false;
      await new Promise((done) => setTimeout(done, RETRY_MS));
    }
  }
}

showAccess(document.querySelector("#access"));
show(await load());
main.removeAttribute("aria-busy");
follow();
