// The form of an operation: shows its request as a sample, and sends it.
//
// If a request takes or changes something, its button says so, and the page asks before the first one.

import { asChosen } from "./docs-access.js";
import { codeBlock, pretty } from "./docs-dom.js";
import { sampleOf } from "./docs-samples.js";
import { kindOf, mediasOf, ruleOf } from "./docs-schema.js";
import { element } from "./element.js";
import { session } from "./session.js";

/** Longer bodies are shown without indentation. */
const PRETTY_MAX = 200_000;
/** The requests that the user has confirmed. The page does not ask twice. */
const agreed = new Set();

/** Return the sample and the form of an operation. */
export function tryIt(api, operation) {
  const { said, method, path } = operation;
  const id = said.operationId;
  const inputs = operation.parameters.map((parameter, at) => inputOf(parameter, `${id}-${at}`));
  const body = said.requestBody && bodyOf(said.requestBody, `${id}-body`);
  const sample = sampleOf(`${method} ${path}`);
  const request = () => requestOf(operation, inputs, body);
  const update = () => sample.fill(request(), session.isOn && "401" in said.responses);
  const send = element("button", { class: "primary" }, [
    said["x-effect"] ? `Send, and ${said["x-effect"]}` : "Send",
  ]);
  const stop = element("button", { type: "button", hidden: true }, ["Stop"]);
  const result = element("div", { class: "stack result" });
  const form = element("form", { class: "stack inside", novalidate: true }, [
    element("div", { class: "inputs" }, inputs.map(({ field }) => field)),
    ...(body ? [body.field] : []),
    element("div", { class: "row" }, [send, stop]),
    result,
  ]);
  form.addEventListener("input", update);
  session.addEventListener("change", update);
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    // Check all inputs, so that each shows its error; the first one gets the focus.
    const missing = inputs.filter((input) => input.isMissing());
    missing[0]?.focus();
    if (missing.length) return;
    if (send.getAttribute("aria-disabled") || !(await isMeant(said, request()))) return;
    const abort = new AbortController();
    stop.onclick = () => abort.abort();
    send.setAttribute("aria-disabled", "true");
    stop.hidden = false;
    await carryOut(request(), result, abort);
    send.removeAttribute("aria-disabled");
    stop.hidden = true;
  });
  update();
  const trial = element("details", { class: "try" }, [element("summary", {}, ["Try it"]), form]);
  return [
    element("section", { class: "part" }, [element("h4", {}, ["Sample"]), sample]),
    trial,
  ];
}

function inputOf(parameter, id) {
  const { name, in: place, schema, required, example } = parameter;
  const input = element("input", {
    id,
    autocomplete: "off",
    autocapitalize: "none",
    spellcheck: "false",
    inputmode: ["integer", "number"].includes(schema.type) ? "decimal" : undefined,
    placeholder: place === "path" ? undefined : String(example),
    value: place === "path" ? String(example) : undefined,
    required,
    "aria-describedby": `${id}-rule ${id}-fault`,
  });
  const fault = element("p", { class: "fault", id: `${id}-fault`, hidden: true }, ["This field is required."]);
  const hint = `${required ? "required" : "optional"} in the ${place}: ${ruleOf(schema)}`;
  const field = element("div", { class: "field" }, [
    element("label", { for: id }, [element("code", {}, [name])]),
    input,
    element("p", { class: "hint", id: `${id}-rule` }, [hint]),
    fault,
  ]);
  input.addEventListener("input", () => fault.hidden || isMissing());
  const isMissing = () => {
    const isSo = Boolean(required) && input.value === "";
    fault.hidden = !isSo;
    if (isSo) input.setAttribute("aria-invalid", "true");
    else input.removeAttribute("aria-invalid");
    return isSo;
  };
  return { field, name, place, isMissing, focus: () => input.focus(), value: () => input.value };
}

function bodyOf(body, id) {
  const medias = mediasOf(body);
  const exampleOf = ([, { example, examples }]) => pretty(example ?? Object.values(examples)[0].value);
  const text = element("textarea", { id, rows: "7", spellcheck: "false", class: "code" });
  text.value = exampleOf(medias[0]);
  const media = element("select", { id: `${id}-type` }, medias.map(([name]) => element("option", {}, [name])));
  media.addEventListener("change", () => (text.value = exampleOf(medias[media.selectedIndex])));
  const field = element("div", { class: "stack" }, [
    element("div", { class: "field", hidden: medias.length < 2 }, [
      element("label", { for: `${id}-type` }, ["Media type"]),
      media,
    ]),
    element("div", { class: "field" }, [element("label", { for: id }, ["Body"]), text]),
  ]);
  return { field, value: () => text.value, media: () => media.value };
}

/** Return the request in the form: its parts, and the inboxes and the message that it is about. */
function requestOf({ path, method, said }, inputs, body) {
  const headers = {};
  const query = new URLSearchParams();
  const named = {};
  for (const { name, place, value } of inputs) {
    if (place === "path") named[name] = value();
    else if (value() === "") continue;
    else if (place === "query") query.append(name, value());
    else headers[name] = value();
  }
  if (body) headers["Content-Type"] = body.media();
  const target = path.replace(/\{(\w+)\}/g, (_, name) => encodeURIComponent(named[name]));
  return {
    id: said.operationId,
    named,
    query: Object.fromEntries(query),
    method,
    target: query.size ? `${target}?${query}` : target,
    headers,
    body: body?.value(),
    inboxes: named.username === undefined ? inboxesIn(body?.value()) : [named.username],
    message: named.id,
  };
}

/** Return the inboxes that a body names, even if the body is not valid JSON. */
function inboxesIn(body) {
  const names = new Set();
  for (const [, name] of (body ?? "").matchAll(/"username"\s*:\s*("(?:[^"\\]|\\.)*")/g)) {
    try {
      names.add(JSON.parse(name));
    } catch {
      names.add(name);
    }
  }
  return [...names];
}

/** Ask whether to send a request that takes or changes something, once for each inbox. */
function isMeant(said, { method, target, inboxes, message }) {
  const effect = said["x-effect"];
  const about = message === undefined ? inboxes.join(", ") : message;
  const key = JSON.stringify([said.operationId, about]);
  if (!effect || agreed.has(key)) return Promise.resolve(true);
  const dialog = document.querySelector("#confirm");
  const yes = document.querySelector("#confirm-yes");
  yes.textContent = `Send, and ${effect}`;
  const what = message === undefined ? (inboxes.length > 1 ? "inboxes" : "inbox") : "message";
  document.querySelector("#confirm-text").replaceChildren(
    element("code", {}, [`${method} ${target}`]),
    ` will ${effect}. Affected ${what}: `,
    element("strong", {}, [about || "not specified"]),
    ".",
  );
  return new Promise((resolve) => {
    yes.onclick = () => dialog.close("yes");
    document.querySelector("#confirm-no").onclick = () => dialog.close("no");
    dialog.onclose = () => {
      const isYes = dialog.returnValue === "yes";
      dialog.returnValue = "";
      if (isYes) agreed.add(key);
      resolve(isYes);
    };
    dialog.showModal();
  });
}

/** Send a request; show its status, headers, body and duration, and the body while it arrives. */
async function carryOut({ method, target, headers, body }, result, abort) {
  const line = element("p", { class: "row", role: "status" }, ["Waiting for the answer…"]);
  result.replaceChildren(line);
  const began = performance.now();
  const took = () => `${Math.round(performance.now() - began)} ms`;
  try {
    const options = { method, body, signal: abort.signal, cache: "no-store" };
    const answer = await fetch(`.${target}`, { ...options, ...asChosen(headers) });
    const status = element("span", { class: `status ${kindOf(answer.status)}` }, [String(answer.status)]);
    const time = element("span", { class: "muted number" }, [took()]);
    line.replaceChildren(status, ` ${answer.statusText} `, time);
    const head = [...answer.headers].map(([name, value]) => `${name}: ${value}`).join("\n");
    const shown = codeBlock("the body");
    result.append(codeBlock("the headers", head), shown);
    let text = "";
    const reader = answer.body?.pipeThrough(new TextDecoderStream()).getReader();
    for (let read; reader && !(read = await reader.read()).done; ) shown.fill((text += read.value));
    time.textContent = took();
    if (!text) shown.replaceWith(element("p", { class: "muted" }, ["No body."]));
    else if (answer.headers.get("Content-Type")?.includes("json") && text.length < PRETTY_MAX) {
      shown.fill(pretty(JSON.parse(text)));
    }
  } catch (error) {
    const why = error.name === "AbortError" ? `Stopped after ${took()}.` : `No answer: ${error.message}.`;
    if (error.name === "AbortError") line.append(element("span", { class: "muted" }, [why]));
    else line.replaceChildren(element("span", { class: "notice bad" }, [why]));
  }
}
