// The WebSocket: `GET /_homeserver/client/v1/ws`, frames of JSON.
//
// Theory of operation. The first frame is the token; the second starts the push of sync answers from a position. Every
// answer is acknowledged once it has been applied, which is what "delivered" means to senders. Requests carry a number
// that their answers repeat. A socket is used once: whatever ends it, `follow` raises, the requests under way fail as if
// the network had failed, and the next socket resumes from the last answer that was applied.

import { NetworkError, ServerError } from "./api.js";
import { readJson } from "./json.js";

const OPEN_MS = 10_000;
const PING_MS = 60_000;
const ANSWER_MS = 30_000;
const TOKEN_ENDED = 4001;

// The socket could not be opened at all: blocked on the way, or switched off.
export class SocketUnavailable extends Error {}

// The access token has expired, or the session was ended.
export class TokenEnded extends Error {}

export class Socket {
  #api;
  #stopped;
  #socket = null;
  #calls = new Map();
  #number = 0;
  #isReady = false;
  #heardAt = 0;

  constructor(api, stopped) {
    this.#api = api;
    this.#stopped = stopped;
  }

  get isOpen() {
    return this.#isReady && this.#socket.readyState === WebSocket.OPEN;
  }

  // Gives `onSync` every sync answer from `since` on. Never returns: raises SocketUnavailable if the socket could not be
  // opened, TokenEnded or NetworkError once it has ended, ServerError if the server refuses.
  async follow(since, filter, onSync) {
    if (!("WebSocket" in globalThis)) throw new SocketUnavailable();
    await this.#open();
    const timer = setInterval(() => this.#ping(), PING_MS);
    const stop = () => this.#socket.close();
    this.#stopped.addEventListener("abort", stop);
    try {
      await new Promise((_, reject) => {
        this.#socket.onclose = (event) => reject(this.#ended(event));
        this.#socket.onmessage = (event) => this.#receive(event, onSync, reject);
        this.#send({ op: "authenticate", token: this.#api.session.accessToken });
        const start = { id: this.#next(), op: "sync", filter, ...(since ? { since } : {}) };
        this.#calls.set(start.id, { resolve: () => {}, reject });
        this.#send(start);
      });
    } finally {
      this.#isReady = false;
      clearInterval(timer);
      this.#stopped.removeEventListener("abort", stop);
      this.#socket.onclose = this.#socket.onmessage = null;
      this.#socket.close();
      for (const call of this.#calls.values()) call.reject(new NetworkError("The connection was lost."));
      this.#calls.clear();
    }
  }

  // Calls an operation. Returns its JSON; raises ServerError or NetworkError.
  async call(name, parameters, { query, body } = {}) {
    const id = this.#next();
    let timer;
    try {
      return await new Promise((resolve, reject) => {
        timer = setTimeout(() => reject(new NetworkError("The server has not answered in time.")), ANSWER_MS);
        this.#calls.set(id, { resolve, reject });
        this.#send({ id, op: name, path: parameters, query: asText(query), ...(body === undefined ? {} : { body }) });
      });
    } finally {
      clearTimeout(timer);
      this.#calls.delete(id);
    }
  }

  async #open() {
    const socket = new WebSocket(this.#api.socketUrl);
    this.#socket = socket;
    await new Promise((resolve, reject) => {
      const timer = setTimeout(() => reject(new SocketUnavailable()), OPEN_MS);
      socket.onopen = () => {
        clearTimeout(timer);
        resolve();
      };
      socket.onclose = () => {
        clearTimeout(timer);
        reject(new SocketUnavailable());
      };
    }).catch((error) => {
      socket.onopen = socket.onclose = null;
      socket.close();
      throw error;
    });
  }

  #receive(event, onSync, reject) {
    this.#heardAt = Date.now();
    let frame;
    try {
      frame = readJson(event.data);
    } catch {
      reject(new NetworkError("The server sent a frame that is no JSON."));
      return;
    }
    if (frame.sync) {
      this.#isReady = true;
      try {
        onSync(frame.sync);
      } catch (error) {
        reject(error);
        return;
      }
      this.#send({ ack: frame.sync.next_batch });
      return;
    }
    const call = this.#calls.get(frame.id);
    if (!call) return;
    this.#calls.delete(frame.id);
    if (frame.status < 400) call.resolve(frame.body);
    else call.reject(new ServerError(frame.status, frame.body ?? {}));
  }

  // Finds out whether a silent connection is still one. A half-open one is closed.
  #ping() {
    if (this.#heardAt && Date.now() - this.#heardAt > 2 * PING_MS) this.#socket.close();
    else if (this.isOpen) this.call("ping", []).catch(() => {});
  }

  #ended(event) {
    return event.code === TOKEN_ENDED ? new TokenEnded() : new NetworkError("The connection was lost.");
  }

  #send(frame) {
    if (this.#socket.readyState === WebSocket.OPEN) this.#socket.send(JSON.stringify(frame));
  }

  #next() {
    this.#number += 1;
    return this.#number;
  }
}

function asText(query = {}) {
  return Object.fromEntries(Object.entries(query).filter(([, value]) => value !== undefined && value !== null).map(([name, value]) => [name, String(value)]));
}
