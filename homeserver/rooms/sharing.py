"""With whom a user shares rooms, and how that has changed since a position of the stream.

Spec: client-server-api/#tracking-the-device-list-for-a-user
"""

from __future__ import annotations

from collections.abc import Collection

from homeserver.database import Transaction
from homeserver.federation.identifiers import RoomID, UserID
from homeserver.rooms.membership import list_sharing
from homeserver.rooms.resolve import head_at, positions_in
from homeserver.rooms.storage import list_stored
from homeserver.rooms.timeline import after_position


def list_sharing_changes(tx: Transaction, user_id: UserID, since: int) -> tuple[set[UserID], set[UserID]]:
    """Returns the others who share a room with the user now but did not at `since`, and those who only did then.

    The cost grows with the number of the user's rooms, and with the members of a room only if the user has come into it
    or left it.
    """
    begun: set[int] = set()
    ended: set[int] = set()
    own_nid = tx.find(user_id)
    if own_nid is None:
        return set(), set()
    for room_nid, membership, entered_position in _list_changed_rooms(tx, own_nid, since):
        room_id = RoomID(tx.name(room_nid))
        is_in = membership == "join"
        was_in = entered_position <= since or own_nid in _joined_at(tx, room_id, since, [own_nid])
        changed: dict[int, str] = dict(tx.all(_SELECT_CHANGED, room_nid, since, since)) if was_in else {}
        were_in = _joined_at(tx, room_id, since, list(changed))
        if is_in and was_in:
            begun.update(nid for nid, now in changed.items() if now == "join" and nid not in were_in)
            ended.update(nid for nid in were_in if changed[nid] != "join")
        elif is_in:
            begun.update(tx.values(_SELECT_JOINED, room_nid))
        elif was_in:
            ended.update(were_in)
            ended.update(nid for nid in tx.values(_SELECT_JOINED, room_nid) if nid not in changed)
    ended.discard(own_nid)
    begun -= {own_nid, *ended, *(nid for (nid,) in tx.all_in(_SELECT_SHARING_SINCE, begun, since, own_nid, since))}
    left = {UserID(name) for name in tx.names(ended).values()}
    return {UserID(name) for name in tx.names(begun).values()}, left - list_sharing(tx, user_id, left)


_SELECT_CHANGED = """
    SELECT user_nid, membership FROM memberships
    WHERE room_nid = ? AND changed_position > ? AND entered_position > ?
"""
_SELECT_JOINED = "SELECT user_nid FROM memberships WHERE room_nid = ? AND membership = 'join'"
_SELECT_SHARING_SINCE = """
    SELECT DISTINCT b.user_nid FROM memberships b
    WHERE b.user_nid IN (?*) AND b.membership = 'join' AND b.entered_position <= ?
    AND EXISTS (SELECT 1 FROM memberships a WHERE a.user_nid = ? AND a.room_nid = b.room_nid
    AND a.membership = 'join' AND a.entered_position <= ?)
"""


def _list_changed_rooms(tx: Transaction, user_nid: int, since: int) -> list[tuple[int, str, int]]:
    """Returns the rooms in which the user's own membership has changed or, while the user is in them, anybody's."""
    return tx.all(
        "SELECT m.room_nid, m.membership, m.entered_position FROM memberships m"
        " JOIN rooms r ON r.room_nid = m.room_nid WHERE m.user_nid = ? AND r.members_position > ?"
        " AND (m.membership = 'join' OR m.entered_position > ?)",
        user_nid,
        since,
        since,
    )


def _joined_at(tx: Transaction, room_id: RoomID, since: int, user_nids: Collection[int]) -> set[int]:
    """Returns which of the users were in the room at a position of the stream."""
    state = head_at(tx, room_id, after_position(since)) if since and user_nids else None
    if state is None:
        return set()
    keys = {("m.room.member", name): nid for nid, name in tx.names(user_nids).items()}
    positions = positions_in(tx, state, keys)
    events = list_stored(tx, set(positions.values()))
    return {
        keys[key]
        for key, position in positions.items()
        if position in events and events[position].content.get("membership") == "join"
    }
