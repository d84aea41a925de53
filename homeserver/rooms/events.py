"""Restores whole signed events from their rows, for federation, auth rules and state resolution.

Clients, timelines and filters make do with a `StoredEvent` (`homeserver/rooms/storage.py`), which is cheaper.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from homeserver.database import DatabaseDamaged, Transaction
from homeserver.federation import canonical_json
from homeserver.federation.event import Event, trusted_event
from homeserver.federation.identifiers import EventID
from homeserver.federation.room_versions import RoomVersion
from homeserver.rooms import envelope
from homeserver.rooms.storage import StoredEvent, find_stored_by_id, list_event_ids, list_stored
from homeserver.rooms.versions import get_room_version

AUTH_EVENTS_CACHED_MAX = 5_000


def find_event(tx: Transaction, event_id: str) -> Event | None:
    """Returns the whole event, in redacted form if it was redacted, or None."""
    stored = find_stored_by_id(tx, event_id)
    return None if stored is None else to_events(tx, [stored])[0]


def load_events(tx: Transaction, positions: Collection[int]) -> dict[int, Event]:
    """Returns the whole events at these positions."""
    stored = list_stored(tx, positions)
    return dict(zip(stored, to_events(tx, list(stored.values())), strict=True))


def load_auth_events(tx: Transaction, positions: Iterable[int]) -> dict[int, Event]:
    """Does the same as `load_events`, with a cache. For auth rules only: redactions keep the fields that they read."""
    cache = tx.cache("auth_events", AUTH_EVENTS_CACHED_MAX)
    found: dict[int, Event] = {}
    missing: list[int] = []
    for position in positions:
        event = cache.get(position)
        if event is None:
            missing.append(position)
        else:
            found[position] = event
    if missing:
        loaded = load_events(tx, missing)
        found.update(loaded)
        for position, event in loaded.items():
            if tx.is_write:  # the row may come from this write, which may be rolled back
                tx.after_commit(cache.put, position, event)
            else:
                cache.put(position, event)
    return found


def forget_auth_event(tx: Transaction, position: int) -> None:
    """Drops the event from the cache of `load_auth_events` after the commit, because it was redacted."""
    tx.after_commit(tx.cache("auth_events", AUTH_EVENTS_CACHED_MAX).forget, position)


def to_events(tx: Transaction, stored: Sequence[StoredEvent]) -> list[Event]:
    """Returns the whole events for rows, in order."""
    envelopes = [envelope.unpack(row.envelope) for row in stored]
    positions = {position for packed in envelopes for position in envelope.references(packed)}
    event_ids = list_event_ids(tx, positions)
    if len(event_ids) < len(positions):
        raise DatabaseDamaged(f"The event at position {min(positions - event_ids.keys())} is missing.")
    return [
        _to_event(row, packed, get_room_version(tx, row.room_id), event_ids)
        for row, packed in zip(stored, envelopes, strict=True)
    ]


def _to_event(
    row: StoredEvent, packed: envelope.Envelope, version: RoomVersion, event_ids: Mapping[int, EventID]
) -> Event:
    columns: dict[str, Any] = {
        "type": row.type,
        "sender": row.sender,
        # Needs every digit as signed: the faster decoder turns integers beyond 64 bits into floats.
        "content": row.content if version.canonical_json_strict else canonical_json.decode(row.content_json),
        "origin_server_ts": row.origin_server_ts,
    }
    if row.state_key is not None:
        columns["state_key"] = row.state_key
    if not (version.room_id_is_create_event_id and row.type == "m.room.create"):
        columns["room_id"] = row.room_id
    if not version.event_id_is_reference_hash:
        columns["event_id"] = row.event_id
    return trusted_event(envelope.restore(packed, columns, event_ids), version, row.event_id)
