/* Asks for /ops/history and keeps what the answers say about one period. Used by ops.js. */

import { History } from "./measures.js";

/* Each request repeats this many samples, to include those that were being written. */
const OVERLAP = 3;

/** One period: its samples, and the last answer. `query` selects it in /ops/history, which may take `timeoutMs`. */
export class Feed {
  history = new History();
  /* The last answer, without its samples, and the processes in it. */
  news = null;
  living = [];
  #query;
  #timeoutMs;
  #at = 0;

  constructor(query, timeoutMs) {
    this.#query = query;
    this.#timeoutMs = timeoutMs;
  }

  /** The service's time, in seconds since 1970, by its last answer and the time that passed since then. */
  get now() {
    return this.news.now + (performance.now() - this.#at) / 1000;
  }

  /** How many slots the period has. */
  get slots() {
    return Math.round(this.news.span / this.news.every);
  }

  /** Ask for new samples. Returns the answer's status, and its problem and pause if it is not 200.

      The status is 0 if no complete answer came in time. */
  async refresh() {
    const query = new URLSearchParams(this.#query);
    if (this.news) query.set("since", (this.now - OVERLAP * this.history.every).toFixed(3));
    const signal = AbortSignal.timeout(this.#timeoutMs);
    try {
      const answer = await fetch(`ops/history?${query}`, { cache: "no-store", signal });
      if (answer.ok) {
        this.#add(await answer.json());
        return { status: answer.status };
      }
      const retryAfterS = Number(answer.headers.get("Retry-After")) || 1;
      const text = await answer.text();
      const isProblem = answer.headers.get("Content-Type")?.includes("problem+json");
      const problem = isProblem ? JSON.parse(text).type.split(":").at(-1) : "";
      return { status: answer.status, problem, retryAfterS };
    } catch {
      return { status: 0 };
    }
  }

  #add(news) {
    this.living = this.history.add(news);
    this.news = news;
    this.#at = performance.now();
  }
}
