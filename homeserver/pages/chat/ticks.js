// The ticks of an own message: ✓ sent, ✓✓ delivered, blue: read.

import { h, icon } from "./dom.js";
import { tickText } from "./words.js";

const ICONS = { sending: "clock", failed: "alert", sent: "check", delivered: "checks", read: "checks" };

// Returns the ticks of {status, read?, others?}.
export function ticks(status) {
  const text = tickText(status);
  return h("span", { class: `ticks ${status.status}`, role: "img", "aria-label": text, title: text }, icon(ICONS[status.status]));
}
