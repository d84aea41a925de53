"""The versions of rooms. Spec: rooms"""

from __future__ import annotations

from homeserver.database import DatabaseDamaged, Transaction
from homeserver.federation.room_versions import ROOM_VERSIONS, RoomVersion

ROOM_VERSIONS_CACHED_MAX = 20_000


def find_room_version(tx: Transaction, room_id: str) -> RoomVersion | None:
    """Returns the version of a room that this server knows of, or None. It never changes."""
    cache = tx.cache("room_versions", ROOM_VERSIONS_CACHED_MAX)
    version = cache.get(room_id)
    if version is None:
        row = tx.one("SELECT version, create_position FROM rooms WHERE room_nid = ?", tx.find(room_id))
        if row is None:
            return None
        version = ROOM_VERSIONS[row[0]]
        if row[1] and not tx.is_write:  # if we are only invited to the room, the inviter may have lied
            cache.put(room_id, version)
    return version


def get_room_version(tx: Transaction, room_id: str) -> RoomVersion:
    """Returns the version of a room that has stored events."""
    version = find_room_version(tx, room_id)
    if version is None:
        raise DatabaseDamaged(f"The room {room_id} has events but no row.")
    return version
