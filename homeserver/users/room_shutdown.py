"""Shutting down a room on this server: its users leave it, and may be moved to a room that says why.

Every step is one write and may be repeated. `homeserver/rooms/deletion.py` deletes the room afterwards.
"""

from __future__ import annotations

import logging

import msgspec

from homeserver import limits
from homeserver.database import Transaction
from homeserver.errors import MatrixError
from homeserver.federation.build import Draft
from homeserver.federation.identifiers import RoomID, UserID, server_name_of
from homeserver.rooms.aliases import delete_alias, list_aliases, replace_room_of_aliases, set_visibility
from homeserver.rooms.append import append_local
from homeserver.rooms.heads import find_head
from homeserver.rooms.membership import find_membership, list_joined_from, list_members, set_forgotten
from homeserver.users.notice_rooms import append_invite, append_join, create_notice_room

_log = logging.getLogger(__name__)

_PENDING = ("invite", "knock")


class Shutdown(msgspec.Struct):
    """What has become of a room's users and names so far. new_room_id: the room to which they were moved."""

    kicked_users: list[str] = msgspec.field(default_factory=list)
    failed_to_kick_users: list[str] = msgspec.field(default_factory=list)
    local_aliases: list[str] = msgspec.field(default_factory=list)
    new_room_id: str | None = None


def open_new_room(tx: Transaction, shutdown: Shutdown, creator: UserID, name: str, message: str) -> None:
    """Creates the room to which the members are moved, with a message. Does nothing if it exists."""
    if shutdown.new_room_id is None:
        room_id = create_notice_room(tx, creator, name)
        content = {"msgtype": "m.text", "body": message}
        append_local(tx, Draft(room_id, creator, "m.room.message", content))
        shutdown.new_room_id = room_id


def list_remaining(tx: Transaction, room_id: RoomID, shutdown: Shutdown) -> list[UserID]:
    """Returns the users of this server who are still in the room, those excepted who cannot be removed."""
    failed = set(shutdown.failed_to_kick_users)
    return sorted(set(list_joined_from(tx, room_id, tx.server.name)) - failed)


def remove_some(tx: Transaction, room_id: RoomID, shutdown: Shutdown, creator: UserID | None) -> bool:
    """Removes some users from the room. creator: of the new room, if they are moved there. Returns whether any remain.

    The users leave by themselves, so that no power level matters, and have forgotten the room.
    """
    remaining = list_remaining(tx, room_id, shutdown)
    for user_id in remaining[: limits.users.PROFILE_ROOMS_PER_WRITE]:
        draft = Draft(room_id, user_id, "m.room.member", {"membership": "leave"}, state_key=user_id)
        try:
            append_local(tx, draft)
            set_forgotten(tx, room_id, user_id)
            shutdown.kicked_users.append(user_id)
        except MatrixError as error:  # one of them must not keep the others in the room
            _log.warning("a user was not removed", extra={"room_id": room_id, "user_id": user_id, "reason": str(error)})
            shutdown.failed_to_kick_users.append(user_id)
            continue
        if creator is not None and shutdown.new_room_id is not None and user_id != creator:
            new_room_id = RoomID(shutdown.new_room_id)
            if find_membership(tx, new_room_id, user_id) != "join":
                append_invite(tx, new_room_id, creator, user_id)
                append_join(tx, new_room_id, user_id)
    return len(remaining) > limits.users.PROFILE_ROOMS_PER_WRITE


def list_pending(tx: Transaction, room_id: RoomID) -> list[UserID]:
    """Returns the users of this server who are invited to the room, or knock."""
    users = [user_id for membership in _PENDING for user_id in list_members(tx, room_id, membership)]  # type: ignore[arg-type]
    return [user_id for user_id in users if server_name_of(user_id) == tx.server.name]


def close_names(tx: Transaction, room_id: RoomID, shutdown: Shutdown) -> None:
    """Lets the aliases lead to the new room, or deletes them, and takes the room out of the directory."""
    set_visibility(tx, room_id, is_public=False)
    if shutdown.new_room_id is not None:
        moved = replace_room_of_aliases(tx, room_id, RoomID(shutdown.new_room_id))
    else:
        moved = list_aliases(tx, room_id)
        for alias in moved:
            delete_alias(tx, alias)
    shutdown.local_aliases += moved


def is_known(tx: Transaction, room_id: RoomID) -> bool:
    """Returns whether anything is stored of the room."""
    return find_head(tx, room_id) is not None
