"""What users take with them when they join a room that replaces another: tags, direct chats and push rules.

Spec: client-server-api/#room-upgrades, "the server should automatically transfer/replicate some of the user's
personalized settings". Code that joins a user of this server to a room calls `carry_over` in the same write.
"""

from __future__ import annotations

from typing import Any

from homeserver.database import Transaction
from homeserver.errors import MatrixError
from homeserver.feature import JsonObject
from homeserver.federation.identifiers import RoomID, UserID
from homeserver.rooms.heads import find_head, state_content
from homeserver.rooms.membership import find_membership
from homeserver.users.account_data import find_account_data, store_account_data
from homeserver.users.push_rules import store_rules_of_successor


def carry_over(tx: Transaction, user_id: UserID, room_id: RoomID) -> None:
    """Gives a room that the user has just joined the settings of the room that it replaces, as far as it has none.

    The old room must say that the new one replaces it, so that nobody else can claim its place. An account that is
    full keeps what it has.
    """
    old_id = find_predecessor(tx, room_id)
    if old_id is None or find_membership(tx, old_id, user_id) not in ("join", "leave"):
        return
    for step in (_copy_tags, _copy_direct_chat, store_rules_of_successor):
        try:
            step(tx, user_id, old_id, room_id)
        except MatrixError as error:
            if error.errcode not in ("M_INVALID_PARAM", "M_TOO_LARGE"):
                raise


def find_predecessor(tx: Transaction, room_id: RoomID) -> RoomID | None:
    """Returns the room that this one replaces by the word of both; None if this server knows of none."""
    head = find_head(tx, room_id)
    create = None if head is None else state_content(tx, head.state_root, "m.room.create")
    predecessor = None if create is None else create.get("predecessor")
    old_id = predecessor.get("room_id") if isinstance(predecessor, dict) else None
    old = find_head(tx, old_id) if isinstance(old_id, str) else None
    tombstone = None if old is None else state_content(tx, old.state_root, "m.room.tombstone")
    if old is None or tombstone is None or tombstone.get("replacement_room") != room_id:
        return None
    return old.room_id


def _copy_tags(tx: Transaction, user_id: UserID, old_id: RoomID, new_id: RoomID) -> None:
    tags = find_account_data(tx, user_id, old_id, "m.tag")
    if tags and find_account_data(tx, user_id, new_id, "m.tag") is None:
        store_account_data(tx, user_id, new_id, "m.tag", tags)


def _copy_direct_chat(tx: Transaction, user_id: UserID, old_id: RoomID, new_id: RoomID) -> None:
    """Lists the new room in m.direct wherever the old one is listed. Clients write it, so it can be of any shape."""
    content = find_account_data(tx, user_id, None, "m.direct") or {}
    changed: JsonObject = {name: _with_successor(rooms, old_id, new_id) for name, rooms in content.items()}
    if changed != content:
        store_account_data(tx, user_id, None, "m.direct", changed)


def _with_successor(rooms: Any, old_id: RoomID, new_id: RoomID) -> Any:
    if isinstance(rooms, list) and old_id in rooms and new_id not in rooms:
        return [*rooms, new_id]
    return rooms
