"""What a user's power level currently allows in a room. Spec: client-server-api/#permissions"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from homeserver.database import Transaction
from homeserver.errors import forbidden
from homeserver.federation.power_levels import PowerLevels, read_power_levels
from homeserver.federation.room_versions import RoomVersion
from homeserver.rooms.heads import Head, state_events

_CREATE, _POWER_LEVELS = ("m.room.create", ""), ("m.room.power_levels", "")


def power_levels(tx: Transaction, head: Head) -> PowerLevels:
    """Returns the power levels of the room's state."""
    state = state_events(tx, head.state_root, (_CREATE, _POWER_LEVELS))
    return read_power_levels(state.get(_CREATE), state.get(_POWER_LEVELS), head.version)


def check_may_send_state(tx: Transaction, head: Head, user_id: str, event_type: str) -> None:
    """Raises MatrixError 403 M_FORBIDDEN unless the user's level suffices for state events of that type."""
    levels = power_levels(tx, head)
    if levels.user_level(user_id) < levels.event_level(event_type, is_state=True):
        raise forbidden(f"Your power level does not allow you to change {event_type} in that room.")


def initial_levels(version: RoomVersion, users: Mapping[str, int], *, invite: int) -> dict[str, Any]:
    """Returns the content of the first m.room.power_levels of a room. invite: the level that inviting requires."""
    return {
        "users": dict(users),
        "users_default": 0,
        "events": {
            "m.room.name": 50,
            "m.room.power_levels": 100,
            "m.room.history_visibility": 100,
            "m.room.canonical_alias": 50,
            "m.room.avatar": 50,
            "m.room.tombstone": 150 if version.creators_privileged else 100,
            "m.room.server_acl": 100,
            "m.room.encryption": 100,
        },
        "events_default": 0,
        "state_default": 50,
        "ban": 50,
        "kick": 50,
        "redact": 50,
        "invite": invite,
    }
