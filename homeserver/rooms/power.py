"""What a user's power level currently allows in a room. Spec: client-server-api/#permissions"""

from __future__ import annotations

from homeserver.database import Transaction
from homeserver.errors import forbidden
from homeserver.federation.power_levels import PowerLevels, read_power_levels
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
