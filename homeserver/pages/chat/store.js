// Everything the page knows, made from sync answers. It knows neither the network nor the page.

import { Room, isEdit, isMessage, isText, localpart } from "./room.js";

// The type of the account data with the choices that a person makes on this page, for all their devices.
export const CHOICES = "org.homeserver.chat";

export class Store {
  rooms = new Map();
  invites = new Map(); // room ID → what describeInvite returns
  friends = new Map(); // user ID → an entry of GET /friends
  friendsServed = true;
  readsPrivately = false; // whether others are not told what has been read
  #direct = new Map(); // room ID → user ID
  #presence = new Map(); // user ID → {online, lastActive}

  constructor(ownId) {
    this.ownId = ownId;
  }

  // Takes a sync answer. Returns what is new: {messages: [{room, event}], friends: whether the list of friends changed}.
  apply(sync, now) {
    const news = { messages: [], friends: false };
    for (const event of sync.account_data?.events ?? []) {
      if (event.type === "m.direct") this.#setDirect(event.content);
      if (event.type === CHOICES) this.readsPrivately = event.content.private_receipts === true;
      if (event.type === "org.homeserver.friends") news.friends = true;
    }
    for (const event of sync.presence?.events ?? []) this.#setPresence(event, now);
    for (const [id, joined] of Object.entries(sync.rooms?.join ?? {})) {
      this.invites.delete(id);
      const room = this.rooms.get(id) ?? new Room(id, this.ownId);
      this.rooms.set(id, room);
      room.partner = this.#direct.get(id) ?? null;
      const fresh = room.apply(joined);
      news.messages.push(...fresh.filter((event) => isMessage(event) && !isEdit(event)).map((event) => ({ room, event })));
    }
    for (const [id, invited] of Object.entries(sync.rooms?.invite ?? {})) {
      this.invites.set(id, describeInvite(id, invited.invite_state?.events ?? [], this.ownId));
    }
    for (const id of Object.keys(sync.rooms?.leave ?? {})) {
      this.rooms.delete(id);
      this.invites.delete(id);
    }
    return news;
  }

  // Returns the body of a request that says: everything up to this event has been read.
  readMarkers(eventId) {
    return { "m.fully_read": eventId, [this.readsPrivately ? "m.read.private" : "m.read"]: eventId };
  }

  #setDirect(content) {
    this.#direct.clear();
    for (const [userId, rooms] of Object.entries(content)) {
      if (Array.isArray(rooms)) for (const id of rooms) this.#direct.set(id, userId);
    }
    for (const room of this.rooms.values()) room.partner = this.#direct.get(room.id) ?? null;
  }

  // Returns what the account data `m.direct` says once a room is a conversation with this person.
  directWith(userId, roomId) {
    const content = {};
    for (const [id, partner] of new Map([...this.#direct, [roomId, userId]])) (content[partner] ??= []).push(id);
    return content;
  }

  // Takes the answer of GET /friends.
  setFriends(entries, now) {
    this.friends = new Map(entries.map((entry) => [entry.user_id, entry]));
    for (const entry of entries) {
      if (entry.room_id && entry.state === "friend") {
        this.#direct.set(entry.room_id, entry.user_id);
        const room = this.rooms.get(entry.room_id);
        if (room) room.partner = entry.user_id;
      }
      if (entry.status) {
        const ago = entry.status.last_active_ago;
        this.#presence.set(entry.user_id, { online: entry.status.online, lastActive: ago === undefined || ago === null ? null : now - ago });
      }
    }
  }

  #setPresence(event, now) {
    const { presence, currently_active: active, last_active_ago: ago } = event.content;
    this.#presence.set(event.sender, {
      online: presence === "online" || active === true,
      lastActive: typeof ago === "number" ? now - ago : null,
    });
  }

  // Returns {online, lastActive} of a person; null if that is not known or not shown to us.
  presenceOf(userId) {
    return this.#presence.get(userId) ?? null;
  }

  // Returns the name of a person, wherever it is known.
  nameOf(userId) {
    const friend = this.friends.get(userId);
    if (isText(friend?.display_name)) return friend.display_name;
    for (const room of this.rooms.values()) {
      const { displayname } = room.state("m.room.member", userId);
      if (isText(displayname)) return displayname;
    }
    return localpart(userId);
  }

  // Returns the conversations, the newest first.
  get conversations() {
    return [...this.rooms.values()]
      .filter((room) => !room.isSpace && !room.isTombstoned)
      .sort((one, other) => other.lastActivity - one.lastActivity);
  }

  get unread() {
    return this.conversations.reduce((sum, room) => sum + room.unread, 0);
  }

  // Returns the friends in one of the states "friend", "incoming", "outgoing".
  friendsWho(state) {
    return [...this.friends.values()].filter((entry) => entry.state === state);
  }

  // Returns invitations to groups, and to conversations where the server has no friends.
  get otherInvites() {
    const asked = new Set(this.friendsWho("incoming").map((entry) => entry.room_id));
    return [...this.invites.values()].filter((invite) => !asked.has(invite.roomId));
  }
}

function describeInvite(roomId, events, ownId) {
  const find = (type, key = "") => events.find((event) => event.type === type && event.state_key === key);
  const own = find("m.room.member", ownId);
  const sender = own?.sender ?? "";
  const { displayname } = find("m.room.member", sender)?.content ?? {};
  const senderName = isText(displayname) ? displayname : sender && localpart(sender);
  const isDirect = own?.content?.is_direct === true;
  const reason = isText(own?.content?.reason) ? own.content.reason : "";
  const { name } = find("m.room.name")?.content ?? {};
  return { roomId, sender, senderName, isDirect, reason, name: isText(name) ? name : "" };
}
