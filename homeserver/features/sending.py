"""Sending events to rooms. Spec: client-server-api/#sending-events-to-a-room, #transaction-identifiers"""

from __future__ import annotations

from collections.abc import Collection

import msgspec

from homeserver.api.routes import Routes
from homeserver.authenticate import Requester
from homeserver.database import Transaction
from homeserver.feature import Feature, JsonObject
from homeserver.federation.build import Draft
from homeserver.federation.identifiers import EventID, RoomID
from homeserver.resources import Resources
from homeserver.rooms.transaction_ids import txn_id_stored
from homeserver.users.delayed_events import create_delayed_event
from homeserver.users.presence import note_activity
from homeserver.users.sending import SendQuery, send_event
from homeserver.users.shadow_bans import write_for

routes = Routes()


class RedactBody(msgspec.Struct, frozen=True):
    reason: str | None = None


@routes.put(
    "/_matrix/client/v3/rooms/{room_id}/send/{event_type}/{txn_id}",
    rate_limit="message",
    allow_guest=True,
    allow_suspended=True,
)
async def send_message(
    hs: Resources,
    requester: Requester,
    room_id: RoomID,
    event_type: str,
    txn_id: str,
    query: SendQuery,
    body: dict,
) -> JsonObject:
    sent_ms = query.origin_server_ts(requester)
    draft = Draft(room_id, requester.user_id, event_type, body, origin_server_ts=sent_ms)
    if query.delay_ms is not None:
        return {"delay_id": await hs.database.write(create_delayed_event, requester, draft, query.delay_ms, txn_id)}
    within = _reach(draft)
    return {"event_id": await write_for(hs, requester, _send, requester, draft, txn_id, txn_id, within=within)}


@routes.post(
    "/_matrix/client/v3/rooms/{room_id}/send/{event_type}", rate_limit="message", allow_guest=True, allow_suspended=True
)
async def send_message_without_transaction(
    hs: Resources, requester: Requester, room_id: RoomID, event_type: str, body: dict
) -> JsonObject:
    """Sends an event once for each request: a client that repeats one sends two. Scripts and old clients use it."""
    draft = Draft(room_id, requester.user_id, event_type, body)
    return {"event_id": await write_for(hs, requester, _send, requester, draft, within=_reach(draft))}


@routes.put("/_matrix/client/v3/rooms/{room_id}/redact/{event_id}/{txn_id}", rate_limit="message", allow_suspended=True)
async def redact_event(
    hs: Resources, requester: Requester, room_id: RoomID, event_id: EventID, txn_id: str, body: RedactBody | None
) -> JsonObject:
    draft = _redaction(requester, room_id, event_id, body)
    stored_txn_id = txn_id_stored(txn_id, event_id)
    return {"event_id": await write_for(hs, requester, _send, requester, draft, txn_id, stored_txn_id)}


@routes.post("/_matrix/client/v3/rooms/{room_id}/redact/{event_id}", rate_limit="message", allow_suspended=True)
async def redact_event_without_transaction(
    hs: Resources, requester: Requester, room_id: RoomID, event_id: EventID, body: RedactBody | None
) -> JsonObject:
    """Redacts an event once for each request, as `send_message_without_transaction`."""
    return {
        "event_id": await write_for(hs, requester, _send, requester, _redaction(requester, room_id, event_id, body))
    }


def _redaction(requester: Requester, room_id: RoomID, event_id: EventID, body: RedactBody | None) -> Draft:
    content = {"reason": body.reason} if body is not None and body.reason is not None else {}
    return Draft(room_id, requester.user_id, "m.room.redaction", content, redacts=event_id)


def _reach(draft: Draft) -> Collection[str]:
    """Returns the keys that `_send` keeps within, see `Database.write`: it changes the room, and the sender's presence.

    A redaction may change archived events, whose blocks belong to no room.
    """
    assert draft.room_id is not None
    return () if draft.type == "m.room.redaction" else (draft.room_id, draft.sender)


def _send(
    tx: Transaction, requester: Requester, draft: Draft, txn_id: str = "", stored_txn_id: str | None = None
) -> EventID:
    event_id = send_event(tx, requester, draft, txn_id, stored_txn_id)
    note_activity(tx, requester.user_id)
    return event_id


FEATURE = Feature(name="sending", spec="client-server-api/#sending-events-to-a-room", routes=routes)
