"""The users who share rooms with a user, and how that has changed since a position of the stream.

Spec: client-server-api/#tracking-the-device-list-for-a-user
"""

from __future__ import annotations

from collections.abc import Collection

from homeserver.database import Transaction
from homeserver.federation.identifiers import RoomID, UserID, server_name_of
from homeserver.rooms.membership import list_sharing
from homeserver.rooms.resolve import head_at, positions_in
from homeserver.rooms.storage import list_stored
from homeserver.rooms.timeline import after_position


def list_sharing_changes(tx: Transaction, user_id: UserID, since: int) -> tuple[set[UserID], set[UserID]]:
    """Returns the others who share a room with the user now but did not at `since`, and those who only did then.

    The first also has users of other servers who shared a room at both times, but not all the time: in between, their
    server did not tell us of changes. The cost grows with the number of the user's rooms, and with the members of
    a room only if the user has come into it or left it.
    """
    own_nid = tx.find(user_id)
    if own_nid is None:
        return set(), set()
    now: set[int] = set()  # users who now share a room in which a membership has changed
    before: set[int] = set()  # users who shared such a room at `since`
    for room_nid, membership, entered_position in _list_changed_rooms(tx, own_nid, since):
        room_id = RoomID(tx.name(room_nid))
        is_in, has_moved = membership == "join", entered_position > since
        was_in = not has_moved or bool(_list_joined_at(tx, room_id, since, [own_nid]))
        changed: dict[int, str] = dict(tx.all(_SELECT_CHANGED, room_nid, since, since)) if was_in else {}
        joined = set(tx.values(_SELECT_JOINED, room_nid)) if has_moved and (is_in or was_in) else set()
        if is_in:
            now |= joined | {nid for nid, each in changed.items() if each == "join"}
        if was_in:
            before |= _list_joined_at(tx, room_id, since, list(changed)) | (joined - changed.keys())
    now -= {own_nid, *(nid for (nid,) in tx.all_in(_SELECT_SHARING_SINCE, now, since, own_nid, since))}
    ended = {UserID(name) for name in tx.names(before - {own_nid}).values()}
    begun = {UserID(name) for name in tx.names(now - before).values()}
    begun |= _list_interrupted(tx, now & before, since)
    return begun, ended - list_sharing(tx, user_id, ended)


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


def list_shared_since(tx: Transaction, user_ids: Collection[UserID], server_name: str) -> dict[UserID, int]:
    """Returns since which position each user has shared a room with users of a server, without interruption.

    Users who share none now are left out. The position may be later than the true one, never earlier.
    """
    by_nid = {nid: UserID(user_id) for user_id, nid in tx.find_all(user_ids).items()}
    rows = tx.all_in(
        "SELECT user_nid, room_nid, entered_position FROM memberships WHERE user_nid IN (?*) AND membership = 'join'",
        by_nid,
    )
    # The first of the server's users in each room, by an index: how many there are must not matter.
    entered: dict[int, int] = dict(
        tx.all_in(
            "SELECT room_nid, (SELECT m.entered_position FROM memberships m WHERE m.room_nid = rooms.room_nid"
            " AND m.membership = 'join' AND m.server_nid = ? ORDER BY m.entered_position LIMIT 1)"
            " FROM rooms WHERE room_nid IN (?*)",
            {room_nid for _, room_nid, _ in rows},
            tx.find(server_name),
        )
    )
    found: dict[UserID, int] = {}
    for user_nid, room_nid, entered_position in rows:
        if entered.get(room_nid) is not None:
            since = max(entered_position, entered[room_nid])
            found[by_nid[user_nid]] = min(since, found.get(by_nid[user_nid], since))
    return found


def _list_interrupted(tx: Transaction, user_nids: Collection[int], since: int) -> set[UserID]:
    """Returns the users of other servers with whom this server has not shared a room all the time since a position."""
    user_ids = [UserID(name) for name in tx.names(user_nids).values()]
    remote = [user_id for user_id in user_ids if server_name_of(user_id) != tx.server.name]
    shared = list_shared_since(tx, remote, tx.server.name)
    return {user_id for user_id in remote if shared.get(user_id, since + 1) > since}


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


def _list_joined_at(tx: Transaction, room_id: RoomID, since: int, user_nids: Collection[int]) -> set[int]:
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
