"""Out-of-band memberships: invites to rooms that this server is not in, and knocks on such rooms.

All we know about the room is what the inviter or the room has sent. It stops counting once this server is in the room.
Spec: server-server-api/#inviting-to-a-room, #knocking-rooms, #leaving-rooms-rejecting-invites
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from typing import Any

import orjson

from homeserver import limits
from homeserver.database import Transaction
from homeserver.encoding import to_json
from homeserver.errors import forbidden
from homeserver.feature import JsonObject
from homeserver.federation import canonical_json
from homeserver.federation.event import Event, InvalidEvent, parse_event
from homeserver.federation.identifiers import (
    InvalidIdentifier,
    RoomID,
    ServerName,
    UserID,
    parse_user_id,
    server_name_of,
)
from homeserver.federation.redaction import redact
from homeserver.remote.pending_leaves import delete_leaves
from homeserver.rooms.heads import insert_room
from homeserver.rooms.keys import open_sealed, seal
from homeserver.rooms.membership import find_membership, find_room_membership, is_server_joined, store_membership
from homeserver.rooms.versions import find_room_version
from homeserver.users.blocking import check_pending


def is_outside(tx: Transaction, own: ServerName, room_id: RoomID) -> bool:
    """Returns whether this server is outside the room."""
    return not is_server_joined(tx, room_id, own)


def store_outside(tx: Transaction, event: Event, stripped: list[JsonObject]) -> None:
    """Stores a fully signed invite or knock as the membership of its user, and wakes the user's syncs."""
    assert event.state_key is not None and event.membership is not None
    user_id = UserID(event.state_key)
    insert_room(tx, event.room_id, event.version)
    room_nid = tx.intern(event.room_id)
    replaced = _find_outside(tx, event.room_id, user_id)
    # Earlier rejections by the user must not affect this invite.
    delete_leaves(tx, event.room_id, user_id)
    tx.run(
        "INSERT INTO outside_memberships (room_nid, user_nid, sender_nid, pdu) VALUES (?, ?, ?, ?)"
        " ON CONFLICT (room_nid, user_nid) DO UPDATE SET sender_nid = excluded.sender_nid, pdu = excluded.pdu",
        room_nid,
        tx.intern(user_id),
        tx.intern(event.sender),
        _seal(tx, room_nid, user_id, event.pdu),
    )
    own = _as_told(event)
    if replaced is not None:
        own["unsigned"] = {"prev_content": replaced["content"]}
    others = [each for each in stripped if each["type"] != "m.room.member" or _is_of_inviter(each, event)]
    position = tx.next_position(user_id)
    store_membership(tx, room_nid, user_id, event.membership, position, position, [*others, own])


def _is_of_inviter(stripped: JsonObject, invite: Event) -> bool:
    """Returns whether it is the inviter's member event. Others could show words that their user never said."""
    return (
        invite.sender != invite.state_key
        and stripped["state_key"] == stripped["sender"] == invite.sender
        and stripped["content"].get("membership") == "join"
    )


def check_room_for_invite(tx: Transaction, invite: Event, stripped: list[JsonObject]) -> None:
    """Raises MatrixError 403 if the invited user has too many pending invites, in all or from the inviter's server."""
    user_id = UserID(invite.state_key or "")
    if find_membership(tx, invite.room_id, user_id) == "invite":
        return  # it replaces an existing invite
    check_pending(tx, user_id, len(to_json(stripped)))
    nids = tx.values("SELECT sender_nid FROM outside_memberships WHERE user_nid = ?", tx.find(user_id))
    names, origin = tx.names(nids), server_name_of(invite.sender)
    if sum(server_name_of(names[nid]) == origin for nid in nids) >= limits.peers.INVITES_PENDING_PER_SERVER_MAX:
        raise forbidden(f"{user_id} has too many pending invites from {origin}. They can accept or reject some.")


def store_outside_leave(
    tx: Transaction,
    own: ServerName,
    room_id: RoomID,
    user_id: UserID,
    event: Event | None = None,
    content: Mapping[str, Any] | None = None,
) -> None:
    """Ends an invite or knock. For its user this looks as if they had left the room.

    `event` is the member event that ends it. If no server of the room gave us one, the user gets an event with
    `content` that this server makes up: a client that knows only the invite needs an event to see who has left.
    """
    if not is_outside(tx, own, room_id) or find_membership(tx, room_id, user_id) not in ("invite", "knock"):
        return
    room_nid = tx.intern(room_id)
    tx.run("DELETE FROM outside_memberships WHERE room_nid = ? AND user_nid = ?", room_nid, tx.find(user_id))
    position = tx.next_position(user_id)
    told = _rejection(tx, user_id, content or {}) if event is None else _as_told(event)
    store_membership(tx, room_nid, user_id, "leave", position, position, [told])


def _rejection(tx: Transaction, user_id: UserID, content: Mapping[str, Any]) -> JsonObject:
    """Returns a member event for a user who left a room that this server is not in. No other server knows it."""
    return {
        "type": "m.room.member",
        "sender": user_id,
        "state_key": user_id,
        "content": {**content, "membership": "leave"},
        "event_id": f"${secrets.token_urlsafe(32)}",
        "origin_server_ts": tx.now_ms,
    }


def _as_told(event: Event) -> JsonObject:
    """Returns a state event in the form of a sync."""
    return {
        "type": event.type,
        "sender": event.sender,
        "state_key": event.state_key,
        "content": event.content,
        "event_id": event.event_id,
        "origin_server_ts": event.origin_server_ts,
    }


def forget_outside(tx: Transaction, room_id: RoomID) -> None:
    """Deletes the room's out-of-band memberships. This server is in the room now, so they no longer count."""
    tx.run("DELETE FROM outside_memberships WHERE room_nid = ?", tx.find(room_id))
    delete_leaves(tx, room_id)


def receive_outside(tx: Transaction, own: ServerName, event: Event) -> str:
    """Processes an event, checked as far as possible, of a room that this server is not in. Returns "" or the problem.

    Only events that withdraw an invite or refuse a knock of our users have an effect. An invite can be withdrawn by the
    inviter's server. The event must cite what it ends, because it may arrive after another invite or knock.
    """
    user_id = event.state_key
    if event.membership not in ("leave", "ban") or user_id is None:
        return "This server is not in that room."
    membership = find_room_membership(tx, event.room_id, user_id)
    if membership is None or membership.membership not in ("invite", "knock"):
        return "This server is not in that room."
    inviter = _find_server_of_inviter(tx, event.room_id, user_id)
    if membership.membership == "invite" and server_name_of(event.sender) != inviter:
        return "Only the inviter's server can withdraw an invite."
    held = _find_outside(tx, event.room_id, user_id)
    if held is not None and not _names(event, held):
        return "The event does not cite the current invite or knock."
    store_outside_leave(tx, own, event.room_id, UserID(user_id), event)
    return ""


def _names(event: Event, held: JsonObject) -> bool:
    """Returns whether the event cites this invite or knock as an auth event."""
    try:
        return parse_event(held, event.version).event_id in event.auth_events
    except InvalidEvent:  # it came with another room version: an inviter's word on the version is hearsay
        return False


def _find_outside(tx: Transaction, room_id: RoomID, user_id: str) -> JsonObject | None:
    """Returns the PDU of a user's invite or knock, or None. The room version may have been different then."""
    row = tx.one(
        "SELECT room_nid, pdu FROM outside_memberships WHERE room_nid = ? AND user_nid = ?",
        tx.find(room_id),
        tx.find(user_id),
    )
    pdu = None if row is None else open_pdu(tx, row[0], user_id, bytes(row[1]))
    return None if pdu is None else orjson.loads(pdu)


def open_pdu(tx: Transaction, room_nid: int, user_id: str, sealed: bytes) -> bytes | None:
    """Returns the PDU of a row as JSON; None if the room's key is forgotten. Raises DatabaseDamaged."""
    return open_sealed(tx, room_nid, _place(user_id), sealed)


def _seal(tx: Transaction, room_nid: int, user_id: str, pdu: JsonObject) -> bytes:
    return seal(tx, room_nid, _place(user_id), canonical_json.encode(pdu, strict=False))


def _place(user_id: str) -> bytes:
    return b"outside membership of " + user_id.encode()


def forget_outside_contents(tx: Transaction, room_id: RoomID) -> None:
    """Removes from invites and knocks what a redaction removes, because the contents of the room are forgotten."""
    room_nid = tx.find(room_id)
    version = find_room_version(tx, room_id)
    for (user_nid,) in tx.all("SELECT user_nid FROM outside_memberships WHERE room_nid = ?", room_nid):
        user_id = tx.name(user_nid)
        pdu = _find_outside(tx, room_id, user_id)
        if pdu is not None and room_nid is not None and version is not None:
            tx.run(
                "UPDATE outside_memberships SET pdu = ? WHERE room_nid = ? AND user_nid = ?",
                _seal(tx, room_nid, user_id, redact(pdu, version)), room_nid, user_nid,
            )  # fmt: skip


def _find_server_of_inviter(tx: Transaction, room_id: RoomID, user_id: str) -> ServerName | None:
    row = tx.one(
        "SELECT sender_nid FROM outside_memberships WHERE room_nid = ? AND user_nid = ?",
        tx.find(room_id),
        tx.find(user_id),
    )
    return None if row is None else server_name_of(tx.name(row[0]))


def list_outside_servers(tx: Transaction, room_id: RoomID, user_id: UserID) -> list[ServerName]:
    """Returns the servers through which the user was invited or has knocked."""
    found = [_find_server_of_inviter(tx, room_id, user_id)]
    membership = find_room_membership(tx, room_id, user_id)
    for event in (membership.stripped or ()) if membership is not None else ():
        try:
            found.append(server_name_of(parse_user_id(event.get("sender"))))
        except InvalidIdentifier:
            continue
    return list(dict.fromkeys(server for server in found if server is not None))


def read_stripped(events: object) -> list[JsonObject]:
    """Returns stripped state from a peer's whole PDUs or stripped events. Leaves out malformed and excess events."""
    found: list[JsonObject] = []
    size_bytes = 0
    for event in (events if isinstance(events, list) else ())[: limits.peers.STRIPPED_EVENTS_MAX]:
        if not isinstance(event, dict):
            continue
        event_type, state_key, content = event.get("type"), event.get("state_key"), event.get("content")
        if not isinstance(event_type, str) or not isinstance(state_key, str) or not isinstance(content, dict):
            continue
        try:
            sender = parse_user_id(event.get("sender"))
        except InvalidIdentifier:
            continue
        stripped = {"type": event_type, "sender": sender, "state_key": state_key, "content": content}
        cost = len(to_json(stripped))
        if size_bytes + cost <= limits.peers.STRIPPED_BYTES_MAX:
            size_bytes += cost
            found.append(stripped)
    return found
