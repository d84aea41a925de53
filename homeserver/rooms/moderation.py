"""What administrators see of a user's doings in rooms, and what they undo of them."""

from __future__ import annotations

from homeserver.database import Transaction
from homeserver.federation.identifiers import RoomID, UserID
from homeserver.rooms.figures import list_entering
from homeserver.rooms.storage import TimelineEvent, find_stored_at
from homeserver.rooms.timeline import list_backwards

_EVENTS_AT_ONCE = 500


def count_invites_sent(tx: Transaction, user_id: UserID, from_ms: int) -> int:
    """Returns how many invitations the user has sent since a time, by the timestamps of the events."""
    positions = [position for position, _, is_own in _list_member_events(tx, user_id, from_ms) if not is_own]
    count = 0
    for start in range(0, len(positions), _EVENTS_AT_ONCE):
        events = find_stored_at(tx, positions[start : start + _EVENTS_AT_ONCE]).values()
        count += sum(event.content.get("membership") == "invite" for event in events)
    return count


def count_joins(tx: Transaction, user_id: UserID, from_ms: int) -> int:
    """Returns how many rooms the user has joined since a time, also those that they have left again."""
    rooms = {position: room_nid for position, room_nid, is_own in _list_member_events(tx, user_id, from_ms) if is_own}
    entering: set[int] = set()
    positions = list(rooms)
    for start in range(0, len(positions), _EVENTS_AT_ONCE):
        entering |= list_entering(tx, positions[start : start + _EVENTS_AT_ONCE])
    return len({rooms[position] for position in entering})


def _list_member_events(tx: Transaction, user_id: UserID, from_ms: int) -> list[tuple[int, int, bool]]:
    """Returns the position and room of each member event that the user has sent, and whether it is about themselves.

    Only rooms that the user is or was in are searched: there is an index for the events of a room by time.
    """
    user_nid, type_nid = tx.find(user_id), tx.find("m.room.member")
    found: list[tuple[int, int, bool]] = []
    for room_nid in tx.values("SELECT room_nid FROM memberships WHERE user_nid = ?", user_nid):
        rows = tx.all(
            "SELECT position, state_key_nid FROM events WHERE room_nid = ? AND origin_server_ts >= ?"
            " AND ordering IS NOT NULL AND sender_nid = ? AND type_nid = ?",
            room_nid, from_ms, user_nid, type_nid,
        )  # fmt: skip
        found += [(position, room_nid, state_key_nid == user_nid) for position, state_key_nid in rows]
    return found


def list_sent(
    tx: Transaction, room_id: RoomID, user_id: UserID, point: int, limit: int
) -> tuple[list[TimelineEvent], int | None]:
    """Returns the newest events of a user in a room, up to a point of the timeline, and where to go on.

    At most `limit`, among the next events of the room; None once there are no more.
    """
    events = list_backwards(tx, room_id, point, _EVENTS_AT_ONCE)
    sent = [event for event in events if event.sender == user_id]
    if len(sent) > limit:
        return sent[:limit], sent[limit - 1].ordering - 1
    return sent, events[-1].ordering - 1 if len(events) == _EVENTS_AT_ONCE else None
