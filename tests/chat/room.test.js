import assert from "node:assert/strict";
import { test } from "node:test";

import { HER, ME, joined, member, message, reaction, receipts } from "./events.js";
import { listItems, preview, withoutQuote } from "./items.js";
import { Room } from "./room.js";
import { Store } from "./store.js";

const room = (events, more) => {
  const made = new Room("!r", ME);
  made.apply(joined(events, more));
  return made;
};

test("a message is sent, then delivered, then read", () => {
  const said = message(ME, "hello");
  const shown = room([said]);
  const status = () => shown.statuses()(0).status;
  assert.equal(status(), "sent");
  shown.apply({ ephemeral: { events: [receipts("org.homeserver.delivered", { [HER]: said })] } });
  assert.equal(status(), "delivered");
  shown.apply({ ephemeral: { events: [receipts("m.read", { [HER]: said })] } });
  assert.equal(status(), "read");
});

test("a message of a group is read once everybody has read it", () => {
  const said = message(ME, "hello");
  const shown = room([said], { summary: { "m.joined_member_count": 3 } });
  shown.apply({ ephemeral: { events: [receipts("m.read", { [HER]: said })] } });
  assert.deepEqual(shown.statuses()(0), { status: "sent", read: 1, delivered: 1, others: 2 });
  shown.apply({ ephemeral: { events: [receipts("m.read", { "@mercutio:montague.org": said })] } });
  assert.equal(shown.statuses()(0).status, "read");
});

test("who answers has read what was before, and a receipt never goes back", () => {
  const [one, two, three] = [message(ME, "1"), message(HER, "2"), message(ME, "3")];
  const shown = room([one, two, three]);
  assert.deepEqual([0, 2].map((index) => shown.statuses()(index).status), ["read", "sent"]);
  shown.apply({ ephemeral: { events: [receipts("m.read", { [HER]: three })] } });
  shown.apply({ ephemeral: { events: [receipts("m.read", { [HER]: one })] } });
  assert.equal(shown.statuses()(2).status, "read");
});

test("who answers has read what was before, whatever old receipt comes with the answer", () => {
  const [old, said, answer] = [message(ME, "1"), message(ME, "2"), message(HER, "3")];
  const shown = room([said, answer], { ephemeral: { events: [receipts("m.read", { [HER]: old }, old.origin_server_ts)] } });
  assert.equal(shown.statuses()(0).status, "read");
});

test("receipts of threads do not count for the conversation", () => {
  const said = message(ME, "hello");
  const shown = room([said]);
  const event = receipts("m.read", { [HER]: said });
  event.content[said.event_id]["m.read"][HER].thread_id = "$thread";
  shown.apply({ ephemeral: { events: [event] } });
  assert.equal(shown.statuses()(0).status, "sent");
});

test("in a stretch of older history a message has been read if something newer has", () => {
  const [old, newer, newest] = [message(ME, "1"), message(ME, "2"), message(HER, "3")];
  const shown = room([newest]);
  const stretch = shown.stretch("t0", "t9");
  stretch.append([old, newer]);
  assert.deepEqual([0, 1].map((index) => shown.statuses(stretch)(index).status), ["read", "read"]);
});

test("in a stretch of older history a receipt for an unknown event covers what was sent before it", () => {
  const [old, newer] = [message(ME, "1"), message(ME, "2")];
  const unknown = message(HER, "0");
  const shown = room([message(ME, "3")]);
  shown.apply({ ephemeral: { events: [receipts("m.read", { [HER]: unknown }, old.origin_server_ts)] } });
  const stretch = shown.stretch("t0", "t9");
  stretch.append([old, newer]);
  assert.deepEqual([0, 1].map((index) => shown.statuses(stretch)(index).status), ["read", "sent"]);
});

test("a reaction that arrives now is seen in whatever stretch of history shows its message", () => {
  const old = message(ME, "1");
  const shown = room([message(HER, "2")]);
  const stretch = shown.stretch("t0", "t9");
  stretch.append([old]);
  shown.apply(joined([reaction(HER, old, "👍")]));
  assert.deepEqual(stretch.reactionsTo(old).map((each) => each.key), ["👍"]);
  assert.equal(listItems(shown, stretch, null).at(-1).reactions.length, 1);
});

test("reactions are asked for once, and again after a gap in what was heard", () => {
  const old = message(ME, "1");
  const shown = room([message(HER, "2")]);
  assert.deepEqual(shown.relations.lacking([old]), [old]);
  assert.deepEqual(shown.relations.lacking([old]), []);
  shown.apply({ timeline: { limited: true, events: [message(HER, "3")] } });
  assert.deepEqual(shown.relations.lacking([old]), [old]);
});

test("an answer to a message that no stretch has quotes it once it has been loaded", () => {
  const old = message(HER, "Wherefore art thou?");
  const answer = message(ME, "Here.", { content: { "m.relates_to": { "m.in_reply_to": { event_id: old.event_id } } } });
  const shown = room([answer]);
  const answered = () => listItems(shown, shown.timeline, null).at(-1).answered;
  assert.equal(answered().isUnknown, true);
  shown.quoted.set(old.event_id, old);
  assert.equal(answered().text, "Wherefore art thou?");
});

test("an own message is shown once, whether its answer or its event comes first", () => {
  const shown = room([message(HER, "hi")]);
  const said = message(ME, "hello", { event: { unsigned: { transaction_id: "c1" } } });
  shown.pending.push({ key: "c1", content: said.content, ts: said.origin_server_ts, failed: null, eventId: null });
  assert.equal(listItems(shown, shown.timeline, null).at(-1).status.status, "sending");
  shown.apply(joined([said]));
  assert.deepEqual(listItems(shown, shown.timeline, null).map((item) => item.kind), ["day", "message", "message"]);
});

test("the line above what is new stands before the first message of others", () => {
  const [read, own, fresh] = [message(HER, "1"), message(ME, "2"), message(HER, "3")];
  const shown = room([read, own, fresh]);
  const items = listItems(shown, shown.timeline, read.event_id);
  assert.deepEqual(items.map((item) => item.kind), ["day", "message", "message", "new", "message"]);
});

test("a gap in what the server tells begins a new stretch", () => {
  const shown = room([message(HER, "old")]);
  const fresh = message(HER, "new");
  shown.apply({ timeline: { events: [fresh], limited: true, prev_batch: "t9" } });
  assert.deepEqual(shown.timeline.events, [fresh]);
  assert.equal(shown.timeline.start, "t9");
});

test("a conversation of two is named after the other one", () => {
  const shown = room([member(ME), member(HER, "join", { displayname: "Juliet" })]);
  shown.partner = HER;
  assert.equal(shown.name, "Juliet");
  shown.partner = null;
  shown.heroes = [HER];
  assert.equal(shown.name, "Juliet");
});

test("hostile names and contents are text or nothing", () => {
  const shown = room([member(HER, "join", { displayname: { evil: 1 } }), message(HER, { evil: 1 }), message(HER, "x", { content: { "m.relates_to": "evil" } })]);
  assert.equal(shown.nameOf(HER), "juliet");
  assert.equal(preview({ msgtype: "m.text", body: { evil: 1 } }), "Message");
  assert.equal(listItems(shown, shown.timeline, null).filter((item) => item.kind === "message").length, 2);
});

test("a hostile invitation and room are shown all the same", () => {
  const store = new Store(ME);
  const events = [
    { ...member(ME, "invite", { reason: {}, is_direct: "x" }), sender: HER, state_key: ME },
    member(HER, "join", { displayname: ["evil"] }),
    { ...message(HER, ""), type: "m.room.name", state_key: "", content: { name: 7 } },
  ];
  store.apply({ rooms: { invite: { "!i": { invite_state: { events } } } } }, 0);
  assert.deepEqual(store.otherInvites, [{ roomId: "!i", sender: HER, senderName: "juliet", isDirect: false, reason: "", name: "" }]);
  const creation = { ...message(HER, ""), type: "m.room.create", state_key: "", content: { additional_creators: {} } };
  assert.equal(room([creation]).may("invite"), true);
  assert.equal(room([creation]).may("redact"), false);
});

test("the quote that older clients begin answers with is not shown", () => {
  const content = { body: "> <@a:b> old\n> more\n\nnew", "m.relates_to": { "m.in_reply_to": { event_id: "$1" } } };
  assert.equal(withoutQuote(content), "new");
  assert.equal(withoutQuote({ body: "> mine" }), "> mine");
});

test("conversations are listed by their newest message, with the sum of what is unread", () => {
  const store = new Store(ME);
  const [old, fresh] = [message(HER, "1"), message(HER, "2")];
  const counts = { unread_notifications: { notification_count: 2, highlight_count: 0 } };
  store.apply({ rooms: { join: { "!new": joined([fresh], counts), "!old": joined([old], counts) } } }, 0);
  assert.deepEqual(store.conversations.map((each) => each.id), ["!new", "!old"]);
  assert.equal(store.unread, 4);
});

test("friends have a status, their conversation, and their requests are not invitations to groups", () => {
  const store = new Store(ME);
  const invite = { invite_state: { events: [{ ...member(ME, "invite"), sender: HER, state_key: ME }] } };
  store.apply({ rooms: { invite: { "!f": invite, "!g": invite } } }, 0);
  store.setFriends([{ user_id: HER, state: "incoming", room_id: "!f", status: { online: false, last_active_ago: 7_200_000 } }], 10_000_000);
  assert.deepEqual(store.otherInvites.map((each) => each.roomId), ["!g"]);
  assert.deepEqual(store.presenceOf(HER), { online: false, lastActive: 2_800_000 });
});

test("others are told what has been read, unless the person does not want it", () => {
  const store = new Store(ME);
  const choose = (content) => store.apply({ account_data: { events: [{ type: "org.homeserver.chat", content }] } }, 0);
  assert.deepEqual(store.readMarkers("$e"), { "m.fully_read": "$e", "m.read": "$e" });
  choose({ private_receipts: true });
  assert.deepEqual(store.readMarkers("$e"), { "m.fully_read": "$e", "m.read.private": "$e" });
  for (const content of [{ private_receipts: false }, { private_receipts: "yes" }, {}]) {
    choose(content);
    assert.deepEqual(store.readMarkers("$e"), { "m.fully_read": "$e", "m.read": "$e" });
  }
});
