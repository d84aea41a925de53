"""The state before an event of another server, and the state after an outlier.

Theory of operation. The state before an event is the resolution of the states after its prev_events
(rooms/v12/#state-resolution). There are four cases:

- the event follows exactly the head's extremities, by far the most frequent case: it is the state of the head;
- all prev_events have a place in the graph: it is resolved from the states after them;
- one of them has no place: `Missing` lists it. The driver fetches it and tries again;
- the driver gave up on that and got the state from a resident server: it is resolved together with the states that we
  know ourselves, so that no other server can talk us out of them.

`resolve_beforehand` does this in a read, so that the write finds the result in the cache (`rooms/resolve.py`).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from homeserver.database import Transaction
from homeserver.federation.event import Event
from homeserver.federation.identifiers import EventID
from homeserver.rooms import state_tree
from homeserver.rooms.archive.blocks import find_archived
from homeserver.rooms.envelope import event_id_of_key, event_key
from homeserver.rooms.graph import Missing
from homeserver.rooms.heads import Head, find_head
from homeserver.rooms.resolve import StateAt, resolve_states, state_after
from homeserver.rooms.storage import PlacedEvent, Status, find_positions, find_stored_by_id, list_event_ids, list_stored


def find_state_before(
    tx: Transaction, head: Head, event: Event, given: Collection[EventID] | None = None
) -> StateAt | Missing:
    """Returns the state before the event. given: that state according to a resident server, as stored events."""
    if event.type == "m.room.create" and event.event_id == _create_event_id(tx, head):
        return StateAt(state_tree.EMPTY_ROOT)
    positions = find_positions(tx, event.prev_events)
    is_next = head.extremities and set(event.prev_events) == set(head.extremity_ids)
    if given is None and is_next:
        return StateAt(head.state_root)
    stored = list_stored(tx, positions.values())
    if any(row.room_id != event.room_id for row in stored.values()):
        return Missing()  # it cites another room, so no state can be computed
    placed = [row for row in stored.values() if isinstance(row, PlacedEvent)]
    states = [state_after(tx, row) for row in placed]
    if given is not None:
        given_state = find_given_state(tx, head, given)
        if isinstance(given_state, Missing):
            return given_state
        return resolve_states(tx, head.version, [given_state, *states])
    missing = frozenset(event.prev_events) - {row.event_id for row in placed}
    if missing or not placed:
        return Missing(prev_events=missing)
    return resolve_states(tx, head.version, states)


def resolve_beforehand(tx: Transaction, event: Event) -> None:
    """Resolves the states that `receive_event` will need, so that the write finds them cached. Changes nothing."""
    head = find_head(tx, event.room_id)
    if head is not None and head.create_position:
        find_state_before(tx, head, event)


def _create_event_id(tx: Transaction, head: Head) -> EventID:
    return list_event_ids(tx, (head.create_position,))[head.create_position]


def find_given_state(tx: Transaction, head: Head, event_ids: Collection[EventID]) -> StateAt | Missing:
    """Returns the state given by another server, without events of other rooms, and with our create event."""
    keys = {event_key(event_id): event_id for event_id in event_ids}
    rows = tx.all_in(  # without the events themselves, of which there may be a hundred thousand
        "SELECT event_id, position, room_nid, status, type_nid, state_key_nid FROM events WHERE event_id IN (?*)",
        list(keys),
    )
    missing = keys.keys() - {bytes(row[0]) for row in rows}
    missing -= find_archived(tx, missing).keys()  # archived events are not state events
    if missing:
        return Missing(auth_events=frozenset(keys[key] for key in missing))
    entries: dict[state_tree.Key, int | None] = {
        (type_nid, key_nid): position
        for _, position, room_nid, status, type_nid, key_nid in rows
        if key_nid is not None and status != Status.REJECTED and room_nid == head.room_nid
    }
    entries[tx.intern("m.room.create"), tx.intern("")] = head.create_position
    return StateAt(state_tree.EMPTY_ROOT, tuple(sorted(entries.items())))


def list_state_after(tx: Transaction, state_ids: Sequence[EventID], event: Event) -> list[EventID]:
    """Returns the state after an outlier, from the state before it. All events are stored."""
    stored = find_stored_by_id(tx, event.event_id)
    if stored is None or stored.status == Status.REJECTED or not event.is_state:
        return list(state_ids)
    event_type, state_key = event.key
    rows = tx.all_in(
        "SELECT event_id FROM events WHERE event_id IN (?*) AND type_nid = ? AND state_key_nid = ?",
        [event_key(event_id) for event_id in state_ids],
        tx.find(event_type),
        tx.find(state_key),
    )
    replaced = {event_id_of_key(bytes(row[0])) for row in rows}
    return [*(event_id for event_id in state_ids if event_id not in replaced), event.event_id]
