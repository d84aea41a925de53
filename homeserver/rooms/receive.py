"""Adds other servers' events to a room, after `homeserver/remote/` has checked their signatures and hashes.

Theory of operation. `receive_event` is one synchronous function in one transaction, as `append_local` is for our own
events:

1. The state before the event is computed from its prev_events (`rooms/state_before.py`).
2. The event is checked against its auth events, that state and the current state (`rooms/authorization.py`). The
   outcome is a Status: TIMELINE, SOFT_FAILED or REJECTED. All three are stored, with a place in the graph. A new event
   that the room's policy server has not signed is soft-failed too (`rooms/policy.py`).
3. A timeline event gets an ordering: at the end if it is new, else the one that backfill has chosen.
4. What it means for gaps is noted (`rooms/gaps.py`).
5. The head moves (`rooms/advance.py`). A new event becomes an extremity, and the ones that it follows are none any
   more. An event of the past can only do the second.
6. Redactions take effect: this one, or earlier ones of this event (`rooms/redactions.py`).
7. Its relation to another event is stored, and those of events that arrived before it (`rooms/relations.py`).

If an event is needed that is not stored, nothing is changed and `Missing` lists it. The driver in `homeserver/remote/`
fetches it, stores it as an outlier (`rooms/outliers.py`) or receives it first, and tries again. An event that has its
place keeps it: receiving it again changes nothing. An outlier gets its place when it is received.

`adopt_room` enters a room with the state that a resident server gave.
"""

from __future__ import annotations

from collections.abc import Collection

import msgspec
from msgspec.structs import replace

from homeserver.database import Transaction
from homeserver.errors import MatrixError, forbidden
from homeserver.federation.event import Event
from homeserver.federation.identifiers import EventID
from homeserver.rooms.advance import advance_beside, advance_past, leave_head
from homeserver.rooms.authorization import authorize
from homeserver.rooms.gaps import NOTHING_BEHIND, delete_missing, look_behind, note_missing
from homeserver.rooms.graph import Missing
from homeserver.rooms.heads import find_head, open_room, set_create_position
from homeserver.rooms.policy import find_unmet_policy
from homeserver.rooms.redactions import apply_pending, apply_redaction
from homeserver.rooms.relations import store_relation, store_waiting_relations
from homeserver.rooms.resolve import store_state
from homeserver.rooms.rewrites import note_rewrite
from homeserver.rooms.state_before import find_given_state, find_state_before
from homeserver.rooms.storage import (
    ORDERING_SHIFT,
    PlacedEvent,
    Status,
    find_stored_by_id,
    insert_event,
    set_place_in_timeline,
)


class Received(msgspec.Struct, frozen=True):
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
    stored = find_stored_by_id(tx, event.event_id)
    if isinstance(stored, PlacedEvent):
        return Received(stored.position, Status(stored.status), is_new=False)
    head = find_head(tx, event.room_id)
    if head is None or not head.create_position:
        return Missing(auth_events=frozenset(event.auth_events))
    before = find_state_before(tx, head, event, state)
    if isinstance(before, Missing):
        return before
    root = store_state(tx, before)
    verdict = authorize(tx, head, event, root)
    if isinstance(verdict, Missing):
        return verdict
    status, reason = verdict
    if status == Status.SOFT_FAILED and ordering is not None:
        status, reason = Status.TIMELINE, ""  # an event of the past is not checked against the current state
    if status == Status.TIMELINE and ordering is None and (policy := find_unmet_policy(tx, head, event)):
        status, reason = Status.SOFT_FAILED, f"The room's policy server, {policy.name}, has not signed the event."
    is_new = status == Status.TIMELINE and ordering is None
    moment = tx.next_position(*((event.room_id,) if is_new else ()))
    position = moment if stored is None else stored.position
    place = None
    if status == Status.TIMELINE:
        place = moment << ORDERING_SHIFT if ordering is None else ordering
    if stored is None:
        insert_event(tx, event, position, status, ordering=place, state_before=root)
    else:
        set_place_in_timeline(tx, position, status, place, root)
    if place is not None and (stored is None or stored.redacted_by is None):
        store_relation(tx, event, position, place)
    children = delete_missing(tx, head, event)
    past = look_behind(tx, event) if status == Status.TIMELINE or children else NOTHING_BEHIND
    note_missing(tx, head, (position,) if status == Status.TIMELINE else children, past.missing)
    if children or not (is_new and stored is None):
        note_rewrite(tx, head.room_nid)
    if is_new:
        advance_beside(tx, head, event, position, followed=past.positions, is_past=bool(children))
    elif status == Status.TIMELINE:
        advance_past(tx, head, past.positions)
    if status == Status.TIMELINE:
        apply_redaction(tx, event, position, root)
    if stored is None:
        store_waiting_relations(tx, event)
    apply_pending(tx, event)
    return Received(position, status, is_new=True, reason=reason)


def adopt_room(
    tx: Transaction, join: Event, create_id: EventID | None, state_ids: Collection[EventID]
) -> Received | Missing:
    """Enters a room by a join that a resident server accepted, with the state it gave.

    The join is the only extremity, unless the resident has not heard yet that some of our users have left.

    create_id, state_ids: stored events (`store_outliers`). Raises MatrixError 403 if that state does not allow the
    join, 502 if it is not a state of that room. In both cases nothing changes.
    """
    head = open_room(tx, join.room_id, join.version)
    stored = None if create_id is None else find_stored_by_id(tx, create_id)
    if stored is None or stored.status == Status.REJECTED or stored.room_id != join.room_id:
        raise MatrixError(502, "M_UNKNOWN", "The other server's state has no m.room.create event of that room.")
    if head.create_position not in (0, stored.position):
        raise MatrixError(502, "M_UNKNOWN", "The other server's state belongs to a different room than the known one.")
    set_create_position(tx, head.room_nid, stored.position)
    known = replace(head, create_position=stored.position)
    given = find_given_state(tx, known, state_ids)
    if isinstance(given, Missing):
        return given
    leave_head(tx, known, given)
    received = receive_event(tx, join, state=state_ids)
    if isinstance(received, Received) and received.status != Status.TIMELINE:
        raise forbidden(f"The room does not allow this: {received.reason}")
    return received
