// What is new, as it happens: one interface over two transports.
//
// Theory of operation. `Live` gives every sync answer to `onSync` in order, each exactly once, and says in `onState` how
// it is connected. It prefers the socket (socket.js). Where no socket can be opened, because a proxy blocks it or the
// server has it switched off, it polls `GET /sync` and tries the socket again later. Both resume from `next_batch` of
// the last answer, so a change of transport loses and repeats nothing: an answer is applied before its token is used.

import { NetworkError, ServerError, pause } from "./api.js";
import { THROUGH_SOCKET } from "./operations.js";
import { Socket, SocketUnavailable, TokenEnded } from "./socket.js";

export const FILTER = {
  presence: { limit: 500 },
  room: {
    timeline: { limit: 30, lazy_load_members: true },
    state: { lazy_load_members: true },
  },
};
const POLL_MS = 30_000;
const WAIT_MIN_MS = 500;
const WAIT_MAX_MS = 30_000;
const SOCKET_AGAIN_MS = 5 * 60_000;

export class Live {
  #api;
  #onSync;
  #onState;
  #since = null;
  #socket = null;
  #socketAgainAt = 0;
  #failures = 0;
  #stop = new AbortController();
  #wake = () => {};

  constructor(api, onSync, onState) {
    this.#api = api;
    this.#onSync = onSync;
    this.#onState = onState;
  }

  // Runs until `stop`. Raises ServerError if the session has ended.
  async run() {
    const wake = () => this.#wake();
    addEventListener("online", wake);
    document.addEventListener("visibilitychange", wake);
    try {
      while (!this.#stop.signal.aborted) await this.#follow();
    } finally {
      removeEventListener("online", wake);
      document.removeEventListener("visibilitychange", wake);
    }
  }

  stop() {
    this.#stop.abort();
    this.#wake();
  }

  // Calls an operation through the socket if it is open, otherwise by HTTP.
  async call(name, parameters = [], options = {}) {
    if (this.#socket?.isOpen && THROUGH_SOCKET.has(name)) return this.#socket.call(name, parameters, options);
    return this.#api.call(name, parameters, options);
  }

  async #follow() {
    try {
      if (Date.now() >= this.#socketAgainAt) await this.#followSocket();
      else await this.#poll();
    } catch (error) {
      if (this.#stop.signal.aborted) return;
      if (error instanceof SocketUnavailable) {
        this.#socketAgainAt = Date.now() + SOCKET_AGAIN_MS;
        return;
      }
      const isFinal = error instanceof ServerError && (error.status === 401 || error.status === 403);
      if (isFinal || !(error instanceof ServerError || error instanceof NetworkError)) throw error;
      if (error.errcode === "M_UNKNOWN_POS") this.#since = null;
      await this.#waitAfterFailure();
    }
  }

  async #followSocket() {
    this.#socket = new Socket(this.#api, this.#stop.signal);
    try {
      await this.#socket.follow(this.#since, FILTER, (sync) => this.#take(sync, "socket"));
    } catch (error) {
      if (!(error instanceof TokenEnded)) throw error;
      await this.#api.call("get_token_owner"); // gets a new token if it can, otherwise raises
    } finally {
      this.#socket = null;
    }
  }

  async #poll() {
    const sync = await this.#api.call("sync_events", [], {
      query: {
        since: this.#since,
        timeout: this.#since && this.#failures === 0 ? POLL_MS : 0,
        filter: JSON.stringify(FILTER),
      },
      signal: this.#stop.signal,
      timeout: POLL_MS * 2,
    });
    this.#take(sync, "poll");
  }

  #take(sync, transport) {
    const isFirst = this.#since === null;
    this.#since = sync.next_batch;
    this.#failures = 0;
    this.#onSync(sync, isFirst);
    this.#onState({ connected: true, transport });
  }

  // Waits longer after each failure, by a time of which half is chance, so that clients do not return all at once.
  async #waitAfterFailure() {
    const longest = Math.min(WAIT_MAX_MS, WAIT_MIN_MS * 2 ** this.#failures);
    this.#failures += 1;
    if (this.#failures > 1) this.#onState({ connected: false });
    const woken = new Promise((resolve) => {
      this.#wake = resolve;
    });
    await Promise.race([pause(longest / 2 + Math.random() * (longest / 2)), woken]);
  }
}
