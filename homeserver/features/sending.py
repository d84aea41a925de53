"""Sending events to rooms. Spec: client-server-api/#sending-events-to-a-room, #transaction-identifiers"""

from __future__ import annotations

from federation.build import Draft
from federation.identifiers import EventID, RoomID, UserID
from homeserver import limits
from homeserver.api import Routes
from homeserver.authenticate import Requester
from homeserver.database import Transaction
from homeserver.errors import invalid_param
from homeserver.feature import Feature, JsonObject
from homeserver.resources import Resources
from homeserver.rooms.append import append_local
from homeserver.rooms.storage import find_txn
from homeserver.users.presence import note_activity

routes = Routes()


@routes.put("/_matrix/client/v3/rooms/{room_id}/send/{event_type}/{txn_id}", rate_limit="message")
async def send_message(
    hs: Resources, requester: Requester, room_id: RoomID, event_type: str, txn_id: str, body: dict
) -> JsonObject:
    draft = Draft(room_id, requester.user_id, event_type, body)
    event_id = await hs.database.write(send, hs, draft, requester.device_id, txn_id)
    return {"event_id": event_id}


@routes.put("/_matrix/client/v3/rooms/{room_id}/redact/{event_id}/{txn_id}", rate_limit="message")
async def redact_event(
    hs: Resources, requester: Requester, room_id: RoomID, event_id: EventID, txn_id: str, body: dict
) -> JsonObject:
    content = {"reason": body["reason"]} if isinstance(body.get("reason"), str) else {}
    draft = Draft(room_id, requester.user_id, "m.room.redaction", content, redacts=event_id)
    redaction = await hs.database.write(send, hs, draft, requester.device_id, txn_id)
    return {"event_id": redaction}


def send(tx: Transaction, hs: Resources, draft: Draft, device_id: str, txn_id: str) -> EventID:
    """Appends the event, or answers the one that this device has sent under the transaction id before."""
    if len(txn_id.encode()) > limits.TXN_ID_BYTES_MAX:
        raise invalid_param(f"A transaction ID is at most {limits.TXN_ID_BYTES_MAX} bytes.")
    assert draft.room_id is not None
    sent = find_txn(tx, UserID(draft.sender), device_id, draft.room_id, draft.type, txn_id)
    if sent is not None:
        return sent
    event_id = append_local(tx, hs, draft, device_id=device_id, txn_id=txn_id).event_id
    note_activity(tx, hs, UserID(draft.sender))
    return event_id


FEATURE = Feature(name="sending", spec="client-server-api/#sending-events-to-a-room", routes=routes)
