// The right side: one conversation with its history and the field to write in.
//
// Theory of operation. `#timeline` is what is shown: the room's newest stretch or, after a jump to an older message, a
// stretch around that one, which grows in both directions until it reaches the present. While the end is in view, new
// messages keep it in view and count as read if the person looks at the page; when they have scrolled up nothing moves.

import { avatar } from "./avatar.js";
import { Composer } from "./composer.js";
import { KeyedList, fill, h, icon, iconButton } from "./dom.js";
import { listItems } from "./items.js";
import { MessageView } from "./message.js";
import { openRoomMenu } from "./room_info.js";
import { dayTitle, statusText, typingText } from "./words.js";

const NEAR_PX = 400; // history is loaded when its end comes this close
const BOTTOM_PX = 60;
const FAR_UNREAD = 100; // a first unread message farther away than this is jumped to, not paged to
const FOUND_MS = 4000; // how long a message that was gone to is marked
const LOCKED = "This conversation is end-to-end encrypted. This page does not have its keys: open it in a client that encrypts, such as Element.";

export class Conversation {
  #app;
  #room = null;
  #timeline = null;
  #liveTimeline = null;
  #newAfter = null;
  #list;
  #isLoading = false;
  #isAtBottom = true;
  #sought = null;
  #failure = "";

  constructor(app) {
    this.#app = app;
    this.header = h("header", { class: "room-header" });
    this.list = h("ol", { class: "messages", "aria-label": "Messages" });
    this.#list = new KeyedList(this.list);
    this.top = h("p", { class: "edge", role: "status" });
    this.scroller = h("div", { class: "scroll timeline", on: { scroll: () => this.#onScroll(), keydown: (event) => this.#onKey(event) } }, this.top, this.list);
    this.down = iconButton("down", "Go to the newest message", () => this.showPresent(), { class: "down", hidden: true });
    this.typing = h("p", { class: "typing-line", role: "status" });
    this.composer = new Composer(app, this);
    this.view = new MessageView(app, this);
    this.locked = h("p", { class: "locked", hidden: true }, icon("lock"), LOCKED);
    this.room_ = h("div", { class: "room" }, this.header, h("div", { class: "frame" }, this.scroller, this.down), this.typing, this.composer.element, this.locked);
    this.nothing = h("div", { class: "nothing" }, h("b", { "aria-hidden": "true" }, "[m]"), h("p", {}, "Choose a conversation, or begin one."));
    this.element = h("section", { class: "conversation", "aria-label": "Conversation" }, this.room_, this.nothing);
    this.element.addEventListener("dragover", (event) => this.#onDrag(event, true));
    this.element.addEventListener("dragleave", (event) => this.#onDrag(event, false));
    this.element.addEventListener("drop", (event) => this.#onDrop(event));
    document.addEventListener("visibilitychange", () => this.#markRead());
    addEventListener("focus", () => this.#markRead());
    new ResizeObserver(() => this.#isAtBottom && this.#scrollDown()).observe(this.scroller);
    new ResizeObserver(() => this.#isAtBottom && this.#scrollDown()).observe(this.list);
    this.update();
  }

  get room() {
    return this.#room;
  }

  get timeline() {
    return this.#timeline;
  }

  isShowing(room) {
    return this.#room === room;
  }

  // Shows a conversation from where the person has read to; null shows none.
  show(room) {
    if (room === this.#room) return;
    if (this.#room) this.composer.leave();
    this.#room = room;
    this.#sought = null;
    if (!room) {
      this.#timeline = null;
      return;
    }
    this.#followLive();
    this.#isAtBottom = true;
    this.#newAfter = room.unread > 0 ? room.readUpTo(this.#app.api.userId) ?? room.fullyRead : null;
    this.#sought = this.#newAfter ? "new" : null;
    if (this.#newAfter && room.unread > FAR_UNREAD && !room.timeline.has(this.#newAfter)) this.#goAround(room, this.#newAfter, "new");
    this.composer.enter(room);
    this.list.replaceChildren();
    this.#list = new KeyedList(this.list);
    this.#app.attempt(() => this.#app.people.loadMembers(room));
    if (matchMedia("(hover: hover)").matches) this.composer.focus();
  }

  #followLive() {
    this.#timeline = this.#liveTimeline = this.#room.timeline;
    this.#failure = "";
  }

  // Goes to the newest message.
  showPresent() {
    if (!this.#timeline.isLive || this.#timeline !== this.#room.timeline) this.#followLive();
    this.#isAtBottom = true;
    this.#sought = null;
    this.update();
    this.#scrollDown();
    this.#app.changed();
  }

  // Goes to a message, which may be far back in history.
  async showEvent(eventId) {
    const room = this.#app.room;
    if (room && room !== this.#room) this.show(room);
    if (this.#timeline?.has(eventId)) this.#seek(eventId);
    else await this.#goAround(room, eventId, eventId);
  }

  // Shows the stretch of history around an event, which is loaded, and seeks an item of it.
  async #goAround(room, eventId, sought) {
    const found = await this.#app.attempt(() => this.#app.messages.loadAround(room, eventId));
    if (!found || this.#room !== room) return;
    this.#timeline = found;
    this.#seek(sought);
    this.#app.messages.loadReactions(room, found);
  }

  #seek(sought) {
    this.#isAtBottom = false;
    this.#sought = sought;
    this.update();
  }

  update() {
    const room = this.#room;
    this.room_.hidden = !room;
    this.nothing.hidden = Boolean(room);
    if (!room) return;
    if (this.#timeline === this.#liveTimeline && room.timeline !== this.#liveTimeline) this.#followLive();
    this.#updateHeader(room);
    const before = this.scroller.scrollHeight - this.scroller.scrollTop;
    const wasAtBottom = this.#isAtBottom;
    const isPrepended = this.#isPrepended;
    this.#isPrepended = false;
    const items = listItems(room, this.#timeline, this.#newAfter);
    for (const { answered } of items) if (answered?.isUnknown) this.#app.messages.loadQuoted(room, answered.eventId);
    this.#list.update(items, (item) => item.key, (item) => this.view.signature(item), (item) => this.view.make(item, room));
    this.#setTabStop();
    if (this.#sought) this.#scrollToSought(items);
    else if (wasAtBottom) this.#scrollDown();
    else if (isPrepended) this.scroller.scrollTop = this.scroller.scrollHeight - before;
    fill(this.typing, typingText(room.typing.map((userId) => room.nameOf(userId))));
    fill(this.top, this.#failure || (this.#timeline.start === null ? "This is the beginning." : this.#isLoading ? "Loading…" : ""));
    this.locked.hidden = !room.isEncrypted;
    this.composer.element.hidden = room.isEncrypted || !room.may("send");
    this.#showDown();
    this.#markRead();
    requestAnimationFrame(() => this.#loadIfNear());
  }

  #isPrepended = false;

  #updateHeader(room) {
    const presence = room.partner ? this.#app.store.presenceOf(room.partner) : null;
    const members = room.memberCount || room.members().length;
    const about = room.partner ? statusText(presence) : `${members} ${members === 1 ? "person" : "people"}`;
    const signature = JSON.stringify([room.id, room.name, room.avatar, about, room.isEncrypted]);
    if (this.header.dataset.signature === signature) return;
    this.header.dataset.signature = signature;
    fill(
      this.header,
      iconButton("back", "Back to the conversations", () => this.#app.open(null), { class: "back" }),
      avatar(this.#app.media, { id: room.partner ?? room.id, name: room.name, url: room.avatar, presence, size: 40 }),
      h("div", { class: "title" }, h("h2", {}, room.name, room.isEncrypted ? icon("lock") : null), h("p", { class: presence?.online ? "online" : null }, about)),
      iconButton("search", "Search in this conversation", () => this.#app.sidebar.searchIn(room), { class: "search-here" }),
      iconButton("more", "About this conversation", (event) => openRoomMenu(this.#app, room, event.currentTarget), { "aria-haspopup": "menu" }),
    );
  }

  // -- scrolling -----------------------------------------------------------------------------------------------

  #onScroll() {
    this.#isAtBottom = this.#timeline?.isLive && this.scroller.scrollHeight - this.scroller.scrollTop - this.scroller.clientHeight < BOTTOM_PX;
    this.#showDown();
    this.#loadIfNear();
    if (this.#isAtBottom) this.#markRead();
  }

  #scrollDown() {
    this.scroller.scrollTop = this.scroller.scrollHeight;
  }

  #showDown() {
    this.down.hidden = Boolean(this.#isAtBottom);
    const unread = this.#room?.unread ?? 0;
    this.down.dataset.unread = unread > 99 ? "99+" : unread || "";
    this.down.setAttribute("aria-label", unread ? `Go to the newest message, ${unread} unread` : "Go to the newest message");
  }

  #scrollToSought(items) {
    const node = this.#list.get(this.#sought);
    if (!node) {
      if (this.#sought === "new" && this.#timeline.start === null) this.#sought = null;
      if (this.#sought === "new" && !items.some((item) => item.kind === "new") && this.#newAfter && this.#timeline.has(this.#newAfter)) this.#sought = null;
      if (!this.#sought) this.#scrollDown();
      return;
    }
    node.scrollIntoView({ block: this.#sought === "new" ? "start" : "center" });
    if (this.#sought !== "new") {
      node.classList.add("found");
      setTimeout(() => node.classList.remove("found"), FOUND_MS);
      node.querySelector("[tabindex]")?.focus({ preventScroll: true });
    }
    this.#sought = null;
    this.#onScroll();
  }

  async #loadIfNear() {
    const timeline = this.#timeline;
    if (this.#isLoading || this.#failure || !timeline) return;
    const isNearTop = this.scroller.scrollTop < NEAR_PX && timeline.start !== null;
    const isNearEnd = !timeline.isLive && this.scroller.scrollHeight - this.scroller.scrollTop - this.scroller.clientHeight < NEAR_PX;
    if (!isNearTop && !isNearEnd) return;
    this.#isLoading = true;
    this.scroller.setAttribute("aria-busy", "true");
    const room = this.#room;
    try {
      if (isNearTop) {
        await this.#app.messages.loadOlder(room, timeline);
        this.#isPrepended = this.#timeline === timeline;
      } else if (!(await this.#app.messages.loadNewer(room, timeline)) || room.timeline.has(timeline.last.event_id)) {
        if (this.#timeline === timeline) this.#joinPresent(timeline);
      }
      this.#app.messages.loadReactions(room, timeline);
    } catch (error) {
      this.#failure = `Older messages cannot be loaded: ${error.message}`;
      setTimeout(() => ((this.#failure = ""), this.#app.changed()), 5000);
    } finally {
      this.#isLoading = false;
      this.scroller.removeAttribute("aria-busy");
      this.update();
    }
  }

  // Goes on with the newest stretch once the one that was jumped to has reached it.
  #joinPresent(timeline) {
    const live = this.#room.timeline;
    if (live.has(timeline.last.event_id)) {
      const older = timeline.events.slice(0, timeline.events.findIndex((event) => live.has(event.event_id)));
      live.prepend(older.reverse());
      live.start = timeline.start;
    }
    this.#followLive();
  }

  // -- reading -------------------------------------------------------------------------------------------------

  #markRead() {
    const room = this.#room;
    if (!room || document.hidden || !document.hasFocus() || !this.#isAtBottom || this.#sought || this.#timeline !== room.timeline) return;
    const last = room.timeline.last;
    if (last) this.#app.messages.markRead(room, last.event_id);
  }

  // -- keyboard and files --------------------------------------------------------------------------------------

  // One message can be reached with Tab, the last one that was; the arrows move from there.
  #setTabStop() {
    const articles = this.list.querySelectorAll("article");
    if (![...articles].some((article) => article.tabIndex === 0) && articles.length) articles[articles.length - 1].tabIndex = 0;
  }

  #onKey(event) {
    const article = event.target.closest("article");
    if (!article || event.target !== article || event.ctrlKey || event.metaKey || event.altKey) return;
    const articles = [...this.list.querySelectorAll("article")];
    const place = articles.indexOf(article);
    const next = { ArrowUp: place - 1, ArrowDown: place + 1, Home: 0, End: articles.length - 1 }[event.key];
    if (next !== undefined) {
      event.preventDefault();
      if (next >= articles.length) this.composer.focus();
      else if (articles[next]) this.#focusArticle(article, articles[next]);
    } else if (event.key === "Escape") {
      this.composer.focus();
    } else {
      this.view.onKey(event, article);
    }
  }

  #focusArticle(from, to) {
    from.tabIndex = -1;
    to.tabIndex = 0;
    to.focus();
    to.scrollIntoView({ block: "nearest" });
  }

  #onDrag(event, isOver) {
    if (!event.dataTransfer.types.includes("Files") || this.composer.element.hidden) return;
    event.preventDefault();
    this.element.classList.toggle("dropping", isOver);
  }

  #onDrop(event) {
    this.#onDrag(event, false);
    if (this.#room && !this.composer.element.hidden) this.composer.attach(event.dataTransfer.files);
  }
}
