// Searching: people and conversations by name at once, messages by the server's index.

import { avatar } from "./avatar.js";
import { fill, h } from "./dom.js";
import { markHits } from "./formatting.js";
import { preview } from "./items.js";
import { shortTime } from "./words.js";

const WAIT_MS = 200;
const LIMIT = 20;

export class SearchResults {
  room = null; // the conversation that is searched, null for all
  #app;
  #end;
  #timer;
  #asked = 0;

  constructor(app, onEnd) {
    this.#app = app;
    this.#end = onEnd;
    this.scope = h("p", { class: "scope" });
    this.status = h("p", { class: "status", role: "status" });
    this.names = h("ul", { "aria-label": "Conversations" });
    this.hits = h("ul", { "aria-label": "Messages" });
    this.more = h("button", { type: "button", class: "quiet more", hidden: true }, "More results");
    this.element = h("section", { class: "results scroll", hidden: true, "aria-label": "Search results" }, this.scope, this.names, this.hits, this.status, this.more);
    this.element.addEventListener("keydown", (event) => this.#onKey(event));
  }

  limitTo(room) {
    this.room = room;
    fill(this.scope, room ? [`In ${room.name} · `, h("button", { type: "button", class: "link", on: { click: () => this.#end() } }, "End search")] : null);
  }

  search(text) {
    clearTimeout(this.#timer);
    this.#asked += 1;
    this.#showNames(text);
    fill(this.hits);
    this.more.hidden = true;
    fill(this.status, text ? "Searching…" : "Type what you are looking for.");
    if (text) this.#timer = setTimeout(() => this.#ask(text, null), WAIT_MS);
  }

  #showNames(text) {
    const wanted = text.toLowerCase();
    const rooms = this.room || !wanted ? [] : this.#app.store.conversations.filter((room) => room.name.toLowerCase().includes(wanted));
    fill(this.names, rooms.slice(0, 6).map((room) => h("li", {}, this.#button(() => this.#app.open(room.id), { id: room.partner ?? room.id, name: room.name, url: room.avatar }, room.name, "", ""))));
  }

  async #ask(text, batch) {
    const asked = this.#asked;
    const criteria = { search_term: text, order_by: "recent", filter: { limit: LIMIT, ...(this.room ? { rooms: [this.room.id] } : {}) } };
    try {
      const answer = await this.#app.api.call("search", [], { query: { next_batch: batch }, body: { search_categories: { room_events: criteria } } });
      if (asked === this.#asked) this.#showHits(text, answer.search_categories.room_events);
    } catch (error) {
      if (asked === this.#asked) fill(this.status, error.message);
    }
  }

  #showHits(text, found) {
    const words = found.highlights?.length ? found.highlights : text.split(/\s+/);
    for (const { result } of found.results ?? []) this.hits.append(h("li", {}, this.#hit(result, words)));
    const total = this.hits.children.length;
    fill(this.status, total === 0 ? "No messages found." : "");
    this.more.hidden = !found.next_batch;
    this.more.onclick = () => this.#ask(text, found.next_batch);
  }

  #hit(event, words) {
    const { store } = this.#app;
    const room = store.rooms.get(event.room_id);
    const sender = room ? room.nameOf(event.sender) : event.sender;
    const said = around(preview(event.content, event.type), words);
    const marked = markHits(said, words).map((part) => (part.isHit ? h("mark", {}, part.text) : part.text));
    const open = () => {
      this.#app.open(event.room_id);
      this.#app.conversation.showEvent(event.event_id);
    };
    const isOwn = event.sender === store.ownId;
    const who = isOwn ? "You" : sender;
    const where = !room || this.room || (room.partner && !isOwn) ? who : `${who} ${room.partner ? "to" : "in"} ${room.name}`;
    return this.#button(open, { id: event.sender, name: sender, url: room?.avatarOf(event.sender) ?? null }, where, marked, shortTime(event.origin_server_ts));
  }

  #button(action, who, title, text, time) {
    return h(
      "button",
      { type: "button", class: "row", on: { click: action } },
      avatar(this.#app.media, who),
      h("span", { class: "name" }, title),
      h("time", {}, time),
      h("span", { class: "said" }, text),
    );
  }

  #onKey(event) {
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (event.key === "Escape") this.#end();
    if (!step) return;
    event.preventDefault();
    const buttons = [...this.element.querySelectorAll(".row")];
    buttons[buttons.indexOf(document.activeElement) + step]?.focus();
  }
}

// Returns a long text from shortly before its first hit on.
function around(text, words) {
  const places = words.map((word) => text.toLowerCase().indexOf(word.toLowerCase())).filter((place) => place >= 0);
  const first = Math.min(...places, text.length);
  return places.length && first > 40 ? `…${text.slice(first - 30)}` : text;
}
