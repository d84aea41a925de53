"""Stores outliers: events that have no place in the room's graph, because the state before them is unknown.

They are the auth chains and the states that other servers give. State resolution and the auth rules read them, clients
see them only as part of a state.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from homeserver.database import Transaction
from homeserver.federation.auth_rules import create_event_id_of
from homeserver.federation.event import Event
from homeserver.federation.identifiers import EventID
from homeserver.rooms.authorization import check_by_auth_events
from homeserver.rooms.events import load_auth_events
from homeserver.rooms.graph import in_order
from homeserver.rooms.heads import insert_room
from homeserver.rooms.redactions import apply_pending
from homeserver.rooms.relations import store_waiting_relations
from homeserver.rooms.storage import Status, find_positions, insert_event, list_stored


def store_outliers(tx: Transaction, events: Iterable[Event]) -> frozenset[EventID]:
    """Stores events that are in no timeline: auth chains and states given by other servers. Returns what they lack.

    An event is stored once all its auth events are. It is stored as rejected if they do not allow it.
    """
    given = {event.event_id: event for event in events}
    for event_id in find_positions(tx, given):
        del given[event_id]
    for room_id, version in {(event.room_id, event.version) for event in given.values()}:
        insert_room(tx, room_id, version)
    lacking: set[EventID] = set()
    unstored: set[EventID] = set()
    ordered = in_order(given.values(), by_auth=True)
    # From room version 12 on no event cites the create event, although all depend on it.
    for event in sorted(ordered, key=lambda event: event.type != "m.room.create"):
        needed = _needed_for(event)
        positions = find_positions(tx, needed)
        if len(positions) == len(needed):
            _store_outlier(tx, event, positions)
        else:
            unstored.add(event.event_id)
            lacking.update(needed - positions.keys())
    return frozenset(lacking - unstored)


def _needed_for(event: Event) -> set[EventID]:
    """Returns the events that are needed to check the event against its auth events."""
    needed = set(event.auth_events)
    if event.type != "m.room.create" and event.version.room_id_is_create_event_id:
        needed.add(create_event_id_of(event.room_id))
    return needed


def _store_outlier(tx: Transaction, event: Event, positions: Mapping[EventID, int]) -> None:
    """Stores one outlier. `positions`: of all events returned by `_needed_for`."""
    rows = list_stored(tx, positions.values())
    rejected = {row.event_id for row in rows.values() if row.status == Status.REJECTED}
    loaded = load_auth_events(tx, positions.values())
    create = None
    if event.type != "m.room.create" and event.version.room_id_is_create_event_id:
        create = loaded[positions[create_event_id_of(event.room_id)]]
    rejection = check_by_auth_events(
        event, [loaded[positions[event_id]] for event_id in event.auth_events], rejected, create
    )
    position = tx.next_position()
    insert_event(tx, event, position, Status.OUTLIER if rejection is None else Status.REJECTED)
    store_waiting_relations(tx, event)
    apply_pending(tx, event)
