// Watches an inbox through a WebSocket, over restarts of the service and losses of the network.
//
// A message is acknowledged once it is shown in a tab that is visible; one that is not is still on
// loan, and comes again when the connection is lost.

import { connection, reachable, sleep } from "./api.js";

const PAUSE_MS = 500;
const PAUSE_MAX_MS = 8_000;
const GOING_AWAY = 1001;

export class Live {
  #path;
  #show;
  #tell;
  #run = null;
  #socket = null;
  #shown = null;

  /** `show` is given each message, `tell` a state: connecting, live, lost, stopped; and why. */
  constructor(path, show, tell) {
    const url = new URL(`${path}/stream`, location.href);
    url.protocol = url.protocol === "https:" ? "wss:" : "ws:";
    this.#path = url.href;
    this.#show = show;
    this.#tell = tell;
    document.addEventListener("visibilitychange", () => this.#acknowledge());
    // A socket may not notice for long that the network is gone.
    connection.addEventListener("lost", () => this.isOn && this.#socket.close());
  }

  get isOn() {
    return this.#run !== null;
  }

  async start() {
    const run = Symbol("run");
    this.#run = run;
    this.#tell("connecting", "");
    for (let pause = PAUSE_MS; ; pause = Math.min(2 * pause, PAUSE_MAX_MS)) {
      const { wasOpen, code } = await this.#connect(run);
      if (this.#run !== run) return;
      if (wasOpen) pause = PAUSE_MS;
      const why = code === GOING_AWAY ? "The service stops." : "The connection is lost.";
      this.#tell("lost", wasOpen ? why : "No connection.");
      await sleep(pause * (0.75 + Math.random() / 2));
      await reachable();
      if (this.#run !== run) return;
    }
  }

  /** What was not shown by now is unread again. */
  stop() {
    if (!this.isOn) return;
    this.#run = null;
    this.#socket.close();
    this.#tell("stopped", "");
  }

  /** One connection, from its beginning to its end. */
  #connect(run) {
    return new Promise((done) => {
      const socket = new WebSocket(this.#path);
      let wasOpen = false;
      this.#socket = socket;
      this.#shown = null;
      socket.onopen = () => {
        wasOpen = true;
        if (this.#run === run) this.#tell("live", "");
      };
      socket.onmessage = ({ data }) => {
        if (this.#run !== run) return;
        const { type, id, text, detail } = JSON.parse(data);
        if (type === "error") {
          this.#tell("live", detail);
        } else if (type === "message") {
          this.#show({ id, text });
          this.#shown = id;
          this.#acknowledge();
        }
      };
      socket.onclose = ({ code }) => done({ wasOpen, code });
    });
  }

  /** An acknowledgement is also one of all that this connection was given before. */
  #acknowledge() {
    if (this.#shown === null || document.hidden || this.#socket.readyState !== WebSocket.OPEN) return;
    this.#socket.send(JSON.stringify({ type: "ack", id: this.#shown }));
    this.#shown = null;
  }
}
