// What the events of a room did to other ones: edits, reactions and redactions.
//
// They are events of their own; here they are kept by the event that they change, so it does not matter which of them
// is read first. Read from the present backwards, history brings all of them along. In a stretch that was jumped to
// they may be missing: `lacking` says for which messages the server has to be asked (messages.js). Edits never are,
// because the server bundles the newest one with its message.

export class Relations {
  #edits = new Map(); // event ID → its edits
  #reactions = new Map(); // event ID → reaction events
  #redactions = new Map(); // event ID → the redaction
  #asked = new Set();

  // Remembers what an event says of another one. Harmless for one that is known already.
  add(event) {
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

  // Returns the events among these whose reactions have not been asked for yet, and notes that they are now.
  lacking(events) {
    const found = events.filter((event) => !this.#asked.has(event.event_id));
    for (const event of found) this.#asked.add(event.event_id);
    return found;
  }

  // Has the reactions to these events asked for again, all of them if none are given.
  askAgain(events) {
    if (!events) this.#asked.clear();
    else for (const event of events) this.#asked.delete(event.event_id);
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
