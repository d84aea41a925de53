"""Sending events for a user: what applies to those that are sent at once and to delayed ones.

Spec: client-server-api/#sending-events-to-a-room
"""

from __future__ import annotations

import msgspec
from msgspec.structs import replace

from homeserver import limits
from homeserver.authenticate import Requester, check_not_suspended
from homeserver.database import Transaction
from homeserver.errors import bad_json, invalid_param
from homeserver.federation.build import Draft
from homeserver.federation.identifiers import EventID, InvalidIdentifier, RoomID, UserID, parse_event_id
from homeserver.rooms.access import find_in_state
from homeserver.rooms.append import append_local
from homeserver.rooms.guests import check_guests_may_join
from homeserver.rooms.heads import get_head
from homeserver.rooms.membership import find_membership
from homeserver.rooms.resolve import StateAt
from homeserver.rooms.restricted import authorised_via
from homeserver.rooms.storage import find_stored_by_id
from homeserver.rooms.transaction_ids import find_txn
from homeserver.users.application_services import TimestampQuery
from homeserver.users.blocking import check_takes_invites
from homeserver.users.room_upgrades import carry_over


class SendQuery(TimestampQuery, frozen=True):
    """The parameters of requests that send an event. delay_ms: the event is sent later, see `users/delayed_events.py`.

    The client gets a `delay_id` then, instead of an `event_id`.
    """

    delay_ms: int | None = msgspec.field(name="org.matrix.msc4140.delay", default=None)


def send_event(
    tx: Transaction, requester: Requester, draft: Draft, txn_id: str = "", stored_txn_id: str | None = None
) -> EventID:
    """Appends the event, or returns the one that this device has sent with the same transaction ID, if it has one."""
    check_txn_id(txn_id)
    assert draft.room_id is not None
    device_id = requester.device_id
    if stored_txn_id is not None:
        sent = find_txn(tx, requester.user_id, device_id, draft.room_id, draft.type, stored_txn_id)
        if sent is not None:
            return sent
    if draft.type == "m.room.redaction" and draft.redacts is None:
        draft = _with_redacts(draft)
    _check_may_speak(tx, requester, draft)
    return append_local(tx, draft, device_id=device_id, txn_id=stored_txn_id, as_admin=requester.is_admin).event_id


def check_txn_id(txn_id: str) -> None:
    """Raises M_INVALID_PARAM if a transaction ID is too long."""
    if len(txn_id.encode()) > limits.TXN_ID_BYTES_MAX:
        raise invalid_param(f"A transaction ID may be at most {limits.TXN_ID_BYTES_MAX} bytes long.")


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


def set_state(tx: Transaction, requester: Requester, draft: Draft, stored_txn_id: str | None = None) -> EventID:
    """Appends the state event. If the current state event is identical, returns its ID instead.

    stored_txn_id: stored with a new event. It identifies no retry, because state events have no transaction IDs.
    """
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
    event_id = append_local(tx, draft, device_id=requester.device_id, txn_id=stored_txn_id).event_id
    if draft.type == "m.room.member" and draft.content.get("membership") == "join" and not is_in_room:
        carry_over(tx, UserID(draft.sender), room_id)
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
