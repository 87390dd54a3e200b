// Who uses the page, and what they may do: asks /session, signs in and signs out. Used by all pages.
//
// A token goes to the service in a header, and comes back as a cookie that no script can read. Nothing
// here keeps it: not a variable, not a storage, not an address.

const ANSWER_MS = 20_000;
/** How often a visible page asks whether the session still exists. */
const LOOK_MS = 30_000;
const OPEN = { access: "off", subject: "", send: ["*"], read: ["*"], ops: true, until: null, kept_until: null };

/** No session: `status` is null without an answer, and 200 if the browser did not keep the cookie. */
export class SessionError extends Error {
  constructor(status = null, { retryAfterS = null, detail = "" } = {}) {
    super("there is no session");
    this.status = status;
    this.retryAfterS = retryAfterS;
    this.detail = detail;
  }
}

/** The identity that the page's requests have. Dispatches "change" when it or its rights change. */
class Session extends EventTarget {
  /** What the service says: `access`, `subject`, and the names for `send` and `read` as patterns. */
  who = OPEN;
  /** When it ends, by this machine's clock in ms, or null. */
  endsAt = null;
  /** How it ended without a sign-out on this page: "expired", "revoked", or "". */
  ended = "";
  #timer = 0;
  #asked = 0;
  #isLeaving = false;

  get isOn() {
    return this.who.access !== "off";
  }

  get isSignedIn() {
    return this.who.subject !== "";
  }

  /** Return whether this identity has a right for a name: a pattern is a name, or the beginning of one and a star. */
  may(right, name) {
    return this.who[right].some((each) => (each.endsWith("*") ? name.startsWith(each.slice(0, -1)) : each === name));
  }

  /** Ask now, repeatedly, and when the page becomes visible, because another tab may have signed in. */
  watch() {
    document.addEventListener("visibilitychange", () => this.isOn && !document.hidden && this.look());
    return this.look();
  }

  /** Ask who uses the page. Without an answer, nothing changes. */
  async look() {
    try {
      await this.#ask("GET").catch(async (error) => {
        if (error.status !== 401) throw error;
        // The cookie has a token that is not valid any more, which would refuse every other request as well.
        await request("DELETE");
        await this.#ask("GET");
      });
    } catch (error) {
      if (!(error instanceof SessionError)) throw error;
    }
    clearTimeout(this.#timer);
    if (!this.isOn || document.hidden) return;
    const left = this.endsAt === null ? Infinity : Math.max(1000, this.endsAt - Date.now());
    this.#timer = setTimeout(() => this.look(), Math.min(left, LOOK_MS));
  }

  /** Exchange a token for a cookie, which the browser forgets when it is closed unless `keep` is set. Throws
   *  SessionError. */
  async signIn(token, keep) {
    const { who } = await request("POST", token, { keep });
    await this.look();
    // A browser keeps the cookie only over HTTPS, or from this machine.
    if (who.subject !== "" && !this.isSignedIn) throw new SessionError(200);
  }

  /** Remove the cookie. Throws SessionError if the service does not answer. */
  async signOut() {
    await request("DELETE");
    this.#isLeaving = true;
    await this.look();
    this.#isLeaving = false;
  }

  async #ask(method, token) {
    this.#asked += 1;
    const turn = this.#asked;
    const found = await request(method, token);
    // A later request has the newer answer.
    if (turn !== this.#asked) return;
    const before = this.who;
    const wasOver = this.endsAt !== null && Date.now() >= this.endsAt - 1000;
    ({ who: this.who, endsAt: this.endsAt } = found);
    if (this.isSignedIn || this.#isLeaving) this.ended = "";
    else if (before.subject !== "") this.ended = wasOver ? "expired" : "revoked";
    if (JSON.stringify(before) !== JSON.stringify(this.who)) this.dispatchEvent(new Event("change"));
  }
}

export const session = new Session();

/** Return what a token may do, without a session. Throws SessionError. */
export const whoHas = async (token) => (await request("GET", token)).who;

/** Send a request about the session; return the identity and its end, or null for a DELETE. Throws SessionError. */
async function request(method, token, said) {
  let answer;
  let body = null;
  try {
    answer = await fetch("session", {
      method,
      headers: token === undefined ? {} : { Authorization: `Bearer ${token}` },
      body: said && JSON.stringify(said),
      // A question about a token must not be answered for the cookie.
      credentials: method === "GET" && token !== undefined ? "omit" : "same-origin",
      cache: "no-store",
      signal: AbortSignal.timeout(ANSWER_MS),
    });
    // A body that nobody reads would keep its connection.
    const text = await answer.text();
    if (text !== "" && /json/.test(answer.headers.get("Content-Type"))) body = JSON.parse(text);
  } catch {
    throw new SessionError();
  }
  if (!answer.ok) {
    const retryAfterS = Number(answer.headers.get("Retry-After")) || null;
    throw new SessionError(answer.status, { retryAfterS, detail: body?.detail });
  }
  if (method === "DELETE") return null;
  if (body === null) throw new SessionError(answer.status);
  // The end in terms of this machine's clock, which may differ from the service's.
  const late = Date.now() - Date.parse(answer.headers.get("Date"));
  const ends = [body.until, body.kept_until].filter(Boolean).map((end) => Date.parse(end) + (late || 0));
  const endsAt = ends.length === 0 ? null : Math.min(...ends);
  return { who: { ...body, subject: body.subject ?? "" }, endsAt };
}

/** Return whether a text can be a token: a header can hold it, without spaces. */
export function isTokenLike(text) {
  // Not a regular expression: `RegExp.input` would keep the token for every script.
  return text !== "" && [...text].every((letter) => letter > " " && letter <= "~");
}

const NAMES_MAX = 6;

/** Return the names that patterns stand for, as words; "" if there are none. */
export function namesOf(patterns) {
  if (patterns.includes("*")) return "any name";
  const isWhole = (each) => !each.endsWith("*");
  const words = [
    ...patterns.filter(isWhole).map((name) => `“${name}”`),
    ...patterns.filter((each) => !isWhole(each)).map((each) => `any name that begins with “${each.slice(0, -1)}”`),
  ];
  const rest = words.splice(NAMES_MAX).length;
  if (rest > 0) words.push(`${rest} more`);
  const last = words.pop() ?? "";
  return words.length === 0 ? last : `${words.join(", ")} and ${last}`;
}

/** Return what an identity may do, as sentences. */
export function rightsOf({ send, read, ops }) {
  const [to, of] = [namesOf(send), namesOf(read)];
  return [
    to ? `You may send to ${to}.` : "You may not send.",
    of ? `You may read the inbox of ${of}.` : "You may not read an inbox.",
    ...(ops ? ["You may use the dashboard and the metrics."] : []),
  ];
}

/** Return why a request was refused for want of a right, or null. `act` completes "may not …". */
export function refusal({ status, kind }, act) {
  if (status !== 401 && kind !== "forbidden") return null;
  if (!session.isSignedIn) return `Sign in to ${act}.`;
  return `You are signed in as ${session.who.subject}, who may not ${act}.`;
}
