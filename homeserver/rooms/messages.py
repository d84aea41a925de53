"""Messages: what counts as one, the newest ones of a user's rooms, and those that a user has sent.

The newest ones are found without reading events. For them any event that is not a state event is a message, and rooms
and users are numbers, as in the rows.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

from homeserver.database import Transaction
from homeserver.federation.identifiers import EventID
from homeserver.rooms.archive import reading
from homeserver.rooms.envelope import event_id_of_key
from homeserver.rooms.storage import ORDERING_SHIFT, StoredEvent, list_stored

MESSAGE_TYPES = frozenset(
    {"m.room.message", "m.room.encrypted", "m.sticker", "m.poll.start", "org.matrix.msc3381.poll.start"}
)
"""The types of events by which people say something."""

# Somebody who has written this many messages in a row is hardly waiting for what came before.
EXAMINED_MAX = 1_000


class Placed(NamedTuple):
    """An event of a timeline. state_key_nid: None for a message."""

    position: int
    room_nid: int
    state_key_nid: int | None


def list_placed(tx: Transaction, since: int, upto: int) -> list[Placed]:
    """Returns the events of timelines with since < position ≤ upto, in order."""
    rows = tx.all(
        "SELECT position, room_nid, state_key_nid FROM events WHERE position > ? AND position <= ?"
        " AND ordering IS NOT NULL ORDER BY position",
        since,
        upto,
    )
    return [Placed(*row) for row in rows]


def find_newest_message(
    tx: Transaction, room_nid: int, user_nid: int | None, since: int, upto: int
) -> tuple[EventID, int] | None:
    """Returns ID and ordering of a room's newest message with since < position ≤ upto that the user did not send."""
    row = tx.one(
        "SELECT event_id, ordering FROM (SELECT event_id, ordering, position, state_key_nid, sender_nid FROM events"
        " WHERE room_nid = ? AND ordering > ? AND ordering < ? ORDER BY ordering DESC LIMIT ?) AS newest"
        " WHERE position <= ? AND state_key_nid IS NULL AND sender_nid <> ? ORDER BY ordering DESC LIMIT 1",
        room_nid,
        since << ORDERING_SHIFT,
        (upto + 1) << ORDERING_SHIFT,
        EXAMINED_MAX,
        upto,
        user_nid or 0,
    )
    return None if row is None else (event_id_of_key(bytes(row[0])), int(row[1]))


def list_joined_among(tx: Transaction, user_id: str, room_nids: Collection[int]) -> list[int]:
    """Returns the numbers of those of these rooms that the user is in."""
    rows = tx.all_in(
        "SELECT room_nid FROM memberships WHERE room_nid IN (?*) AND user_nid = ? AND membership = 'join'",
        room_nids,
        tx.find(user_id),
    )
    return [room_nid for (room_nid,) in rows]


def list_rooms_active_since(tx: Transaction, user_id: str, since: int) -> dict[int, int]:
    """Returns the numbers of the user's rooms that have had events after position `since`.

    Each with the position at which the user entered it.
    """
    rows = tx.all(
        "SELECT m.room_nid, m.entered_position FROM memberships m JOIN rooms r ON r.room_nid = m.room_nid"
        " WHERE m.user_nid = ? AND m.membership = 'join' AND r.last_position > ?",
        tx.find(user_id),
        since,
    )
    return {int(room_nid): int(entered) for room_nid, entered in rows}


def list_sent(tx: Transaction, user_id: str, since: int, upto: int) -> list[StoredEvent]:
    """Returns the events in timelines that a user has sent, in since < position ≤ upto, archived ones included."""
    positions = tx.values(
        "SELECT position FROM events WHERE position > ? AND position <= ? AND sender_nid = ? AND ordering IS NOT NULL",
        since, upto, tx.find(user_id),
    )  # fmt: skip
    stored = list_stored(tx, {*positions, *reading.list_in_span(tx, since, upto)})
    return [stored[position] for position in sorted(stored) if stored[position].sender == user_id]
