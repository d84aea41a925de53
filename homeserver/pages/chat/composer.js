// The field to write in, with what is attached, answered or edited.

import { fill, h, icon, iconButton } from "./dom.js";
import { preview } from "./items.js";
import { openEmoji } from "./menu.js";
import { sizeText } from "./words.js";

const TEXT_MAX = 40_000; // an event holds 64 KiB, and a character may take four bytes only rarely
const FILES_MAX = 10;

export class Composer {
  #app;
  #conversation;
  #room = null;
  #answered = null;
  #edited = null;
  #files = [];
  #drafts = new Map();

  constructor(app, conversation) {
    this.#app = app;
    this.#conversation = conversation;
    this.field = h("textarea", {
      rows: 1,
      dir: "auto",
      maxlength: TEXT_MAX,
      placeholder: "Write a message",
      "aria-label": "Write a message",
      enterkeyhint: "send",
      on: {
        input: () => this.#onInput(),
        keydown: (event) => this.#onKey(event),
        paste: (event) => this.#onPaste(event),
        blur: () => this.#app.messages.stopTyping(),
      },
    });
    this.picker = h("input", { type: "file", multiple: true, hidden: true, "aria-label": "Files", on: { change: () => this.#onPick() } });
    this.about = h("div", { class: "about", hidden: true });
    this.tray = h("ul", { class: "tray", hidden: true, "aria-label": "Attached files" });
    this.sendButton = iconButton("send", "Send", () => this.#submit(), { class: "send" });
    this.element = h(
      "form",
      { class: "composer", on: { submit: (event) => (event.preventDefault(), this.#submit()) } },
      this.about,
      this.tray,
      h(
        "div",
        { class: "writing" },
        iconButton("attach", "Attach files", () => this.picker.click()),
        this.picker,
        this.field,
        iconButton("smile", "Emoji", (event) => openEmoji(event.currentTarget, (emoji) => this.#insert(emoji))),
        this.sendButton,
      ),
    );
  }

  focus() {
    this.field.focus();
  }

  // Shows what was being written in a conversation.
  enter(room) {
    this.#room = room;
    this.field.value = this.#drafts.get(room.id) ?? "";
    this.#reset();
    requestAnimationFrame(() => this.#grow());
  }

  leave() {
    if (!this.#edited) this.#drafts.set(this.#room.id, this.field.value);
    this.#app.messages.stopTyping();
  }

  #reset() {
    this.#answered = this.#edited = null;
    this.#setFiles([]);
    fill(this.about);
    this.about.hidden = true;
    this.#grow();
  }

  reply(item) {
    this.#edited = null;
    this.#answered = item;
    this.#showAbout("reply", `Answer to ${item.isOwn ? "yourself" : item.name}`, preview(item.content, item.type));
  }

  edit(item) {
    this.#answered = null;
    this.#edited = item;
    this.field.value = item.content.body;
    this.#showAbout("edit", "Edit message", preview(item.content, item.type));
  }

  #showAbout(name, title, text) {
    fill(this.about, icon(name), h("span", {}, h("b", {}, title), h("span", {}, text)), iconButton("close", "Cancel", () => this.#cancel()));
    this.about.hidden = false;
    this.#grow();
    this.focus();
  }

  #cancel() {
    if (this.#edited) this.field.value = "";
    this.#reset();
    this.focus();
  }

  // Attaches files, which are sent with the next message.
  attach(files) {
    this.#setFiles([...this.#files, ...files].slice(0, FILES_MAX));
    this.focus();
  }

  #setFiles(files) {
    this.#files = files;
    this.tray.hidden = files.length === 0;
    fill(
      this.tray,
      files.map((file, index) => {
        const remove = () => this.#setFiles(this.#files.filter((_, place) => place !== index));
        return h("li", {}, this.#thumbnail(file), h("span", {}, h("b", {}, file.name || "Picture"), h("small", {}, sizeText(file.size))), iconButton("close", `Remove ${file.name}`, remove));
      }),
    );
    this.#showSend();
  }

  #thumbnail(file) {
    if (!/^image\/(png|jpeg|gif|webp|avif)$/.test(file.type)) return icon("file");
    const image = h("img", { alt: "", src: URL.createObjectURL(file) });
    image.onload = () => URL.revokeObjectURL(image.src);
    return image;
  }

  #submit() {
    const room = this.#room;
    const text = this.field.value.trim();
    const answered = this.#answered?.eventId;
    if (this.#edited) {
      if (text && text !== this.#edited.content.body) this.#app.messages.edit(room, { event_id: this.#edited.eventId, content: this.#edited.content }, text);
    } else {
      if (!text && !this.#files.length) return;
      const isCaption = this.#files.length === 1;
      for (const file of this.#files) this.#app.messages.sendFile(room, file, isCaption ? text : "", answered);
      if (text && !isCaption) this.#app.messages.sendText(room, text, answered);
    }
    this.field.value = "";
    this.#reset();
    this.#conversation.showPresent();
    this.focus();
  }

  #onInput() {
    this.#grow();
    if (this.field.value && !this.#edited) this.#app.messages.type(this.#room);
    if (!this.field.value) this.#app.messages.stopTyping();
  }

  #onKey(event) {
    if (event.isComposing) return;
    if (event.key === "Enter" && !event.shiftKey) {
      event.preventDefault();
      this.#submit();
    } else if (event.key === "Escape" && !this.about.hidden) {
      event.preventDefault();
      this.#cancel();
    } else if (event.key === "ArrowUp" && !this.field.value && !event.altKey) {
      const item = this.#conversation.view.lastEditable();
      if (item) {
        event.preventDefault();
        this.edit(item);
      }
    }
  }

  #onPaste(event) {
    if (!event.clipboardData.files.length) return;
    event.preventDefault();
    this.attach(event.clipboardData.files);
  }

  #onPick() {
    this.attach(this.picker.files);
    this.picker.value = "";
  }

  #insert(text) {
    this.field.setRangeText(text, this.field.selectionStart, this.field.selectionEnd, "end");
    this.#onInput();
    this.focus();
  }

  #grow() {
    this.field.style.setProperty("height", "auto");
    const height = this.field.scrollHeight; // 0 while the field is not on the screen
    if (height) this.field.style.setProperty("height", `${height}px`);
    this.#showSend();
  }

  #showSend() {
    this.sendButton.disabled = !this.field.value.trim() && !this.#files.length;
  }
}
