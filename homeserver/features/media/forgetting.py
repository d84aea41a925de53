"""Forgetting a room: the files that only its events refer to are deleted, and their keys with them."""

from __future__ import annotations

from homeserver.database import Transaction
from homeserver.features.media.storage import delete_media
from homeserver.federation.identifiers import RoomID
from homeserver.rooms.media_references import forget_references, list_only_here
from homeserver.users.profile import list_avatars


def forget_room(tx: Transaction, room_id: RoomID) -> None:
    """Deletes the files. Those that a user of this server shows everywhere, as an avatar, stay."""
    room_nid = tx.find(room_id)
    assert room_nid is not None
    avatars = set(list_avatars(tx))
    for server_name, media_id in list_only_here(tx, room_nid):
        if f"mxc://{server_name}/{media_id}" not in avatars:
            delete_media(tx, server_name, media_id)
    forget_references(tx, room_nid)
