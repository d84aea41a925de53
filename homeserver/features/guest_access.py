"""Removes guests from rooms that no longer admit them. Spec: client-server-api/#guest-access

`homeserver.rooms.guests` decides whether guests may join in the first place.
"""

from __future__ import annotations

import logging

from homeserver import limits
from homeserver.authenticate import get_account_flags
from homeserver.config import Config
from homeserver.database import Transaction
from homeserver.errors import MatrixError
from homeserver.feature import Feature, Follower
from homeserver.federation.build import Draft
from homeserver.federation.identifiers import RoomID
from homeserver.resources import Resources
from homeserver.rooms.append import append_local
from homeserver.rooms.guests import list_closed_to_guests
from homeserver.rooms.heads import STATE_CHANGES
from homeserver.rooms.membership import list_joined_from

_log = logging.getLogger(__name__)


async def take_guests_out(hs: Resources, since: int, upto: int) -> None:
    """Removes this server's guests from rooms that were closed to guests, by this server or another."""
    for room_id in await hs.database.read(list_closed_to_guests, since, upto):
        while await hs.database.write(_take_some_out, room_id):
            pass


def _has_guests(config: Config) -> bool:
    return config.registration.guests


def _take_some_out(tx: Transaction, room_id: RoomID) -> bool:
    """Removes some guests. Returns whether there are more in the room, for another write."""
    users = list_joined_from(tx, room_id, tx.server.name)
    guests = [user_id for user_id in users if get_account_flags(tx, user_id).is_guest]
    for user_id in guests[: limits.users.PROFILE_ROOMS_PER_WRITE]:
        try:
            append_local(tx, Draft(room_id, user_id, "m.room.member", {"membership": "leave"}, state_key=user_id))
        except MatrixError as error:
            _log.warning("guest not removed", extra={"room_id": room_id, "user_id": user_id, "reason": error.error})
            return False
    return len(guests) > limits.users.PROFILE_ROOMS_PER_WRITE


FEATURE = Feature(
    name="guest_access",
    spec="client-server-api/#guest-access",
    tails=(Follower("guest_access", take_guests_out, wake_keys=(STATE_CHANGES,), from_now=True, is_on=_has_guests),),
)
