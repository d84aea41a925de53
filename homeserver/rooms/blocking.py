"""Rooms that an administrator has blocked: nobody of this server joins them, knocks, invites or is invited.

A room that is being deleted is blocked until that is done, see `deletion.py`. A room may be blocked before this server
knows it.
"""

from __future__ import annotations

from homeserver.database import Transaction
from homeserver.errors import forbidden
from homeserver.federation.identifiers import RoomID, UserID


def store_block(tx: Transaction, room_id: RoomID, user_id: UserID, *, is_lasting: bool = True) -> None:
    """Blocks a room. user_id: who does it. is_lasting: False only until the room is deleted."""
    tx.run(
        "INSERT INTO blocked_rooms (room_nid, user_nid, is_lasting) VALUES (?, ?, ?) ON CONFLICT (room_nid) DO UPDATE"
        " SET is_lasting = CASE WHEN excluded.is_lasting = 1 THEN 1 ELSE blocked_rooms.is_lasting END",
        tx.intern(room_id), tx.intern(user_id), int(is_lasting),
    )  # fmt: skip


def delete_block(tx: Transaction, room_id: RoomID, *, lasting_too: bool = True) -> None:
    """Unblocks a room; without `lasting_too` only if it was blocked for its deletion."""
    tx.run("DELETE FROM blocked_rooms WHERE room_nid = ? AND is_lasting <= ?", tx.find(room_id), int(lasting_too))


def find_blocker(tx: Transaction, room_id: str) -> UserID | None:
    """Returns the administrator who has blocked the room, None if it is not blocked."""
    row = tx.one("SELECT user_nid FROM blocked_rooms WHERE room_nid = ?", tx.find(room_id))
    return None if row is None else UserID(tx.name(row[0]))


def check_not_blocked(tx: Transaction, room_id: str) -> None:
    """Raises MatrixError 403 M_FORBIDDEN if the room is blocked."""
    if find_blocker(tx, room_id) is not None:
        raise forbidden("This room has been blocked on this server.")
