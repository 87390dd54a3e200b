// A request of the API reference as a sample in each language. docs-try.js has the form that it follows.
//
// Python uses the client `chat_inbox` if one of its methods sends this very request, and httpx otherwise.

import { codeBlock } from "./docs-dom.js";
import { element } from "./element.js";

const quoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;
/** A string of JSON is one of Python and of JavaScript, too. */
const literal = JSON.stringify;

/** The samples by language: each takes a request, as docs-try.js has it, and whether it needs a token. */
const SAMPLES = { curl: asCurl, Python: asPython, JavaScript: asJavaScript };
const CHOICE = "sample language";
/** Dispatches "change" when another language is chosen, for all operations. */
const chosen = Object.assign(new EventTarget(), { language: remembered() });

function remembered() {
  try {
    const language = localStorage.getItem(CHOICE);
    return Object.hasOwn(SAMPLES, language) ? language : "curl";
  } catch {
    // The browser forbids it.
    return "curl";
  }
}

function choose(language) {
  chosen.language = language;
  try {
    localStorage.setItem(CHOICE, language);
  } catch {
    // It is chosen until the page is left.
  }
  chosen.dispatchEvent(new Event("change"));
}

/** Return a sample with a choice of languages. `.fill(request, needsToken)` shows it for a request. */
export function sampleOf(name) {
  const code = codeBlock(`the sample for ${name}`);
  const buttons = Object.keys(SAMPLES).map((language) => {
    const button = element("button", { type: "button", class: "quiet" }, [language]);
    button.addEventListener("click", () => choose(language));
    return button;
  });
  const group = { class: "row languages", role: "group", "aria-label": `Language of the sample for ${name}` };
  const made = element("div", { class: "stack" }, [element("div", group, buttons), code]);
  let shown = null;
  const show = () => {
    for (const each of buttons) each.setAttribute("aria-pressed", each.textContent === chosen.language);
    if (shown) code.fill(SAMPLES[chosen.language](...shown));
  };
  made.fill = (...request) => {
    shown = request;
    show();
  };
  chosen.addEventListener("change", show);
  return made;
}

function addressOf({ target }) {
  return new URL(".", location.href).href + target.slice(1);
}

/** Return a request as a shell command. The token is a variable, so that it stays out of the shell's history. */
function asCurl(request, needsToken) {
  const { method, target, headers, body } = request;
  const words = ["curl"];
  if (method === "HEAD") words.push("-I");
  else if (method !== "GET" && !(method === "POST" && body !== undefined)) words.push("-X", method);
  if (target.split("?")[0].endsWith("/stream")) words.push("-N");
  if (needsToken) words.push("-H", '"Authorization: Bearer $CHAT_TOKEN"');
  for (const [name, value] of Object.entries(headers)) words.push("-H", quoted(`${name}: ${value}`));
  if (body !== undefined) {
    // A body that begins with @ would be the name of a file.
    const option = body.startsWith("@") ? "--data-raw" : body.includes("\n") ? "--data-binary" : "-d";
    words.push(option, quoted(body));
  }
  return [...words, quoted(addressOf(request))].join(" ");
}

function asJavaScript(request, needsToken) {
  const { method, target, headers, body } = request;
  const options = method === "GET" ? [] : [`method: ${literal(method)}`];
  const lines = Object.entries(headers).map(([name, value]) => `${literal(name)}: ${literal(value)}`);
  if (needsToken) lines.unshift("Authorization: `Bearer ${process.env.CHAT_TOKEN}`");
  if (lines.length) options.push(`headers: { ${lines.join(", ")} }`);
  if (body !== undefined) options.push(`body: ${literal(body)}`);
  const more = options.length ? `, {${options.map((each) => `\n  ${each},`).join("")}\n}` : "";
  const shown = target.split("?")[0].endsWith("/stream")
    ? "for await (const event of answer.body.pipeThrough(new TextDecoderStream())) console.log(event);"
    : `console.log(answer.status, ${method === "HEAD" ? "Object.fromEntries(answer.headers)" : "await answer.text()"});`;
  const receipt = isReceipt(headers) ? '\nconsole.log("receipt", answer.headers.get("X-Receipt"));' : "";
  return `const answer = await fetch(${literal(addressOf(request))}${more});\n${shown}${receipt}`;
}

function asPython(request, needsToken) {
  return ofTheClient(request, needsToken) ?? ofHttpx(request, needsToken);
}

function ofHttpx(request, needsToken) {
  const { method, target, headers, body } = request;
  const lines = Object.entries(headers).map(([name, value]) => `${literal(name)}: ${literal(value)}`);
  if (needsToken) lines.unshift('"Authorization": f"Bearer {os.environ[\'CHAT_TOKEN\']}"');
  const options = [literal(method), literal(addressOf(request))];
  if (lines.length) options.push(`headers={${lines.join(", ")}}`);
  if (body !== undefined) options.push(`content=${literal(body)}`);
  const isStream = target.split("?")[0].endsWith("/stream");
  options.push(`timeout=${isStream ? "None" : "60"}`);
  const call = `(${options.map((each) => `\n    ${each},`).join("")}\n)`;
  const head = `${needsToken ? "import os\n\n" : ""}import httpx\n\n`;
  if (isStream) return `${head}with httpx.stream${call} as answer:\n    for line in answer.iter_lines():\n        print(line)`;
  const shown = method === "HEAD" ? "dict(answer.headers)" : "answer.text";
  return `${head}answer = httpx.request${call}\nprint(answer.status_code, ${shown})`;
}

/** Return a call of the client, or undefined if no method of it sends this request. */
function ofTheClient(request, needsToken) {
  const lines = METHODS[request.id]?.(request);
  if (!lines) return undefined;
  const drafts = lines.join("\n").includes("Draft(") ? "Draft, " : "";
  const token = needsToken ? ', token=os.environ["CHAT_TOKEN"]' : "";
  return [
    ...(needsToken ? ["import os", ""] : []),
    `from chat_inbox import ${drafts}SyncChatClient`,
    "",
    `with SyncChatClient(${literal(new URL(".", location.href).href.slice(0, -1))}${token}) as chat:`,
    ...lines.map((line) => `    ${line}`),
  ].join("\n");
}

/** The lines that call a method of the client, by operation. Undefined if it cannot send the request. */
const METHODS = {
  "post-message": (request) => post(request, objectIn(request.body)),
  "post-text": (request) => {
    const timeout = numberIn(request.query.timeout ?? request.headers["X-Timeout"]);
    const delay = numberIn(request.query.delay ?? request.headers["X-Delay"]);
    if (timeout === null || delay === null) return undefined;
    const { username } = request.named;
    if (!/json/.test(request.headers["Content-Type"])) {
      return post(request, { username, text: request.body, timeout, delay });
    }
    const message = objectIn(request.body);
    const isSaidTwice = timeout !== undefined || delay !== undefined;
    return message && !isSaidTwice ? post(request, { ...message, username }) : undefined;
  },
  "post-batch": ({ headers, body }) => {
    const isLines = headers["Content-Type"] === "application/x-ndjson";
    const found = isLines ? body.trim().split("\n").map(objectIn) : valueOf(body);
    const drafts = Array.isArray(found) ? found.map((each) => each && draftOf(each)) : [undefined];
    const options = optionsOf(headers);
    if (!options || drafts.includes(undefined)) return undefined;
    const list = drafts.map((draft) => `    Draft(${draft}),`);
    return ["drafts = [", ...list, "]", `for result in chat.post_batch(${["drafts", ...options].join(", ")}):`, "    print(result)"];
  },
  "read-inbox": read,
  "read-inbox-by-post": read,
  "count-unread": ({ named }) => [`print(chat.count(${literal(named.username)}))`],
  "lease-messages": ({ named, query, headers }) => {
    const [ttl, limit, wait] = [numberIn(query.ttl), numberIn(query.limit), waitOf(query, headers)];
    if ([ttl, limit, wait].includes(null)) return undefined;
    const words = [literal(named.username), ...given({ ttl_s: ttl, limit, wait_s: wait })];
    // The lease is extended while the block runs, and acknowledged at its end.
    return [
      `with chat.lease(${words.join(", ")}) as lease:`,
      "    for message in lease:",
      "        print(message.text)  # acknowledged at the end of the block",
    ];
  },
  "acknowledge-lease": (request) => onLease(request, "acknowledge"),
  "release-lease": (request) => onLease(request, "release"),
  "extend-lease": ({ named, body }) => {
    const { lease, ttl } = objectIn(body) ?? {};
    if (typeof lease !== "string" || typeof ttl !== "number") return undefined;
    return [`print(chat.extend(${literal(named.username)}, ${literal(lease)}, ${ttl}))`];
  },
  "stream-inbox": ({ named, headers }) =>
    headers["Last-Event-ID"] === undefined
      ? [`for message in chat.stream(${literal(named.username)}):`, "    print(message.text)"]
      : undefined,
  "message-status": (request) => [`print(chat.status(${ofReceipt(request)}))`],
  "revoke-message": (request) => [`print(chat.revoke(${ofReceipt(request)}))`],
};

function post({ headers }, message) {
  const [draft, options] = [message && draftOf(message), optionsOf(headers)];
  if (!draft || !options) return undefined;
  const shown = isReceipt(headers) ? "posted.id, posted.receipt" : "posted.id";
  return [`posted = chat.post(${[draft, ...options].join(", ")})`, `print(${shown})`];
}

function read({ named, query, headers }) {
  const [limit, wait] = [numberIn(query.limit), waitOf(query, headers)];
  const key = headers["Idempotency-Key"];
  if (limit === null || wait === null || key?.includes('"')) return undefined;
  const words = [literal(named.username), ...(wait === undefined ? [] : [wait]), ...given({ limit, key })];
  const call = `chat.${wait === undefined ? "read" : "wait"}(${words.join(", ")})`;
  return [`for message in ${call}:`, "    print(message.text)"];
}

function onLease({ named, body }, method) {
  const { lease, ids, delivered } = objectIn(body) ?? {};
  if (typeof lease !== "string" || !(ids === undefined || (Array.isArray(ids) && ids.every(isText)))) return undefined;
  const words = [named.username, lease, ...(ids ? [ids] : [])].map((each) => literal(each));
  if (delivered === false) words.push("delivered=False");
  return [`print(chat.${method}(${words.join(", ")}))`];
}

function ofReceipt({ named, headers }) {
  return `${literal(named.id)}, ${literal(headers["X-Receipt"] ?? "")}`;
}

/** Return a message as the arguments of `post` and `Draft`, or undefined if a field is not valid. */
function draftOf({ username, text, timeout, delay }) {
  const isNumber = (value) => value === undefined || typeof value === "number";
  const [timeout_s, delay_s] = [timeout ?? undefined, delay ?? undefined];
  if (!isText(username) || !isText(text) || !isNumber(timeout_s) || !isNumber(delay_s)) return undefined;
  return [literal(username), literal(text), ...given({ timeout_s, delay_s })].join(", ");
}

/** Return the arguments for the headers of a post, or undefined if the client cannot send them. */
function optionsOf(headers) {
  const { Prefer: prefer, "Idempotency-Key": key } = headers;
  if ((prefer !== undefined && prefer !== "receipt") || key?.includes('"')) return undefined;
  return [...given({ key }), ...(prefer ? ["receipt=True"] : [])];
}

/** Return the time that a request waits. Null if it is not a number. */
function waitOf(query, { Prefer: prefer }) {
  if (query.wait !== undefined || prefer === undefined) return numberIn(query.wait);
  return numberIn(prefer.match(/^wait=(.*)$/)?.[1] ?? "");
}

function given(options) {
  return Object.entries(options).filter(([, value]) => value !== undefined).map(([name, value]) => `${name}=${literal(value)}`);
}

/** Return the number in a field: undefined without a text, and null if it is not a number. */
function numberIn(text) {
  if (text === undefined) return undefined;
  return /^\d+(\.\d+)?$/.test(text) ? Number(text) : null;
}

function objectIn(text) {
  const value = valueOf(text);
  return value instanceof Object && !Array.isArray(value) ? value : undefined;
}

function valueOf(text) {
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}

function isText(value) {
  return typeof value === "string";
}

function isReceipt(headers) {
  return headers.Prefer === "receipt";
}
