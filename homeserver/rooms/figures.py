"""What can be counted of events without reading what people say: the columns of their rows, and memberships.

Only `list_entering` reads contents, and only those of member events.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

from homeserver.database import Transaction
from homeserver.rooms.archive import reading
from homeserver.rooms.archive.format import ORDERING, POSITION, ROOM, SENDER, STATE_KEY, TS, TYPE
from homeserver.rooms.client_event import list_replaced
from homeserver.rooms.envelope import event_key
from homeserver.rooms.storage import ORDERING_SHIFT, find_stored_at


class Fact(NamedTuple):
    """A new event of a timeline. Rooms and senders are numbers; origin_server_ts is what the sender's server claims."""

    position: int
    room_nid: int
    type_nid: int
    is_state: bool
    sender_nid: int
    origin_server_ts: int


class RoomSize(NamedTuple):
    """What a room's events take in the database, without indexes. Messages are events that are not state."""

    events: int
    messages: int
    bytes: int


def list_facts(tx: Transaction, since: int, upto: int) -> list[Fact]:
    """Returns the events that were new when they came, in since < position ≤ upto, oldest first.

    History that was fetched from other servers is left out: it lies before the place of its position.
    """
    rows = tx.all(
        "SELECT position, room_nid, type_nid, state_key_nid, sender_nid, origin_server_ts FROM events"
        " WHERE position > ? AND position <= ? AND ordering = position * ?",
        since, upto, 1 << ORDERING_SHIFT,
    )  # fmt: skip
    facts = [Fact(row[0], row[1], row[2], row[3] is not None, row[4], row[5]) for row in rows]
    archived = reading.list_in_span(tx, since, upto)
    if archived:
        known = {fact.position for fact in facts}
        facts += [
            Fact(row[POSITION], row[ROOM], row[TYPE], row[STATE_KEY] is not None, row[SENDER], row[TS])
            for row in reading.rows_at(tx, {*archived} - known)
            if row[ORDERING] == row[POSITION] << ORDERING_SHIFT
        ]
    return sorted(facts)


def list_entering(tx: Transaction, positions: Collection[int]) -> set[int]:
    """Returns the positions of those member events by which someone entered a room, rather than changed their name."""
    events = list(find_stored_at(tx, positions).values())
    replaced = list_replaced(tx, events)
    return {
        event.position
        for event in events
        if event.content.get("membership") == "join"
        and (event.position not in replaced or replaced[event.position].content.get("membership") != "join")
    }


def list_times(tx: Transaction, event_ids: Collection[str]) -> dict[str, int]:
    """Returns `origin_server_ts` of those of the events that are stored."""
    keys = {event_key(event_id): event_id for event_id in event_ids}
    rows = tx.all_in("SELECT event_id, origin_server_ts FROM events WHERE event_id IN (?*)", list(keys))
    return {keys[bytes(key)]: ts for key, ts in rows}


def list_sizes(tx: Transaction, since: int, upto: int) -> dict[int, RoomSize]:
    """Returns what the events in since < position ≤ upto take, by the number of their room."""
    rows = tx.all(
        "SELECT room_nid, COUNT(*), SUM(CASE WHEN state_key_nid IS NULL THEN 1 ELSE 0 END),"
        " SUM(LENGTH(content) + LENGTH(envelope)) FROM events WHERE position > ? AND position <= ? GROUP BY room_nid",
        since, upto,
    )  # fmt: skip
    return {row[0]: RoomSize(int(row[1]), int(row[2]), int(row[3])) for row in rows}
