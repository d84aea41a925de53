"""Changes of profiles: the values that fields may have, and the new member events in the user's rooms.

A new display name or avatar is sent as a new member event to each of the user's rooms, a bounded number of rooms per
write. The change itself stores that rooms remain to be updated, so that a crash does not leave some behind.
Spec: client-server-api/#profiles
"""

from __future__ import annotations

import logging
import re
from typing import Any

from homeserver import limits
from homeserver.authenticate import get_account_flags
from homeserver.database import Transaction
from homeserver.encoding import to_json
from homeserver.errors import MatrixError, bad_json, invalid_param
from homeserver.federation.build import Draft
from homeserver.federation.identifiers import RoomID, UserID
from homeserver.resources import Resources
from homeserver.rooms.append import append_local
from homeserver.rooms.heads import find_head, state_content
from homeserver.rooms.membership import list_joined_rooms
from homeserver.users.profile import (
    MEMBER_FIELDS,
    delete_unfinished,
    get_member_profile,
    note_unfinished,
    store_field,
)

_log = logging.getLogger(__name__)

SPECIFIED = frozenset({"displayname", "avatar_url", "m.tz"})
_MXC = re.compile(r"mxc://[^/?#\s]+/[A-Za-z0-9_-]+", re.ASCII)


def checked_value(field: str, value: Any) -> bytes | None:
    """Returns the value as JSON, None to remove the field: an empty display name or avatar unsets it.

    Raises M_BAD_JSON or M_INVALID_PARAM.
    """
    if field in SPECIFIED:
        if not isinstance(value, str):
            raise bad_json(f"{field} must be a string.")
        if value == "":
            return None
    if field == "displayname" and len(value) > limits.users.DISPLAYNAME_CHARACTERS_MAX:
        raise invalid_param(f"A display name may be at most {limits.users.DISPLAYNAME_CHARACTERS_MAX} characters long.")
    if field == "avatar_url" and (len(value) > limits.users.AVATAR_URL_CHARACTERS_MAX or _MXC.fullmatch(value) is None):
        raise invalid_param("avatar_url must be an mxc:// URI.")
    return to_json(value)


async def change_profile(hs: Resources, user_id: UserID, field: str, value: bytes | None) -> None:
    """Sets a field to a JSON value, or removes it, and updates the user's rooms. Raises M_PROFILE_TOO_LARGE."""
    done = await hs.database.write(change_field, user_id, field, value)
    while done is not None:
        done = await hs.database.write(tell_rooms, user_id, done)


def change_field(tx: Transaction, user_id: UserID, field: str, value: bytes | None) -> RoomID | None:
    """Sets a field or removes it, and updates some rooms: see `tell_rooms`.

    The clients of a shadow-banned user see the change, rooms do not.
    """
    if not store_field(tx, user_id, field, value) or field not in MEMBER_FIELDS:
        return None
    if get_account_flags(tx, user_id).is_shadow_banned:
        return None
    note_unfinished(tx, user_id)
    return tell_rooms(tx, user_id, RoomID(""))


def tell_rooms(tx: Transaction, user_id: UserID, after: RoomID) -> RoomID | None:
    """Updates the user's member events in some rooms after `after`. Returns the last of them, None at the end."""
    profile = get_member_profile(tx, user_id)
    rooms = sorted(room_id for room_id in list_joined_rooms(tx, user_id) if room_id > after)
    for room_id in rooms[: limits.users.PROFILE_ROOMS_PER_WRITE]:
        head = find_head(tx, room_id)
        member = state_content(tx, head.state_root, "m.room.member", user_id) if head is not None else None
        if member is None or {key: member[key] for key in MEMBER_FIELDS if key in member} == profile:
            continue
        content = {"membership": "join", **profile}
        try:
            append_local(tx, Draft(room_id, user_id, "m.room.member", content, state_key=user_id))
        except MatrixError as error:  # a room that refuses must not keep the others from being updated
            _log.info("member event refused", extra={"room_id": room_id, "user_id": user_id, "reason": error.error})
    if len(rooms) > limits.users.PROFILE_ROOMS_PER_WRITE:
        return rooms[limits.users.PROFILE_ROOMS_PER_WRITE - 1]
    delete_unfinished(tx, user_id)
    return None


async def finish_update(hs: Resources, user_id: UserID) -> None:
    """Updates the rooms that an earlier run of the server has left, after a start."""
    done: RoomID | None = RoomID("")
    while done is not None:
        done = await hs.database.write(tell_rooms, user_id, done)
