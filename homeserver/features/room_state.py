"""The state of a room: reading it, and sending state events. Spec: client-server-api/#getting-events-for-a-room"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

import msgspec
import orjson

from homeserver.api.routes import Response, Routes
from homeserver.authenticate import Requester, check_not_suspended, limit_requester
from homeserver.database import Transaction
from homeserver.errors import MatrixError, invalid_param, not_found
from homeserver.feature import Feature, JsonObject
from homeserver.federation.build import Draft
from homeserver.federation.identifiers import (
    EventID,
    InvalidIdentifier,
    RoomAlias,
    RoomID,
    UserID,
    server_name_of,
)
from homeserver.remote.directory import resolve_alias
from homeserver.remote.inviting import invite_user as invite_remote_user
from homeserver.resources import Resources
from homeserver.rooms.access import find_in_state, readable_state
from homeserver.rooms.aliases import find_alias, read_canonical_aliases
from homeserver.rooms.append import append_local
from homeserver.rooms.client_event import client_event
from homeserver.rooms.guests import check_guests_may_join
from homeserver.rooms.heads import get_head
from homeserver.rooms.membership import check_joined, find_membership
from homeserver.rooms.power import check_may_send_state
from homeserver.rooms.prepared import encode_events, list_prepared_state
from homeserver.rooms.resolve import StateAt
from homeserver.rooms.restricted import authorised_via
from homeserver.rooms.storage import without_withheld
from homeserver.users.application_services import TimestampQuery
from homeserver.users.blocking import check_takes_invites
from homeserver.users.presence import note_activity
from homeserver.users.room_upgrades import carry_over

routes = Routes()


class StateQuery(msgspec.Struct, frozen=True):
    format: Literal["content", "event"] = "content"


@routes.get("/_matrix/client/v3/rooms/{room_id}/state", allow_guest=True)
async def get_room_state(hs: Resources, requester: Requester, room_id: RoomID) -> Response:
    return Response(body=await hs.database.read(_list_state, room_id, requester))


@routes.get("/_matrix/client/v3/rooms/{room_id}/state/{event_type}/{state_key}", allow_guest=True)
async def get_room_state_with_key(
    hs: Resources, requester: Requester, room_id: RoomID, event_type: str, state_key: str, query: StateQuery
) -> JsonObject:
    return await hs.database.read(_get_state, room_id, requester, event_type, state_key, query.format)


@routes.get("/_matrix/client/v3/rooms/{room_id}/state/{event_type}", allow_guest=True)
async def get_room_state_by_type(
    hs: Resources, requester: Requester, room_id: RoomID, event_type: str, query: StateQuery
) -> JsonObject:
    return await hs.database.read(_get_state, room_id, requester, event_type, "", query.format)


@routes.put(
    "/_matrix/client/v3/rooms/{room_id}/state/{event_type}/{state_key}",
    rate_limit="message",
    allow_guest=True,
    allow_suspended=True,
)
async def set_room_state_with_key(
    hs: Resources,
    requester: Requester,
    room_id: RoomID,
    event_type: str,
    state_key: str,
    query: TimestampQuery,
    body: dict,
) -> JsonObject:
    # the user who authorises a join must be a local one that we choose, not the client
    if event_type == "m.room.member":
        body = {key: value for key, value in body.items() if key != "join_authorised_via_users_server"}
    sent_ms = query.origin_server_ts(requester)
    draft = Draft(room_id, requester.user_id, event_type, body, state_key=state_key, origin_server_ts=sent_ms)
    is_own_leave = event_type == "m.room.member" and body.get("membership") == "leave" and state_key == draft.sender
    if not is_own_leave:
        check_not_suspended(requester)
    if event_type == "m.room.member" and body.get("membership") in ("invite", "join"):
        limit_requester(hs, requester, body["membership"])
    if event_type == "m.room.canonical_alias":
        await _check_canonical_alias(hs, requester, room_id, body)
    if _is_remote_invite(hs, draft):
        return {"event_id": (await invite_remote_user(hs, draft)).event_id}
    return {"event_id": await hs.database.write(set_state, requester, draft)}


@routes.put(
    "/_matrix/client/v3/rooms/{room_id}/state/{event_type}",
    rate_limit="message",
    allow_guest=True,
    allow_suspended=True,
)
async def set_room_state_by_type(
    hs: Resources, requester: Requester, room_id: RoomID, event_type: str, query: TimestampQuery, body: dict
) -> JsonObject:
    return await set_room_state_with_key(hs, requester, room_id, event_type, "", query, body)


def _list_state(tx: Transaction, room_id: RoomID, requester: Requester) -> orjson.Fragment:
    state = readable_state(tx, room_id, requester.user_id)
    events = list_prepared_state(tx, get_head(tx, room_id), state)
    return encode_events(tx, room_id, events, user_id=requester.user_id, device_id=requester.device_id)


def _get_state(
    tx: Transaction, room_id: RoomID, requester: Requester, event_type: str, state_key: str, format_: str
) -> JsonObject:
    event = find_in_state(tx, readable_state(tx, room_id, requester.user_id), event_type, state_key)
    if event is None or not without_withheld(tx, [event]):
        raise not_found("The room has no such state.")
    return client_event(tx, event, {"age": tx.now_ms - event.origin_server_ts}) if format_ == "event" else event.content


def set_state(tx: Transaction, requester: Requester, draft: Draft) -> EventID:
    """Appends the state event. If the current state event is identical, returns its ID instead."""
    room_id, state_key = draft.room_id, draft.state_key
    assert room_id is not None and state_key is not None
    if draft.type == "m.room.member":
        draft = _check_member(tx, requester, room_id, draft)
    is_in_room = find_membership(tx, room_id, draft.sender) == "join"
    if is_in_room:
        head = get_head(tx, room_id)
        current = find_in_state(tx, StateAt(head.state_root), draft.type, state_key)
        if current is not None and current.sender == draft.sender and current.content == draft.content:
            return current.event_id
    event_id = append_local(tx, draft).event_id
    if draft.type == "m.room.member" and draft.content.get("membership") == "join" and not is_in_room:
        carry_over(tx, UserID(draft.sender), room_id)
    note_activity(tx, UserID(draft.sender))
    return event_id


def _check_member(tx: Transaction, requester: Requester, room_id: RoomID, draft: Draft) -> Draft:
    """Applies the rules of the membership endpoints here too. Returns the draft, completed if necessary."""
    membership = draft.content.get("membership")
    target = draft.state_key or ""
    if membership == "invite" and target.partition(":")[2] == tx.server.name:
        check_takes_invites(tx, UserID(target), UserID(draft.sender), room_id)
    if membership != "join" or target != draft.sender:
        return draft
    if requester.is_guest and find_membership(tx, room_id, target) != "join":
        check_guests_may_join(tx, room_id)
    inviter = authorised_via(tx, get_head(tx, room_id), UserID(target), tx.server.name)
    if inviter is None:
        return draft
    return replace(draft, content={**draft.content, "join_authorised_via_users_server": inviter})


def _is_remote_invite(hs: Resources, draft: Draft) -> bool:
    if draft.type != "m.room.member" or draft.content.get("membership") != "invite":
        return False
    try:
        return server_name_of(draft.state_key or "") != hs.server_name
    except InvalidIdentifier:
        raise invalid_param("The state key of an invitation must be a user ID.") from None


async def _check_canonical_alias(hs: Resources, requester: Requester, room_id: RoomID, content: dict[str, Any]) -> None:
    """Raises unless every alias that the event adds leads to the room. Spec: client-server-api/#mroomcanonical_alias"""
    names = read_canonical_aliases(content)
    old = await hs.database.read(_read_aliases, room_id, requester.user_id)
    for name in names:
        if name not in old and await _resolve(hs, name) != room_id:
            raise MatrixError(400, "M_BAD_ALIAS", f"{name} does not point to this room.")


async def _resolve(hs: Resources, alias: RoomAlias) -> RoomID | None:
    if server_name_of(alias) == hs.server_name:
        found = await hs.database.read(find_alias, alias)
        return None if found is None else found[0]
    try:
        return (await resolve_alias(hs, alias))[0]
    except MatrixError:
        return None


def _read_aliases(tx: Transaction, room_id: RoomID, user_id: UserID) -> set[str]:
    """Returns the event's current aliases. Raises MatrixError 403 if the user may not change them."""
    head = get_head(tx, room_id)
    check_joined(tx, room_id, user_id)
    check_may_send_state(tx, head, user_id, "m.room.canonical_alias")
    event = find_in_state(tx, StateAt(head.state_root), "m.room.canonical_alias", "")
    content = {} if event is None else event.content
    alternatives = content.get("alt_aliases")
    names = [content.get("alias"), *(alternatives if isinstance(alternatives, list) else ())]
    return {name for name in names if isinstance(name, str)}


FEATURE = Feature(name="room_state", spec="client-server-api/#getting-events-for-a-room", routes=routes)
