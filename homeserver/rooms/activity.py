"""Where something happened: the rooms of a user by recent activity, and those of new events, without reading either.

Spec: MSC4186
"""

from __future__ import annotations

from collections.abc import Collection
from itertools import starmap
from operator import itemgetter

import msgspec

from homeserver.database import Transaction
from homeserver.federation.identifiers import RoomID
from homeserver.rooms.membership import Membership


class RoomActivity(msgspec.Struct, frozen=True, gc=False):
    """A room of a user. last_position: of what came last for the user: an event, or the change of their membership.

    members_position: when a membership of the room last changed.
    sender_nid: who ended the stay of a user who has left, None if no event says so or for other memberships.
    """

    room_nid: int
    membership: Membership
    changed_position: int
    last_position: int
    members_position: int
    forgotten: int
    sender_nid: int | None


def list_activity(tx: Transaction, user_id: str) -> list[RoomActivity]:
    """Returns all rooms in which the user has or had a membership, the most recently active ones first."""
    rows = tx.all(
        "SELECT m.room_nid, m.membership, m.changed_position,"
        " CASE WHEN m.membership = 'join' THEN r.last_position ELSE m.changed_position END,"
        " r.members_position, m.forgotten,"
        " CASE WHEN m.membership = 'leave' THEN"
        " (SELECT e.sender_nid FROM events e WHERE e.position = m.event_position) END"
        " FROM memberships m JOIN rooms r ON r.room_nid = m.room_nid WHERE m.user_nid = ?",
        tx.find(user_id),
    )
    rows.sort(key=itemgetter(0))  # twice is cheaper than by both at once, and than in SQL
    rows.sort(key=itemgetter(3), reverse=True)
    return list(starmap(RoomActivity, rows))


def list_message_rooms(tx: Transaction, positions: Collection[int]) -> list[tuple[int, RoomID]]:
    """Returns position and room of those events at these positions that are in a row of their own and are not state."""
    sql = "SELECT position, room_nid FROM events WHERE position IN (?*) AND state_key_nid IS NULL"
    rows = tx.all_in(sql, positions)
    names = tx.names({room_nid for _, room_nid in rows})
    return [(position, RoomID(names[room_nid])) for position, room_nid in rows]


def list_rooms_with_events(tx: Transaction, since: int, upto: int) -> list[RoomID]:
    """Returns the rooms of the events in since < position ≤ upto, whatever their status."""
    nids = tx.values("SELECT DISTINCT room_nid FROM events WHERE position > ? AND position <= ?", since, upto)
    return [RoomID(name) for name in tx.names(nids).values()]
