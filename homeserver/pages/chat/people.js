// Friends, invitations, groups: who is talked with.

import { ServerError } from "./api.js";

export class People {
  #app;
  #isLoading = false;
  #isStale = false;

  constructor(app) {
    this.#app = app;
  }

  // Loads the list of friends; once more if it changed meanwhile.
  async load() {
    if (this.#isLoading) {
      this.#isStale = true;
      return;
    }
    this.#isLoading = true;
    const { api, store } = this.#app;
    try {
      do {
        this.#isStale = false;
        const answer = await api.call("get_friends");
        store.setFriends(answer.friends, Date.now());
      } while (this.#isStale);
    } catch (error) {
      if (!(error instanceof ServerError)) return; // the connection: the next sync asks again
      store.friendsServed = error.status !== 404 && error.status !== 403;
    } finally {
      this.#isLoading = false;
      this.#app.changed();
    }
  }

  // Asks a person, or accepts what they asked. Where the server has no friends, a conversation is begun at once.
  async add(userId, message) {
    const { api, store } = this.#app;
    if (!store.friendsServed) return this.#talk(userId);
    const body = { encrypted: false, ...(message ? { message } : {}) };
    const answer = await api.call("set_friend", [userId], { body });
    await this.load();
    return answer.state === "friend" ? answer.room_id : null;
  }

  async #talk(userId) {
    const { api, store } = this.#app;
    const known = [...store.rooms.values()].find((room) => room.partner === userId);
    if (known) return known.id;
    const body = { preset: "trusted_private_chat", is_direct: true, invite: [userId] };
    const { room_id: roomId } = await api.call("create_room", [], { body });
    await this.#markDirect(userId, roomId);
    return roomId;
  }

  async #markDirect(userId, roomId) {
    const { api, store } = this.#app;
    const path = `/_matrix/client/v3/user/${encodeURIComponent(api.userId)}/account_data/m.direct`;
    await api.request("PUT", path, { body: store.directWith(userId, roomId) });
  }

  // Refuses a request, takes one back, or ends a friendship.
  async remove(userId) {
    await this.#app.api.call("delete_friend", [userId]);
    await this.load();
  }

  async setBlocked(userId, isBlocked) {
    await this.#app.api.call(isBlocked ? "block_user" : "unblock_user", [userId]);
    await this.load();
  }

  async blocked() {
    const answer = await this.#app.api.call("get_blocked");
    return answer.blocked;
  }

  async createGroup(name, userIds) {
    const body = { name, preset: "private_chat", invite: userIds };
    return (await this.#app.api.call("create_room", [], { body })).room_id;
  }

  async acceptInvite(invite) {
    await this.#app.api.call("join_room", [invite.roomId], { body: {} });
    if (invite.isDirect) await this.#markDirect(invite.sender, invite.roomId);
    return invite.roomId;
  }

  async declineInvite(invite) {
    await this.#app.api.call("leave_room", [invite.roomId], { body: {} });
    this.#app.store.invites.delete(invite.roomId);
    this.#app.changed();
  }

  // Loads the members of a room, which `/sync` leaves out until they say something.
  async loadMembers(room) {
    if (room.hasMembers) return;
    const answer = await this.#app.api.call("get_members_by_room", [room.id], { query: { not_membership: "leave" } });
    room.addMembers(answer.chunk);
    room.hasMembers = true;
    this.#app.changed();
  }

  // Returns people whose names match, for the dialogs that ask for one: [{userId, name}].
  async find(text) {
    const answer = await this.#app.api.call("search_user_directory", [], { body: { search_term: text, limit: 6 } });
    return answer.results.map((found) => ({ userId: found.user_id, name: found.display_name ?? found.user_id }));
  }
}

// Returns what was typed as a user ID: "juliet" is somebody of this server. Raises Error if it cannot be one.
export function asUserId(text, ownId) {
  const typed = text.trim();
  const serverName = ownId.slice(ownId.indexOf(":") + 1);
  const userId = typed.includes(":") ? (typed.startsWith("@") ? typed : `@${typed}`) : `@${typed.replace(/^@/, "")}:${serverName}`;
  if (!/^@[^\s:]+:[^\s/]+$/.test(userId)) throw new Error("Enter a Matrix ID, such as @juliet:example.org.");
  return userId;
}
