"""The members that may have changed in a span of the stream, and rooms that may have been opened or closed.

Rooms, users and events are numbers here: the index of the user directory consists of them.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, NamedTuple

from homeserver.database import Transaction
from homeserver.federation.identifiers import RoomID, UserID
from homeserver.rooms.heads import find_head, state_content
from homeserver.rooms.membership import read_stripped
from homeserver.rooms.sealed_rows import open_stripped
from homeserver.rooms.storage import ORDERING_SHIFT, list_stored
from homeserver.rooms.visibility import history_visibility


class Joined(NamedTuple):
    """A user in a room. event_position: of the member event; changed_position: when it became the current one."""

    user_nid: int
    room_nid: int
    event_position: int
    changed_position: int


def is_open(tx: Transaction, room_nid: int) -> bool:
    """Returns whether anyone may join the room or read it: its members are in public.

    Spec: client-server-api/#post_matrixclientv3user_directorysearch
    """
    head = find_head(tx, RoomID(tx.name(room_nid)))
    if head is None:
        return False
    rules = state_content(tx, head.state_root, "m.room.join_rules") or {}
    return rules.get("join_rule") == "public" or history_visibility(tx, head.state_root) == "world_readable"


def list_rooms_changed(tx: Transaction, since: int, upto: int) -> set[int]:
    """Returns the rooms whose members, join rules or history visibility may have changed at since < position ≤ upto.

    Rooms whose members changed later are included: their earlier changes may be in the span too.
    """
    found = set(list_rooms_with_member_changes(tx, since))
    found.update(
        tx.values(
            "SELECT room_nid FROM events WHERE position > ? AND position <= ? AND type_nid IN (?, ?)",
            since, upto, tx.find("m.room.join_rules"), tx.find("m.room.history_visibility"),
        )
    )  # fmt: skip
    found.update(
        tx.values(
            "SELECT room_nid FROM resolved_heads WHERE ordering > ? AND ordering < ?",
            since << ORDERING_SHIFT, (upto + 1) << ORDERING_SHIFT,
        )
    )  # fmt: skip
    return found


def list_rooms_with_member_changes(tx: Transaction, since: int) -> list[int]:
    """Returns the rooms of which a membership has changed after position `since`."""
    return tx.values("SELECT room_nid FROM rooms WHERE members_position > ?", since)


def list_members_changed(tx: Transaction, room_nid: int, since: int, upto: int) -> list[int]:
    """Returns the users whose membership or member event changed at since < position ≤ upto."""
    return tx.values(
        "SELECT user_nid FROM memberships WHERE room_nid = ? AND changed_position > ? AND changed_position <= ?",
        room_nid, since, upto,
    )  # fmt: skip


def list_members_after(tx: Transaction, room_nid: int, user_nid: int, limit: int) -> list[int]:
    """Returns the first joined users in the order of their numbers, after `user_nid`."""
    return tx.values(
        "SELECT user_nid FROM memberships WHERE room_nid = ? AND membership = 'join' AND user_nid > ?"
        " ORDER BY user_nid LIMIT ?",
        room_nid, user_nid, limit,
    )  # fmt: skip


class Entry(NamedTuple):
    """A user's membership of a room. entered_position: when it became this one, whatever the profile did since."""

    user_id: UserID
    membership: str
    entered_position: int


def list_entries(tx: Transaction, room_id: str, server_name: str, since: int = 0) -> list[Entry]:
    """Returns the memberships of a server's users that have changed after position `since`: all if that is 0."""
    rows = tx.all(
        "SELECT user_nid, membership, entered_position FROM memberships"
        " WHERE room_nid = ? AND changed_position > ? AND server_nid = ?",
        tx.find(room_id), since, tx.find(server_name),
    )  # fmt: skip
    names = tx.names([row[0] for row in rows])
    return [Entry(UserID(names[nid]), membership, entered) for nid, membership, entered in rows]


def count_joined(tx: Transaction, room_nid: int) -> int:
    """Returns how many users are in the room."""
    (count,) = tx.values("SELECT COUNT(*) FROM memberships WHERE room_nid = ? AND membership = 'join'", room_nid)
    return int(count)


def is_server_new(tx: Transaction, room_id: str, server_name: str, since: int) -> bool:
    """Returns whether all users of that server in the room have joined, or changed their profile, after `since`."""
    row = tx.one(
        "SELECT 1 FROM memberships WHERE room_nid = ? AND membership = 'join' AND server_nid = ?"
        " AND changed_position <= ? LIMIT 1",
        tx.find(room_id), tx.find(server_name), since,
    )  # fmt: skip
    return row is None


def has_at_most(tx: Transaction, room_nid: int, members_max: int) -> bool:
    """Returns whether no more users than that are in the room. The cost does not grow with the room."""
    nids = tx.values(
        "SELECT user_nid FROM memberships WHERE room_nid = ? AND membership = 'join' LIMIT ?", room_nid, members_max + 1
    )
    return len(nids) <= members_max


def list_joined(tx: Transaction, user_nids: Collection[int]) -> list[Joined]:
    """Returns all rooms that the users are in."""
    rows = tx.all_in(
        "SELECT user_nid, room_nid, event_position, changed_position FROM memberships"
        " WHERE user_nid IN (?*) AND membership = 'join'",
        user_nids,
    )
    return [Joined(*row) for row in rows]


def list_member_contents(tx: Transaction, positions: Collection[int]) -> dict[int, dict[str, Any]]:
    """Returns the contents of member events."""
    return {position: event.content for position, event in list_stored(tx, positions).items()}


class ShownChange(NamedTuple):
    """A user's membership of a room that shows them something while they are outside. own_event: their member event."""

    room_id: RoomID
    user_id: UserID
    own_event: dict[str, Any] | None


def list_shown_changes(tx: Transaction, since: int, upto: int) -> list[tuple[int, ShownChange]]:
    """Returns the invites and knocks, and how they ended, at since < position ≤ upto, each with its position.

    The events of those in rooms that this server is not in are stored nowhere else.
    """
    rows = tx.all(
        "SELECT changed_position, room_nid, user_nid, stripped FROM memberships"
        " WHERE stripped IS NOT NULL AND changed_position > ? AND changed_position <= ?",
        since, upto,
    )  # fmt: skip
    changes = []
    for position, room_nid, user_nid, stripped in rows:
        user_id = UserID(tx.name(user_nid))
        shown = read_stripped(open_stripped(tx, room_nid, user_nid, stripped))
        own = [each for each in shown if each.get("type") == "m.room.member" and each.get("state_key") == user_id]
        change = ShownChange(RoomID(tx.name(room_nid)), user_id, own[-1] if own else None)
        changes.append((position, change))
    return changes
