// What a person does in a conversation: each a request, shown at once and taken back if the server refuses.

import { NetworkError, pause } from "./api.js";
import { measure } from "./media.js";
import { isMessage } from "./room.js";

const PAGE = 40;
const REACTIONS_MAX = 100; // of one message, in a stretch of history that was jumped to
const TYPING_MS = 20_000;
const TYPING_AGAIN_MS = 8_000;
const RETRIES_MAX = 6;
const PREVIEW_MS = 60_000; // until the server's own thumbnail is surely shown

export class Messages {
  #app;
  #typingIn = null;
  #typingUntil = 0;
  #lanes = new Map(); // room ID → the end of its queue: messages of a conversation are sent in order
  #reading = new Map(); // room ID → the event up to which it has been reported as read

  constructor(app) {
    this.#app = app;
  }

  // Sends a text. answered: the event ID of the message that it answers.
  sendText(room, text, answered) {
    this.stopTyping();
    return this.#send(room, { msgtype: "m.text", body: text, ...relation(answered) });
  }

  // Sends a file, as a picture if it is one. caption: a text that belongs to it, or "".
  async sendFile(room, file, caption, answered) {
    const name = file.name || "picture.png";
    const content = { msgtype: "m.file", body: caption || name, filename: name, info: {}, ...relation(answered) };
    const pending = this.#begin(room, content);
    pending.file = file;
    pending.progress = 0;
    const size = await measure(file);
    const major = file.type.split("/")[0];
    content.msgtype = size.w ? "m.image" : { video: "m.video", audio: "m.audio" }[major] ?? "m.file";
    content.info = { mimetype: file.type || "application/octet-stream", size: file.size, ...size };
    if (size.w) pending.preview = URL.createObjectURL(file);
    this.#app.changed();
    await this.#deliver(room, pending);
  }

  async #upload(pending) {
    pending.progress = 0;
    const answer = await this.#app.media.upload(pending.file, pending.content.filename, (part) => {
      pending.progress = part;
      this.#app.changed();
    });
    pending.content = { ...pending.content, url: answer.content_uri, info: { ...answer.info, ...pending.content.info } };
    pending.progress = undefined;
  }

  #send(room, content) {
    return this.#deliver(room, this.#begin(room, content));
  }

  #begin(room, content) {
    const pending = { key: `c${Date.now()}.${crypto.randomUUID().slice(0, 8)}`, content, ts: Date.now(), failed: null, eventId: null };
    room.pending.push(pending);
    this.#app.changed();
    return pending;
  }

  // Sends a message that is shown already, after those before it. The transaction ID makes a repetition harmless.
  #deliver(room, pending) {
    pending.failed = null;
    const before = this.#lanes.get(room.id) ?? Promise.resolve();
    const sent = before.then(() => this.#deliverNow(room, pending));
    this.#lanes.set(room.id, sent);
    return sent;
  }

  async #deliverNow(room, pending) {
    try {
      if (pending.file && !pending.content.url) await this.#upload(pending);
      const answer = await this.#insist(() =>
        this.#app.live.call("send_message", [room.id, "m.room.message", pending.key], { body: pending.content }),
      );
      pending.eventId = answer.event_id;
      if (pending.preview) setTimeout(() => URL.revokeObjectURL(pending.preview), PREVIEW_MS);
      if (room.timeline.has(answer.event_id)) room.pending = room.pending.filter((each) => each !== pending);
    } catch (error) {
      pending.failed = error.message;
    }
    this.#app.changed();
  }

  async #insist(request) {
    for (let tries = 1; ; tries += 1) {
      try {
        return await request();
      } catch (error) {
        if (!(error instanceof NetworkError) || tries >= RETRIES_MAX) throw error;
        await pause(Math.min(1000 * 2 ** tries, 20_000));
      }
    }
  }

  // Sends a message again that could not be sent.
  retry(room, key) {
    const pending = room.pending.find((each) => each.key === key);
    if (pending) this.#deliver(room, pending);
  }

  // Forgets a message that could not be sent.
  discard(room, key) {
    room.pending = room.pending.filter((each) => each.key !== key);
    this.#app.changed();
  }

  // Replaces the text of an own message.
  edit(room, event, text) {
    const content = { msgtype: event.content.msgtype ?? "m.text", body: text };
    return this.#app.attempt(() =>
      this.#app.live.call("send_message", [room.id, "m.room.message", transaction()], {
        body: {
          ...content,
          body: `* ${text}`,
          "m.new_content": content,
          "m.relates_to": { rel_type: "m.replace", event_id: event.event_id },
        },
      }),
    );
  }

  redact(room, eventId) {
    return this.#app.live.call("redact_event", [room.id, eventId, transaction()], { body: {} });
  }

  // Adds a reaction, or takes an own one back.
  react(room, timeline, event, key) {
    const own = timeline.reactionsTo(event).find((each) => each.key === key)?.senders.get(this.#app.api.userId);
    return this.#app.attempt(() =>
      own
        ? this.redact(room, own)
        : this.#app.live.call("send_message", [room.id, "m.reaction", transaction()], {
            body: { "m.relates_to": { rel_type: "m.annotation", event_id: event.event_id, key } },
          }),
    );
  }

  // Says that the person is typing; again only after some time.
  type(room) {
    if (this.#typingIn === room.id && Date.now() < this.#typingUntil) return;
    this.#typingIn = room.id;
    this.#typingUntil = Date.now() + TYPING_AGAIN_MS;
    this.#setTyping(room.id, { typing: true, timeout: TYPING_MS });
  }

  stopTyping() {
    if (this.#typingIn) this.#setTyping(this.#typingIn, { typing: false });
    this.#typingIn = null;
  }

  #setTyping(roomId, body) {
    // Nobody misses one that fails: it is repeated while they type, and ends by itself.
    this.#app.live.call("set_typing", [roomId, this.#app.api.userId], { body }).catch(() => {});
  }

  // Reports that everything up to an event has been read.
  async markRead(room, eventId) {
    const before = this.#reading.get(room.id);
    if (before === eventId || room.readUpTo(this.#app.api.userId) === eventId) return;
    this.#reading.set(room.id, eventId);
    try {
      await this.#app.live.call("set_read_marker", [room.id], { body: this.#app.store.readMarkers(eventId) });
    } catch {
      this.#reading.set(room.id, before); // the next look at the conversation tries again
    }
  }

  // Loads older events of a stretch of history. Returns whether there may be more.
  async loadOlder(room, timeline) {
    if (timeline.start === null) return false;
    const page = await this.#app.live.call("get_room_events", [room.id], {
      query: { dir: "b", from: timeline.start, limit: PAGE, filter: JSON.stringify({ lazy_load_members: true }) },
    });
    room.addMembers(page.state ?? []);
    timeline.prepend(page.chunk);
    timeline.start = page.end ?? null;
    return timeline.start !== null;
  }

  // Loads newer events of a stretch that does not reach the present.
  async loadNewer(room, timeline) {
    const page = await this.#app.live.call("get_room_events", [room.id], {
      query: { dir: "f", from: timeline.end, limit: PAGE, filter: JSON.stringify({ lazy_load_members: true }) },
    });
    room.addMembers(page.state ?? []);
    timeline.append(page.chunk);
    timeline.end = page.end ?? timeline.end;
    return page.chunk.length > 0;
  }

  // Loads a stretch of history around an event.
  async loadAround(room, eventId) {
    const around = await this.#app.live.call("get_event_context", [room.id, eventId], {
      query: { limit: PAGE, filter: JSON.stringify({ lazy_load_members: true }) },
    });
    room.addMembers(around.state ?? []);
    const timeline = room.stretch(around.start ?? null, around.end ?? null);
    timeline.append([...around.events_before].reverse());
    timeline.append([around.event, ...around.events_after]);
    return timeline;
  }

  // Loads the reactions to messages of a stretch that does not reach the present: they are later than the stretch.
  async loadReactions(room, timeline) {
    if (timeline.isLive) return;
    await Promise.all(
      room.relations.lacking(timeline.events.filter(isMessage)).map(async (event) => {
        try {
          const query = { limit: REACTIONS_MAX };
          const { chunk } = await this.#app.live.call("get_relating_events_with_rel_type", [room.id, event.event_id, "m.annotation"], { query });
          for (const reaction of chunk.reverse()) room.relations.add(reaction);
        } catch {
          room.relations.askAgain([event]); // the next look at this stretch tries again
        }
      }),
    );
    this.#app.changed();
  }

  // Loads a message that an answer quotes, and that is in no stretch which has been loaded.
  async loadQuoted(room, eventId) {
    if (room.quoted.has(eventId)) return;
    room.quoted.set(eventId, null);
    try {
      const event = await this.#app.live.call("get_one_room_event", [room.id, eventId]);
      room.relations.add(event);
      room.quoted.set(eventId, event);
      this.#app.changed();
    } catch (error) {
      if (error instanceof NetworkError) room.quoted.delete(eventId);
    }
  }
}

function transaction() {
  return crypto.randomUUID();
}

function relation(answered) {
  return answered ? { "m.relates_to": { "m.in_reply_to": { event_id: answered } } } : {};
}

