// Asks the service. All of the page's other modules ask through here.
//
// An answer that is an error is a `Problem`; no answer, or half of one, is `Unreachable`. While the
// service is unreachable one loop looks for it, and everybody else waits for `reachable()`.

const ANSWER_MS = 20_000;
const LIVE_MS = 5000;
const PROBE_MS = 500;
const PROBE_MAX_MS = 8_000;

/** Says "lost" and "found" when the service is out of reach, and when it is back. */
export const connection = new EventTarget();

export class Unreachable extends Error {}

/** An error as the service tells it, in its own words. */
export class Problem extends Error {
  constructor(response, document) {
    const detail = document?.detail ?? `it answered ${response.status}`;
    super(document?.title ? `${document.title}: ${detail}` : `The service did not do it: ${detail}`);
    this.status = response.status;
    this.detail = detail;
    this.fields = document?.errors ?? [];
    this.fate = document?.fate;
    this.acknowledged = document?.acknowledged ?? [];
    this.requestId = document?.instance ?? response.headers.get("X-Request-Id");
    const after = response.headers.get("Retry-After");
    this.retryAfterS = after === null ? null : Number(after) || 1;
  }

  /** The sentence for a person, with what the operator of the service can look for. */
  get words() {
    return `${sentence(this.message)}${this.requestId ? ` (Request ${this.requestId})` : ""}`;
  }
}

export const sentence = (text) => `${text[0].toUpperCase()}${text.slice(1)}${/[.!?]$/.test(text) ? "" : "."}`;

export const sleep = (ms) => new Promise((done) => setTimeout(done, ms));

/** 128 random bits. `crypto.randomUUID` is not there on a page that came over plain HTTP. */
export function newKey() {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

/**
 * One request: its answer's document and headers. `path` is relative, as all links are: a proxy may
 * serve the pages below a path of its own. Throws `Problem` or `Unreachable`.
 */
export async function ask(method, path, { headers = {}, body, keepalive = false } = {}) {
  const request = new Request(path, {
    method,
    headers,
    keepalive,
    body: body === undefined ? undefined : JSON.stringify(body),
    cache: "no-store",
    signal: AbortSignal.timeout(ANSWER_MS),
  });
  let response;
  let document = null;
  try {
    response = await fetch(request);
    const text = await response.text();
    if (text !== "" && /json/.test(response.headers.get("Content-Type"))) document = JSON.parse(text);
  } catch {
    lose();
    throw new Unreachable();
  }
  if (response.ok) return { document, headers: response.headers };
  // A gateway's own page: whether the service has answered is not known.
  if (response.status > 501 && response.status !== 503) throw new Unreachable();
  throw new Problem(response, document);
}

/**
 * Ask until there is an answer, for requests that may be repeated. `tell` is given a sentence while it
 * is tried again, and "" when that is over. Throws what cannot be helped by waiting, and the reason
 * of `signal` where that is aborted.
 */
export async function persist(request, tell, signal) {
  for (;;) {
    try {
      const answer = await request();
      tell("");
      return answer;
    } catch (error) {
      if (error instanceof Unreachable) {
        tell("No answer from the service. This goes on when it is back.");
        await unless(signal, reachable());
      } else if (error instanceof Problem && error.retryAfterS !== null) {
        tell(`${error.words} It is tried again in ${error.retryAfterS} s.`);
        await unless(signal, sleep(error.retryAfterS * 1000));
      } else {
        tell("");
        throw error;
      }
    }
  }
}

function unless(signal, waited) {
  if (!signal) return waited;
  signal.throwIfAborted();
  const aborted = new Promise((_, reject) => {
    signal.addEventListener("abort", () => reject(signal.reason), { once: true });
  });
  return Promise.race([waited, aborted]);
}

let back = null;

/** Resolves as soon as the service can be reached; never at once after a failure. */
export const reachable = () => back ?? sleep(PROBE_MS);

function lose() {
  if (back !== null) return;
  connection.dispatchEvent(new Event("lost"));
  back = probe();
}

async function probe() {
  for (let pause = PROBE_MS; ; pause = Math.min(2 * pause, PROBE_MAX_MS)) {
    await Promise.race([sleep(pause), online()]);
    try {
      const signal = AbortSignal.timeout(LIVE_MS);
      const answer = await fetch("livez", { method: "HEAD", cache: "no-store", signal });
      if (answer.ok) break;
    } catch {
      // Still away.
    }
  }
  back = null;
  connection.dispatchEvent(new Event("found"));
}

const online = () => new Promise((done) => window.addEventListener("online", done, { once: true }));

window.addEventListener("offline", lose);
