// The page of a person who is logged in: what is known (store.js), what is new (live.js), what is shown.

import { announce, fill, h } from "./dom.js";
import { Conversation } from "./conversation.js";
import { preview } from "./items.js";
import { Live } from "./live.js";
import { Media } from "./media.js";
import { Notifications } from "./notifications.js";
import { People } from "./people.js";
import { Messages } from "./messages.js";
import { loadSettings, saveSettings } from "./session.js";
import { Sidebar } from "./sidebar.js";
import { Store } from "./store.js";

const AGE_MS = 30_000; // "Active 2 minutes ago" is brought up to date this often

export class App {
  settings = loadSettings();
  connection = { connected: true, transport: null };
  isLoaded = false;
  #isScheduled = false;

  // root: the element to fill. onLogOut: called once the person has asked to log out.
  constructor(root, api, onLogOut) {
    this.api = api;
    this.onLogOut = onLogOut;
    this.store = new Store(api.userId);
    this.media = new Media(api);
    this.live = new Live(api, (sync, isFirst) => this.#onSync(sync, isFirst), (state) => this.#onState(state));
    this.messages = new Messages(this);
    this.people = new People(this);
    this.notifications = new Notifications(this);
    this.sidebar = new Sidebar(this);
    this.conversation = new Conversation(this);
    this.banner = h("p", { class: "banner", role: "status", hidden: true });
    const title = h("h1", { class: "unseen" }, `Chat on ${document.documentElement.dataset.serverName}`);
    const panes = h("main", { class: "panes" }, title, this.sidebar.element, this.conversation.element);
    fill(root, this.banner, panes);
    this.root = root;
  }

  // Runs until the session ends. Raises ServerError.
  async run() {
    const onHash = () => this.#openFromAddress();
    const onKey = (event) => this.#onKey(event);
    const timer = setInterval(() => this.changed(), AGE_MS);
    addEventListener("hashchange", onHash);
    addEventListener("keydown", onKey);
    this.applyTheme();
    this.changed();
    try {
      await this.live.run();
    } finally {
      clearInterval(timer);
      removeEventListener("hashchange", onHash);
      removeEventListener("keydown", onKey);
      this.notifications.clear();
    }
  }

  stop() {
    this.live.stop();
  }

  get room() {
    return this.store.rooms.get(this.roomId) ?? null;
  }

  get roomId() {
    return decodeURIComponent(location.hash.match(/^#\/room\/(.+)$/)?.[1] ?? "") || null;
  }

  // Opens a conversation; null shows none. The address says which, so the browser's Back works.
  open(roomId) {
    const hash = roomId ? `#/room/${encodeURIComponent(roomId)}` : "#/";
    if (location.hash !== hash) location.hash = hash;
    else this.#openFromAddress();
  }

  #openFromAddress() {
    this.conversation.show(this.room);
    this.changed();
  }

  // Brings the page up to date, once for all changes of one moment.
  changed() {
    this.notifications.showCount();
    if (this.#isScheduled) return;
    this.#isScheduled = true;
    const update = () => {
      this.#isScheduled = false;
      this.root.classList.toggle("in-room", Boolean(this.roomId));
      this.sidebar.update();
      this.conversation.update();
    };
    if (document.hidden) setTimeout(update, 0);
    else requestAnimationFrame(update);
  }

  applyTheme() {
    document.documentElement.dataset.theme = this.settings.theme;
  }

  change(settings) {
    Object.assign(this.settings, settings);
    saveSettings(this.settings);
    this.applyTheme();
    this.changed();
  }

  // Shows a sentence for a moment, for an action that has failed or that leaves no other trace.
  say(text) {
    const toast = h("p", { class: "toast" }, text);
    document.getElementById("toasts").append(toast);
    setTimeout(() => toast.remove(), 6000);
  }

  // Runs an action; what goes wrong is said.
  async attempt(action) {
    try {
      return await action();
    } catch (error) {
      if (error.name !== "AbortError") this.say(error.message);
      return undefined;
    }
  }

  #onSync(sync, isFirst) {
    const news = this.store.apply(sync, Date.now());
    if (isFirst || news.friends) this.people.load();
    if (isFirst) {
      this.isLoaded = true;
      this.#openFromAddress();
    } else {
      for (const { room, event } of news.messages) {
        if (event.sender === this.api.userId) continue;
        const isShown = room.id === this.roomId && !document.hidden;
        const text = `${room.nameOf(event.sender)}: ${preview(event.content, event.type)}`;
        if (isShown) announce(text);
        this.notifications.show(room, event, isShown);
      }
      if (this.roomId && !this.conversation.isShowing(this.room)) this.conversation.show(this.room);
    }
    this.changed();
  }

  #onState(state) {
    this.connection = { ...this.connection, ...state };
    this.banner.hidden = this.connection.connected;
    fill(this.banner, this.connection.connected ? "" : "No connection to the server. Trying again…");
  }

  #onKey(event) {
    const isCommand = event.ctrlKey || event.metaKey;
    if (isCommand && event.key.toLowerCase() === "k") {
      event.preventDefault();
      this.sidebar.focusSearch();
    } else if (event.altKey && (event.key === "ArrowUp" || event.key === "ArrowDown")) {
      event.preventDefault();
      this.#openNeighbour(event.key === "ArrowDown" ? 1 : -1);
    }
  }

  #openNeighbour(step) {
    const rooms = this.store.conversations;
    const now = rooms.indexOf(this.room);
    const next = rooms[now < 0 ? 0 : now + step];
    if (next) this.open(next.id);
  }
}
