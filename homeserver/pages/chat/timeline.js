// A stretch of a room's history without holes, and what later events did to earlier ones.
//
// Theory of operation. `events` is in order, oldest first. `start` continues it backwards, null at the room's
// beginning; `end` continues it forwards, null if it reaches the present. Edits, reactions and redactions are events
// of their own; here they are kept by the event that they change, so it does not matter which of them is read first.

export class Timeline {
  events = [];
  start = null;
  end = null;
  #places = null; // event ID → index, made when it is needed
  #known = new Set();
  #edits = new Map(); // event ID → its edits
  #reactions = new Map(); // event ID → reaction events
  #redactions = new Map(); // event ID → the redaction

  constructor(start = null, end = null) {
    this.start = start;
    this.end = end;
  }

  get isLive() {
    return this.end === null;
  }

  get last() {
    return this.events.at(-1);
  }

  has(eventId) {
    return this.#known.has(eventId);
  }

  get(eventId) {
    return this.events[this.indexOf(eventId)];
  }

  // Returns the place of an event, -1 if it is not in this stretch.
  indexOf(eventId) {
    this.#places ??= new Map(this.events.map((event, index) => [event.event_id, index]));
    return this.#places.get(eventId) ?? -1;
  }

  // Adds newer events. Returns those that were not there yet.
  append(events) {
    const fresh = this.#keep(events);
    this.events.push(...fresh);
    return fresh;
  }

  // Adds older events, newest of them first, as `/messages` answers going backwards.
  prepend(events) {
    this.events.unshift(...this.#keep(events).reverse());
  }

  #keep(events) {
    const fresh = events.filter((event) => event.event_id && !this.#known.has(event.event_id));
    this.#places = null;
    for (const event of fresh) {
      this.#known.add(event.event_id);
      this.#relate(event);
    }
    return fresh;
  }

  #relate(event) {
    const relation = event.content?.["m.relates_to"];
    if (event.type === "m.room.redaction") {
      this.#redactions.set(event.content?.redacts ?? event.redacts, event);
    } else if (event.type === "m.reaction" && relation?.rel_type === "m.annotation") {
      add(this.#reactions, relation.event_id, event);
    } else if (relation?.rel_type === "m.replace") {
      add(this.#edits, relation.event_id, event);
    }
    const bundled = event.unsigned?.["m.relations"]?.["m.replace"];
    if (bundled?.content) add(this.#edits, event.event_id, bundled);
  }

  isRedacted(event) {
    return Boolean(event.unsigned?.redacted_because) || this.#redactions.has(event.event_id);
  }

  // Returns what an event says today: {content, isEdited}.
  contentOf(event) {
    const edits = (this.#edits.get(event.event_id) ?? []).filter(
      (edit) => edit.sender === event.sender && isObject(edit.content["m.new_content"]) && !this.isRedacted(edit),
    );
    const newest = edits.reduce((best, edit) => (!best || edit.origin_server_ts >= best.origin_server_ts ? edit : best), null);
    return newest ? { content: newest.content["m.new_content"], isEdited: true } : { content: event.content, isEdited: false };
  }

  // Returns the reactions to an event: [{key, senders: Map of user ID → event ID of the reaction}], the first one first.
  reactionsTo(event) {
    const byKey = new Map();
    for (const reaction of this.#reactions.get(event.event_id) ?? []) {
      const key = reaction.content["m.relates_to"].key;
      if (typeof key !== "string" || !key || key.length > 64 || this.isRedacted(reaction)) continue;
      if (!byKey.has(key)) byKey.set(key, new Map());
      byKey.get(key).set(reaction.sender, reaction.event_id);
    }
    return [...byKey].map(([key, senders]) => ({ key, senders }));
  }
}

function add(map, key, event) {
  if (!map.has(key)) map.set(key, []);
  const list = map.get(key);
  if (!list.some((each) => each.event_id === event.event_id)) list.push(event);
}

function isObject(value) {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

// Returns the event ID that a message answers; undefined if it answers none.
export function repliedTo(content) {
  const answered = content?.["m.relates_to"]?.["m.in_reply_to"]?.event_id;
  return typeof answered === "string" ? answered : undefined;
}
