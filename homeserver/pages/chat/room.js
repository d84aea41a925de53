// One conversation: its state, the newest stretch of its history, who has read how far, who is typing.

import { Relations } from "./relations.js";
import { Timeline } from "./timeline.js";

const READ = new Set(["m.read", "m.read.private"]);
const DELIVERED = "org.homeserver.delivered";
const LEVELS = ["sent", "delivered", "read"];

export class Room {
  relations = new Relations();
  timeline = this.stretch();
  pending = []; // own messages that the server has not confirmed: {key, content, ts, failed, eventId}
  quoted = new Map(); // event ID → an event that an answer quotes, and that no loaded stretch has; null while it is asked for
  typing = [];
  unread = 0;
  highlight = 0;
  memberCount = 0;
  heroes = [];
  partner = null; // the other person, if this is a conversation of two
  fullyRead = null;
  #state = new Map();
  #receipts = new Map(); // user ID → {read: {id, ts}, delivered: {id, ts}}

  constructor(id, ownId) {
    this.id = id;
    this.ownId = ownId;
  }

  // Returns an empty stretch of this room's history.
  stretch(start = null, end = null) {
    return new Timeline(start, end, this.relations);
  }

  // Takes what `/sync` says of a joined room. Returns the new events of its timeline.
  apply(joined) {
    const { timeline = {}, state = {}, ephemeral = {}, account_data: data = {}, summary = {} } = joined;
    const events = timeline.events ?? [];
    if (timeline.limited || (this.timeline.events.length === 0 && events.length > 0)) {
      this.timeline = this.stretch(timeline.prev_batch ?? null); // there may be a hole before these events
      this.relations.askAgain();
    }
    for (const event of [...(state.events ?? []), ...events]) this.setState(event);
    const fresh = this.timeline.append(events);
    this.memberCount = summary["m.joined_member_count"] ?? this.memberCount;
    this.heroes = summary["m.heroes"] ?? this.heroes;
    for (const event of fresh) this.#confirm(event);
    for (const event of ephemeral.events ?? []) this.#hear(event);
    for (const event of data.events ?? []) {
      if (event.type === "m.fully_read") this.fullyRead = event.content.event_id ?? null;
    }
    const counts = joined.unread_notifications;
    if (counts) [this.unread, this.highlight] = [counts.notification_count ?? 0, counts.highlight_count ?? 0];
    return fresh;
  }

  // Remembers a state event. Members from another source, too, where `/sync` leaves them out.
  setState(event) {
    if (event.state_key !== undefined) this.#state.set(`${event.type}|${event.state_key}`, event);
  }

  // Remembers members that are not known yet.
  addMembers(events) {
    for (const event of events) {
      if (!this.#state.has(`${event.type}|${event.state_key}`)) this.setState(event);
    }
  }

  state(type, key = "") {
    return this.#state.get(`${type}|${key}`)?.content ?? {};
  }

  get creator() {
    return this.#state.get("m.room.create|")?.sender;
  }

  get isEncrypted() {
    return this.#state.has("m.room.encryption|");
  }

  get isTombstoned() {
    return this.#state.has("m.room.tombstone|");
  }

  get isSpace() {
    return this.state("m.room.create").type === "m.space";
  }

  // Returns the name that most clients show. Spec: client-server-api/#calculating-the-display-name-for-a-room
  get name() {
    const { name } = this.state("m.room.name");
    const { alias } = this.state("m.room.canonical_alias");
    if (isText(name)) return name;
    if (this.partner) return this.nameOf(this.partner);
    if (isText(alias)) return alias;
    const others = this.heroes.filter((userId) => userId !== this.ownId).map((userId) => this.nameOf(userId));
    return others.length ? others.join(", ") : "Empty conversation";
  }

  get avatar() {
    const { url } = this.state("m.room.avatar");
    return isText(url) ? url : this.partner ? this.avatarOf(this.partner) : null;
  }

  nameOf(userId) {
    const { displayname } = this.state("m.room.member", userId);
    return isText(displayname) ? displayname : localpart(userId);
  }

  avatarOf(userId) {
    const { avatar_url: url } = this.state("m.room.member", userId);
    return isText(url) ? url : null;
  }

  // Returns the user IDs of known members.
  members(membership = "join") {
    const found = [];
    for (const event of this.#state.values()) {
      if (event.type === "m.room.member" && event.content?.membership === membership) found.push(event.state_key);
    }
    return found;
  }

  // Returns whether the user's power level suffices for a state event, or for "invite", "kick", "redact".
  may(action, userId = this.ownId) {
    const levels = this.state("m.room.power_levels");
    const creation = this.#state.get("m.room.create|");
    const others = creation?.content?.additional_creators;
    const creators = [creation?.sender, ...(Array.isArray(others) ? others : [])];
    if (creators.includes(userId) && Number.parseInt(creation?.content?.room_version ?? "1", 10) >= 12) return true;
    const own = levels.users?.[userId] ?? levels.users_default ?? 0;
    if (action === "invite") return own >= (levels.invite ?? 0);
    if (action === "kick" || action === "redact") return own >= (levels[action] ?? 50);
    if (action === "send") return own >= (levels.events?.["m.room.message"] ?? levels.events_default ?? 0);
    return own >= (levels.events?.[action] ?? levels.state_default ?? 50);
  }

  // Returns the newest event that the list of conversations shows.
  get lastMessage() {
    return this.timeline.events.findLast((event) => isMessage(event) && !isEdit(event));
  }

  get lastActivity() {
    const newest = this.lastMessage ?? this.timeline.last;
    return Math.max(newest?.origin_server_ts ?? 0, this.pending.at(-1)?.ts ?? 0);
  }

  #confirm(event) {
    const key = event.unsigned?.transaction_id;
    this.pending = this.pending.filter((each) => each.key !== key && each.eventId !== event.event_id);
    this.typing = this.typing.filter((userId) => userId !== event.sender);
    if (isMessage(event)) this.#note(event.sender, "read", event.event_id, event.origin_server_ts);
  }

  #hear(event) {
    if (event.type === "m.typing") {
      this.typing = (event.content.user_ids ?? []).filter((userId) => userId !== this.ownId);
    } else if (event.type === "m.receipt") {
      for (const [eventId, byType] of Object.entries(event.content)) {
        for (const [type, users] of Object.entries(byType)) {
          const level = READ.has(type) ? "read" : type === DELIVERED ? "delivered" : null;
          if (!level) continue;
          for (const [userId, { ts = 0, thread_id: thread }] of Object.entries(users)) {
            if (thread === undefined || thread === "main") this.#note(userId, level, eventId, ts);
          }
        }
      }
    }
  }

  #note(userId, level, id, ts) {
    const known = this.#receipts.get(userId) ?? {};
    const place = this.timeline.indexOf(id);
    // A receipt never goes back: one for the whole room and one for the main thread may come in either order. Its event
    // may be unknown because it is old, or because it has not arrived yet.
    const isBehind = known[level] && this.timeline.indexOf(known[level].id) > place;
    if (isBehind && (place >= 0 || ts <= known[level].ts)) return;
    this.#receipts.set(userId, { ...known, [level]: { id, ts } });
  }

  // Returns the event ID up to which a person has read; undefined if that is not known.
  readUpTo(userId) {
    return this.#receipts.get(userId)?.read?.id;
  }

  // Returns a function from an index in a stretch of history to the status of the message there, as all others have it:
  // {status: sent|delivered|read, read, delivered, others}.
  statuses(timeline = this.timeline) {
    const reached = [];
    for (const [userId, receipt] of this.#receipts) {
      if (userId === this.ownId) continue;
      const read = this.#reach(timeline, receipt.read);
      const delivered = this.#reach(timeline, receipt.delivered);
      reached.push({ read, delivered: Math.max(read, delivered) });
    }
    const others = Math.max(1, (this.memberCount || this.members().length) - 1);
    return (index) => {
      const read = reached.filter((each) => each.read >= index).length;
      const delivered = reached.filter((each) => each.delivered >= index).length;
      const level = read >= others ? 2 : delivered >= others ? 1 : 0;
      return { status: LEVELS[level], read, delivered, others };
    };
  }

  // Returns the index of the last event in a stretch that a receipt covers; -1 if it covers none. A receipt for an event
  // that is neither in this stretch nor in the newest one covers what was sent before the receipt.
  #reach(timeline, receipt) {
    if (!receipt) return -1;
    const place = timeline.indexOf(receipt.id);
    if (place >= 0 || timeline === this.timeline) return place;
    if (this.timeline.has(receipt.id)) return timeline.events.length;
    return timeline.events.findLastIndex((event) => event.origin_server_ts <= receipt.ts);
  }
}

export function localpart(userId) {
  return userId.slice(1).split(":")[0];
}

// Returns whether an event is shown as a message.
export function isMessage(event) {
  return event.state_key === undefined && (event.type === "m.room.message" || event.type === "m.sticker" || event.type === "m.room.encrypted");
}

export function isEdit(event) {
  return event.content?.["m.relates_to"]?.rel_type === "m.replace";
}

// Returns whether a value that others have chosen is a text with something in it.
export function isText(value) {
  return typeof value === "string" && value.trim() !== "";
}
