"""Room membership: join, invite, leave, kick, ban, knock, forget. Spec: client-server-api/#room-membership

If this server is in the room, a change is one appended event. Otherwise `homeserver.remote` asks a server that is.
"""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec.structs import replace

from homeserver.api.routes import Empty, Routes
from homeserver.authenticate import Requester
from homeserver.database import Transaction
from homeserver.errors import MatrixError, forbidden, missing_param, not_found
from homeserver.feature import Feature, JsonObject
from homeserver.federation.build import Draft
from homeserver.federation.identifiers import (
    RoomID,
    ServerName,
    UserID,
)
from homeserver.remote.directory import list_servers_to_ask, parse_via, resolve_room
from homeserver.remote.identity_server import Address, parse_address
from homeserver.remote.inviting import invite_anyone, invite_here
from homeserver.remote.joining import join_room as join_remote_room
from homeserver.remote.joining import knock_room as knock_remote_room
from homeserver.remote.leaves import leave_room as leave_remote_room
from homeserver.remote.third_party_invites import claim_invite, invite_by_address, read_claim
from homeserver.resources import Resources
from homeserver.rooms.append import append_local
from homeserver.rooms.blocking import check_not_blocked
from homeserver.rooms.guests import check_guests_may_join
from homeserver.rooms.heads import find_head, get_head
from homeserver.rooms.membership import (
    check_joined,
    find_membership,
    is_deserted,
    is_server_joined,
    list_joined_rooms,
    set_forgotten,
)
from homeserver.rooms.restricted import authorised_via
from homeserver.users.notice_rooms import is_notice_room
from homeserver.users.profile import get_member_profile
from homeserver.users.room_upgrades import carry_over, find_predecessor
from homeserver.users.shadow_bans import write_and_undo, write_for

routes = Routes()


class JoinBody(msgspec.Struct, frozen=True):
    reason: str | None = None
    third_party_signed: dict[str, Any] | None = None


class ReasonBody(msgspec.Struct, frozen=True):
    reason: str | None = None


class TargetBody(msgspec.Struct, frozen=True):
    """The user to kick, ban or unban."""

    user_id: UserID
    reason: str | None = None


class InviteBody(msgspec.Struct, frozen=True):
    """The user to invite: a user ID, or an address that the identity server `id_server` knows or tells."""

    user_id: UserID | msgspec.UnsetType = msgspec.UNSET
    reason: str | None = None
    id_server: str | None = None
    id_access_token: str | None = None
    medium: str | None = None
    address: str | None = None


class ViaQuery(msgspec.Struct, frozen=True):
    """`server_name` is the name of `via` before v1.12."""

    via: list[str] = []
    server_name: list[str] = []

    def servers(self) -> list[ServerName]:
        """Returns the servers through which to join. Raises M_INVALID_PARAM."""
        return parse_via([*self.via, *self.server_name])


@routes.get("/_matrix/client/v3/joined_rooms", allow_guest=True)
async def get_joined_rooms(hs: Resources, requester: Requester) -> JsonObject:
    return {"joined_rooms": await hs.database.read(list_joined_rooms, requester.user_id)}


@routes.post("/_matrix/client/v3/rooms/{room_id}/join", rate_limit="join", allow_guest=True)
async def join_room_by_id(hs: Resources, requester: Requester, room_id: RoomID, body: JoinBody | None) -> JsonObject:
    return {"room_id": await _join(hs, requester, room_id, [], body or JoinBody())}


@routes.post("/_matrix/client/v3/join/{room_id_or_alias}", rate_limit="join", allow_guest=True)
async def join_room(
    hs: Resources, requester: Requester, room_id_or_alias: str, query: ViaQuery, body: JoinBody | None
) -> JsonObject:
    room_id, via = await resolve_room(hs, room_id_or_alias, query.servers(), requester.appservice)
    return {"room_id": await _join(hs, requester, room_id, via, body or JoinBody())}


@routes.post("/_matrix/client/v3/knock/{room_id_or_alias}", rate_limit="join")
async def knock_room(
    hs: Resources, requester: Requester, room_id_or_alias: str, query: ViaQuery, body: ReasonBody | None
) -> JsonObject:
    room_id, via = await resolve_room(hs, room_id_or_alias, query.servers(), requester.appservice)
    await hs.database.read(check_not_blocked, room_id)
    content = _content("knock", body.reason if body else None)
    content |= await hs.database.read(get_member_profile, requester.user_id)
    if await hs.database.read(is_server_joined, room_id, hs.server_name):
        await write_for(hs, requester, _change, room_id, requester.user_id, requester.user_id, content)
        return {"room_id": room_id}
    if requester.is_shadow_banned:
        return {"room_id": room_id}
    return {"room_id": await knock_remote_room(hs, requester.user_id, room_id, via, content)}


@routes.post("/_matrix/client/v3/rooms/{room_id}/invite", rate_limit="invite")
async def invite_user(hs: Resources, requester: Requester, room_id: RoomID, body: InviteBody) -> Empty:
    content = _content("invite", body.reason)
    draft = Draft(room_id, requester.user_id, "m.room.member", content)
    if requester.is_shadow_banned:
        await _pretend_to_invite(hs, draft, body)
        return Empty()
    if body.user_id is not msgspec.UNSET:
        await invite_anyone(hs, replace(draft, state_key=body.user_id))
    else:
        await invite_by_address(hs, draft, _address(body))
    return Empty()


async def _pretend_to_invite(hs: Resources, draft: Draft, body: InviteBody) -> None:
    """Checks what can be checked here. Neither the invited user nor another server hears of it."""
    if body.user_id is msgspec.UNSET:
        _address(body)
        await hs.database.read(check_joined, draft.room_id or "", draft.sender)
    else:
        await write_and_undo(hs, invite_here, replace(draft, state_key=body.user_id))


def _address(body: InviteBody) -> Address:
    if body.id_server is None and body.address is None:
        raise missing_param("user_id is required, or the address of the user and an identity server.")
    if body.id_server is None or body.id_access_token is None or body.medium is None or body.address is None:
        raise missing_param("id_server, id_access_token, medium and address are required to invite by an address.")
    return parse_address(body.id_server, body.id_access_token, body.medium, body.address)


@routes.post("/_matrix/client/v3/rooms/{room_id}/leave", rate_limit="message", allow_guest=True, allow_suspended=True)
async def leave_room(hs: Resources, requester: Requester, room_id: RoomID, body: ReasonBody | None) -> Empty:
    content = _content("leave", body.reason if body else None)
    if not await hs.database.write(_leave, room_id, requester.user_id, content):
        await leave_remote_room(hs, requester.user_id, room_id, content)
    return Empty()


@routes.post("/_matrix/client/v3/rooms/{room_id}/kick", rate_limit="message")
async def kick(hs: Resources, requester: Requester, room_id: RoomID, body: TargetBody) -> Empty:
    await write_for(hs, requester, _kick, room_id, requester.user_id, body.user_id, _content("leave", body.reason))
    return Empty()


@routes.post("/_matrix/client/v3/rooms/{room_id}/ban", rate_limit="message")
async def ban(hs: Resources, requester: Requester, room_id: RoomID, body: TargetBody) -> Empty:
    content = _content("ban", body.reason)
    await write_for(hs, requester, _change_other, room_id, requester.user_id, body.user_id, content)
    return Empty()


@routes.post("/_matrix/client/v3/rooms/{room_id}/unban", rate_limit="message")
async def unban(hs: Resources, requester: Requester, room_id: RoomID, body: TargetBody) -> Empty:
    await write_for(hs, requester, _unban, room_id, requester.user_id, body.user_id, _content("leave", body.reason))
    return Empty()


@routes.post("/_matrix/client/v3/rooms/{room_id}/forget", allow_suspended=True)
async def forget_room(hs: Resources, requester: Requester, room_id: RoomID) -> Empty:
    await hs.database.write(_forget, room_id, requester.user_id)
    return Empty()


async def _join(hs: Resources, requester: Requester, room_id: RoomID, via: list[ServerName], body: JoinBody) -> RoomID:
    user_id = requester.user_id
    content = _content("join", body.reason)
    await hs.database.read(check_not_blocked, room_id)
    if body.third_party_signed is not None:
        await _claim(hs, user_id, room_id, body.third_party_signed)
    refusal = await hs.database.write(_join_local, requester, room_id, content)
    if refusal is None:
        return room_id
    content |= await hs.database.read(get_member_profile, user_id)
    servers = await hs.database.read(list_servers_to_ask, room_id, user_id, via)
    others = [name for name in servers if name != hs.server_name]
    if not others:
        raise refusal
    await join_remote_room(hs, user_id, room_id, others, content)
    if await hs.database.read(find_predecessor, room_id) is not None:
        await hs.database.write(carry_over, user_id, room_id)
    return room_id


async def _claim(hs: Resources, user_id: UserID, room_id: RoomID, signed: JsonObject) -> None:
    """Turns the third-party invite that the client proves to be its user's into an invite, unless there is one."""
    claim = read_claim(room_id, signed.get("sender"), user_id, signed)
    if await hs.database.read(find_membership, room_id, user_id) not in ("join", "invite"):
        await claim_invite(hs, claim)


def _join_local(tx: Transaction, requester: Requester, room_id: RoomID, content: JsonObject) -> MatrixError | None:
    """Joins, if this server is in the room and may decide. Otherwise returns the error if no other server can help."""
    user_id = requester.user_id
    if find_membership(tx, room_id, user_id) == "join":
        return None
    check_not_blocked(tx, room_id)
    if requester.is_guest:
        check_guests_may_join(tx, room_id)
    if not is_server_joined(tx, room_id, tx.server.name):
        return not_found("This server does not know that room, and no other server to join it through.")
    head = get_head(tx, room_id)
    try:
        inviter = authorised_via(tx, head, user_id, tx.server.name)
    except MatrixError as error:
        if error.errcode == "M_FORBIDDEN":
            raise
        return forbidden(error.error)  # another server in the room may be able to decide, or to invite
    if inviter is not None:
        content = {**content, "join_authorised_via_users_server": inviter}
    _change(tx, room_id, user_id, user_id, {**content, **get_member_profile(tx, user_id)})
    carry_over(tx, user_id, room_id)
    return None


def _leave(tx: Transaction, room_id: RoomID, user_id: UserID, content: JsonObject) -> bool:
    """Leaves, retracts a knock or rejects an invite. Returns False if this server is not in the room and must ask."""
    membership = find_membership(tx, room_id, user_id)
    if membership is None and find_head(tx, room_id) is None:
        raise not_found("This server does not know that room.")
    if membership in (None, "ban"):
        raise forbidden("You are not in that room.")
    if membership == "leave":
        return True
    if membership == "invite" and is_notice_room(tx, user_id, room_id):
        raise MatrixError(403, "M_CANNOT_LEAVE_SERVER_NOTICE_ROOM", "You cannot reject messages of the server.")
    if not is_server_joined(tx, room_id, tx.server.name) and not is_deserted(tx, room_id):
        return False
    _change(tx, room_id, user_id, user_id, content)
    return True


def _kick(tx: Transaction, room_id: RoomID, sender: UserID, target: UserID, content: JsonObject) -> None:
    if find_membership(tx, room_id, target) not in ("join", "invite", "knock"):
        check_joined(tx, room_id, sender)
        raise forbidden(f"{target} is not in the room.")
    _change_other(tx, room_id, sender, target, content)


def _unban(tx: Transaction, room_id: RoomID, sender: UserID, target: UserID, content: JsonObject) -> None:
    if find_membership(tx, room_id, target) != "ban":
        check_joined(tx, room_id, sender)
        raise MatrixError(403, "M_BAD_STATE", f"{target} is not banned from the room.")
    _change_other(tx, room_id, sender, target, content)


def _change_other(tx: Transaction, room_id: RoomID, sender: UserID, target: UserID, content: JsonObject) -> None:
    check_joined(tx, room_id, sender)
    _change(tx, room_id, sender, target, content)


def _change(tx: Transaction, room_id: RoomID, sender: UserID, target: UserID, content: JsonObject) -> None:
    append_local(tx, Draft(room_id, sender, "m.room.member", content, state_key=target))


def _forget(tx: Transaction, room_id: RoomID, user_id: UserID) -> None:
    membership = find_membership(tx, room_id, user_id)
    if membership is None:
        raise not_found("You were never in that room.")
    if membership not in ("leave", "ban"):
        raise MatrixError(400, "M_UNKNOWN", "You have to leave the room before you can forget it.")
    set_forgotten(tx, room_id, user_id)


def _content(membership: str, reason: str | None) -> JsonObject:
    return {"membership": membership} if reason is None else {"membership": membership, "reason": reason}


FEATURE = Feature(
    name="membership",
    spec="client-server-api/#room-membership",
    routes=routes,
    capabilities={"m.forget_forced_upon_leave": lambda config, requester: {"enabled": False}},
)
