// JSON from the server, in which strangers have chosen what events say.
//
// An object with a `toString` of its own cannot become a text, and a time beyond the last day of a Date cannot be
// formatted: either would end the drawing of a whole conversation with an error. So neither gets into the page.

const LAST_MS = Date.UTC(9999, 11, 31);
const CONVERSIONS = new Set(["toString", "valueOf", "toJSON", "__proto__"]);

// Returns the value of a text. Raises SyntaxError.
export function readJson(text) {
  return JSON.parse(text, harmless);
}

function harmless(key, value) {
  if (CONVERSIONS.has(key)) return undefined; // leaves the key out
  if (key === "origin_server_ts") return Number.isFinite(value) ? Math.max(0, Math.min(value, LAST_MS)) : 0;
  return value;
}
