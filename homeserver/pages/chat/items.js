// What a conversation shows, in order: days, messages, notices, the line above what is new. Values only, no elements.

import { isEdit, isMessage } from "./room.js";
import { repliedTo } from "./timeline.js";
import { dayOf, describeChange } from "./words.js";

const GROUP_MS = 5 * 60_000; // messages of one person within this time are shown as one group

// Returns the items of a stretch of a room's history. newAfter: the event after which the line "New messages" stands.
export function listItems(room, timeline, newAfter) {
  const statusAt = room.statuses(timeline);
  const items = [];
  let isNew = false;
  for (const [index, event] of timeline.events.entries()) {
    const item = itemOf(room, timeline, event, () => statusAt(index));
    if (item) {
      pushDay(items, event.origin_server_ts);
      if (isNew && !item.isOwn) {
        items.push({ kind: "new", key: "new" });
        isNew = false;
        newAfter = null;
      }
      if (item.kind === "notice") pushNotice(items, item);
      else items.push(item);
    }
    if (newAfter && event.event_id === newAfter) isNew = true;
  }
  if (timeline.isLive) {
    for (const pending of room.pending) {
      pushDay(items, pending.ts);
      items.push(pendingItem(room, timeline, pending));
    }
  }
  group(items);
  return items;
}

function itemOf(room, timeline, event, status) {
  if (isEdit(event)) return null;
  if (!isMessage(event)) {
    const text = describeChange(event, room);
    return text ? { kind: "notice", key: event.event_id, texts: [text] } : null;
  }
  const isOwn = event.sender === room.ownId;
  const isRedacted = timeline.isRedacted(event);
  const { content, isEdited } = timeline.contentOf(event);
  return {
    kind: "message",
    key: event.event_id,
    eventId: event.event_id,
    sender: event.sender,
    name: room.nameOf(event.sender),
    avatar: room.avatarOf(event.sender),
    ts: event.origin_server_ts,
    type: event.type,
    content: isRedacted ? {} : content,
    isOwn,
    isRedacted,
    isEdited,
    reactions: isRedacted ? [] : timeline.reactionsTo(event),
    answered: isRedacted ? undefined : describeAnswered(room, timeline, repliedTo(event.content)),
    status: isOwn && !isRedacted ? status() : null,
  };
}

function pendingItem(room, timeline, pending) {
  return {
    kind: "message",
    key: pending.key,
    eventId: null,
    sender: room.ownId,
    name: room.nameOf(room.ownId),
    ts: pending.ts,
    type: "m.room.message",
    content: pending.content,
    isOwn: true,
    reactions: [],
    answered: describeAnswered(room, timeline, repliedTo(pending.content)),
    status: { status: pending.failed ? "failed" : pending.eventId ? "sent" : "sending" },
    preview: pending.preview,
    progress: pending.progress,
    why: pending.failed,
  };
}

function describeAnswered(room, timeline, eventId) {
  if (!eventId) return undefined;
  const event = timeline.get(eventId) ?? room.timeline.get(eventId) ?? room.quoted.get(eventId);
  if (!event) return { eventId, isUnknown: true, name: "", text: "An earlier message" };
  const text = timeline.isRedacted(event) ? "Deleted message" : preview(timeline.contentOf(event).content, event.type);
  return { eventId, name: room.nameOf(event.sender), text };
}

// Changes that follow one another are one item: a group that begins is one line, not ten.
function pushNotice(items, item) {
  const previous = items.at(-1);
  if (previous?.kind === "notice") previous.texts.push(...item.texts);
  else items.push(item);
}

function pushDay(items, ts) {
  const day = dayOf(ts);
  const previous = items.findLast((item) => item.kind === "day");
  if (previous?.day !== day) items.push({ kind: "day", key: `day ${day}`, day, ts });
}

// Marks the first and the last message of each group.
function group(items) {
  for (const [index, item] of items.entries()) {
    if (item.kind !== "message") continue;
    item.isFirst = !goTogether(items[index - 1], item);
    item.isLast = !goTogether(item, items[index + 1]);
  }
}

function goTogether(one, other) {
  return one?.kind === "message" && other?.kind === "message" && one.sender === other.sender && other.ts - one.ts < GROUP_MS;
}

const KINDS = { "m.image": "Picture", "m.video": "Video", "m.audio": "Audio", "m.file": "File", "m.location": "Place" };

// Returns one line that stands for a message elsewhere: in lists, answers, notifications.
export function preview(content, type = "m.room.message") {
  if (type === "m.room.encrypted") return "Encrypted message";
  const body = typeof content?.body === "string" ? withoutQuote(content).replace(/\s+/g, " ").trim() : "";
  const kind = KINDS[content?.msgtype] ?? (type === "m.sticker" ? "Sticker" : "");
  if (kind === "File") return `File: ${content.filename ?? body}`;
  if (kind) return content.filename && content.filename !== body ? `${kind}: ${body}` : kind;
  return body.length > 200 ? `${body.slice(0, 200)}…` : body || "Message";
}

// Returns the text of a message without the quote that older clients begin answers with.
export function withoutQuote(content) {
  if (!repliedTo(content) || !content.body.startsWith("> ")) return content.body;
  const lines = content.body.split("\n");
  const first = lines.findIndex((line) => !line.startsWith("> "));
  return first < 0 ? content.body : lines.slice(lines[first] === "" ? first + 1 : first).join("\n");
}
