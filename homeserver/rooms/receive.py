"""Adds other servers' events to a room, after `homeserver/remote/` has checked their signatures and hashes.

Theory of operation. This module does steps 4 to 6 of server-server-api/#checks-performed-on-receipt-of-a-pdu against
the stored state. `receive_event` computes the state before the event from its prev_events, resolving it if there are
several. It checks the event against its auth events, against that state and against the current state, and stores it
with a Status: TIMELINE, SOFT_FAILED or REJECTED. A timeline event moves the head, or takes a place in the past.

- If an event is needed that is not stored, nothing is changed and `Missing` lists it. The driver fetches it and tries
  again.
- `store_outliers` stores auth chains and fetched states: events that have no place in the graph yet.
- `adopt_room` enters a room with the state that a resident server gave.
- `missing_events` records the ancestors of timeline events that have no place in the graph. That is how backfill knows
  where history has gaps.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from homeserver.database import Transaction
from homeserver.errors import MatrixError, forbidden
from homeserver.federation.auth_events import select_auth_keys_of
from homeserver.federation.auth_rules import Rejection, check, check_auth_events, create_event_id_of
from homeserver.federation.event import Event
from homeserver.federation.identifiers import EventID, RoomID
from homeserver.federation.pdu_checks import state_of
from homeserver.rooms import state_tree
from homeserver.rooms.advance import advance_beside, advance_past, leave_head
from homeserver.rooms.envelope import event_id_of_key, event_key
from homeserver.rooms.graph import in_order
from homeserver.rooms.heads import Head, find_head, insert_room, open_room, set_create_position, state_events
from homeserver.rooms.redactions import apply_pending, apply_redaction
from homeserver.rooms.resolve import StateAt, resolve_states, state_after, store_state
from homeserver.rooms.storage import (
    ORDERING_SHIFT,
    PlacedEvent,
    Status,
    StoredEvent,
    event_ids_at,
    find_positions,
    get_stored,
    insert_event,
    list_in_timeline,
    list_stored,
    load_auth_events,
    place_in_timeline,
    to_events,
)

BEHIND_EVENTS_MAX = 100  # how many ancestors are searched for one event


@dataclass(frozen=True, slots=True)
class Missing:
    """Events that must be stored first: ancestors whose state is needed, and auth events.

    Empty if no event would help: the event has no prev_events, or only some from another room.
    """

    prev_events: frozenset[EventID] = frozenset()
    auth_events: frozenset[EventID] = frozenset()


@dataclass(frozen=True, slots=True)
class Received:
    """The outcome for an event. `is_new` is False if it was already stored; `reason` says why it was not accepted."""

    position: int
    status: Status
    is_new: bool
    reason: str = ""


def receive_event(
    tx: Transaction, event: Event, *, state: Collection[EventID] | None = None, ordering: int | None = None
) -> Received | Missing:
    """Checks an event against its auth events, the state before it and the current state, and stores it.

    state: the state before it as given by a resident server, if its ancestors cannot be obtained. ordering: the place
    in the timeline for an event of the past. Without it the event is new and goes to the end.
    """
    stored = get_stored(tx, event.event_id)
    if isinstance(stored, PlacedEvent):
        return Received(stored.position, Status(stored.status), is_new=False)
    head = find_head(tx, event.room_id)
    if head is None or not head.create_position:
        return Missing(auth_events=frozenset(event.auth_events))
    before = _state_before(tx, head, event, state)
    if isinstance(before, Missing):
        return before
    root = store_state(tx, before)
    verdict = _judge(tx, head, event, root)
    if isinstance(verdict, Missing):
        return verdict
    status, reason = verdict
    if status == Status.SOFT_FAILED and ordering is not None:
        status, reason = Status.TIMELINE, ""  # an event of the past is not checked against the current state
    is_new = status == Status.TIMELINE and ordering is None
    moment = tx.next_position(*((event.room_id,) if is_new else ()))
    position = moment if stored is None else stored.position
    place = None
    if status == Status.TIMELINE:
        place = moment << ORDERING_SHIFT if ordering is None else ordering
    if stored is None:
        insert_event(tx, event, position, status, ordering=place, state_before=root)
    else:
        place_in_timeline(tx, position, status, place, root)
    children = _take_children(tx, head, event)
    past = _look_behind(tx, event) if status == Status.TIMELINE or children else _NOTHING_BEHIND
    _note_missing(tx, head, (position,) if status == Status.TIMELINE else children, past.missing)
    if is_new:
        advance_beside(tx, head, event, position, followed=past.positions, is_past=bool(children))
    elif status == Status.TIMELINE:
        advance_past(tx, head, past.positions)
    if status == Status.TIMELINE:
        apply_redaction(tx, event, position, root)
    apply_pending(tx, event)
    return Received(position, status, is_new=True, reason=reason)


def resolve_beforehand(tx: Transaction, event: Event) -> None:
    """Resolves the states that `receive_event` will need, so that the write finds them cached. Changes nothing."""
    head = find_head(tx, event.room_id)
    if head is not None and head.create_position:
        _state_before(tx, head, event, None)


def _state_before(tx: Transaction, head: Head, event: Event, given: Collection[EventID] | None) -> StateAt | Missing:
    """Returns the state before the event, resolved from those after its prev_events and the given one, if any."""
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
        given_state = _given_state(tx, head, given)
        # Our own knowledge is resolved with it, so that no other server can talk us out of it.
        if isinstance(given_state, Missing):
            return given_state
        return resolve_states(tx, head.version, [given_state, *states])
    missing = frozenset(event.prev_events) - {row.event_id for row in placed}
    if missing or not placed:
        return Missing(prev_events=missing)
    return resolve_states(tx, head.version, states)


def _create_event_id(tx: Transaction, head: Head) -> EventID:
    return event_ids_at(tx, (head.create_position,))[head.create_position]


def _given_state(tx: Transaction, head: Head, event_ids: Collection[EventID]) -> StateAt | Missing:
    """Returns the state given by another server, without events of other rooms, and with our create event."""
    keys = {event_key(event_id): event_id for event_id in event_ids}
    rows = tx.all_in(  # without the events themselves, of which there may be a hundred thousand
        "SELECT event_id, position, room_nid, status, type_nid, state_key_nid FROM events WHERE event_id IN (?*)",
        list(keys),
    )
    missing = keys.keys() - {bytes(row[0]) for row in rows}
    if missing:
        return Missing(auth_events=frozenset(keys[key] for key in missing))
    entries: dict[state_tree.Key, int | None] = {
        (type_nid, key_nid): position
        for _, position, room_nid, status, type_nid, key_nid in rows
        if key_nid is not None and status != Status.REJECTED and room_nid == head.room_nid
    }
    entries[tx.intern("m.room.create"), tx.intern("")] = head.create_position
    return StateAt(state_tree.EMPTY_ROOT, tuple(sorted(entries.items())))


def state_with(tx: Transaction, state_ids: Sequence[EventID], event: Event) -> list[EventID]:
    """Returns the state after an outlier, from the state before it. All events are stored."""
    stored = get_stored(tx, event.event_id)
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


def _judge(tx: Transaction, head: Head, event: Event, root: bytes) -> tuple[Status, str] | Missing:
    """Does steps 4 to 6: checks by its auth events, by the state before it, and by the current state."""
    rejection = _check_by_auth_events(tx, head, event)
    if isinstance(rejection, Missing):
        return rejection
    keys = {*select_auth_keys_of(event), ("m.room.create", "")}
    rejection = rejection or check(event, state_events(tx, root, keys))
    if rejection is not None:
        return Status.REJECTED, rejection.reason
    if head.extremities and head.state_root != root:
        rejection = check(event, state_events(tx, head.state_root, keys))
        if rejection is not None:
            return Status.SOFT_FAILED, rejection.reason
    return Status.TIMELINE, ""


def _check_by_auth_events(tx: Transaction, head: Head, event: Event) -> Rejection | Missing | None:
    positions = find_positions(tx, event.auth_events)
    missing = frozenset(event.auth_events) - positions.keys()
    if missing:
        return Missing(auth_events=missing)
    rejected = {row.event_id for row in list_stored(tx, positions.values()).values() if row.status == Status.REJECTED}
    loaded = load_auth_events(tx, [*positions.values(), head.create_position])
    auth_events = [loaded[positions[event_id]] for event_id in event.auth_events]
    return _check_auth(event, auth_events, rejected, loaded[head.create_position])


def _check_auth(
    event: Event, auth_events: Sequence[Event], rejected: Collection[EventID], create: Event | None
) -> Rejection | None:
    """Does step 4: checks the auth events themselves, then the event against the state that they make up."""
    rejection = check_auth_events(event, auth_events, rejected)
    if rejection is not None:
        return rejection
    state = state_of(auth_events)
    if create is not None:
        state.setdefault(("m.room.create", ""), create)
    return check(event, state)


class _Past(NamedTuple):
    """The events just behind an event. `missing`: ancestors without a place in the graph."""

    positions: frozenset[int]
    missing: frozenset[EventID]


_NOTHING_BEHIND = _Past(frozenset(), frozenset())


def _look_behind(tx: Transaction, event: Event) -> _Past:
    """Returns the timeline events that the event follows, looking through rejected and soft-failed ones.

    No timeline event follows those. The search is bounded, because a banned server could chain them indefinitely.
    """
    found: set[int] = set()
    missing: set[EventID] = set()
    waiting = set(event.prev_events)
    while waiting and len(found) < BEHIND_EVENTS_MAX:
        positions = find_positions(tx, waiting)
        rows = list_stored(tx, set(positions.values()) - found)
        missing.update(waiting - positions.keys())
        missing.update(row.event_id for row in rows.values() if not isinstance(row, PlacedEvent))
        placed = {position: row for position, row in rows.items() if isinstance(row, PlacedEvent)}
        found.update(placed)
        through = [row for row in placed.values() if row.status != Status.TIMELINE]
        waiting = {prev_id for each in to_events(tx, through) for prev_id in each.prev_events}
    return _Past(frozenset(found), frozenset(missing))


def _take_children(tx: Transaction, head: Head, event: Event) -> list[int]:
    """Returns the positions of timeline events that cite this one, and removes it from the missing events."""
    key = event_key(event.event_id)
    children = tx.values("SELECT child FROM missing_events WHERE room_nid = ? AND event_id = ?", head.room_nid, key)
    if children:
        tx.run("DELETE FROM missing_events WHERE room_nid = ? AND event_id = ?", head.room_nid, key)
    return children


def _note_missing(tx: Transaction, head: Head, children: Sequence[int], missing: Collection[EventID]) -> None:
    """Stores which ancestors of timeline events have no place in the graph."""
    if missing:
        tx.many(
            "INSERT INTO missing_events (room_nid, event_id, child) VALUES (?, ?, ?) ON CONFLICT DO NOTHING",
            [(head.room_nid, event_key(event_id), child) for event_id in missing for child in children],
        )


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
    rejection = _check_auth(event, [loaded[positions[event_id]] for event_id in event.auth_events], rejected, create)
    position = tx.next_position()
    insert_event(tx, event, position, Status.OUTLIER if rejection is None else Status.REJECTED)
    apply_pending(tx, event)


def adopt_room(
    tx: Transaction, join: Event, create_id: EventID | None, state_ids: Collection[EventID]
) -> Received | Missing:
    """Enters a room by a join that a resident server accepted, with the state it gave. The join is the only extremity.

    create_id, state_ids: stored events (`store_outliers`). Raises MatrixError 403 if that state does not allow the
    join, 502 if it is not a state of that room. In both cases nothing changes.
    """
    head = open_room(tx, join.room_id, join.version)
    stored = None if create_id is None else get_stored(tx, create_id)
    if stored is None or stored.status == Status.REJECTED or stored.room_id != join.room_id:
        raise MatrixError(502, "M_UNKNOWN", "The other server's state has no m.room.create event of that room.")
    if head.create_position not in (0, stored.position):
        raise MatrixError(502, "M_UNKNOWN", "The other server's state belongs to a different room than the known one.")
    set_create_position(tx, head.room_nid, stored.position)
    known = replace(head, create_position=stored.position)
    given = _given_state(tx, known, state_ids)
    if isinstance(given, Missing):
        return given
    leave_head(tx, known, given)
    received = receive_event(tx, join, state=state_ids)
    if isinstance(received, Received) and received.status != Status.TIMELINE:
        raise forbidden(f"The room does not allow this: {received.reason}")
    return received


def find_places(tx: Transaction, room_id: RoomID, events: Sequence[Event]) -> dict[EventID, int]:
    """Returns orderings for events of the past, given oldest first: each just before the events that follow it.

    Leaves out events that have a place already, and events that no timeline event follows.
    """
    room_nid = tx.find(room_id)
    rows = list_stored(tx, find_positions(tx, [event.event_id for event in events]).values())
    placed = {row.event_id: row.ordering for row in rows.values() if isinstance(row, PlacedEvent)}
    places: dict[EventID, int] = {}
    bounds: dict[EventID, int] = {}  # the earliest of the events that follow an event
    taken: set[int] = set()
    for event in reversed(events):
        ordering = placed.get(event.event_id)
        if event.event_id not in placed:
            children = tx.values(
                "SELECT child FROM missing_events WHERE room_nid = ? AND event_id = ?",
                room_nid,
                event_key(event.event_id),
            )
            after = [row.ordering for row in list_in_timeline(tx, children).values()]
            if event.event_id in bounds:
                after.append(bounds[event.event_id])
            if after:
                ordering = places[event.event_id] = _free_place(tx, room_nid, min(after) - 1, taken)
                taken.add(ordering)
        if ordering is not None:
            for event_id in event.prev_events:
                bounds[event_id] = min(ordering, bounds.get(event_id, ordering))
    return places


def _free_place(tx: Transaction, room_nid: int | None, place: int, taken: Collection[int]) -> int:
    """Returns the highest free ordering up to `place`."""
    while True:
        while place in taken:
            place -= 1
        if tx.one("SELECT 1 FROM events WHERE room_nid = ? AND ordering = ?", room_nid, place) is None:
            return place
        (beyond,) = tx.values(
            "SELECT MAX(e.ordering) FROM events e WHERE e.room_nid = ? AND e.ordering <= ? AND NOT EXISTS"
            " (SELECT 1 FROM events before WHERE before.room_nid = e.room_nid AND before.ordering = e.ordering - 1)",
            room_nid,
            place,
        )
        place = beyond - 1


def find_newest_gap(tx: Transaction, room_id: RoomID, since: int, upto: int) -> int | None:
    """Returns the ordering of the newest event in since < ordering ≤ upto with missing history just before it.

    Returns None if there is none.
    """
    row = tx.one(
        "SELECT MAX(e.ordering) FROM missing_events m JOIN events e ON e.position = m.child"
        " WHERE m.room_nid = ? AND e.ordering > ? AND e.ordering <= ?",
        tx.find(room_id),
        since,
        upto,
    )
    return None if row is None else row[0]


def list_missing(tx: Transaction, room_id: RoomID, point: int, limit: int) -> list[tuple[EventID, StoredEvent]]:
    """Returns ancestors that are not in the timeline, each with a child that is not after `point`, newest first.

    A page of history ends just before its oldest event. Missing events there lie behind the event after the point.
    """
    rows = tx.all(
        "SELECT m.event_id, m.child FROM missing_events m JOIN events e ON e.position = m.child"
        " WHERE m.room_nid = ? AND e.ordering <= ? ORDER BY e.ordering DESC LIMIT ?",
        tx.find(room_id),
        point + 1,
        limit,
    )
    stored = list_stored(tx, {child for _, child in rows})
    return [(event_id_of_key(bytes(key)), stored[child]) for key, child in rows]
