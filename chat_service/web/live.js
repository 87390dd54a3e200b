// Watches an inbox through a WebSocket and reconnects after restarts and network failures.
//
// A message is acknowledged once a visible tab shows it, in a visible pane. Until then it is leased, and is delivered again
// if the connection is lost.

import { wordsOf } from "./access.js";
import { ask, connection, Problem, reachable, sleep } from "./api.js";

const PAUSE_MS = 500;
const PAUSE_MAX_MS = 8_000;
const GOING_AWAY = 1001;
/** The token or session has ended, or was revoked. */
const POLICY = 1008;

export class Live {
  #name;
  #path;
  #url;
  #element;
  #show;
  #tell;
  #run = null;
  #socket = null;
  #shown = null;

  /** `show` gets each message, `tell` a state (connecting, live, lost, blocked, stopped, refused) and the reason. */
  constructor({ name, path, element }, show, tell) {
    const url = new URL(`${path}/stream`, location.href);
    url.protocol = url.protocol === "https:" ? "wss:" : "ws:";
    this.#name = name;
    this.#path = path;
    this.#url = url.href;
    this.#element = element;
    this.#show = show;
    this.#tell = tell;
    document.addEventListener("visibilitychange", () => this.#acknowledge());
    // It has another size once its pane is shown.
    new ResizeObserver(() => this.#acknowledge()).observe(element);
    // A socket may take long to notice that the network is gone.
    connection.addEventListener("lost", () => this.isOn && this.#socket.close());
  }

  get isOn() {
    return this.#run !== null;
  }

  async start() {
    const run = Symbol("run");
    this.#run = run;
    this.#tell("connecting", "");
    let accepted = 0;
    for (let pause = PAUSE_MS; ; pause = Math.min(2 * pause, PAUSE_MAX_MS)) {
      const { wasOpen, code } = await this.#connect(run);
      if (this.#run !== run) return;
      if (wasOpen) [pause, accepted] = [PAUSE_MS, 0];
      if (!wasOpen || code === POLICY) {
        const error = await this.#refusal();
        if (this.#run !== run) return;
        if (error?.status === 401 || error?.kind === "forbidden") {
          this.#run = null;
          this.#tell("refused", await wordsOf(error, `read the inbox of ${this.#name}`));
          return;
        }
        accepted = error === null ? accepted + 1 : 0;
        pause = Math.max(pause, (error?.retryAfterS ?? 0) * 1000);
      }
      const why = code === GOING_AWAY ? "The service is stopping." : "Connection lost.";
      this.#tell("lost", wasOpen ? why : "No connection.");
      // The first time may be by chance: the service has started since.
      if (accepted === 2) this.#tell("blocked", "No connection.");
      await sleep(pause * (0.75 + Math.random() / 2));
      await reachable();
      if (this.#run !== run) return;
    }
  }

  /** Stop watching. Messages that were not shown become unread again. */
  stop() {
    if (!this.isOn) return;
    this.#run = null;
    this.#socket.close();
    this.#tell("stopped", "");
  }

  /** Return why the service refuses the stream: null if it does not, and undefined if it gives no answer. A browser hides
   *  the answer to a handshake. */
  async #refusal() {
    try {
      await ask("HEAD", this.#path);
      return null;
    } catch (error) {
      return error instanceof Problem ? error : undefined;
    }
  }

  /** Connect again, as the identity that uses the page now. */
  restart() {
    if (!this.isOn) return;
    this.#run = null;
    this.#socket.close();
    void this.start();
  }

  /** Open a connection; resolves when it ends. */
  #connect(run) {
    return new Promise((done) => {
      const socket = new WebSocket(this.#url);
      let wasOpen = false;
      this.#socket = socket;
      this.#shown = null;
      socket.onopen = () => {
        wasOpen = true;
        if (this.#run === run) this.#tell("live", "");
      };
      socket.onmessage = ({ data }) => {
        if (this.#run !== run) return;
        const { type, detail, ...message } = JSON.parse(data);
        if (type === "error") {
          this.#tell("live", detail);
        } else if (type === "message") {
          this.#show(message);
          this.#shown = message.id;
          this.#acknowledge();
        }
      };
      socket.onclose = ({ code }) => done({ wasOpen, code });
    });
  }

  /** Acknowledge the last shown message, and with it all earlier ones of this connection. */
  #acknowledge() {
    // An element in a hidden pane has no box. Safari has `checkVisibility` only since version 17.4.
    const isInView = !document.hidden && this.#element.getClientRects().length > 0;
    if (this.#shown === null || !isInView) return;
    if (this.#socket.readyState !== WebSocket.OPEN) return;
    this.#socket.send(JSON.stringify({ type: "ack", id: this.#shown }));
    this.#shown = null;
  }
}
