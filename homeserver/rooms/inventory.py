"""The inventory of rooms: every table that has rows of a room, so that a deleted room leaves nothing.

`tests/administration/test_room_deletion.py` fails if a table with a column for rooms is in none of the two lists.
"""

from __future__ import annotations

from collections.abc import Mapping

from homeserver.database import Transaction
from homeserver.database.rows import delete_rows_of

# Tables whose rows of a room end with it, and the column that has the room's number.
ROOM_TABLES: Mapping[str, str] = {
    "published_rooms": "room_nid",
    "aliases": "room_nid",
    "missing_events": "room_nid",
    "resolved_heads": "room_nid",
    "space_children": "room_nid",
    "aggregations": "room_nid",
    "media_references": "room_nid",
    "memberships": "room_nid",
    "outside_memberships": "room_nid",
    "parked_events": "room_nid",
    "typing": "room_nid",
    "delayed_events": "room_nid",
    "thread_subscriptions": "room_nid",
    "notice_rooms": "room_nid",
    "network_rooms": "room_nid",
    "receipts": "room_nid",
    "receipt_moves": "room_nid",
    "notified_events": "room_nid",
    "own_notifications": "room_nid",
    "written_up_to": "room_nid",
    "late_rooms": "room_nid",
    "directory_rooms": "room_nid",
    "sync_connection_rooms": "room_nid",
    "imported_events": "room_nid",
    "imports": "room_nid",
}

# Tables with a column for rooms whose rows are deleted otherwise, or stay, and why.
OTHER_TABLES: Mapping[str, str] = {
    "rooms": "deleted last: it says that the room is known",
    "events": "deleted with their state, see deletion.py",
    "archive_blocks": "deleted with the blobs, see deletion.py",
    "sealing_keys": "deleted after what they have sealed, see deletion.py",
    "forgotten_rooms": "tells caches and search indexes of all nodes that the room is gone",
    "blocked_rooms": "may outlive the room: nobody is to come back",
    "reports": "administrators delete them once they are dealt with",
    "pending_leaves": "other servers have yet to hear that our users have left",
    "account_data": "deleted with its totals, see homeserver/users/account_data.py",
    "friends": "follows from the memberships in the conversation, see homeserver/users/friend_rooms.py",
    "friend_rooms": "the same",
    "friend_tasks": "the same",
    "friend_withdrawals": "another server has yet to hear of it",
}


def delete_rows_of_room(tx: Transaction, table: str, room_nid: int) -> None:
    """Deletes the rows that a table of ROOM_TABLES has of a room."""
    delete_rows_of(tx, table, ROOM_TABLES[table], room_nid)
