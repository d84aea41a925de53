// Requests to the homeserver that serves this page, and to no other one.
//
// Access tokens are short-lived: every log-in asks for a refresh token, and a request that finds its access token
// expired gets a new one and is repeated. Several tabs share one session; a lock has one of them refresh it at a time.

import { readJson } from "./json.js";
import { OPERATIONS, pathOf } from "./operations.js";
import { loadSession, saveSession } from "./session.js";

const TIMEOUT_MS = 60_000;
const TRIES = 4;

// An error that the server has answered. `errcode` is Matrix's; the message is for people.
export class ServerError extends Error {
  constructor(status, body) {
    super(body.error || `The server answered with status ${status}.`);
    this.status = status;
    this.errcode = body.errcode ?? "M_UNKNOWN";
    this.body = body;
  }
}

// The server could not be reached.
export class NetworkError extends Error {}

export class Api {
  session = null;
  onLoggedOut = () => {};
  #base;

  // base: what stands before `/_homeserver/chat` in the page's address, usually nothing.
  constructor(base) {
    this.#base = base;
  }

  get userId() {
    return this.session.userId;
  }

  // Returns the address of a path of this server.
  address(path) {
    return `${this.#base}${path}`;
  }

  // Returns the address of the socket.
  get socketUrl() {
    const url = new URL(this.address("/_homeserver/client/v1/ws"), location.href);
    url.protocol = url.protocol === "https:" ? "wss:" : "ws:";
    return url.href;
  }

  // Calls an operation and returns its JSON. Raises ServerError or NetworkError. `raw`: returns the Response.
  async call(name, parameters = [], options = {}) {
    const [method] = OPERATIONS[name];
    return this.request(method, pathOf(name, parameters), options);
  }

  async request(method, path, { query, body, headers = {}, signal, raw = false, timeout = TIMEOUT_MS } = {}) {
    const url = this.address(path) + asQuery(query);
    const isJson = body !== undefined && !(body instanceof Blob);
    for (let tries = 1; ; tries += 1) {
      const token = this.session?.accessToken;
      const response = await reach(url, {
        method,
        body: isJson ? JSON.stringify(body) : body,
        headers: {
          ...(token ? { authorization: `Bearer ${token}` } : {}),
          ...(isJson ? { "content-type": "application/json" } : {}),
          ...headers,
        },
        signal: AbortSignal.any([AbortSignal.timeout(timeout), ...(signal ? [signal] : [])]),
      });
      if (response.ok) return raw ? response : readJson(await response.text());
      const error = new ServerError(response.status, await response.json().catch(() => ({})));
      if (error.errcode === "M_UNKNOWN_TOKEN" && token && tries < TRIES) {
        if (await this.#renew(token)) continue;
      } else if (error.status === 429 && tries < TRIES) {
        await pause(Math.min(error.body.retry_after_ms ?? 1000, 30_000));
        continue;
      }
      throw error;
    }
  }

  // Gets a new access token in place of one that has expired. Ends the session if there is none. Returns whether the
  // request can be repeated.
  async #renew(expired) {
    return navigator.locks.request("homeserver.chat.session", async () => {
      const stored = loadSession();
      if (stored && stored.accessToken !== expired && stored.userId === this.session?.userId) {
        this.session = stored; // another tab was faster
        return true;
      }
      const refreshToken = this.session?.refreshToken;
      if (refreshToken) {
        const renewed = await this.#refresh(refreshToken);
        if (renewed) {
          this.session = { ...this.session, ...renewed };
          saveSession(this.session);
          return true;
        }
      }
      if (this.session) this.onLoggedOut();
      return false;
    });
  }

  // Returns the tokens that a refresh token is exchanged for; null if the server does not take it.
  async #refresh(refreshToken) {
    const response = await reach(this.address(pathOf("refresh", [])), {
      method: "POST",
      headers: { "content-type": "application/json" },
      body: JSON.stringify({ refresh_token: refreshToken }),
      signal: AbortSignal.timeout(TIMEOUT_MS),
    });
    if (response.status >= 500 || response.status === 429) throw new NetworkError("The server cannot answer at present.");
    if (!response.ok) return null;
    const tokens = await response.json();
    return { accessToken: tokens.access_token, refreshToken: tokens.refresh_token ?? refreshToken };
  }

  // Logs in with a password. `keep`: the browser remembers the session after it is closed.
  async logIn(user, password, keep) {
    const answer = await this.call("login", [], {
      body: { type: "m.login.password", identifier: { type: "m.id.user", user }, password, ...device() },
    });
    this.#begin(answer.user_id, answer.device_id, answer.access_token, answer.refresh_token, keep);
  }

  // Logs in with the login token that a log-in with an outside provider has led to.
  async logInByToken(token, keep) {
    const answer = await this.call("login", [], { body: { type: "m.login.token", token, ...device() } });
    this.#begin(answer.user_id, answer.device_id, answer.access_token, answer.refresh_token, keep);
  }

  // Creates an account and logs in. `token`: the registration token, if the server asks for one.
  // Spec: client-server-api/#account-registration
  async register(username, password, token, keep) {
    const ask = (auth) => this.call("register", [], { body: { username, password, ...device(), ...auth } });
    let answer;
    try {
      answer = await ask({});
    } catch (error) {
      const session = error.body?.session; // the server says how it wants to be asked
      if (error.status !== 401 || !session) throw error;
      answer = await ask({ auth: token ? { type: "m.login.registration_token", token, session } : { type: "m.login.dummy", session } });
    }
    this.#begin(answer.user_id, answer.device_id, answer.access_token, answer.refresh_token, keep);
  }

  // Logs in with the refresh token of a link, which is good for one use. Raises Error if it has been used.
  async logInByLink(refreshToken) {
    const tokens = await this.#refresh(refreshToken);
    if (!tokens) throw new Error("This link has been used already. Log in with your password.");
    this.session = { ...tokens, userId: "", deviceId: "", keep: false };
    const owner = await this.call("get_token_owner");
    this.#begin(owner.user_id, owner.device_id, tokens.accessToken, tokens.refreshToken, true);
  }

  #begin(userId, deviceId, accessToken, refreshToken, keep) {
    this.session = { userId, deviceId, accessToken, refreshToken, keep };
    saveSession(this.session);
  }
}

async function reach(url, options) {
  try {
    return await fetch(url, { ...options, cache: "no-store", credentials: "omit", referrerPolicy: "no-referrer" });
  } catch (error) {
    if (options.signal.aborted && options.signal.reason?.name === "AbortError") throw options.signal.reason;
    throw new NetworkError("The server cannot be reached. Check your connection.");
  }
}

function asQuery(query = {}) {
  const given = Object.entries(query).filter(([, value]) => value !== undefined && value !== null);
  return given.length ? `?${new URLSearchParams(given)}` : "";
}

// Returns what a log-in says of the device.
function device() {
  const known = /(Firefox|Edg|Chrome|Safari)\//.exec(navigator.userAgent);
  const name = known ? known[1].replace("Edg", "Edge") : "browser";
  return { refresh_token: true, initial_device_display_name: `Chat page (${name})` };
}

// Resolves after some time.
export function pause(ms) {
  return new Promise((resolve) => setTimeout(resolve, ms));
}
