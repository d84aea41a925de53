"""The head of a room: its forward extremities and the state after all of them. One row, read and replaced as a whole.

Spec: server-server-api/#pdus ("forward extremities"), rooms/v12/#state-resolution
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import msgspec

from homeserver.database import DatabaseDamaged, Transaction
from homeserver.database.row_types import check_rows, row_types
from homeserver.errors import not_found
from homeserver.federation.event import Event
from homeserver.federation.identifiers import EventID, RoomID
from homeserver.federation.room_versions import ROOM_VERSIONS, RoomVersion
from homeserver.rooms import state_tree
from homeserver.rooms.envelope import event_id_of_key, event_key
from homeserver.rooms.events import load_auth_events

# Flat: position, event key, position, event key …
_pack = msgspec.msgpack.Encoder().encode
_unpack = msgspec.msgpack.Decoder(tuple[int | bytes, ...]).decode
_NO_EXTREMITIES = _pack(())
# version, create_position, state_root, extremities, depth, last_position, members_position, rewrites
_HEAD_ROW = row_types(str, int, bytes, bytes, int, int, int, int)

StateKey = tuple[str, str]

STATE_CHANGES = "state changes"
"""The stream key of every write that changes the current state of a room, what its events say, or its memberships."""


class Head(msgspec.Struct, frozen=True):
    """The head of a room. `extremities`: positions, oldest first; `extremity_ids`: their event IDs in the same order.
    Both are empty while this server is not in the room. `depth`: the largest depth of the extremities. `rewrites`: see
    `homeserver.rooms.rewrites`."""

    room_id: RoomID
    room_nid: int
    version: RoomVersion
    create_position: int
    state_root: bytes
    extremities: tuple[int, ...]
    extremity_ids: tuple[EventID, ...]
    depth: int
    last_position: int
    members_position: int
    rewrites: int


def find_head(tx: Transaction, room_id: str) -> Head | None:
    """Returns the head of a room that this server knows of, or None."""
    room_nid = tx.find(room_id)
    if room_nid is None:
        return None
    row = tx.one(
        "SELECT version, create_position, state_root, extremities, depth, last_position, members_position, rewrites"
        " FROM rooms WHERE room_nid = ?",
        room_nid,
    )
    if row is None:
        return None
    check_rows([row], _HEAD_ROW, f"room {room_id}, of version")
    version, create_position, root, packed, depth, last_position, members_position, rewrites = row
    if version not in ROOM_VERSIONS:
        raise DatabaseDamaged(f"The room {room_id} is damaged: it has no such version as {version!r:.100}.")
    try:
        extremities = _unpack(packed)
    except msgspec.DecodeError as error:
        raise DatabaseDamaged(f"The head of the room {room_id} is damaged: {error}.") from error
    return Head(
        RoomID(room_id),
        room_nid,
        ROOM_VERSIONS[version],
        create_position,
        bytes(root),
        extremities[::2],  # type: ignore[arg-type]
        tuple([event_id_of_key(key) for key in extremities[1::2]]),  # type: ignore[arg-type]
        depth,
        last_position,
        members_position,
        rewrites,
    )


def get_head(tx: Transaction, room_id: str) -> Head:
    """Returns the head of a room that this server is or was in. Raises MatrixError 404 for any other."""
    head = find_head(tx, room_id)
    if head is None or not head.create_position:
        raise not_found("This server does not know that room.")
    return head


def open_room(tx: Transaction, room_id: RoomID, version: RoomVersion) -> Head:
    """Adds the room unless it is known, and returns its head. Its create event may still be missing."""
    insert_room(tx, room_id, version)
    head = find_head(tx, room_id)
    if head is None:
        raise DatabaseDamaged(f"The room {room_id} was just stored, and is missing.")
    return head


def insert_room(tx: Transaction, room_id: RoomID, version: RoomVersion) -> None:
    """Adds a room without a head that this server has heard of. Its version is hearsay until the create event comes."""
    tx.run(
        "INSERT INTO rooms (room_nid, version, create_position, state_root, extremities, depth, last_position,"
        " members_position) VALUES (?, ?, 0, ?, ?, 0, 0, 0) ON CONFLICT (room_nid) DO UPDATE"
        " SET version = excluded.version WHERE rooms.create_position = 0",
        tx.intern(room_id),
        version.id,
        state_tree.EMPTY_ROOT,
        _NO_EXTREMITIES,
    )


def set_create_position(tx: Transaction, room_nid: int, create_position: int) -> None:
    """Stores which event created the room."""
    tx.run("UPDATE rooms SET create_position = ? WHERE room_nid = ?", create_position, room_nid)


def replace_head(
    tx: Transaction,
    head: Head,
    *,
    state_root: bytes,
    extremities: Sequence[tuple[int, EventID]],
    depth: int,
    last_position: int,
) -> None:
    """Moves the head, and wakes STATE_CHANGES if the state changes. `extremities`: positions and event IDs."""
    if state_root != head.state_root:
        tx.wakes.add(STATE_CHANGES)
    tx.run(
        "UPDATE rooms SET state_root = ?, extremities = ?, depth = ?, last_position = ? WHERE room_nid = ?",
        state_root,
        _pack([part for position, event_id in sorted(extremities) for part in (position, event_key(event_id))]),
        depth,
        last_position,
        head.room_nid,
    )


def store_resolved_head(tx: Transaction, room_nid: int, ordering: int, root: bytes) -> None:
    """Stores the head's state from a point of the timeline on, if it is not the state after the event before it."""
    tx.run(
        "INSERT INTO resolved_heads (room_nid, ordering, state_root) VALUES (?, ?, ?)"
        " ON CONFLICT (room_nid, ordering) DO UPDATE SET state_root = excluded.state_root",
        room_nid,
        ordering,
        root,
    )


def find_resolved_head(tx: Transaction, room_nid: int | None, point: int) -> tuple[int, bytes] | None:
    """Returns the last state stored by `store_resolved_head` up to a point, and from which point on it holds."""
    row = tx.one(
        "SELECT ordering, state_root FROM resolved_heads WHERE room_nid = ? AND ordering <= ?"
        " ORDER BY ordering DESC LIMIT 1",
        room_nid,
        point,
    )
    return None if row is None else (row[0], bytes(row[1]))


def state_position(tx: Transaction, root: bytes, event_type: str, state_key: str = "") -> int | None:
    """Returns the position of one event of a state, None if the state has none."""
    key = state_tree.find_key(tx, event_type, state_key)
    return None if key is None else state_tree.get(tx, root, key)


def state_events(tx: Transaction, root: bytes, keys: Collection[StateKey]) -> dict[StateKey, Event]:
    """Returns the existing state events among `keys`, for the auth rules."""
    positions: dict[StateKey, int] = {}
    for key in keys:
        position = state_position(tx, root, *key)
        if position is not None:
            positions[key] = position
    events = load_auth_events(tx, positions.values())
    return {key: events[position] for key, position in positions.items()}


def state_content(tx: Transaction, root: bytes, event_type: str, state_key: str = "") -> Mapping[str, object] | None:
    """Returns the content of one event of a state as the auth rules see it; a recent redaction may not show."""
    found = state_events(tx, root, ((event_type, state_key),))
    return found[event_type, state_key].content if found else None
