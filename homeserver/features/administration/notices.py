"""The admin API for server notices: messages of the server to one of its users, in a room of their own.

Spec: client-server-api/#server-notices. The notices come from the account NOTICES_LOCALPART, which is created with the
first one, and without a password. The user may not reject the invitation to the room.
"""

from __future__ import annotations

from typing import Any

import msgspec

from homeserver.api.routes import Routes
from homeserver.authenticate import Requester
from homeserver.database import Transaction
from homeserver.errors import MatrixError
from homeserver.feature import JsonObject
from homeserver.features.administration.common import V1, check_local
from homeserver.federation.build import Draft
from homeserver.federation.identifiers import EventID, UserID
from homeserver.resources import Resources
from homeserver.rooms.append import append_local
from homeserver.users.accounts import is_active, no_account
from homeserver.users.notice_rooms import get_notice_room
from homeserver.users.sending import send_event

routes = Routes()


class NoticeBody(msgspec.Struct, frozen=True):
    """content: of the event. With a state key it is a state event."""

    user_id: UserID
    content: dict[str, Any]
    type: str = "m.room.message"
    state_key: str | None = None


@routes.post(f"{V1}/send_server_notice")
async def send_server_notice(hs: Resources, requester: Requester, body: NoticeBody) -> JsonObject:
    check_local(hs, requester, body.user_id)
    return {"event_id": await hs.database.write(send_notice, body, None)}


@routes.put(f"{V1}/send_server_notice/{{txn_id}}")
async def send_server_notice_once(hs: Resources, requester: Requester, txn_id: str, body: NoticeBody) -> JsonObject:
    """A request that is repeated with the same transaction ID sends nothing more."""
    check_local(hs, requester, body.user_id)
    return {"event_id": await hs.database.write(send_notice, body, txn_id)}


def send_notice(tx: Transaction, body: NoticeBody, txn_id: str | None) -> EventID:
    """Sends a notice; once, if it has a transaction ID. Raises MatrixError: 404 no such account, 400 not a notice."""
    if not is_active(tx, body.user_id):
        raise no_account(body.user_id)
    if body.type in ("m.room.member", "m.room.power_levels", "m.room.create"):
        raise MatrixError(400, "M_UNKNOWN", f"A notice cannot be an {body.type}.")
    sender, room_id = get_notice_room(tx, body.user_id)
    draft = Draft(room_id, sender, body.type, body.content, state_key=body.state_key)
    if body.state_key is not None:
        return append_local(tx, draft).event_id
    return send_event(tx, Requester(sender, ""), draft, txn_id or "", txn_id)
