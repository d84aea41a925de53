// Events and sync answers for the tests.

export const ME = "@romeo:montague.org";
export const HER = "@juliet:capulet.org";
const DAY = Date.UTC(2026, 10, 30, 13, 4);

let number = 0;

export function message(sender, body, more = {}) {
  number += 1;
  return { type: "m.room.message", event_id: `$${number}`, sender, origin_server_ts: DAY + number * 1000, content: { msgtype: "m.text", body, ...more.content }, ...more.event };
}

export function reaction(sender, target, key) {
  return { ...message(sender, ""), type: "m.reaction", content: { "m.relates_to": { rel_type: "m.annotation", event_id: target.event_id, key } } };
}

export function edit(sender, target, body) {
  const content = { "m.new_content": { msgtype: "m.text", body }, "m.relates_to": { rel_type: "m.replace", event_id: target.event_id } };
  return message(sender, `* ${body}`, { content });
}

export function redaction(sender, target) {
  return { ...message(sender, ""), type: "m.room.redaction", content: { redacts: target.event_id } };
}

export function member(userId, membership = "join", more = {}) {
  return { ...message(userId, ""), type: "m.room.member", state_key: userId, content: { membership, ...more } };
}

export function receipts(type, byUser, ts = DAY) {
  const content = {};
  for (const [userId, event] of Object.entries(byUser)) {
    content[event.event_id] = { [type]: { ...content[event.event_id]?.[type], [userId]: { ts } } };
  }
  return { type: "m.receipt", content };
}

export function joined(events, more = {}) {
  return { timeline: { events, prev_batch: "t1" }, summary: { "m.joined_member_count": 2 }, ...more };
}
