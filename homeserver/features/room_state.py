"""The state of a room: reading it, and sending state events. Spec: client-server-api/#getting-events-for-a-room"""

from __future__ import annotations

from functools import partial
from typing import Literal

import msgspec
import orjson

from homeserver.api.routes import Response, Routes
from homeserver.authenticate import Requester
from homeserver.database import Transaction
from homeserver.errors import not_found
from homeserver.feature import Feature, JsonObject
from homeserver.federation.build import Draft
from homeserver.federation.identifiers import EventID, RoomID, UserID
from homeserver.remote.state_events import put_state
from homeserver.resources import Resources
from homeserver.rooms.access import find_in_state, readable_state
from homeserver.rooms.client_event import client_event
from homeserver.rooms.heads import get_head
from homeserver.rooms.prepared import encode_events, list_prepared_state
from homeserver.rooms.storage import without_withheld
from homeserver.users.delayed_events import create_delayed_event
from homeserver.users.presence import note_activity
from homeserver.users.sending import SendQuery

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
    query: SendQuery,
    body: dict,
) -> JsonObject:
    sent_ms = query.origin_server_ts(requester)
    draft = Draft(room_id, requester.user_id, event_type, body, state_key=state_key, origin_server_ts=sent_ms)
    if query.delay_ms is not None:
        return {"delay_id": await hs.database.write(create_delayed_event, requester, draft, query.delay_ms)}
    return {"event_id": await put_state(hs, requester, draft, partial(_note_sent, requester.user_id))}


@routes.put(
    "/_matrix/client/v3/rooms/{room_id}/state/{event_type}",
    rate_limit="message",
    allow_guest=True,
    allow_suspended=True,
)
async def set_room_state_by_type(
    hs: Resources, requester: Requester, room_id: RoomID, event_type: str, query: SendQuery, body: dict
) -> JsonObject:
    return await set_room_state_with_key(hs, requester, room_id, event_type, "", query, body)


def _note_sent(user_id: UserID, tx: Transaction, event_id: EventID) -> None:
    note_activity(tx, user_id)


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


FEATURE = Feature(name="room_state", spec="client-server-api/#getting-events-for-a-room", routes=routes)
