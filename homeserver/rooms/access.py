"""What of a room a user may read: its state now, or as it was when they left.

Spec: client-server-api/#room-history-visibility
"""

from __future__ import annotations

from federation.identifiers import RoomID
from homeserver.database import Transaction
from homeserver.errors import forbidden
from homeserver.rooms.heads import find_head
from homeserver.rooms.membership import get_room_membership
from homeserver.rooms.resolve import StateAt, position_in, state_after
from homeserver.rooms.storage import StoredEvent, list_stored
from homeserver.rooms.visibility import is_world_readable


def readable_state(tx: Transaction, room_id: RoomID, user_id: str) -> StateAt:
    """The state that the user may read: the current one of who is in the room, or if anyone may read it.

    Who has left reads the state as it was then. MatrixError 403 for all others, whether there is such a room or not.
    """
    membership = get_room_membership(tx, room_id, user_id)
    head = find_head(tx, room_id)
    if head is not None and head.create_position:
        if membership is not None and membership.membership == "join":
            return StateAt(head.state_root)
        if is_world_readable(tx, room_id):
            return StateAt(head.state_root)
        if membership is not None and membership.membership in ("leave", "ban") and not membership.forgotten:
            left = list_stored(tx, (membership.event_position,)).get(membership.event_position)
            if left is not None and left.state_before is not None:
                return state_after(tx, left)
    raise forbidden("You are not in that room.")


def find_in_state(tx: Transaction, state: StateAt, event_type: str, state_key: str) -> StoredEvent | None:
    """One event of a state."""
    type_nid, key_nid = tx.find(event_type), tx.find(state_key)
    if type_nid is None or key_nid is None:
        return None
    position = position_in(tx, state, (type_nid, key_nid))
    return None if position is None else list_stored(tx, (position,))[position]
