"""Guests in rooms: which rooms they may join. Spec: client-server-api/#guest-access"""

from __future__ import annotations

from homeserver.database import Transaction
from homeserver.errors import MatrixError
from homeserver.federation.identifiers import RoomID
from homeserver.rooms.heads import find_head, state_position
from homeserver.rooms.storage import list_stored


def lets_guests_in(tx: Transaction, room_id: str) -> bool:
    """Returns whether the room's state allows guests to join."""
    head = find_head(tx, room_id)
    position = None if head is None else state_position(tx, head.state_root, "m.room.guest_access")
    return position is not None and list_stored(tx, (position,))[position].content.get("guest_access") == "can_join"


def list_closed_to_guests(tx: Transaction, since: int, upto: int) -> list[RoomID]:
    """Returns the rooms that do not allow guests, among those where an event in since < position ≤ upto may say so."""
    types = [nid for name in ("m.room.guest_access", "m.room.redaction") if (nid := tx.find(name)) is not None]
    rows = tx.all_in(
        "SELECT DISTINCT room_nid FROM events WHERE position > ? AND position <= ? AND type_nid IN (?*)",
        types, since, upto,
    )  # fmt: skip
    return [RoomID(name) for name in tx.names({nid for (nid,) in rows}).values() if not lets_guests_in(tx, name)]


def check_guests_may_join(tx: Transaction, room_id: str) -> None:
    """Raises MatrixError 403 M_GUEST_ACCESS_FORBIDDEN unless guests may join. This server must be in the room."""
    if not lets_guests_in(tx, room_id):
        raise MatrixError(403, "M_GUEST_ACCESS_FORBIDDEN", "That room does not allow guests.")
