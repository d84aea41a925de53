"""The resident's side of joining, leaving and knocking: it gives a template, then accepts the finished event.

Spec: server-server-api/#joining-rooms, #restricted-rooms, #knocking-rooms, #leaving-rooms-rejecting-invites
"""

from __future__ import annotations

from typing import Any

import msgspec
import trio

from homeserver import limits
from homeserver.api.routes import Response, Routes
from homeserver.database import Transaction
from homeserver.errors import MatrixError, forbidden, invalid_param, not_found
from homeserver.feature import JsonObject
from homeserver.federation.build import Draft, countersign
from homeserver.federation.event import Event, InvalidEvent, parse_event
from homeserver.federation.identifiers import (
    EventID,
    InvalidIdentifier,
    RoomID,
    ServerName,
    UserID,
    parse_user_id,
    server_name_of,
)
from homeserver.federation.room_versions import RoomVersion
from homeserver.process.peers import peer
from homeserver.remote.access import resident_head
from homeserver.remote.checking import Dropped, check_pdu, dropped
from homeserver.remote.policy_servers import recommend_received
from homeserver.remote.receiving import receive
from homeserver.remote.serving import whole_pdus
from homeserver.resources import Resources
from homeserver.rooms import state_tree
from homeserver.rooms.append import STRIPPED_KEYS, build_template
from homeserver.rooms.graph import Missing, auth_chain
from homeserver.rooms.heads import get_head, state_position
from homeserver.rooms.receive import Received
from homeserver.rooms.restricted import authorised_via
from homeserver.rooms.state_before import resolve_beforehand
from homeserver.rooms.storage import Status, list_in_timeline

routes = Routes()
_TAKES_A_PDU: dict[str, Any] = {"rate_limit": "federation", "max_body_bytes": limits.peers.PDU_BODY_BYTES_MAX}
_GIVES_STATE = {**_TAKES_A_PDU, "rate_limit": "federation_state"}


class VersionsQuery(msgspec.Struct, frozen=True):
    ver: tuple[str, ...] = ("1",)


# Invitations that are being signed


def invite_key(room_id: RoomID, user_id: str) -> tuple[str, RoomID, str]:
    """Returns the key of the lock that is held while the invited user's server signs an invitation of ours."""
    return ("invite", room_id, user_id)


async def wait_for_invite(hs: Resources, room_id: RoomID, user_id: UserID) -> None:
    """Waits for a short time while an invitation of the user is being signed by their server.

    That server shows the invitation to the user before it answers us, and we can only add it to the room after that. A
    user who reacts at once must find it there.
    """
    key = invite_key(room_id, user_id)
    if hs.peers.locks.is_held(key):
        with trio.move_on_after(limits.peers.INVITE_PLACING_SECONDS_MAX):
            async with hs.peers.locks.hold(key):
                pass


# Templates


@routes.get("/_matrix/federation/v1/make_join/{room_id}/{user_id}", rate_limit="federation")
async def make_join(
    hs: Resources, origin: ServerName, room_id: RoomID, user_id: UserID, query: VersionsQuery
) -> JsonObject:
    await wait_for_invite(hs, room_id, user_id)
    return await hs.database.read(_make, origin, room_id, user_id, "join", query.ver)


@routes.get("/_matrix/federation/v1/make_knock/{room_id}/{user_id}", rate_limit="federation")
async def make_knock(
    hs: Resources, origin: ServerName, room_id: RoomID, user_id: UserID, query: VersionsQuery
) -> JsonObject:
    await wait_for_invite(hs, room_id, user_id)
    return await hs.database.read(_make, origin, room_id, user_id, "knock", query.ver)


@routes.get("/_matrix/federation/v1/make_leave/{room_id}/{user_id}", rate_limit="federation")
async def make_leave(hs: Resources, origin: ServerName, room_id: RoomID, user_id: UserID) -> JsonObject:
    await wait_for_invite(hs, room_id, user_id)
    return await hs.database.read(_make, origin, room_id, user_id, "leave", None)


def _make(
    tx: Transaction,
    origin: ServerName,
    room_id: RoomID,
    user_id: UserID,
    membership: str,
    versions: tuple[str, ...] | None,
) -> JsonObject:
    if server_name_of(user_id) != origin:
        raise forbidden("That user does not belong to your server.")
    head = resident_head(tx, tx.server.name, room_id, origin)
    if versions is not None and head.version.id not in versions:
        error = f"The room is of version {head.version.id}."
        raise MatrixError(400, "M_INCOMPATIBLE_ROOM_VERSION", error, room_version=head.version.id)
    content: dict[str, Any] = {"membership": membership}
    if membership == "join":
        inviter = authorised_via(tx, head, user_id, tx.server.name)
        if inviter is not None:
            content["join_authorised_via_users_server"] = inviter
    draft = Draft(room_id, user_id, "m.room.member", content, state_key=user_id, origin_server_ts=tx.now_ms)
    version, event = build_template(tx, draft)
    return {"room_version": version.id, "event": {**event, "origin": tx.server.name}}


# Events


@routes.put("/_matrix/federation/v2/send_join/{room_id}/{event_id}", **_GIVES_STATE)
async def send_join_v2(hs: Resources, origin: ServerName, room_id: RoomID, event_id: EventID, body: dict) -> JsonObject:
    return await _send_join(hs, origin, room_id, event_id, body)


@routes.put("/_matrix/federation/v1/send_join/{room_id}/{event_id}", **_GIVES_STATE)
async def send_join_v1(hs: Resources, origin: ServerName, room_id: RoomID, event_id: EventID, body: dict) -> Response:
    return Response(200, [200, await _send_join(hs, origin, room_id, event_id, body)])


@routes.put("/_matrix/federation/v2/send_leave/{room_id}/{event_id}", **_TAKES_A_PDU)
async def send_leave_v2(
    hs: Resources, origin: ServerName, room_id: RoomID, event_id: EventID, body: dict
) -> JsonObject:
    await _accept(hs, origin, room_id, event_id, body, "leave")
    return {}


@routes.put("/_matrix/federation/v1/send_leave/{room_id}/{event_id}", **_TAKES_A_PDU)
async def send_leave_v1(hs: Resources, origin: ServerName, room_id: RoomID, event_id: EventID, body: dict) -> Response:
    await _accept(hs, origin, room_id, event_id, body, "leave")
    return Response(200, [200, {}])


@routes.put("/_matrix/federation/v1/send_knock/{room_id}/{event_id}", **_TAKES_A_PDU)
async def send_knock(hs: Resources, origin: ServerName, room_id: RoomID, event_id: EventID, body: dict) -> JsonObject:
    await _accept(hs, origin, room_id, event_id, body, "knock")
    return {"knock_room_state": await hs.database.read(list_stripped_pdus, room_id)}


async def _send_join(
    hs: Resources, origin: ServerName, room_id: RoomID, event_id: EventID, body: dict[str, Any]
) -> JsonObject:
    event, received = await _accept(hs, origin, room_id, event_id, body, "join")
    state, chain = await hs.database.read(_state_for, received.position)
    return {
        "origin": hs.server_name,
        "event": event.pdu,
        "state": state,
        "auth_chain": chain,
        "members_omitted": False,
    }


def _state_for(tx: Transaction, position: int) -> tuple[list[JsonObject], list[JsonObject]]:
    """Returns the state before the event, and the auth chain of that state and of the event."""
    event = list_in_timeline(tx, (position,))[position]
    state = list(state_tree.items(tx, event.state_before).values())
    return whole_pdus(tx, state), whole_pdus(tx, auth_chain(tx, [*state, position]))


async def _accept(
    hs: Resources, origin: ServerName, room_id: RoomID, event_id: EventID, body: dict[str, Any], membership: str
) -> tuple[Event, Received]:
    """Adds the event to the room, and passes it on to the others. Raises MatrixError 400 for a wrong one, 403, 404."""
    version = await hs.database.read(_version_of, hs.server_name, room_id, origin)
    checked = await check_pdu(hs, _with_own_signature(hs, body, version), version, room_id, peer(origin), {origin})
    if isinstance(checked, Dropped):
        raise checked.error()
    event = checked
    _check_is_own_membership(event, event_id, origin, membership)
    if event.pdu.get("content") != body.get("content"):
        raise invalid_param("The content hash of the event is wrong.")
    await wait_for_invite(hs, room_id, UserID(event.sender))
    await hs.database.read(resolve_beforehand, event)
    (event,) = await recommend_received(hs, [event], peer(origin))
    received = await hs.database.write(_take_in, origin, event)
    return event, received


def _version_of(tx: Transaction, own: ServerName, room_id: RoomID, origin: ServerName) -> RoomVersion:
    return resident_head(tx, own, room_id, origin).version


def _check_is_own_membership(event: Event, event_id: EventID, origin: ServerName, membership: str) -> None:
    if event.event_id != event_id:
        raise invalid_param("The event does not have the ID in the path.")
    if event.type != "m.room.member" or event.membership != membership:
        raise invalid_param(f"The event is not a {membership} event.")
    if server_name_of(event.sender) != origin or event.state_key != event.sender:
        raise invalid_param(
            "The event must be about the sender's own membership, and the sender a user of your server."
        )


def _with_own_signature(hs: Resources, body: dict[str, Any], version: RoomVersion) -> dict[str, Any]:
    """Returns the body, with our signature if it is a join authorised by one of our users.

    Whether the user may join is decided when the event is received. If it is refused, the signature goes nowhere.
    """
    if not version.restricted_join or _vouching_server(body.get("content")) != hs.server_name:
        return body
    try:
        return countersign(parse_event(body, version), hs.server_name, hs.signing_key).pdu
    except InvalidEvent as error:
        raise dropped(error).error() from None


def _vouching_server(content: object) -> ServerName | None:
    """Returns the server of the user who authorises a join of a restricted room, or None."""
    user_id = content.get("join_authorised_via_users_server") if isinstance(content, dict) else None
    try:
        return None if user_id is None else server_name_of(parse_user_id(user_id))
    except InvalidIdentifier:
        return None


def _take_in(tx: Transaction, origin: ServerName, event: Event) -> Received:
    head = resident_head(tx, tx.server.name, event.room_id, origin)
    if event.membership == "join" and _vouching_server(event.content) == tx.server.name:
        authorised_via(tx, head, UserID(event.sender), tx.server.name)
    outcome = receive(tx, event, pass_on=True)
    if isinstance(outcome, Missing):
        raise invalid_param("The prev_events of the event are unknown to this server.")
    if outcome.status != Status.TIMELINE:
        raise forbidden(outcome.reason or "The room does not allow this.")
    return outcome


def list_stripped_pdus(tx: Transaction, room_id: RoomID, inviter: UserID | None = None) -> list[JsonObject]:
    """Returns the state that a room shows to users outside, as whole PDUs, with the inviter's member event if given.

    Spec: client-server-api/#stripped-state, MSC4319
    """
    head = get_head(tx, room_id)
    keys = STRIPPED_KEYS if inviter is None else (*STRIPPED_KEYS, ("m.room.member", inviter))
    positions = [state_position(tx, head.state_root, *key) for key in keys]
    found = [position for position in positions if position is not None]
    if not found:
        raise not_found("The room has no state.")
    return whole_pdus(tx, found)
