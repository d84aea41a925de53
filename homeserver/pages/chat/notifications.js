// What tells a person who looks elsewhere: the browser's notifications, and the number in the title.

import { preview } from "./items.js";

const TITLE = document.title;

export class Notifications {
  #app;
  #shown = new Set();

  constructor(app) {
    this.#app = app;
  }

  get isPossible() {
    return "Notification" in globalThis && isSecureContext;
  }

  get isOn() {
    return this.isPossible && this.#app.settings.notifications && Notification.permission === "granted";
  }

  // Switches notifications on or off; asks the browser's permission first. Returns whether they are on.
  async set(wanted) {
    const allowed = wanted && this.isPossible && (await Notification.requestPermission()) === "granted";
    this.#app.change({ notifications: allowed });
    return allowed;
  }

  // Shows a message, unless the person sees it anyway. Only what the person's push rules count is shown.
  show(room, event, isSeen) {
    if (isSeen || !this.isOn || room.unread === 0) return;
    const sender = room.nameOf(event.sender);
    const title = room.partner ? sender : `${sender} in ${room.name}`;
    const notification = new Notification(title, { body: preview(event.content, event.type), tag: room.id });
    notification.onclick = () => {
      focus();
      notification.close();
      this.#app.open(room.id);
    };
    notification.onclose = () => this.#shown.delete(notification);
    this.#shown.add(notification);
  }

  // Puts the number of unread messages into the title.
  showCount() {
    const { unread } = this.#app.store;
    const name = this.#app.room?.name;
    document.title = `${unread ? `(${unread}) ` : ""}${name ? `${name} · ` : ""}${TITLE}`;
    navigator.setAppBadge?.(unread).catch(() => {});
  }

  clear() {
    for (const notification of this.#shown) notification.close();
    document.title = TITLE;
    navigator.clearAppBadge?.().catch(() => {});
  }
}
