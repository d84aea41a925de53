"""Room creation: one request, one transaction. Spec: client-server-api/#creation

A failed request leaves nothing behind. Once the room exists, the request succeeds: invites to users of other servers
are sent afterwards, concurrently, and their outcome does not change the response.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal

import msgspec
import trio

from homeserver import limits
from homeserver.api.routes import Routes
from homeserver.authenticate import Requester, limit_requester
from homeserver.config import Config
from homeserver.database import Transaction
from homeserver.errors import MatrixError, bad_json, forbidden, invalid_param
from homeserver.feature import Feature, JsonObject
from homeserver.federation.build import Draft
from homeserver.federation.event import Event
from homeserver.federation.identifiers import RoomAlias, RoomID, ServerName, UserID, fits, server_name_of
from homeserver.federation.room_versions import ROOM_VERSIONS, RoomVersion
from homeserver.limits import Bucket
from homeserver.remote.application_services import provide_users
from homeserver.remote.identity_server import parse_address
from homeserver.remote.inviting import invite_users
from homeserver.remote.third_party_invites import invite_addresses
from homeserver.resources import Resources
from homeserver.rooms.aliases import read_canonical_aliases, set_visibility, store_alias
from homeserver.rooms.append import append_create, append_local, choose_room_id
from homeserver.rooms.power import initial_levels
from homeserver.users.application_services import check_may_use_alias
from homeserver.users.blocking import find_refusal
from homeserver.users.profile import get_member_profile

routes = Routes()

Preset = Literal["private_chat", "trusted_private_chat", "public_chat"]

# join_rule, history_visibility, guest_access
PRESETS: dict[Preset, tuple[str, str, str]] = {
    "private_chat": ("invite", "shared", "can_join"),
    "trusted_private_chat": ("invite", "shared", "can_join"),
    "public_chat": ("public", "shared", "forbidden"),
}


class InitialState(msgspec.Struct, frozen=True):
    type: str
    content: dict[str, Any]
    state_key: str = ""


class InvitedAddress(msgspec.Struct, frozen=True):
    """Someone to invite by an address. Spec: Invite3pid"""

    id_server: str
    id_access_token: str
    medium: str
    address: str


class CreateRoomBody(msgspec.Struct, frozen=True):
    """Spec: client-server-api/#post_matrixclientv3createroom"""

    visibility: Literal["public", "private"] = "private"
    room_alias_name: str | None = None
    name: str | None = None
    topic: str | None = None
    invite: list[UserID] = []
    invite_3pid: list[InvitedAddress] = []
    room_version: str | None = None
    creation_content: dict[str, Any] = {}
    initial_state: list[InitialState] = []
    preset: Preset | None = None
    is_direct: bool = False
    power_level_content_override: dict[str, Any] = {}


@routes.post("/_matrix/client/v3/createRoom", rate_limit="create_room")
async def create_room(hs: Resources, requester: Requester, body: CreateRoomBody) -> JsonObject:
    version = ROOM_VERSIONS.get(hs.config.rooms.default_version if body.room_version is None else body.room_version)
    if version is None:
        raise MatrixError(400, "M_UNSUPPORTED_ROOM_VERSION", "This server does not know that room version.")
    count = len(body.invite) + len(body.invite_3pid)
    if count > limits.CREATE_ROOM_INVITES_MAX or len(body.initial_state) > limits.CREATE_ROOM_STATE_MAX:
        raise invalid_param(
            "This is too much for one request: invite the other users or send the other state afterwards."
        )
    if requester.user_id in body.invite:
        raise forbidden("You cannot invite yourself: as the creator you are in the room.")
    if requester.is_shadow_banned:  # the room is there, and nobody hears of it
        body = msgspec.structs.replace(body, invite=[], invite_3pid=[], visibility="private")
    invited = list(dict.fromkeys(body.invite))
    addresses = [
        parse_address(each.id_server, each.id_access_token, each.medium, each.address) for each in body.invite_3pid
    ]
    limit_requester(hs, requester, "invite", min(len(invited) + len(addresses), limits.RATE_LIMITS["invite"].burst))
    ours = [user_id for user_id in invited if server_name_of(user_id) == hs.server_name]
    others = [user_id for user_id in invited if server_name_of(user_id) != hs.server_name]
    if others and body.creation_content.get("m.federate") is False:
        raise forbidden("Users of other servers cannot be invited to a room whose m.federate is false.")
    if body.room_alias_name is not None:
        check_may_use_alias(hs, requester, _parse_alias_name(hs.server_name, body.room_alias_name))
    await provide_users(hs, ours, requester.user_id)
    room_id = await hs.database.write(_create, requester.user_id, body, version, ours, len(invited) + len(addresses))
    drafts = [_invite(room_id, requester.user_id, user_id, {}, body.is_direct) for user_id in others]
    # The room exists, so from here on nothing may fail: the client would retry and get a second room.
    by_address = Draft(room_id, requester.user_id, "m.room.member", _invite_content({}, body.is_direct))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(invite_users, hs, drafts, limits.CREATE_ROOM_INVITES_SECONDS)
        nursery.start_soon(invite_addresses, hs, by_address, addresses, limits.CREATE_ROOM_INVITES_SECONDS)
    return {"room_id": room_id}


def _create(
    tx: Transaction,
    creator: UserID,
    body: CreateRoomBody,
    version: RoomVersion,
    ours: Sequence[UserID],
    invited_count: int,
) -> RoomID:
    """Creates the room with everything that the request implies, except invites to users of other servers.

    ours: the users of this server to invite. If only such users are invited and none of the invites is possible, no
    room is created and the MatrixError is raised.
    """
    alias = None if body.room_alias_name is None else _parse_alias_name(tx.server.name, body.room_alias_name)
    refusals: list[MatrixError] = []
    try:
        content = creation_content(body, creator, version)
        create = append_create(
            tx, Draft(choose_room_id(tx, version), creator, "m.room.create", content, state_key=""), version
        )
        for event_type, state_key, content in _initial_events(tx, creator, body, version, create, alias):
            append_local(tx, Draft(create.room_id, creator, event_type, content, state_key=state_key))
        for user_id in ours:
            if refusal := find_refusal(tx, user_id, creator, create.content):
                refusals.append(refusal)
            else:
                profile = get_member_profile(tx, user_id)
                append_local(tx, _invite(create.room_id, creator, user_id, profile, body.is_direct))
    except MatrixError as error:
        if error.errcode != "M_FORBIDDEN":
            raise
        raise MatrixError(400, "M_INVALID_ROOM_STATE", f"The room cannot be created like this: {error.error}") from None
    if refusals and len(refusals) == invited_count:
        raise refusals[0]
    if alias is not None:
        store_alias(tx, alias, create.room_id, creator)
    if body.visibility == "public":
        set_visibility(tx, create.room_id, is_public=True)
    return create.room_id


def _invite(room_id: RoomID, sender: UserID, user_id: UserID, profile: JsonObject, is_direct: bool) -> Draft:
    return Draft(room_id, sender, "m.room.member", _invite_content(profile, is_direct), state_key=user_id)


def _invite_content(profile: JsonObject, is_direct: bool) -> JsonObject:
    return {"membership": "invite", **profile, **({"is_direct": True} if is_direct else {})}


def _parse_alias_name(server_name: ServerName, localpart: str) -> RoomAlias:
    alias = f"#{localpart}:{server_name}"
    if not localpart or ":" in localpart or "\0" in localpart or not fits(alias):
        raise invalid_param("room_alias_name must be the local part of an alias: not empty, without a colon.")
    return RoomAlias(alias)


def creation_content(body: CreateRoomBody, creator: UserID, version: RoomVersion) -> JsonObject:
    """Returns the content of m.room.create. The client's values for creator and room_version are replaced."""
    content = {key: value for key, value in body.creation_content.items() if key not in ("creator", "room_version")}
    content["room_version"] = version.id
    if version.create_content_has_creator:
        content["creator"] = creator
    if version.additional_creators:
        given = content.get("additional_creators", [])
        if not isinstance(given, list) or not all(isinstance(user_id, str) for user_id in given):
            raise bad_json("additional_creators must be an array of user IDs.")
        if body.preset == "trusted_private_chat":
            given = [*given, *body.invite]
        others = [user_id for user_id in dict.fromkeys(given) if user_id != creator]
        content.pop("additional_creators", None)
        if others:
            content["additional_creators"] = others
    return content


def _initial_events(
    tx: Transaction,
    creator: UserID,
    body: CreateRoomBody,
    version: RoomVersion,
    create: Event,
    alias: RoomAlias | None,
) -> Iterator[tuple[str, str, JsonObject]]:
    """Returns type, state key and content of the events after m.room.create, in the order that the spec prescribes."""
    yield "m.room.member", creator, {"membership": "join", **get_member_profile(tx, creator)}
    yield "m.room.power_levels", "", power_levels_content(body, creator, version, create)
    if alias is not None:
        yield "m.room.canonical_alias", "", {"alias": alias}
    preset = body.preset or ("public_chat" if body.visibility == "public" else "private_chat")
    join_rule, history_visibility, guest_access = PRESETS[preset]
    given = {(state.type, state.state_key) for state in body.initial_state}
    for event_type, content in (
        ("m.room.join_rules", {"join_rule": join_rule}),
        ("m.room.history_visibility", {"history_visibility": history_visibility}),
        ("m.room.guest_access", {"guest_access": guest_access}),
    ):
        if (event_type, "") not in given:
            yield event_type, "", content
    for state in body.initial_state:
        if state.type in ("m.room.create", "m.room.member"):
            raise invalid_param(f"initial_state may not contain {state.type}.")
        if state.type == "m.room.canonical_alias" and set(read_canonical_aliases(state.content)) - {alias}:
            raise MatrixError(400, "M_BAD_ALIAS", "The only alias of the new room is that of room_alias_name.")
        yield state.type, state.state_key, state.content
    if body.name is not None:
        yield "m.room.name", "", {"name": body.name}
    if body.topic is not None:
        text = {"m.text": [{"body": body.topic, "mimetype": "text/plain"}]}
        yield "m.room.topic", "", {"topic": body.topic, "m.topic": text}


def power_levels_content(body: CreateRoomBody, creator: UserID, version: RoomVersion, create: Event) -> JsonObject:
    """Returns the content of the first m.room.power_levels: the creator's level, then the client's override."""
    users: dict[str, int] = {}
    if not version.creators_privileged:
        users[creator] = 100
        if body.preset == "trusted_private_chat":
            users.update(dict.fromkeys(body.invite, 100))
    is_public = body.preset == "public_chat" or body.visibility == "public"
    content = initial_levels(version, users, invite=50 if is_public else 0)
    content.update(body.power_level_content_override)
    creators = {creator, *create.content.get("additional_creators", ())}
    if version.creators_privileged and isinstance(content["users"], dict) and creators & content["users"].keys():
        raise forbidden("The creators of this room have unlimited power: they cannot be given a power level.")
    return content


def _room_versions(config: Config, requester: Requester) -> JsonObject:
    return {"default": config.rooms.default_version, "available": dict.fromkeys(ROOM_VERSIONS, "stable")}


FEATURE = Feature(
    name="room_creation",
    spec="client-server-api/#creation",
    routes=routes,
    limits={"create_room": Bucket(20, 0.5)},  # a dozen events each
    capabilities={"m.room_versions": _room_versions},
)
