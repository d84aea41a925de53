import assert from "node:assert/strict";
import { test } from "node:test";

import { HER, ME, edit, message, reaction, redaction } from "./events.js";
import { Timeline } from "./timeline.js";

test("events are kept once, in order, from both directions", () => {
  const [one, two, three] = [message(ME, "1"), message(ME, "2"), message(ME, "3")];
  const timeline = new Timeline("t1");
  timeline.append([two, three]);
  assert.deepEqual(timeline.append([three]), []);
  timeline.prepend([two, one]);
  assert.deepEqual(timeline.events, [one, two, three]);
  assert.equal(timeline.indexOf(three.event_id), 2);
  assert.equal(timeline.indexOf("$unknown"), -1);
});

test("an edit of the author replaces the text, the newest one counts", () => {
  const said = message(ME, "helo");
  const timeline = new Timeline();
  timeline.append([said, edit(ME, said, "hello"), edit(ME, said, "hello!")]);
  assert.deepEqual(timeline.contentOf(said), { content: { msgtype: "m.text", body: "hello!" }, isEdited: true });
});

test("an edit of somebody else, or a malformed one, changes nothing", () => {
  const said = message(ME, "hello");
  const malformed = edit(ME, said, "x");
  malformed.content["m.new_content"] = "x";
  const timeline = new Timeline();
  timeline.append([said, edit(HER, said, "goodbye"), malformed]);
  assert.equal(timeline.contentOf(said).isEdited, false);
});

test("a redacted edit is taken back", () => {
  const said = message(ME, "hello");
  const changed = edit(ME, said, "goodbye");
  const timeline = new Timeline();
  timeline.append([said, changed, redaction(ME, changed)]);
  assert.equal(timeline.contentOf(said).content.body, "hello");
});

test("an edit that the server bundles is shown", () => {
  const said = message(ME, "hello");
  const changed = edit(ME, said, "goodbye");
  const timeline = new Timeline();
  timeline.append([{ ...said, unsigned: { "m.relations": { "m.replace": changed } } }]);
  assert.equal(timeline.contentOf(timeline.events[0]).content.body, "goodbye");
});

test("reactions are counted by person, and redacted ones are not", () => {
  const said = message(ME, "hello");
  const again = reaction(HER, said, "👍");
  const heart = reaction(ME, said, "❤️");
  const timeline = new Timeline();
  timeline.append([said, reaction(HER, said, "👍"), again, heart, redaction(ME, heart)]);
  assert.deepEqual(timeline.reactionsTo(said), [{ key: "👍", senders: new Map([[HER, again.event_id]]) }]);
});

test("a redaction counts whether it is read before or after its event", () => {
  const said = message(ME, "hello");
  const timeline = new Timeline();
  timeline.append([redaction(ME, said)]);
  timeline.prepend([said]);
  assert.ok(timeline.isRedacted(said));
});
