"""Stores events as rows, and reads them in the form that the caller needs.

`StoredEvent` is a row with its content: enough for clients, timelines and filters. Its class says where the event is: a
`PlacedEvent` in the room's graph, a `TimelineEvent` also in its timeline, and any other in neither. Whole signed events
are in `homeserver/rooms/events.py`. Only `homeserver/rooms/` touches these tables.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from enum import IntEnum
from types import NoneType
from typing import Any, TypeVar

import msgspec
import orjson

from homeserver.database import DatabaseDamaged, Row, Transaction
from homeserver.database.compression import decompress_json
from homeserver.database.row_types import kinds_of, row_types
from homeserver.federation.event import Event
from homeserver.federation.identifiers import EventID, RoomID, UserID
from homeserver.limits import EVENT_CONTENT_BYTES_MAX
from homeserver.rooms.archive import blocks, reading
from homeserver.rooms.envelope import event_id_of_key, event_key
from homeserver.rooms.rewrites import note_rewrite
from homeserver.rooms.sealed_rows import RowOpener, pack_row

EVENTS_REMEMBERED_BYTES_MAX = 32 << 20  # some 25,000 messages: what the syncs and pages of an hour keep asking for
EVENT_ROW_BYTES = 1_000  # of a row and its StoredEvent, besides what is counted
ORDERING_SHIFT = 20  # leaves room for 2**20 backfilled events between two positions


class Status(IntEnum):
    """The role of an event in its room. Only TIMELINE events are sent to clients."""

    TIMELINE = 0
    OUTLIER = 1
    SOFT_FAILED = 2
    REJECTED = 3


class StoredEvent(msgspec.Struct, frozen=True, gc=False):
    """A row of `events`. If it is neither a PlacedEvent nor a TimelineEvent, it is an outlier: its prev_events may not
    be stored, so the state before it is unknown.

    ordering: sorts the room's timeline. state_before: the root of the state before the event.
    """

    position: int
    event_id: EventID
    room_id: RoomID
    ordering: int | None
    type: str
    state_key: str | None
    sender: UserID
    origin_server_ts: int
    status: int
    redacted_by: int | None
    state_before: bytes | None
    device_id: str | None
    txn_id: str | None
    envelope: bytes
    content_json: bytes

    @property
    def is_state(self) -> bool:
        return self.state_key is not None

    @property
    def content(self) -> dict[str, Any]:
        """The content, parsed on each access: most rows are passed on to clients unread."""
        content: dict[str, Any] = orjson.loads(self.content_json)
        return content


class PlacedEvent(StoredEvent, frozen=True, gc=False):
    """An event with a place in the room's graph. It may be rejected or soft-failed, and so not in the timeline."""

    state_before: bytes


class TimelineEvent(PlacedEvent, frozen=True, gc=False):
    """An event of the room's timeline. Its status is TIMELINE."""

    ordering: int


Place = TypeVar("Place", bound=StoredEvent)
SomeEvent = TypeVar("SomeEvent", bound=StoredEvent)


def _kinds(kind: type[Place], ordering: type | None, state_before: type | None) -> dict[tuple[type, ...], type[Place]]:
    """Returns which rows are events of this kind. The other columns of a row may have the same types for all kinds."""
    columns = (
        # position, event_id, room, ordering, type, state_key, sender, origin_server_ts, status, redacted_by,
        # state_before, device_id, txn_id, envelope, content
        int, bytes, int, ordering or NoneType, int, int | None, int, int, int, int | None,
        state_before or NoneType, str | None, str | None, bytes, bytes,
    )  # fmt: skip
    return dict.fromkeys(row_types(*columns), kind)


_TIMELINE_ROWS = _kinds(TimelineEvent, int, bytes)
_ROWS: Mapping[tuple[type, ...], type[StoredEvent]] = {
    **_kinds(StoredEvent, None, None),
    **_kinds(PlacedEvent, None, bytes),
    **_TIMELINE_ROWS,
}


def insert_event(
    tx: Transaction,
    event: Event,
    position: int,
    status: Status,
    *,
    known: Mapping[EventID, int] | None = None,
    ordering: int | None = None,
    state_before: bytes | None = None,
    device_id: str | None = None,
    txn_id: str | None = None,
) -> None:
    """Stores a new event under a position just taken. `known`: the positions of all events that it cites."""
    if known is None:
        known = find_positions(tx, {*event.prev_events, *event.auth_events})
    room_nid = tx.intern(event.room_id)
    packed, content = pack_row(tx, room_nid, position, event, known)
    tx.run(
        "INSERT INTO events (position, event_id, room_nid, ordering, type_nid, state_key_nid, sender_nid,"
        " origin_server_ts, status, state_before, device_id, txn_id, envelope, content)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        position,
        event_key(event.event_id),
        room_nid,
        ordering,
        tx.intern(event.type),
        None if event.state_key is None else tx.intern(event.state_key),
        tx.intern(event.sender),
        event.origin_server_ts,
        int(status),
        state_before,
        device_id,
        txn_id,
        packed,
        content,
    )
    if event.type == "m.space.child" and event.state_key is not None:
        tx.run(
            "INSERT INTO space_children (room_nid, child_nid) VALUES (?, ?) ON CONFLICT DO NOTHING",
            room_nid, tx.intern(event.state_key),
        )  # fmt: skip


def replace_content(tx: Transaction, position: int, redacted: Event, redacted_by: int | None) -> None:
    """Removes from an event what a redaction removes. It cannot be read again. redacted_by: the position of the
    redaction; None if the event is forgotten, see `forgetting.py`.
    """
    room_nid = tx.intern(redacted.room_id)
    note_rewrite(tx, room_nid)
    known = find_positions(tx, {*redacted.prev_events, *redacted.auth_events})
    packed, content = pack_row(tx, room_nid, position, redacted, known)
    changed = tx.run(
        "UPDATE events SET redacted_by = ?, envelope = ?, content = ? WHERE position = ?",
        redacted_by,
        packed,
        content,
        position,
    )
    if not changed:  # it is archived: its row counts from now on, and its block is rewritten without it
        (row,) = reading.rows_at(tx, (position,))
        _insert_row(tx, (*row[:9], redacted_by, *row[10:13], packed, content))
        blocks.note_stale(tx, position)


def _insert_row(tx: Transaction, row: Row) -> None:
    tx.run(
        "INSERT INTO events (position, event_id, room_nid, ordering, type_nid, state_key_nid, sender_nid,"
        " origin_server_ts, status, redacted_by, state_before, device_id, txn_id, envelope, content)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        *row,
    )


def set_place_in_timeline(
    tx: Transaction, position: int, status: Status, ordering: int | None, state_before: bytes
) -> None:
    """Gives an outlier its place in the timeline, now that the state before it is known."""
    tx.run(
        "UPDATE events SET status = ?, ordering = ?, state_before = ? WHERE position = ?",
        int(status),
        ordering,
        state_before,
        position,
    )


def set_txn(tx: Transaction, position: int, device_id: str | None, txn_id: str) -> None:
    """Notes the transaction ID of an event that was stored without it."""
    tx.run("UPDATE events SET device_id = ?, txn_id = ? WHERE position = ?", device_id, txn_id, position)


def list_positions(tx: Transaction, since: int, upto: int, event_type: str | None = None) -> list[int]:
    """Returns the positions of events in since < position ≤ upto, whatever their room and status; all or of a type."""
    if event_type is None:
        stored = tx.values("SELECT position FROM events WHERE position > ? AND position <= ?", since, upto)
        if len(stored) == upto - since:  # every position is that of a stored event, so none can be archived
            return sorted(stored)
        return sorted({*stored, *reading.list_in_span(tx, since, upto)})
    type_nid = tx.find(event_type)
    stored = tx.values(
        "SELECT position FROM events WHERE position > ? AND position <= ? AND type_nid = ?", since, upto, type_nid
    )
    return sorted({*stored, *(() if type_nid is None else reading.list_in_span(tx, since, upto, type_nid))})


def count_messages(tx: Transaction, since: int, upto: int) -> int:
    """Returns how many positions in since < position ≤ upto are those of events that are not state events."""
    (count,) = tx.values(
        "SELECT COUNT(*) FROM events WHERE position > ? AND position <= ? AND state_key_nid IS NULL", since, upto
    )
    if count == upto - since:  # every position is that of a stored message, so none can be archived
        return int(count)
    archived = reading.list_in_span(tx, since, upto)
    if not archived:
        return int(count)
    stored = tx.values(
        "SELECT position FROM events WHERE position > ? AND position <= ? AND state_key_nid IS NULL", since, upto
    )
    return len({*stored, *archived})


def find_position(tx: Transaction, event_id: str) -> int | None:
    """Returns the position of a stored event, or None."""
    key = event_key(event_id)
    row = tx.one("SELECT position FROM events WHERE event_id = ?", key)
    return blocks.find_archived(tx, (key,)).get(key) if row is None else int(row[0])


def find_status(tx: Transaction, event_id: str) -> tuple[int, int] | None:
    """Returns position and status of a stored event, or None."""
    key = event_key(event_id)
    row = tx.one("SELECT position, status FROM events WHERE event_id = ?", key)
    if row is not None:
        return int(row[0]), int(row[1])
    position = blocks.find_archived(tx, (key,)).get(key)
    return None if position is None else (position, int(Status.TIMELINE))


def find_positions(tx: Transaction, event_ids: Collection[str]) -> dict[EventID, int]:
    """Returns the positions of those events that are stored."""
    keys = {event_key(event_id): EventID(event_id) for event_id in event_ids}
    return {keys[key]: position for key, position in find_positions_of_keys(tx, keys).items()}


def find_positions_of_keys(tx: Transaction, keys: Collection[bytes]) -> dict[bytes, int]:
    """Does the same for event keys."""
    rows = tx.all_in("SELECT event_id, position FROM events WHERE event_id IN (?*)", list(keys))
    found = {bytes(key): position for key, position in rows}
    if len(found) < len(keys):
        found |= blocks.find_archived(tx, [key for key in keys if key not in found])
    return found


def count_older(tx: Transaction, room_nid: int, before_ms: int) -> tuple[int, int]:
    """Returns how many messages of a room are older than a time, and how many bytes envelopes and contents take."""
    (row,) = tx.all(
        "SELECT COUNT(*), COALESCE(SUM(LENGTH(envelope) + LENGTH(content)), 0) FROM events"
        " WHERE room_nid = ? AND ordering IS NOT NULL AND state_key_nid IS NULL AND origin_server_ts < ?",
        room_nid, before_ms,
    )  # fmt: skip
    return int(row[0]), int(row[1])


def list_older(tx: Transaction, room_nid: int, before_ms: int, after: int, limit: int) -> list[Row]:
    """Returns the rows of messages with after < ordering that are older than a time and have no gap before them."""
    return tx.all(
        "SELECT position, event_id, room_nid, ordering, type_nid, state_key_nid, sender_nid, origin_server_ts, status,"
        " redacted_by, state_before, device_id, txn_id, envelope, content FROM events e"
        " WHERE room_nid = ? AND ordering IS NOT NULL AND ordering > ? AND state_key_nid IS NULL"
        " AND origin_server_ts < ? AND NOT EXISTS"
        " (SELECT 1 FROM missing_events m WHERE m.room_nid = e.room_nid AND m.child = e.position)"
        " ORDER BY ordering LIMIT ?",
        room_nid, after, before_ms, limit,
    )  # fmt: skip


def list_expiring(
    tx: Transaction, room_nid: int, before_ms: int, after: tuple[int, int], limit: int
) -> list[tuple[int, int]]:
    """Returns time and position of the oldest messages of a room after (time, position) that are older than a time, and
    have not expired yet.
    """
    rows = tx.all(
        "SELECT origin_server_ts, position FROM events"
        " WHERE room_nid = ? AND ordering IS NOT NULL AND state_key_nid IS NULL AND origin_server_ts < ?"
        " AND (origin_server_ts, position) > (?, ?)"
        " AND (redacted_by IS NULL OR redacted_by <> position) AND type_nid <> ?"
        " ORDER BY origin_server_ts, position LIMIT ?",
        room_nid, before_ms, *after, tx.find("m.room.redaction") or 0, limit,
    )  # fmt: skip
    return [(ts, position) for ts, position in rows]


def count_expiring(tx: Transaction, room_nid: int, before_ms: int) -> tuple[int, int]:
    """Returns how many rows `list_expiring` would return without a limit, and how many bytes their contents take."""
    (row,) = tx.all(
        "SELECT COUNT(*), COALESCE(SUM(LENGTH(content)), 0) FROM events"
        " WHERE room_nid = ? AND ordering IS NOT NULL AND state_key_nid IS NULL AND origin_server_ts < ?"
        " AND (redacted_by IS NULL OR redacted_by <> position) AND type_nid <> ?",
        room_nid, before_ms, tx.find("m.room.redaction") or 0,
    )  # fmt: skip
    return int(row[0]), int(row[1])


def can_expire(tx: Transaction, row: Row) -> bool:
    """Returns whether a row is one that `list_expiring` may return."""
    position, type_nid, state_key_nid, redacted_by = row[0], row[4], row[5], row[9]
    return state_key_nid is None and redacted_by != position and type_nid != tx.find("m.room.redaction")


def delete_rows(tx: Transaction, positions: Collection[int]) -> None:
    """Deletes the rows of events that are archived from now on."""
    tx.many("DELETE FROM events WHERE position = ?", [(position,) for position in positions])


def without_withheld(tx: Transaction, events: Sequence[SomeEvent]) -> Sequence[SomeEvent]:
    """Returns the events without redactions that have no effect, because clients would apply these anyway, and without
    messages that have expired.
    """
    if any(event.redacted_by == event.position for event in events):
        events = [event for event in events if event.redacted_by != event.position]
    redactions = [event.position for event in events if event.type == "m.room.redaction"]
    if not redactions:
        return events
    withheld = _list_withheld(tx, redactions)
    return [event for event in events if event.position not in withheld]


def _list_withheld(tx: Transaction, positions: Collection[int]) -> set[int]:
    rows = tx.all_in("SELECT position FROM withheld_redactions WHERE position IN (?*)", positions)
    return {position for (position,) in rows}


def list_event_ids(tx: Transaction, positions: Collection[int]) -> dict[int, EventID]:
    """Returns the IDs of stored events by position."""
    rows = tx.all_in("SELECT position, event_id FROM events WHERE position IN (?*)", list(positions))
    found = {position: event_id_of_key(bytes(key)) for position, key in rows}
    if len(found) < len(positions):
        archived = reading.keys_at(tx, {*positions} - found.keys())
        found |= {position: event_id_of_key(key) for position, key in archived.items()}
    return found


def find_stored_by_id(tx: Transaction, event_id: str) -> StoredEvent | None:
    """Returns the event, whatever its status, or None."""
    key = event_key(event_id)
    row = tx.one(
        "SELECT position, event_id, room_nid, ordering, type_nid, state_key_nid, sender_nid, origin_server_ts, status,"
        " redacted_by, state_before, device_id, txn_id, envelope, content FROM events WHERE event_id = ?",
        key,
    )
    row = reading.row_of_id(tx, key) if row is None else row
    return None if row is None else stored_events(tx, [row])[0]


def find_stored(tx: Transaction, position: int) -> StoredEvent | None:
    """Returns the event at this position, or None."""
    row = tx.one(
        "SELECT position, event_id, room_nid, ordering, type_nid, state_key_nid, sender_nid, origin_server_ts, status,"
        " redacted_by, state_before, device_id, txn_id, envelope, content FROM events WHERE position = ?",
        position,
    )
    rows = reading.rows_at(tx, (position,)) if row is None else [row]
    return stored_events(tx, rows)[0] if rows else None


def find_stored_at(tx: Transaction, positions: Collection[int]) -> dict[int, StoredEvent]:
    """Returns the events at those of the positions that have one."""
    return {event.position: event for event in stored_events(tx, list_rows(tx, positions))}


def list_rows(tx: Transaction, positions: Collection[int], *, archived: bool = True) -> list[Row]:
    """Returns the rows at those of the positions that have one, with all columns of `events`; archived ones last.

    archived: whether events count that are archived and have no row.
    """
    rows = tx.all_in(
        "SELECT position, event_id, room_nid, ordering, type_nid, state_key_nid, sender_nid, origin_server_ts, status,"
        " redacted_by, state_before, device_id, txn_id, envelope, content FROM events WHERE position IN (?*)",
        positions,
    )
    if archived and len(rows) < len(positions) and (missing := {*positions} - {row[0] for row in rows}):
        rows += reading.rows_at(tx, missing)
    return rows


def list_placed(tx: Transaction, event_ids: Collection[EventID]) -> list[EventID]:
    """Returns the events that have their place in the graph, so that the state before them is known."""
    positions = find_positions(tx, event_ids)
    return [row.event_id for row in list_stored(tx, positions.values()).values() if isinstance(row, PlacedEvent)]


def list_stored(tx: Transaction, positions: Collection[int]) -> dict[int, StoredEvent]:
    """Returns the events at these positions. Raises DatabaseDamaged if one is missing."""
    return _list_at(tx, positions, _ROWS, StoredEvent)


def list_in_timeline(tx: Transaction, positions: Collection[int]) -> dict[int, TimelineEvent]:
    """Returns the events at these positions. Raises DatabaseDamaged if one is missing or not in a timeline."""
    return _list_at(tx, positions, _TIMELINE_ROWS, TimelineEvent)


def _list_at(
    tx: Transaction, positions: Collection[int], kinds: Mapping[tuple[type, ...], type[Place]], widest: type[Place]
) -> dict[int, Place]:
    found = {event.position: event for event in _to_stored(tx, list_rows(tx, positions), kinds, widest)}
    if len(found) < len(positions) and (missing := {*positions} - found.keys()):
        raise DatabaseDamaged(f"The event at position {min(missing)} is missing.")
    return found


def stored_events(tx: Transaction, rows: Sequence[Row]) -> list[StoredEvent]:
    """Converts rows with all columns of `events`, in order. Raises DatabaseDamaged if a value has a wrong type."""
    return _to_stored(tx, rows, _ROWS, StoredEvent)


def timeline_events(tx: Transaction, rows: Sequence[Row]) -> list[TimelineEvent]:
    """Does the same for rows of timelines. Raises DatabaseDamaged also if one is not in a timeline."""
    return _to_stored(tx, rows, _TIMELINE_ROWS, TimelineEvent)


def _to_stored(
    tx: Transaction, rows: Sequence[Row], kinds: Mapping[tuple[type, ...], type[Place]], widest: type[Place]
) -> list[Place]:
    """Remembers what it made of each row. `widest`: the class that all of `kinds` belong to.

    Comparing a row with the remembered one costs a tenth of converting it, and notices every change: a redaction,
    damage, a place in the timeline.
    """
    remembered = tx.sized_cache("stored_events", EVENTS_REMEMBERED_BYTES_MAX)
    events: list[Place | None] = []
    fresh: list[Row] = []
    for row in rows:
        known = remembered.get(row[0])
        if known is not None and known[0] == row and isinstance(known[1], widest):
            events.append(known[1])
        else:
            events.append(None)
            fresh.append(row)
    if not fresh:
        return [event for event in events if event is not None]
    converted = _convert(tx, fresh, kinds)
    if not tx.is_write:  # the strings of a write may still be rolled back, and their numbers be given to others
        for row, event in zip(fresh, converted, strict=True):
            size = EVENT_ROW_BYTES + len(row[13]) + len(row[14]) + len(event.content_json)
            remembered.put(event.position, (row, event), size)
    following = iter(converted)
    return [next(following) if event is None else event for event in events]


def _convert(tx: Transaction, rows: Sequence[Row], kinds: Mapping[tuple[type, ...], type[Place]]) -> list[Place]:
    of_rows = kinds_of(rows, kinds, "event at position")
    nids: set[int] = set()
    for row in rows:
        nids.update((row[2], row[4], row[6]) if row[5] is None else (row[2], row[4], row[6], row[5]))
    names = tx.names(nids)
    opener = RowOpener(tx)
    return [
        kind(
            position,
            event_id_of_key(bytes(key)),
            RoomID(names[room_nid]),
            ordering,
            names[type_nid],
            None if state_key_nid is None else names[state_key_nid],
            UserID(names[sender_nid]),
            ts,
            status,
            redacted_by,
            state_before,
            device_id,
            txn_id,
            opener.open_envelope(room_nid, position, key, bytes(packed)),
            decompress_json(opener.open_content(room_nid, position, key, bytes(content)), EVENT_CONTENT_BYTES_MAX),
        )
        for kind, (
            position, key, room_nid, ordering, type_nid, state_key_nid, sender_nid, ts, status, redacted_by,
            state_before, device_id, txn_id, packed, content,
        ) in zip(of_rows, rows, strict=True)
    ]  # fmt: skip
