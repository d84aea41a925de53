import assert from "node:assert/strict";
import { test } from "node:test";

import { listItems, preview } from "./items.js";
import { readJson } from "./json.js";
import { HER, joined, ME, message } from "./events.js";
import { Room } from "./room.js";
import { clockTime, dayTitle, fullTime, shortTime } from "./words.js";

const VALUES = ["null", "0", "-1", "9007199254740991", "1e999", '"x"', "[]", '[{"toString":1}]', '{"toString":1,"valueOf":2}', '{"toString":null,"valueOf":null,"toJSON":3}', '{"__proto__":null}'];

test("values of any kind can become a text", () => {
  for (const value of VALUES) assert.equal(typeof `${readJson(`{"name":${value}}`).name}`, "string", value);
  assert.deepEqual(readJson('{"a":[{"toString":1,"b":2}]}'), { a: [{ b: 2 }] });
});

test("times of any kind can be shown", () => {
  for (const value of VALUES) {
    const ts = readJson(`{"origin_server_ts":${value}}`).origin_server_ts;
    for (const show of [clockTime, fullTime, dayTitle, shortTime]) assert.equal(typeof show(ts), "string", value);
  }
});

test("events of any shape are items of a conversation", () => {
  const shape = (value) => ({ ...message(HER, "x"), content: { body: value, filename: value, msgtype: "m.file", url: value, info: value, "m.relates_to": value, name: value, topic: value, displayname: value, membership: value } });
  for (const text of VALUES) {
    const value = readJson(`{"v":${text}}`).v ?? null;
    const room = new Room("!a:b", ME);
    const states = ["m.room.name", "m.room.topic", "m.room.member", "m.room.avatar"].map((type) => ({ ...shape(value), type, state_key: type === "m.room.member" ? HER : "" }));
    room.apply(joined([...states, shape(value), { ...shape(value), type: "m.room.encrypted" }]));
    assert.ok(listItems(room, room.timeline, null).length > 0, text);
    assert.equal(typeof preview(room.lastMessage.content), "string");
    assert.equal(typeof room.name, "string");
  }
});
