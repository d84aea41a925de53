"""Sending events to rooms. Spec: client-server-api/#sending-events-to-a-room, #transaction-identifiers"""

from __future__ import annotations

from dataclasses import replace

import msgspec

from homeserver import limits
from homeserver.api.routes import Routes
from homeserver.authenticate import Requester, check_not_suspended
from homeserver.database import Transaction
from homeserver.errors import bad_json, invalid_param
from homeserver.feature import Feature, JsonObject
from homeserver.federation.build import Draft
from homeserver.federation.identifiers import EventID, InvalidIdentifier, RoomID, parse_event_id
from homeserver.resources import Resources
from homeserver.rooms.append import append_local
from homeserver.rooms.storage import find_stored_by_id
from homeserver.rooms.transaction_ids import find_txn, txn_id_stored
from homeserver.users.application_services import TimestampQuery
from homeserver.users.presence import note_activity

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
    query: TimestampQuery,
    body: dict,
) -> JsonObject:
    sent_ms = query.origin_server_ts(requester)
    draft = Draft(room_id, requester.user_id, event_type, body, origin_server_ts=sent_ms)
    return {"event_id": await hs.database.write(send, requester, draft, txn_id, txn_id)}


@routes.post(
    "/_matrix/client/v3/rooms/{room_id}/send/{event_type}", rate_limit="message", allow_guest=True, allow_suspended=True
)
async def send_message_without_transaction(
    hs: Resources, requester: Requester, room_id: RoomID, event_type: str, body: dict
) -> JsonObject:
    """Sends an event once for each request: a client that repeats one sends two. Scripts and old clients use it."""
    return {"event_id": await hs.database.write(send, requester, Draft(room_id, requester.user_id, event_type, body))}


@routes.put("/_matrix/client/v3/rooms/{room_id}/redact/{event_id}/{txn_id}", rate_limit="message", allow_suspended=True)
async def redact_event(
    hs: Resources, requester: Requester, room_id: RoomID, event_id: EventID, txn_id: str, body: RedactBody | None
) -> JsonObject:
    draft = _redaction(requester, room_id, event_id, body)
    stored_txn_id = txn_id_stored(txn_id, event_id)
    return {"event_id": await hs.database.write(send, requester, draft, txn_id, stored_txn_id)}


@routes.post("/_matrix/client/v3/rooms/{room_id}/redact/{event_id}", rate_limit="message", allow_suspended=True)
async def redact_event_without_transaction(
    hs: Resources, requester: Requester, room_id: RoomID, event_id: EventID, body: RedactBody | None
) -> JsonObject:
    """Redacts an event once for each request, as `send_message_without_transaction`."""
    return {"event_id": await hs.database.write(send, requester, _redaction(requester, room_id, event_id, body))}


def _redaction(requester: Requester, room_id: RoomID, event_id: EventID, body: RedactBody | None) -> Draft:
    content = {"reason": body.reason} if body is not None and body.reason is not None else {}
    return Draft(room_id, requester.user_id, "m.room.redaction", content, redacts=event_id)


def send(
    tx: Transaction, requester: Requester, draft: Draft, txn_id: str = "", stored_txn_id: str | None = None
) -> EventID:
    """Appends the event, or returns the one that this device has sent with the same transaction ID, if it has one."""
    if len(txn_id.encode()) > limits.TXN_ID_BYTES_MAX:
        raise invalid_param(f"A transaction ID may be at most {limits.TXN_ID_BYTES_MAX} bytes long.")
    assert draft.room_id is not None
    device_id = requester.device_id
    if stored_txn_id is not None:
        sent = find_txn(tx, requester.user_id, device_id, draft.room_id, draft.type, stored_txn_id)
        if sent is not None:
            return sent
    if draft.type == "m.room.redaction" and draft.redacts is None:
        draft = _with_redacts(draft)
    _check_may_speak(tx, requester, draft)
    event = append_local(tx, draft, device_id=device_id, txn_id=stored_txn_id, as_admin=requester.is_admin)
    note_activity(tx, requester.user_id)
    return event.event_id


def _check_may_speak(tx: Transaction, requester: Requester, draft: Draft) -> None:
    """Raises 403 M_USER_SUSPENDED if the requester is suspended, unless they are redacting their own event."""
    if requester.is_suspended and draft.redacts is not None:
        target = find_stored_by_id(tx, draft.redacts)
        if target is not None and target.sender == requester.user_id:
            return
    check_not_suspended(requester)


def _with_redacts(draft: Draft) -> Draft:
    """Returns a redaction with `redacts` where the room version keeps it, in the event or in its content."""
    if "redacts" not in draft.content:
        return draft
    try:
        redacts = parse_event_id(draft.content["redacts"])
    except InvalidIdentifier as error:
        raise bad_json(f"redacts: {error}") from None
    content = {key: value for key, value in draft.content.items() if key != "redacts"}
    return replace(draft, content=content, redacts=redacts)


FEATURE = Feature(name="sending", spec="client-server-api/#sending-events-to-a-room", routes=routes)
