import assert from "node:assert/strict";
import { test } from "node:test";

import { decodeBlurhash } from "./blurhash.js";
import { pathOf } from "./operations.js";
import { dayTitle, sizeText, statusText, typingText } from "./words.js";

const MINUTE = 60_000;
const NOW = Date.UTC(2026, 10, 30, 21, 0);

test("a status is Online, or how long ago somebody was active", () => {
  const ago = (ms) => statusText({ online: false, lastActive: NOW - ms }, NOW);
  assert.equal(statusText({ online: true, lastActive: NOW }, NOW), "Online");
  assert.equal(ago(1000), "Active 1 minute ago");
  assert.equal(ago(59 * MINUTE), "Active 59 minutes ago");
  assert.equal(ago(125 * MINUTE), "Active 2 hours ago");
  assert.equal(ago(49 * 60 * MINUTE), "Active 2 days ago");
  assert.equal(statusText(null, NOW), "");
});

test("days are named by how far back they are", () => {
  assert.equal(dayTitle(NOW - MINUTE, NOW), "Today");
  assert.equal(dayTitle(NOW - 22 * 60 * MINUTE, NOW), "Yesterday");
  assert.equal(dayTitle(NOW - 3 * 24 * 60 * MINUTE, NOW), "Friday");
});

test("who is typing is said by name, up to two", () => {
  assert.equal(typingText([]), "");
  assert.equal(typingText(["Juliet", "Nurse"]), "Juliet and Nurse are typing…");
  assert.equal(typingText(["a", "b", "c"]), "3 people are typing…");
});

test("sizes are short, and nothing for what is no size", () => {
  assert.deepEqual([999, 2500, 1_500_000, undefined].map(sizeText), ["999 bytes", "3 kB", "1.5 MB", ""]);
});

test("a blurhash is a small picture, a malformed one nothing", () => {
  const pixels = decodeBlurhash("LEHV6nWB2yk8pyo0adR*.7kCMdnj", 4, 4);
  assert.equal(pixels.length, 64);
  assert.equal(pixels[3], 255);
  for (const wrong of ["", "L", "LEHV6nWB2yk8pyo0adR*.7kCMdn", "é".repeat(28), 7, null]) assert.equal(decodeBlurhash(wrong, 4, 4), null);
});

test("parameters of a path are escaped as a whole", () => {
  assert.equal(pathOf("get_user_profile", ["@a/../b:c"]), "/_matrix/client/v3/profile/%40a%2F..%2Fb%3Ac");
  assert.throws(() => pathOf("get_friends", ["x"]), TypeError);
});
