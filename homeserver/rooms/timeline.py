"""A room's timeline in order, in pages. Spec: client-server-api/#syncing (pagination), #getting-events-for-a-room

A point of a timeline is an `ordering`: it lies just after the event of that ordering. Clients hold it as `t<ordering>`;
a sync token `s<position>` is a point of every timeline at once. Orderings of backfilled events lie below the event that
they were fetched for, so a page is one scan of an index whatever came when.
"""

from __future__ import annotations

import re
from typing import Annotated, Literal

from msgspec import Meta

from homeserver.database import Transaction
from homeserver.errors import invalid_param
from homeserver.federation.canonical_json import INT_MAX
from homeserver.federation.identifiers import RoomID, ServerName
from homeserver.rooms.storage import ORDERING_SHIFT, StoredEvent, list_stored, stored_events

_TOKEN = re.compile(r"([st])(-?[0-9]{1,19})", re.ASCII)
START = -(1 << 62)  # before every event
END = 1 << 62  # after every event

Timestamp = Annotated[int, Meta(ge=-INT_MAX, le=INT_MAX)]
"""Milliseconds since 1970, as events can have them."""


def sync_token(position: int) -> str:
    """The token of a point of the stream."""
    return f"s{position}"


def timeline_token(ordering: int) -> str:
    """The token of a point of one timeline."""
    return f"t{ordering}"


def parse_sync_token(token: str) -> int:
    """The stream position of a token that /sync gave. MatrixError 400 for any other."""
    match = _TOKEN.fullmatch(token)
    if match is None or match[1] != "s" or not 0 <= int(match[2]) <= END:
        raise invalid_param("That is not a token from /sync of this server.")
    return int(match[2])


def parse_point(token: str) -> int:
    """The ordering that a token of /sync, /messages or /context stands for. MatrixError 400 for any other."""
    match = _TOKEN.fullmatch(token)
    if match is None:
        raise invalid_param("That is not a pagination token of this server.")
    number = int(match[2])
    return after_position(max(number, 0)) if match[1] == "s" else max(START, min(number, END))


def after_position(position: int) -> int:
    """The point of a timeline after everything up to a stream position."""
    return min(position << ORDERING_SHIFT, END)


def list_backwards(tx: Transaction, room_id: RoomID, point: int, limit: int, down_to: int = START) -> list[StoredEvent]:
    """At most `limit` events with down_to < ordering ≤ point, newest first."""
    rows = tx.all(
        "SELECT position, event_id, room_nid, ordering, type_nid, state_key_nid, sender_nid, origin_server_ts, status,"
        " redacted_by, state_before, device_id, txn_id, envelope, content FROM events"
        " WHERE room_nid = ? AND ordering IS NOT NULL AND ordering <= ? AND ordering > ?"
        " ORDER BY ordering DESC LIMIT ?",
        tx.find(room_id),
        point,
        down_to,
        limit,
    )
    return stored_events(tx, rows)


def list_forwards(tx: Transaction, room_id: RoomID, point: int, limit: int, up_to: int = END) -> list[StoredEvent]:
    """At most `limit` events with point < ordering ≤ up_to, oldest first."""
    rows = tx.all(
        "SELECT position, event_id, room_nid, ordering, type_nid, state_key_nid, sender_nid, origin_server_ts, status,"
        " redacted_by, state_before, device_id, txn_id, envelope, content FROM events"
        " WHERE room_nid = ? AND ordering IS NOT NULL AND ordering > ? AND ordering <= ?"
        " ORDER BY ordering LIMIT ?",
        tx.find(room_id),
        point,
        up_to,
        limit,
    )
    return stored_events(tx, rows)


def list_newest_from(
    tx: Transaction, room_nid: int, server: ServerName, since: int, upto: int, limit: int
) -> list[int]:
    """At most `limit` positions of events of a server's users between two positions of the stream, newest first."""
    return tx.values(
        "SELECT position FROM events WHERE room_nid = ? AND ordering > ? AND ordering <= ?"
        " AND sender_nid IN (SELECT user_nid FROM memberships WHERE room_nid = ?"
        " AND membership IN ('join', 'leave', 'ban', 'invite', 'knock') AND server_nid = ?)"
        " ORDER BY ordering DESC LIMIT ?",
        room_nid,
        since << ORDERING_SHIFT,
        upto << ORDERING_SHIFT,
        room_nid,
        tx.find(server),
        limit,
    )


def list_by_timestamp(
    tx: Transaction, room_id: RoomID, ts: int, direction: Literal["f", "b"], limit: int
) -> list[StoredEvent]:
    """At most `limit` events with an `origin_server_ts` not before `ts` ("f") or not after it ("b"), nearest first."""
    if direction == "f":
        positions = tx.values(
            "SELECT position FROM events WHERE room_nid = ? AND ordering IS NOT NULL AND origin_server_ts >= ?"
            " ORDER BY origin_server_ts, ordering LIMIT ?",
            tx.find(room_id),
            ts,
            limit,
        )
    else:
        positions = tx.values(
            "SELECT position FROM events WHERE room_nid = ? AND ordering IS NOT NULL AND origin_server_ts <= ?"
            " ORDER BY origin_server_ts DESC, ordering DESC LIMIT ?",
            tx.find(room_id),
            ts,
            limit,
        )
    stored = list_stored(tx, positions)
    return [stored[position] for position in positions]
