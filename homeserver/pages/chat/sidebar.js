// The left side: conversations, friends, requests, and the search in all of them.

import { avatar } from "./avatar.js";
import { KeyedList, fill, h, icon, iconButton } from "./dom.js";
import { openNewConversation } from "./new_conversation.js";
import { preview } from "./items.js";
import { SearchResults } from "./search.js";
import { openSettings } from "./settings.js";
import { ticks } from "./ticks.js";
import { shortTime, statusText, typingText } from "./words.js";

export class Sidebar {
  #app;
  #tab = "chats";
  #rows;
  #asks;

  constructor(app) {
    this.#app = app;
    this.list = h("ul", { class: "rows", "aria-label": "Conversations" });
    this.asks = h("ul", { class: "asks", "aria-label": "Requests" });
    this.empty = h("div", { class: "empty" });
    this.search = h("input", {
      type: "search",
      placeholder: "Search messages and people",
      "aria-label": "Search messages and people",
      autocomplete: "off",
      on: { input: () => this.#search(), keydown: (event) => this.#onSearchKey(event) },
    });
    this.results = new SearchResults(app, () => this.#endSearch());
    this.tabs = h("div", { class: "tabs", role: "group", "aria-label": "What is listed" }, [
      this.#tabButton("chats", "Chats"),
      this.#tabButton("friends", "Friends"),
    ]);
    this.me = h("button", { type: "button", class: "me", on: { click: () => openSettings(app) } });
    this.browsing = h("div", { class: "scroll" }, this.asks, this.list, this.empty);
    this.#rows = new KeyedList(this.list);
    this.#asks = new KeyedList(this.asks);
    this.element = h(
      "nav",
      { class: "sidebar", "aria-label": "Conversations and friends" },
      h(
        "header",
        {},
        this.me,
        iconButton("add", "New conversation", () => openNewConversation(app), { class: "new" }),
      ),
      h("div", { class: "search-field" }, icon("search"), this.search),
      this.tabs,
      this.browsing,
      this.results.element,
    );
  }

  #tabButton(name, label) {
    return h("button", { type: "button", "data-tab": name, on: { click: () => ((this.#tab = name), this.#app.changed()) } }, label);
  }

  focusSearch() {
    this.search.focus();
    this.search.select();
  }

  // Searches the messages of one conversation.
  searchIn(room) {
    this.results.limitTo(room);
    this.focusSearch();
    this.#search();
  }

  #search() {
    const text = this.search.value.trim();
    const isSearching = text !== "" || this.results.room !== null;
    this.browsing.hidden = isSearching;
    this.results.element.hidden = !isSearching;
    this.#app.changed();
    if (isSearching) this.results.search(text);
  }

  #endSearch() {
    this.search.value = "";
    this.results.limitTo(null);
    this.#search();
  }

  #onSearchKey(event) {
    if (event.key === "Escape") this.#endSearch();
    if (event.key === "ArrowDown") {
      event.preventDefault();
      this.element.querySelector(".results:not([hidden]) button, .scroll:not([hidden]) .row")?.focus();
    }
  }

  update() {
    const { store, api } = this.#app;
    const name = store.nameOf(api.userId);
    if (this.me.dataset.name !== name) {
      this.me.dataset.name = name;
      this.me.setAttribute("aria-label", `${name}: settings`);
      fill(this.me, avatar(this.#app.media, { id: api.userId, name, size: 36 }), h("span", {}, h("b", {}, name), h("small", {}, api.userId)));
    }
    this.tabs.hidden = !store.friendsServed || !this.results.element.hidden;
    for (const button of this.tabs.children) button.setAttribute("aria-pressed", String(button.dataset.tab === this.#tab));
    this.#updateAsks();
    if (this.#tab === "friends" && store.friendsServed) this.#updateFriends();
    else this.#updateConversations();
  }

  #updateAsks() {
    const { store, people } = this.#app;
    const asks = [
      ...store.friendsWho("incoming").map((entry) => ({
        key: entry.user_id,
        id: entry.user_id,
        name: entry.display_name || entry.user_id,
        text: "wants to be your friend",
        reason: store.invites.get(entry.room_id)?.reason,
        accept: async () => this.#app.open(await people.add(entry.user_id)),
        refuse: () => people.remove(entry.user_id),
        block: () => people.setBlocked(entry.user_id, true),
      })),
      ...store.otherInvites.map((invite) => ({
        key: invite.roomId,
        id: invite.sender,
        name: invite.senderName || invite.sender,
        text: invite.name ? `invites you to “${invite.name}”` : "invites you to a conversation",
        reason: invite.reason,
        accept: async () => this.#app.open(await people.acceptInvite(invite)),
        refuse: () => people.declineInvite(invite),
      })),
    ];
    this.asks.hidden = asks.length === 0;
    this.#asks.update(asks, (ask) => ask.key, (ask) => JSON.stringify([ask.name, ask.text, ask.reason]), (ask) => this.#askRow(ask));
  }

  #askRow(ask) {
    const button = (label, action, kind) =>
      h("button", { type: "button", class: kind, "aria-label": `${label}: ${ask.name}`, on: { click: () => this.#app.attempt(action) } }, label);
    return h(
      "li",
      { class: "ask" },
      avatar(this.#app.media, { id: ask.id, name: ask.name }),
      h("div", {}, h("p", {}, h("b", {}, ask.name), ` ${ask.text}`), ask.reason ? h("p", { class: "reason" }, `“${ask.reason}”`) : null, h("small", {}, ask.id)),
      h("div", { class: "buttons" }, ask.block ? button("Block", ask.block, "quiet") : null, button("Decline", ask.refuse), button("Accept", ask.accept, "primary")),
    );
  }

  #updateConversations() {
    const rooms = this.#app.store.conversations;
    const now = Date.now();
    this.#rows.update(rooms.map((room) => this.#describe(room, now)), (row) => row.id, JSON.stringify, (row) => this.#conversationRow(row));
    const text = "No conversations yet. Add a friend, or begin a group.";
    this.#showEmpty(rooms.length === 0, this.#app.isLoaded ? text : "Loading…");
  }

  #describe(room, now) {
    const { store } = this.#app;
    const last = room.lastMessage;
    const own = last?.sender === this.#app.api.userId;
    const statuses = own ? room.statuses() : null;
    const content = last && !room.timeline.isRedacted(last) ? room.timeline.contentOf(last).content : null;
    const said = last ? (content ? preview(content, last.type) : "Deleted message") : "";
    const typing = typingText(room.typing.map((userId) => room.nameOf(userId)));
    return {
      id: room.id,
      name: room.name,
      url: room.avatar,
      about: room.partner ?? room.id,
      online: room.partner ? Boolean(store.presenceOf(room.partner)?.online) : false,
      said: last && !own && !room.partner ? `${room.nameOf(last.sender)}: ${said}` : said,
      status: own && content ? statuses(room.timeline.indexOf(last.event_id)) : null,
      typing,
      time: shortTime(room.lastActivity, now),
      unread: room.unread,
      highlight: room.highlight,
      isEncrypted: room.isEncrypted,
      isOpen: room.id === this.#app.roomId,
    };
  }

  #conversationRow(row) {
    const label = [row.name, row.isEncrypted ? "end-to-end encrypted" : "", row.online ? "online" : "", row.unread ? `${row.unread} unread` : "", row.typing || row.said, row.time];
    return h(
      "li",
      {},
      h(
        "button",
        {
          type: "button",
          class: `row ${row.unread ? "unread" : ""}`,
          "aria-current": row.isOpen ? "true" : null,
          "aria-label": label.filter(Boolean).join(", "),
          on: { click: () => this.#app.open(row.id) },
        },
        avatar(this.#app.media, { id: row.about, name: row.name, url: row.url, presence: { online: row.online } }),
        h("span", { class: "name", dir: "auto" }, row.name, row.isEncrypted ? icon("lock") : null),
        h("time", {}, row.time),
        h("span", { class: `said ${row.typing ? "typing" : ""}` }, row.status ? ticks(row.status) : null, row.typing || row.said),
        row.unread ? h("span", { class: `badge ${row.highlight ? "highlight" : ""}` }, row.unread > 99 ? "99+" : String(row.unread)) : null,
      ),
    );
  }

  #updateFriends() {
    const { store } = this.#app;
    const now = Date.now();
    const rows = [...store.friendsWho("friend"), ...store.friendsWho("outgoing")].map((entry) => ({
      id: entry.user_id,
      room: entry.room_id,
      state: entry.state,
      name: entry.display_name || entry.user_id,
      url: entry.avatar_url ?? null,
      online: Boolean(store.presenceOf(entry.user_id)?.online),
      status: entry.state === "outgoing" ? "Has not answered yet" : statusText(store.presenceOf(entry.user_id), now),
    }));
    rows.sort((one, other) => Number(other.online) - Number(one.online) || one.name.localeCompare(other.name));
    this.#rows.update(rows, (row) => `friend ${row.id}`, JSON.stringify, (row) => this.#friendRow(row));
    this.#showEmpty(rows.length === 0, "No friends yet. Add one by their Matrix ID.");
  }

  #friendRow(row) {
    const open = () => (row.state === "friend" ? this.#app.open(row.room) : this.#app.say(`${row.name} has not answered yet.`));
    return h(
      "li",
      { class: "friend" },
      h(
        "button",
        { type: "button", class: "row", on: { click: open } },
        avatar(this.#app.media, { id: row.id, name: row.name, url: row.url, presence: { online: row.online } }),
        h("span", { class: "name" }, row.name),
        h("span", { class: `said ${row.online ? "online" : ""}` }, row.status || row.id),
      ),
      row.state === "outgoing"
        ? h("button", { type: "button", class: "quiet", on: { click: () => this.#app.attempt(() => this.#app.people.remove(row.id)) } }, "Cancel")
        : null,
    );
  }

  #showEmpty(isEmpty, text) {
    this.empty.hidden = !isEmpty;
    if (isEmpty && this.empty.dataset.text !== text) {
      this.empty.dataset.text = text;
      const add = h("button", { type: "button", class: "primary", on: { click: () => openNewConversation(this.#app) } }, "New conversation");
      fill(this.empty, h("p", {}, text), this.#app.isLoaded ? add : null);
    }
  }
}
