// Where the browser keeps the log-in.
//
// "Keep me logged in" uses localStorage, so that a messenger that was closed in the evening is open in the morning and
// tabs share one device; without it sessionStorage ends the session with the tab. Scripts of this origin can read
// either: what protects the token is that no foreign script runs here (the Content-Security-Policy allows this server's
// modules only, and no markup is ever made from text), that access tokens expire soon, and that logging out revokes
// both tokens. A cookie would not be safer: Matrix authenticates by header, and cookies bring cross-site requests.

const KEY = "homeserver.chat.session";

// Returns the session: {userId, deviceId, accessToken, refreshToken, keep}; null if there is none.
export function loadSession() {
  const stored = sessionStorage.getItem(KEY) ?? localStorage.getItem(KEY);
  try {
    const session = JSON.parse(stored);
    return session?.accessToken && session.userId ? session : null;
  } catch {
    return null;
  }
}

export function saveSession(session) {
  // Never removed in between: other tabs would take that for a log-out.
  (session.keep ? localStorage : sessionStorage).setItem(KEY, JSON.stringify(session));
  (session.keep ? sessionStorage : localStorage).removeItem(KEY);
}

export function forgetSession() {
  sessionStorage.removeItem(KEY);
  localStorage.removeItem(KEY);
}

const SIGN_ON = "homeserver.chat.sso";

// Notes that this tab goes to an outside provider. Returns a text that has to come back with the answer.
export function beginSignOn(keep) {
  const id = crypto.randomUUID();
  sessionStorage.setItem(SIGN_ON, JSON.stringify({ id, keep }));
  return id;
}

// Returns what `beginSignOn` has noted, {id, keep}, once; null if this tab has not gone to a provider.
export function takeSignOn() {
  const stored = sessionStorage.getItem(SIGN_ON);
  sessionStorage.removeItem(SIGN_ON);
  return JSON.parse(stored);
}

const SETTINGS = "homeserver.chat.settings";
const DEFAULTS = { theme: "system", notifications: false };

// What a person chose on this computer.
export function loadSettings() {
  try {
    return { ...DEFAULTS, ...JSON.parse(localStorage.getItem(SETTINGS)) };
  } catch {
    return { ...DEFAULTS };
  }
}

export function saveSettings(settings) {
  localStorage.setItem(SETTINGS, JSON.stringify(settings));
}
