// Sends requests to the service for all other modules of the page.
//
// An error answer throws `Problem`; a missing or incomplete answer throws `Unreachable`. While the
// service is unreachable, one loop probes it, and everything else waits for `reachable()`.

const ANSWER_MS = 20_000;
const LIVE_MS = 5000;
const PROBE_MS = 500;
const PROBE_MAX_MS = 8_000;
const KIND = "urn:chat:problem:";

/** Dispatches "lost" when the service cannot be reached, and "found" when it is back. */
export const connection = new EventTarget();

export class Unreachable extends Error {}

/** An error answer, with the service's own description. */
export class Problem extends Error {
  constructor(response, document) {
    const detail = document?.detail ?? `the answer was ${response.status}`;
    super(document?.title ? `${document.title}: ${detail}` : `The request failed: ${detail}`);
    this.status = response.status;
    // The answer to a HEAD has no document, but the header of a 403 for want of a right.
    const isForbidden = response.headers.get("WWW-Authenticate")?.includes("insufficient_scope");
    this.kind = document?.type?.replace(KIND, "") ?? (isForbidden ? "forbidden" : "");
    this.detail = detail;
    this.fields = document?.errors ?? [];
    this.fate = document?.fate;
    this.stored = document?.stored ?? "unknown";
    this.acknowledged = document?.acknowledged ?? [];
    this.requestId = document?.instance ?? response.headers.get("X-Request-Id");
    const after = response.headers.get("Retry-After");
    this.retryAfterS = after === null ? null : Number(after) || 1;
  }

  /** The sentence for a person, with the request id that an operator can search for. */
  get words() {
    return `${sentence(this.message)}${this.requestId ? ` (Request ${this.requestId})` : ""}`;
  }
}

export const sentence = (text) => `${text[0].toUpperCase()}${text.slice(1)}${/[.!?]$/.test(text) ? "" : "."}`;

export const sleep = (ms) => new Promise((done) => setTimeout(done, ms));

/** Return 128 random bits. Pages loaded over plain HTTP have no `crypto.randomUUID`. */
export function newKey() {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

/**
 * Send one request and return the document and headers of its answer. `path` is relative, like all
 * links, because a proxy may serve the pages below a path of its own. Throws `Problem` or `Unreachable`.
 */
export async function ask(method, path, { headers = {}, body } = {}) {
  const request = new Request(path, {
    method,
    headers,
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
  const problem = new Problem(response, document);
  // A gateway's own error page: it is unknown whether the service has answered.
  if (response.status > 501 && response.status !== 503 && problem.kind === "") throw new Unreachable();
  throw problem;
}

/**
 * Repeat a request until it is answered; the request must be safe to repeat. `tell` is called with a
 * sentence for each retry, and with "" at the end. Throws errors that retries cannot fix, and the reason
 * of `signal` if that is aborted.
 */
export async function persist(request, tell, signal) {
  for (;;) {
    try {
      const answer = await request();
      tell("");
      return answer;
    } catch (error) {
      if (error instanceof Unreachable) {
        tell("No answer from the service. The page continues when the service is back.");
        await unless(signal, reachable());
      } else if (error instanceof Problem && error.retryAfterS !== null) {
        const until = Date.now() + error.retryAfterS * 1000;
        for (let left = error.retryAfterS; left > 0; left = Math.ceil((until - Date.now()) / 1000)) {
          tell(`${error.words} Retrying in ${left} s.`);
          await unless(signal, sleep(Math.min(1000, until - Date.now())));
        }
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

/** Resolves as soon as the service can be reached, but not immediately after a failure. */
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
      // Still unreachable.
    }
  }
  back = null;
  connection.dispatchEvent(new Event("found"));
}

const online = () => new Promise((done) => window.addEventListener("online", done, { once: true }));

window.addEventListener("offline", lose);
