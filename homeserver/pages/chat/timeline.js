// A stretch of a room's history without holes.
//
// `events` is in order, oldest first. `start` continues it backwards, null at the room's beginning; `end` continues it
// forwards, null if it reaches the present. What later events did to earlier ones is in `relations`, which all
// stretches of a room share: a reaction that arrives now is seen in whatever stretch shows its message.

import { Relations } from "./relations.js";

export class Timeline {
  events = [];
  start = null;
  end = null;
  relations;
  #places = null; // event ID → index, made when it is needed
  #known = new Set();

  constructor(start = null, end = null, relations = new Relations()) {
    this.start = start;
    this.end = end;
    this.relations = relations;
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
      this.relations.add(event);
    }
    return fresh;
  }

  isRedacted(event) {
    return this.relations.isRedacted(event);
  }

  contentOf(event) {
    return this.relations.contentOf(event);
  }

  reactionsTo(event) {
    return this.relations.reactionsTo(event);
  }
}

// Returns the event ID that a message answers; undefined if it answers none.
export function repliedTo(content) {
  const answered = content?.["m.relates_to"]?.["m.in_reply_to"]?.event_id;
  return typeof answered === "string" ? answered : undefined;
}
