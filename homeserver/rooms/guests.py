"""Guests in rooms: where they are let in. Spec: client-server-api/#guest-access"""

from __future__ import annotations

from homeserver.database import Transaction
from homeserver.errors import MatrixError
from homeserver.federation.identifiers import RoomID
from homeserver.rooms.heads import find_head, state_position
from homeserver.rooms.storage import list_stored


def lets_guests_in(tx: Transaction, room_id: str) -> bool:
    """Whether the room's state says that guests may join."""
    head = find_head(tx, room_id)
    position = None if head is None else state_position(tx, head.state_root, "m.room.guest_access")
    return position is not None and list_stored(tx, (position,))[position].content.get("guest_access") == "can_join"


def list_closed_to_guests(tx: Transaction, since: int, upto: int) -> list[RoomID]:
    """The rooms that let no guests in, of those where an event of since < position ≤ upto may have said so."""
    types = [nid for name in ("m.room.guest_access", "m.room.redaction") if (nid := tx.find(name)) is not None]
    rows = tx.all_in(
        "SELECT DISTINCT room_nid FROM events WHERE position > ? AND position <= ? AND type_nid IN (?*)",
        types, since, upto,
    )  # fmt: skip
    return [RoomID(name) for name in tx.names({nid for (nid,) in rows}).values() if not lets_guests_in(tx, name)]


def check_guests_may_join(tx: Transaction, room_id: str) -> None:
    """MatrixError 403 M_GUEST_ACCESS_FORBIDDEN unless the room, which this server has to be in, lets guests in."""
    if not lets_guests_in(tx, room_id):
        raise MatrixError(403, "M_GUEST_ACCESS_FORBIDDEN", "That room lets no guests in.")
