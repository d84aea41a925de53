"""The admin API that changes who is in a room, and who rules it."""

from __future__ import annotations

import msgspec

from homeserver.api.routes import Empty, Routes
from homeserver.authenticate import Requester, check_admin
from homeserver.database import Transaction
from homeserver.errors import MatrixError, forbidden, invalid_param, not_found
from homeserver.feature import JsonObject
from homeserver.features.administration.common import V1, check_local
from homeserver.federation.build import Draft
from homeserver.federation.identifiers import RoomID, UserID, server_name_of
from homeserver.remote.directory import list_servers_to_ask, parse_via, resolve_room
from homeserver.remote.joining import join_room
from homeserver.resources import Resources
from homeserver.rooms.append import append_local
from homeserver.rooms.blocking import check_not_blocked
from homeserver.rooms.heads import get_head, state_content
from homeserver.rooms.membership import find_membership, is_server_joined, list_joined_from
from homeserver.rooms.power import power_levels
from homeserver.rooms.restricted import authorised_via
from homeserver.users.accounts import is_active, no_account
from homeserver.users.notice_rooms import append_invite
from homeserver.users.profile import get_member_profile

routes = Routes()

# What gives power over a room in which levels go up to that.
_HIGHEST_LEVEL = 100


class ViaQuery(msgspec.Struct, frozen=True):
    """Servers through which to join; both names are in use."""

    via: list[str] = []
    server_name: list[str] = []


class JoiningBody(msgspec.Struct, frozen=True):
    user_id: UserID


@routes.post(f"{V1}/join/{{room_id_or_alias}}")
async def join_user_to_room(
    hs: Resources, requester: Requester, room_id_or_alias: str, query: ViaQuery, body: JoiningBody
) -> JsonObject:
    """Has a user of this server join a room, whether or not they want to. The administrator invites if necessary."""
    check_admin(requester)
    check_local(hs, requester, body.user_id)
    via = parse_via([*query.via, *query.server_name])
    room_id, via = await resolve_room(hs, room_id_or_alias, via)
    if await hs.database.write(join_here, room_id, body.user_id, requester.user_id):
        return {"room_id": room_id}
    content = {"membership": "join", **await hs.database.read(get_member_profile, body.user_id)}
    servers = await hs.database.read(list_servers_to_ask, room_id, body.user_id, via)
    others = [name for name in servers if name != hs.server_name]
    if not others:
        raise not_found("This server does not know that room, and no other server to join it through.")
    await join_room(hs, body.user_id, room_id, others, content)
    return {"room_id": room_id}


def join_here(tx: Transaction, room_id: RoomID, user_id: UserID, inviter: UserID | None) -> bool:
    """Joins if this server is in the room. Returns False if another server has to be asked.

    inviter: invites the user if the room is not open to them. Raises MatrixError 403 if the inviter may not.
    """
    if not is_active(tx, user_id):
        raise no_account(user_id)
    check_not_blocked(tx, room_id)
    if find_membership(tx, room_id, user_id) == "join":
        return True
    if not is_server_joined(tx, room_id, tx.server.name):
        return False
    head = get_head(tx, room_id)
    content: JsonObject = {"membership": "join", **get_member_profile(tx, user_id)}
    try:
        authorising = authorised_via(tx, head, user_id, tx.server.name)
        if authorising is not None:
            content["join_authorised_via_users_server"] = authorising
        append_local(tx, Draft(room_id, user_id, "m.room.member", content, state_key=user_id))
    except MatrixError:
        if inviter is None or find_membership(tx, room_id, inviter) != "join":
            raise forbidden("The room is not open, and you are not in it to invite the user.") from None
        append_invite(tx, room_id, inviter, user_id)
        plain = {"membership": "join", **get_member_profile(tx, user_id)}
        append_local(tx, Draft(room_id, user_id, "m.room.member", plain, state_key=user_id))
    return True


class RulerBody(msgspec.Struct, frozen=True):
    """Without a user, the administrator who makes the request gets the power."""

    user_id: UserID | None = None


@routes.post(f"{V1}/rooms/{{room_id_or_alias}}/make_room_admin")
async def make_room_admin(hs: Resources, requester: Requester, room_id_or_alias: str, body: RulerBody | None) -> Empty:
    """Gives a user the highest power that a user of this server has in the room, and invites them if necessary."""
    check_admin(requester)
    user_id = requester.user_id if body is None or body.user_id is None else body.user_id
    if server_name_of(user_id) != hs.server_name:
        raise invalid_param("The user must belong to this server.")
    room_id, _ = await resolve_room(hs, room_id_or_alias, [])
    await hs.database.write(give_power, room_id, user_id)
    return Empty()


def find_strongest(tx: Transaction, room_id: RoomID) -> UserID | None:
    """Returns the user of this server who has the most power in a room, None if none of them is in it."""
    levels = power_levels(tx, get_head(tx, room_id))
    members = list_joined_from(tx, room_id, tx.server.name)
    return max(members, key=lambda each: (levels.user_level(each), each), default=None)


def give_power(tx: Transaction, room_id: RoomID, user_id: UserID) -> None:
    """Gives a user the power of the strongest user of this server, up to 100, and invites them if necessary.

    Raises MatrixError 400 M_UNKNOWN if nobody on this server may give any.
    """
    if not is_active(tx, user_id):
        raise no_account(user_id)
    head = get_head(tx, room_id)
    levels = power_levels(tx, head)
    needed = levels.event_level("m.room.power_levels", is_state=True)
    ruler = find_strongest(tx, room_id)
    if ruler is None or levels.user_level(ruler) < needed:
        raise MatrixError(400, "M_UNKNOWN", "No user of this server has the power to give any in that room.")
    level = min(levels.user_level(ruler), max(_HIGHEST_LEVEL, needed))
    if levels.user_level(user_id) < level:
        content = dict(state_content(tx, head.state_root, "m.room.power_levels") or {})
        users = content.get("users")
        content["users"] = {**(users if isinstance(users, dict) else {}), user_id: level}
        append_local(tx, Draft(room_id, ruler, "m.room.power_levels", content, state_key=""))
    membership = find_membership(tx, room_id, user_id)
    rule = (state_content(tx, head.state_root, "m.room.join_rules") or {}).get("join_rule")
    if membership not in ("join", "invite") and rule != "public":
        append_invite(tx, room_id, ruler, user_id)
