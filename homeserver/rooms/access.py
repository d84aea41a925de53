"""What a user may read of a room: its current state, or the state when they left.

Spec: client-server-api/#room-history-visibility
"""

from __future__ import annotations

import msgspec

from homeserver.database import Transaction
from homeserver.errors import forbidden, not_found
from homeserver.federation.identifiers import EventID, RoomID, UserID
from homeserver.rooms.heads import find_head
from homeserver.rooms.membership import find_room_membership
from homeserver.rooms.resolve import StateAt, position_in, state_after
from homeserver.rooms.state_tree import find_key
from homeserver.rooms.storage import StoredEvent, TimelineEvent, find_stored_by_id, list_stored
from homeserver.rooms.timeline import END
from homeserver.rooms.visibility import filter_visible, find_leave, is_world_readable


class Readable(msgspec.Struct, frozen=True):
    """What a user may read: a state, and the timeline up to the point `upto`."""

    state: StateAt
    upto: int


def read_access(tx: Transaction, room_id: RoomID, user_id: str) -> Readable:
    """Returns what the user may read: everything, if they are in the room or it is world-readable.

    Former members may read the room as it was when they left. Raises MatrixError 403 for everyone else, whether the
    room exists or not.
    """
    membership = find_room_membership(tx, room_id, user_id)
    head = find_head(tx, room_id)
    if head is not None and head.create_position:
        if membership is not None and membership.membership == "join":
            return Readable(StateAt(head.state_root), END)
        if is_world_readable(tx, room_id):
            return Readable(StateAt(head.state_root), END)
        if membership is not None and not membership.forgotten:
            left = find_leave(tx, room_id, user_id)
            if left is not None:
                return Readable(state_after(tx, left), left.ordering)
    raise forbidden("You are not in that room.")


def readable_state(tx: Transaction, room_id: RoomID, user_id: str) -> StateAt:
    """Returns the state that the user may read; see `read_access`."""
    return read_access(tx, room_id, user_id).state


def find_in_state(tx: Transaction, state: StateAt, event_type: str, state_key: str) -> StoredEvent | None:
    """Returns one event of a state, None if the state has none."""
    key = find_key(tx, event_type, state_key)
    position = None if key is None else position_in(tx, state, key)
    return None if position is None else list_stored(tx, (position,))[position]


def get_visible_event(tx: Transaction, room_id: RoomID, event_id: EventID, user_id: UserID) -> TimelineEvent:
    """Returns an event of the room's timeline. Raises MatrixError 404 if there is none, or the user may not see it."""
    event = find_stored_by_id(tx, event_id)
    unseen = not_found("There is no such event, or none that you may see.")
    if not isinstance(event, TimelineEvent) or event.room_id != room_id:
        raise unseen
    membership = find_room_membership(tx, room_id, user_id)
    if membership is not None and membership.forgotten and not is_world_readable(tx, room_id):
        raise unseen
    visible = filter_visible(tx, user_id, room_id, [event])
    if not visible:
        raise unseen
    return visible[0]
