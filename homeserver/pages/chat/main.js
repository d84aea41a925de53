// The first module: decides between logging in and the conversations.

import { Api, NetworkError } from "./api.js";
import { App } from "./app.js";
import { fill, h } from "./dom.js";
import { showLogin } from "./login.js";
import { forgetSession, loadSession, loadSettings, takeSignOn } from "./session.js";

const LOOPBACK = new Set(["localhost", "127.0.0.1", "[::1]"]);

const root = document.getElementById("page");
const api = new Api(location.pathname.replace(/\/_homeserver\/chat\/?$/, ""));
let said = "";

document.documentElement.dataset.theme = loadSettings().theme;
await followLink();
await finishSignOn();
for (;;) {
  api.session ??= loadSession();
  if (!api.session) await showLogin(root, api, said);
  said = "";
  await converse();
}

// Logs in with the link that `homeserver demo` prints: `#link=<refresh token>`, good for one use.
//
// Only on this machine's own addresses. Anywhere else a link that logs in would let its sender have somebody write
// under the sender's account without noticing.
async function followLink() {
  const token = location.hash.match(/^#link=(.+)$/)?.[1];
  if (!token) return;
  history.replaceState(null, "", location.pathname);
  if (!LOOPBACK.has(location.hostname) || loadSession()) return;
  try {
    await api.logInByLink(decodeURIComponent(token));
  } catch (error) {
    api.session = null;
    said = error.message;
  }
}

// Comes back from an outside provider: `?sso=<what this tab has noted>&loginToken=<good for one log-in>`.
//
// Only if this tab has gone there: else the sender of a link could have somebody write under the sender's account.
async function finishSignOn() {
  const query = new URLSearchParams(location.search);
  const token = query.get("loginToken");
  if (!token) return;
  history.replaceState(null, "", location.pathname);
  const begun = takeSignOn();
  if (begun?.id !== query.get("sso") || loadSession()) return;
  try {
    await api.logInByToken(token, begun.keep);
  } catch (error) {
    api.session = null;
    said = error.message;
  }
}

// Shows the conversations until the session has ended, by the person or by the server.
async function converse() {
  const app = new App(root, api, async () => {
    await api.call("logout", [], { body: {} }).catch(() => {}); // logged out here even if the server cannot be reached
    end("");
  });
  const end = (text) => {
    said = text;
    forgetSession();
    api.session = null;
    history.replaceState(null, "", location.pathname);
    app.stop();
  };
  api.onLoggedOut = () => end("You have been logged out.");
  try {
    await app.run();
  } catch (error) {
    app.stop();
    if (api.session) await explain(error); // the session is still good: nobody is logged out by what others write
  }
}

// Says what has ended the page, until the person wants to try again.
function explain(error) {
  const text = error instanceof NetworkError ? error.message : `Something went wrong: ${error.message}`;
  return new Promise((resolve) => {
    const again = h("button", { type: "button", class: "primary", on: { click: resolve } }, "Try again");
    fill(root, h("main", { class: "login" }, h("p", { class: "problem", role: "alert" }, text), again));
  });
}

addEventListener("storage", (event) => {
  // Another tab has logged out.
  if (event.key === "homeserver.chat.session" && event.newValue === null && api.session?.keep) location.reload();
});

// A script that cannot run at all leaves index.html's sentence; one that fails later says so.
addEventListener("unhandledrejection", (event) => {
  console.error(event.reason);
  document.getElementById("toasts").append(h("p", { class: "toast" }, `Something went wrong: ${event.reason?.message ?? event.reason}`));
});
