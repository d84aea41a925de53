// One message, and what can be done with it.

import { avatar } from "./avatar.js";
import { decodeBlurhash } from "./blurhash.js";
import { h, icon, iconButton } from "./dom.js";
import { isJumbo, nodesOf } from "./formatting.js";
import { withoutQuote } from "./items.js";
import { isPicture } from "./media.js";
import { confirm, openEmoji, openMenu } from "./menu.js";
import { openDetails } from "./room_info.js";
import { ticks } from "./ticks.js";
import { clockTime, count, dayTitle, fullTime, sizeText, tickText } from "./words.js";
import { openPicture } from "./viewer.js";

const PICTURE_PX = 340;
const BLUR_PX = 24;
const NOTICES_MAX = 6;
const UNKNOWN = "This message cannot be shown here.";

export class MessageView {
  #app;
  #conversation;

  constructor(app, conversation) {
    this.#app = app;
    this.#conversation = conversation;
  }

  // Returns a text that changes if the item looks different.
  signature(item) {
    if (item.kind === "day") return dayTitle(item.ts);
    const reactions = item.reactions?.map((each) => [each.key, [...each.senders.keys()]]);
    return JSON.stringify({ ...item, reactions, preview: Boolean(item.preview) });
  }

  // Returns the element of an item of a conversation.
  make(item, room) {
    if (item.kind === "day") return h("li", { class: "day" }, h("span", {}, dayTitle(item.ts)));
    if (item.kind === "new") return h("li", { class: "new-line" }, h("span", {}, "New messages"));
    if (item.kind === "notice") return h("li", { class: "notice" }, noticeText(item.texts));
    return this.#message(item, room);
  }

  #message(item, room) {
    const body = this.#body(item, room);
    const isGroup = !room.partner && !item.isOwn;
    const classes = ["message", item.isOwn ? "own" : "", item.isFirst ? "first" : "", item.isLast ? "last" : "", isGroup ? "in-group" : ""];
    return h(
      "li",
      { class: classes.join(" ") },
      isGroup && item.isLast ? avatar(this.#app.media, { id: item.sender, name: item.name, url: item.avatar, size: 30 }) : null,
      h(
        "article",
        { class: `bubble ${body.kind}`, tabindex: -1, "data-key": item.key, "aria-label": this.#label(item, body) },
        isGroup && item.isFirst ? h("p", { class: "sender", dir: "auto" }, item.name) : null,
        item.answered ? this.#answered(item.answered) : null,
        body.element,
        h("p", { class: "meta" }, item.isEdited ? "edited " : null, h("time", { title: fullTime(item.ts) }, clockTime(item.ts)), item.status ? ticks(item.status) : null),
        item.eventId && !item.isRedacted ? this.#toolbar(item) : null,
      ),
      item.reactions.length ? this.#reactions(item, room) : null,
      item.status?.status === "failed" ? this.#failed(item, room) : null,
    );
  }

  #label(item, body) {
    const parts = [item.isOwn ? "You" : item.name, item.answered ? `answering ${item.answered.name}` : "", body.text, clockTime(item.ts), item.isEdited ? "edited" : "", item.status ? tickText(item.status) : ""];
    return parts.filter(Boolean).join(", ");
  }

  #answered(answered) {
    return h(
      "button",
      { type: "button", class: "answered", tabindex: -1, on: { click: () => this.#conversation.showEvent(answered.eventId) } },
      h("b", {}, answered.name),
      h("span", {}, answered.text),
    );
  }

  // Returns {kind, element, text}: what a message says, and the same for screen readers.
  #body(item, room) {
    const { content } = item;
    const text = typeof content.body === "string" ? withoutQuote(content) : "";
    if (item.isRedacted) return { kind: "deleted", element: h("p", { class: "text" }, "Deleted message"), text: "Deleted message" };
    if (item.type === "m.room.encrypted") {
      const sentence = "Encrypted. Open this conversation in a client that encrypts.";
      return { kind: "deleted", element: h("p", { class: "text" }, icon("lock"), sentence), text: sentence };
    }
    if (item.type === "m.sticker" || (content.msgtype === "m.image" && isPicture(content.info?.mimetype))) return this.#picture(item, room, text);
    if (content.msgtype === "m.video" || content.msgtype === "m.audio") return this.#playable(content, text);
    if (["m.file", "m.image"].includes(content.msgtype)) return this.#file(content, text, item);
    if (!text) return { kind: "deleted", element: h("p", { class: "text" }, UNKNOWN), text: UNKNOWN };
    if (isJumbo(text)) return { kind: "jumbo", element: h("p", { class: "text" }, text), text };
    const isEmote = content.msgtype === "m.emote";
    const element = h("div", { dir: "auto", class: `text ${content.msgtype === "m.notice" ? "by-program" : ""}` }, isEmote ? h("i", {}, `${item.name} `) : null, elementsOf(nodesOf(content, text)));
    return { kind: isEmote ? "emote" : "plain", element, text };
  }

  #picture(item, room, text) {
    const { content } = item;
    const name = content.filename ?? text;
    const caption = content.filename && content.filename !== text ? text : "";
    const { width, height } = sizeOf(content.info);
    const image = h("img", { alt: caption || `Picture: ${name}`, hidden: true });
    const button = h(
      "button",
      { type: "button", class: "picture", tabindex: -1, "aria-label": `Open the picture ${name}`, style: { width: `${width}px`, "aspect-ratio": `${width} / ${height}` }, on: { click: () => item.eventId && openPicture(this.#app, content, name) } },
      blurred(content.info),
      image,
      item.progress === undefined ? null : h("progress", { max: 1, value: item.progress, "aria-label": "Upload" }),
    );
    const source = item.preview ? Promise.resolve(item.preview) : this.#app.media.thumbnail(content.url ?? "", 800, 600);
    source.then(
      (address) => {
        image.onload = () => {
          image.hidden = false;
        };
        image.src = address;
      },
      () => button.append(h("span", { class: "broken" }, "The picture cannot be shown.")),
    );
    return { kind: "pictured", element: h("div", {}, button, caption ? h("p", { class: "text" }, elementsOf(nodesOf({}, caption))) : null), text: `Picture: ${caption || name}` };
  }

  #playable(content, text) {
    const tag = content.msgtype === "m.video" ? "video" : "audio";
    const name = content.filename ?? text;
    const holder = h("div", { class: "playable" });
    const play = async () => {
      try {
        const player = h(tag, { controls: true, src: await this.#app.media.playable(content.url ?? "") });
        holder.replaceChildren(player);
        await player.play();
      } catch {
        this.#app.say("The browser cannot play this. It can be saved instead.");
      }
    };
    holder.append(h("button", { type: "button", class: "with-icon", tabindex: -1, on: { click: play } }, `▶ Play ${name}`), this.#save(content, name));
    return { kind: "filed", element: holder, text: `${tag === "video" ? "Video" : "Audio"}: ${name}` };
  }

  #file(content, text, item) {
    const name = content.filename ?? text ?? "file";
    const progress = item.progress === undefined ? null : h("progress", { max: 1, value: item.progress, "aria-label": "Upload" });
    const element = h("div", { class: "file" }, icon("file"), h("span", {}, h("b", {}, name), h("small", {}, sizeText(content.info?.size))), progress ?? this.#save(content, name));
    return { kind: "filed", element, text: `File: ${name}` };
  }

  #save(content, name) {
    return iconButton("download", `Save ${name}`, () => this.#app.attempt(() => this.#app.media.save(content.url ?? "", name)), { tabindex: -1 });
  }

  #reactions(item, room) {
    const own = this.#app.api.userId;
    const chips = item.reactions.map(({ key, senders }) => {
      const names = [...senders.keys()].map((userId) => (userId === own ? "you" : room.nameOf(userId))).join(", ");
      return h(
        "button",
        { type: "button", "aria-pressed": String(senders.has(own)), "aria-label": `${key}, from ${names}`, title: names, on: { click: () => this.#react(item, key) } },
        key,
        h("span", {}, String(senders.size)),
      );
    });
    return h("div", { class: "reactions" }, chips);
  }

  #failed(item, room) {
    const { messages } = this.#app;
    return h(
      "p",
      { class: "failed", role: "alert" },
      `Not sent: ${item.why} `,
      h("button", { type: "button", class: "link", on: { click: () => messages.retry(room, item.key) } }, "Try again"),
      " ",
      h("button", { type: "button", class: "link", on: { click: () => messages.discard(room, item.key) } }, "Discard"),
    );
  }

  // -- actions -------------------------------------------------------------------------------------------------

  #toolbar(item) {
    const bar = h("div", { class: "toolbar" });
    if (!this.#conversation.composer.element.hidden) {
      bar.append(
        iconButton("smile", "React", (event) => openEmoji(event.currentTarget, (key) => this.#react(item, key)), { tabindex: -1 }),
        iconButton("reply", "Reply", () => this.#conversation.composer.reply(item), { tabindex: -1 }),
      );
    }
    bar.append(iconButton("more", "More", (event) => this.#openMenu(item, event.currentTarget), { tabindex: -1, "aria-haspopup": "menu" }));
    return bar;
  }

  // Acts on a key that was pressed on a message.
  onKey(event, article) {
    const item = this.#itemOf(article);
    if (!item) return;
    const { composer } = this.#conversation;
    const actions = {
      Enter: () => this.#openMenu(item, article),
      ContextMenu: () => this.#openMenu(item, article),
      r: () => composer.reply(item),
      "+": () => openEmoji(article, (key) => this.#react(item, key)),
      e: () => this.#mayEdit(item) && composer.edit(item),
      Delete: () => this.#mayDelete(item) && this.#delete(item),
      o: () => article.querySelector(".picture")?.click(),
    };
    const action = actions[event.key];
    if (!action) return;
    event.preventDefault();
    action();
  }

  // Returns the newest own message that can be edited.
  lastEditable() {
    const { room, timeline } = this.#conversation;
    const event = timeline.events.findLast((each) => each.sender === room.ownId && this.#mayEdit(asItem(each, timeline, room)));
    return event ? asItem(event, timeline, room) : null;
  }

  #itemOf(article) {
    const { room, timeline } = this.#conversation;
    const event = timeline.get(article.dataset.key);
    return event && !timeline.isRedacted(event) ? asItem(event, timeline, room) : null;
  }

  #openMenu(item, anchor) {
    const { composer } = this.#conversation;
    const canWrite = !composer.element.hidden;
    const entries = [
      canWrite && { label: "Reply", icon: "reply", action: () => composer.reply(item) },
      canWrite && { label: "React", icon: "smile", action: () => openEmoji(anchor, (key) => this.#react(item, key)) },
      { label: "Copy text", icon: "file", action: () => this.#copy(item) },
      this.#mayEdit(item) && { label: "Edit", icon: "edit", action: () => composer.edit(item) },
      item.isOwn && { label: "Who has read this", icon: "info", action: () => openDetails(this.#app, this.#conversation.room, item) },
      this.#mayDelete(item) && { label: "Delete", icon: "trash", isDanger: true, action: () => this.#delete(item) },
    ];
    openMenu(anchor, "Message", entries.filter(Boolean));
  }

  #mayEdit(item) {
    return item.isOwn && !item.isRedacted && item.type === "m.room.message" && item.content.msgtype === "m.text";
  }

  #mayDelete(item) {
    return item.isOwn || this.#conversation.room.may("redact");
  }

  #copy(item) {
    return this.#app.attempt(async () => {
      await navigator.clipboard.writeText(withoutQuote(item.content));
      this.#app.say("Copied.");
    });
  }

  #delete(item) {
    const { room } = this.#conversation;
    confirm("Delete this message?", "It disappears for everybody in this conversation.", "Delete", () => this.#app.messages.redact(room, item.eventId));
  }

  #react(item, key) {
    const { room, timeline } = this.#conversation;
    return this.#app.messages.react(room, timeline, timeline.get(item.eventId), key);
  }
}

// Returns what actions need to know of an event.
function asItem(event, timeline, room) {
  return {
    eventId: event.event_id,
    sender: event.sender,
    name: room.nameOf(event.sender),
    type: event.type,
    content: timeline.contentOf(event).content,
    isOwn: event.sender === room.ownId,
    isRedacted: timeline.isRedacted(event),
  };
}

// Returns elements for the nodes of formatting.js.
function elementsOf(nodes) {
  return nodes.map((node) => {
    if (typeof node === "string") return node;
    if (node.tag !== "a") return h(node.tag, {}, elementsOf(node.children));
    return node.href ? h("a", { href: node.href, target: "_blank", rel: "noopener noreferrer nofollow" }, elementsOf(node.children)) : h("span", {}, elementsOf(node.children));
  });
}

function noticeText(texts) {
  const shown = texts.slice(0, NOTICES_MAX).join(" · ");
  return texts.length > NOTICES_MAX ? `${shown} · and ${count(texts.length - NOTICES_MAX, "more change")}` : shown;
}

function sizeOf(info) {
  const [width, height] = [info?.w, info?.h].map((length) => (length > 0 && length < 100_000 ? length : 0));
  if (!width || !height) return { width: 240, height: 180 };
  const scale = Math.min(1, PICTURE_PX / width, PICTURE_PX / height);
  return { width: Math.max(90, Math.round(width * scale)), height: Math.max(60, Math.round(height * scale)) };
}

function blurred(info) {
  const pixels = decodeBlurhash(info?.["xyz.amorgan.blurhash"] ?? info?.blurhash, BLUR_PX, BLUR_PX);
  if (!pixels) return null;
  const canvas = h("canvas", { width: BLUR_PX, height: BLUR_PX, "aria-hidden": "true" });
  canvas.getContext("2d").putImageData(new ImageData(pixels, BLUR_PX, BLUR_PX), 0, 0);
  return canvas;
}
