"""A room's timeline in order, in pages. Spec: client-server-api/#syncing (pagination), #getting-events-for-a-room

A point of a timeline is an `ordering`: it lies just after the event with that ordering. Backfilled events get orderings
below the event that they were fetched for. So a page is one scan of an index, whatever the order of arrival.

Clients hold such points as tokens. A token also names the generation of the stream in which it was made (see
`homeserver.database.generations`):

    s<position>_<generation>                a point of the stream, hence of every timeline at once
    s<position>.<queue>_<generation>        the same, but the device's to-device queue has been told only up to there
    s<position>_<generation>~<serial>.<n>   the same, as `pos` of a connection (see `homeserver.sync.sliding`)
    t<ordering>_<position>_<generation>     a point of one timeline, made when the stream was at the position

After a restore from a backup, clients present tokens from a history that this database does not have. Such a token is
recognised if the stream of its generation, as this database knows it, never reached its position. Then the histories
had diverged before the token was made, and it is replaced by a point from which the client cannot miss anything.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Annotated, Literal

from msgspec import Meta, Struct

from homeserver.database import Row, Transaction
from homeserver.database.generations import find_reach
from homeserver.errors import invalid_param
from homeserver.federation.canonical_json import INT_MAX
from homeserver.federation.identifiers import RoomID, ServerName
from homeserver.rooms.archive import reading
from homeserver.rooms.archive.format import ORDERING
from homeserver.rooms.storage import ORDERING_SHIFT, TimelineEvent, list_in_timeline, timeline_events

_TOKEN = re.compile(
    r"(?:s([0-9]{1,19})(?:\.([0-9]{1,19}))?|t(-?[0-9]{1,19})(?:_([0-9]{1,19}))?)(?:_([A-Za-z0-9_-]{1,32}))?"
    r"(?:~[0-9]{1,19}\.[0-9]{1,3})?",
    re.ASCII,
)
_BRIEFS_AT_ONCE = 1_000
START = -(1 << 62)  # before every event
END = 1 << 62  # after every event

Timestamp = Annotated[int, Meta(ge=-INT_MAX, le=INT_MAX)]
"""Milliseconds since 1970, within the range allowed for events."""


class Token(Struct, frozen=True):
    """A point that a client was given. `number`: a position of the stream, or an ordering of a timeline.

    position: the stream position when the token was made. Tokens from before generations existed name none; those of a
    timeline have no position either. queue: up to where the device has been told its queue, see `SyncContext`.
    """

    is_of_stream: bool
    number: int
    position: int
    generation: str
    queue: int


class Tokens(Struct, frozen=True):
    """Creates the tokens for one answer, which shows the stream up to `position`."""

    position: int
    generation: str

    def stream(self, queue: int | None = None) -> str:
        """Returns the token for that point of the stream. queue: up to where the device's queue was told."""
        if queue is not None and queue < self.position:
            return f"s{self.position}.{queue}_{self.generation}"
        return f"s{self.position}_{self.generation}"

    def timeline(self, ordering: int) -> str:
        """Returns the token for a point of one timeline."""
        return f"t{ordering}_{self.position}_{self.generation}"


def parse_token(text: str) -> Token:
    """Parses a token of /sync, /messages or /context. Raises MatrixError 400 for any other text."""
    match = _TOKEN.fullmatch(text)
    if match is None:
        raise invalid_param("This is not a token of this server.")
    position, queue, ordering, made, generation = match.groups()
    if position is not None:
        number = int(position)
        return Token(True, number, number, generation or "", min(number, int(queue or number)))
    return Token(False, max(START, min(int(ordering), END)), int(made or 0), generation or "", 0)


def parse_sync_token(text: str) -> Token:
    """Does the same as `parse_token`, and also raises MatrixError 400 for a token that is not from /sync."""
    token = parse_token(text)
    if not token.is_of_stream:
        raise invalid_param("This is not a /sync token of this server.")
    return token


def find_since(tx: Transaction, token: Token) -> int | None:
    """Returns the position of a sync token; None if it is from another history, so that the client may be wrong."""
    reach = find_reach(tx, token.generation)
    return None if reach is None or token.position > reach else token.number


def get_point(tx: Transaction, token: Token, *, forwards: bool) -> int:
    """Returns the ordering of a token. For another history: the nearest from which a reader misses nothing."""
    ordering = after_position(token.number) if token.is_of_stream else token.number
    reach = find_reach(tx, token.generation)
    if reach is None:
        return START if forwards else END
    if token.position <= reach:
        return ordering
    parted = after_position(reach)
    if forwards:  # history fetched since then may lie before the point now
        return parted if ordering >= parted else START
    return parted


def get_bounds(tx: Transaction, start: Token | None, stop: Token | None, *, forwards: bool) -> tuple[int, int]:
    """Returns the point where a page starts, and the point beyond which it does not go. None: the timeline's end."""
    first, last = (START, END) if forwards else (END, START)
    return (
        first if start is None else get_point(tx, start, forwards=forwards),
        last if stop is None else get_point(tx, stop, forwards=not forwards),
    )


def after_position(position: int) -> int:
    """Returns the point of a timeline after everything up to a stream position."""
    return min(position << ORDERING_SHIFT, END)


def list_backwards(
    tx: Transaction, room_id: RoomID, point: int, limit: int, down_to: int = START
) -> list[TimelineEvent]:
    """Returns at most `limit` events with down_to < ordering ≤ point, newest first."""
    room_nid = tx.find(room_id)
    rows = tx.all(
        "SELECT position, event_id, room_nid, ordering, type_nid, state_key_nid, sender_nid, origin_server_ts, status,"
        " redacted_by, state_before, device_id, txn_id, envelope, content FROM events"
        " WHERE room_nid = ? AND ordering IS NOT NULL AND ordering <= ? AND ordering > ?"
        " ORDER BY ordering DESC LIMIT ?",
        room_nid,
        point,
        down_to,
        limit,
    )
    low = down_to if len(rows) < limit else rows[-1][ORDERING]
    archived = reading.rows_between(tx, room_nid, low, point, limit, forwards=False)
    return timeline_events(tx, _merge(rows, archived, limit, forwards=False) if archived else rows)


def list_forwards(tx: Transaction, room_id: RoomID, point: int, limit: int, up_to: int = END) -> list[TimelineEvent]:
    """Returns at most `limit` events with point < ordering ≤ up_to, oldest first."""
    room_nid = tx.find(room_id)
    rows = tx.all(
        "SELECT position, event_id, room_nid, ordering, type_nid, state_key_nid, sender_nid, origin_server_ts, status,"
        " redacted_by, state_before, device_id, txn_id, envelope, content FROM events"
        " WHERE room_nid = ? AND ordering IS NOT NULL AND ordering > ? AND ordering <= ?"
        " ORDER BY ordering LIMIT ?",
        room_nid,
        point,
        up_to,
        limit,
    )
    high = up_to if len(rows) < limit else rows[-1][ORDERING]
    archived = reading.rows_between(tx, room_nid, point, high, limit, forwards=True)
    return timeline_events(tx, _merge(rows, archived, limit, forwards=True) if archived else rows)


def _merge(rows: list[Row], archived: list[Row], limit: int, *, forwards: bool) -> list[Row]:
    """Returns the first `limit` of both. An archived event that has a row again is the row."""
    by_ordering = {row[ORDERING]: row for row in archived}
    by_ordering |= {row[ORDERING]: row for row in rows}
    return [by_ordering[ordering] for ordering in sorted(by_ordering, reverse=not forwards)[:limit]]


def find_types(tx: Transaction, room_id: RoomID, point: int, up_to: int, limit: int) -> set[str] | None:
    """Returns the types of the events with point < ordering ≤ up_to, None if there are more than `limit` events."""
    room_nid = tx.find(room_id)
    nids = tx.values(
        "SELECT type_nid FROM events WHERE room_nid = ? AND ordering IS NOT NULL AND ordering > ? AND ordering <= ?"
        " LIMIT ?",
        room_nid,
        point,
        up_to,
        limit + 1,
    )
    if len(nids) <= limit:
        briefs = reading.briefs_between(tx, room_nid, point, up_to, limit + 1 - len(nids))
        nids += [each.type_nid for each in briefs]
    return None if len(nids) > limit else set(tx.names(set(nids)).values())


def find_newest_of_types(
    tx: Transaction, room_id: RoomID, types: Collection[str], point: int, up_to: int, limit: int
) -> int | None:
    """Returns the stream position at which the newest event of these types came, with point < ordering ≤ up_to.

    Only the newest `limit` events are searched. If none of these is of the types, and there are more events, the oldest
    of the searched ones stands for the others. None if there is no such event.
    """
    room_nid = tx.find(room_id)
    rows = tx.all(
        "SELECT ordering, type_nid FROM events WHERE room_nid = ? AND ordering IS NOT NULL AND ordering > ?"
        " AND ordering <= ? ORDER BY ordering DESC LIMIT ?",
        room_nid,
        point,
        up_to,
        limit,
    )
    low = point if len(rows) < limit else rows[-1][0]
    archived = [(each.ordering, each.type_nid) for each in reading.briefs_between(tx, room_nid, low, up_to, limit)]
    if archived:
        rows = sorted({*rows, *archived}, reverse=True)[:limit]
    nids = set(tx.find_all(types).values())
    found = next((ordering for ordering, type_nid in rows if type_nid in nids), None)
    if found is None and len(rows) == limit:
        found = rows[-1][0]
    return None if found is None else max(0, found >> ORDERING_SHIFT)


def list_newest_from(
    tx: Transaction, room_nid: int, server: ServerName, since: int, upto: int, limit: int
) -> list[int]:
    """Returns at most `limit` positions of events by a server's users between two stream positions, newest first."""
    low, high = since << ORDERING_SHIFT, upto << ORDERING_SHIFT
    found = tx.all(
        "SELECT ordering, position FROM events WHERE room_nid = ? AND ordering > ? AND ordering <= ?"
        " AND sender_nid IN (SELECT user_nid FROM memberships WHERE room_nid = ?"
        " AND membership IN ('join', 'leave', 'ban', 'invite', 'knock') AND server_nid = ?)"
        " ORDER BY ordering DESC LIMIT ?",
        room_nid,
        low,
        high,
        room_nid,
        tx.find(server),
        limit,
    )
    if len(found) < limit:
        found = sorted({*found, *_list_archived_from(tx, room_nid, server, low, high, limit)}, reverse=True)[:limit]
    return [position for _, position in found]


def _list_archived_from(
    tx: Transaction, room_nid: int, server: ServerName, low: int, high: int, limit: int
) -> list[tuple[int, int]]:
    """Returns ordering and position of the newest archived events by a server's users."""
    found: list[tuple[int, int]] = []
    while briefs := reading.briefs_between(tx, room_nid, low, high, _BRIEFS_AT_ONCE):
        users = {
            nid for nid, name in tx.names({each.sender_nid for each in briefs}).items() if name.endswith(f":{server}")
        }
        found += [(each.ordering, each.position) for each in briefs if each.sender_nid in users]
        if len(found) >= limit or len(briefs) < _BRIEFS_AT_ONCE:
            break
        high = briefs[-1].ordering - 1
    return found[:limit]


def list_by_timestamp(
    tx: Transaction, room_id: RoomID, ts: int, direction: Literal["f", "b"], limit: int
) -> list[TimelineEvent]:
    """Returns at most `limit` events whose `origin_server_ts` is ≥ `ts` ("f") or ≤ `ts` ("b"), nearest first."""
    room_nid = tx.find(room_id)
    if direction == "f":
        positions = tx.values(
            "SELECT position FROM events WHERE room_nid = ? AND ordering IS NOT NULL AND origin_server_ts >= ?"
            " ORDER BY origin_server_ts, ordering LIMIT ?",
            room_nid,
            ts,
            limit,
        )
    else:
        positions = tx.values(
            "SELECT position FROM events WHERE room_nid = ? AND ordering IS NOT NULL AND origin_server_ts <= ?"
            " ORDER BY origin_server_ts DESC, ordering DESC LIMIT ?",
            room_nid,
            ts,
            limit,
        )
    stored = list_in_timeline(tx, positions)
    archived = reading.rows_at_time(tx, room_nid, ts, direction, limit)
    if not archived:
        return [stored[position] for position in positions]
    stored = {event.position: event for event in timeline_events(tx, archived)} | stored
    nearest = sorted(
        stored.values(), key=lambda event: (event.origin_server_ts, event.ordering), reverse=direction == "b"
    )
    return nearest[:limit]
