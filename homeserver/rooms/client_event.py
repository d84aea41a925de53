"""Events in the format for clients. Spec: client-server-api/#room-event-format"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import orjson

from homeserver.database import Transaction
from homeserver.federation.identifiers import RoomID
from homeserver.rooms.envelope import unpack
from homeserver.rooms.heads import state_position
from homeserver.rooms.storage import PlacedEvent, Status, StoredEvent, TimelineEvent, list_stored
from homeserver.rooms.transaction_ids import own_fields
from homeserver.rooms.versions import get_room_version
from homeserver.rooms.visibility import Memberships, filter_visible


def client_events(
    tx: Transaction, events: Sequence[StoredEvent], *, user_id: str, device_id: str = "", with_room_id: bool = True
) -> list[dict[str, Any]]:
    """Returns the events as a user's device gets them, in order.

    `unsigned` has: age (ms), the user's membership at the event, `own_fields` for the sender, replaces_state for state
    events (with prev_content if the user may see it), redacted_because and redacted_by for redacted events.
    """
    replaced = list_replaced(tx, events)
    shown = list_visible(tx, user_id, replaced.values()) if replaced else {}
    redactions = list_stored(tx, {event.redacted_by for event in events if event.redacted_by is not None})
    memberships = Memberships(tx, user_id)
    now_ms = tx.now_ms
    answer: list[dict[str, Any]] = []
    for event in events:
        unsigned: dict[str, Any] = {"age": now_ms - event.origin_server_ts}
        if event.state_before is not None:
            is_own = event.state_key == user_id and event.type == "m.room.member"
            unsigned["membership"] = event.content.get("membership") if is_own else memberships.at(event.state_before)
        if event.txn_id is not None and event.sender == user_id:
            unsigned |= own_fields(event, device_id)
        before = replaced.get(event.position)
        if before is not None:
            unsigned["replaces_state"] = before.event_id
            if before.position in shown:
                unsigned["prev_content"] = orjson.Fragment(shown[before.position].content_json)
                unsigned["prev_sender"] = before.sender
        redaction = redactions.get(event.redacted_by) if event.redacted_by is not None else None
        if redaction is not None:
            unsigned["redacted_by"] = redaction.event_id  # from before v1.1 of the spec, and still read by clients
            unsigned["redacted_because"] = client_event(tx, redaction, {"age": now_ms - redaction.origin_server_ts})
        answer.append(client_event(tx, event, unsigned, with_room_id=with_room_id))
    return answer


def list_visible(tx: Transaction, user_id: str, events: Collection[StoredEvent]) -> dict[int, StoredEvent]:
    """Returns the visible events by position. Those that were never in a timeline count as state.

    The events belong to one room, or to a few.
    """
    by_room: dict[RoomID, list[StoredEvent]] = {}
    for event in events:
        by_room.setdefault(event.room_id, []).append(event)
    return {
        event.position: event
        for room_id, of_room in by_room.items()
        for event in (
            *filter_visible(tx, user_id, room_id, [each for each in of_room if isinstance(each, TimelineEvent)]),
            *(each for each in of_room if each.status == Status.OUTLIER),
        )
    }


def client_event(
    tx: Transaction, event: StoredEvent, unsigned: dict[str, Any] | None = None, *, with_room_id: bool = True
) -> dict[str, Any]:
    """Returns one event with the given `unsigned`. Its content is encoded JSON: a Fragment, which only orjson takes."""
    answer: dict[str, Any] = {
        "type": event.type,
        "sender": event.sender,
        "content": orjson.Fragment(event.content_json),
        "event_id": event.event_id,
        "origin_server_ts": event.origin_server_ts,
        "unsigned": {} if unsigned is None else unsigned,
    }
    if event.state_key is not None:
        answer["state_key"] = event.state_key
    if with_room_id:
        answer["room_id"] = event.room_id
    if event.type == "m.room.redaction":
        answer |= _redacts(tx, event)
    return answer


def _redacts(tx: Transaction, event: StoredEvent) -> dict[str, Any]:
    """Returns `redacts` for a redaction in both places, whatever the room version: clients look in one of them.

    The value in the place that does not count in this version is only the sender's claim, and was not checked.
    """
    redacts, content = find_redacts(tx, event), event.content
    if redacts is not None:
        return {"redacts": redacts, "content": {**content, "redacts": redacts}}
    return {"content": {key: value for key, value in content.items() if key != "redacts"}}


def find_redacts(tx: Transaction, event: StoredEvent) -> str | None:
    """Returns the event ID that a redaction names, where its room version has it; None if it names none."""
    in_content = get_room_version(tx, event.room_id).redacts_in_content
    redacts = (event.content if in_content else unpack(event.envelope).rest).get("redacts")
    return redacts if isinstance(redacts, str) else None


def stripped_event(event: StoredEvent) -> dict[str, Any]:
    """Returns the event as stripped state. Spec: client-server-api/#stripped-state"""
    return {
        "type": event.type,
        "sender": event.sender,
        "state_key": event.state_key or "",
        "content": event.content,
    }


def own_member_event(tx: Transaction, event: StoredEvent) -> dict[str, Any]:
    """Returns an invite or knock as its user gets it: in full, so that it shows who invites, and when. Spec: MSC4319

    `unsigned` has the content of the member event that it replaced, for example of a knock that led to an invite.
    """
    told: dict[str, Any] = {
        **stripped_event(event),
        "event_id": event.event_id,
        "origin_server_ts": event.origin_server_ts,
    }
    before = list_replaced(tx, [event]).get(event.position)
    if before is not None:
        told["unsigned"] = {"prev_content": before.content}
    return told


def list_replaced(tx: Transaction, events: Sequence[StoredEvent]) -> dict[int, StoredEvent]:
    """Returns, by the position of a state event, the event that it replaced."""
    positions: dict[int, int] = {}
    for event in events:
        if event.state_key is not None and isinstance(event, PlacedEvent):
            before = state_position(tx, event.state_before, event.type, event.state_key)
            if before is not None and before != event.position:
                positions[event.position] = before
    stored = list_stored(tx, set(positions.values()))
    return {position: stored[before] for position, before in positions.items() if before in stored}
