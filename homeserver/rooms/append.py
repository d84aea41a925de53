"""Appending this server's own events: one synchronous function in one transaction, from the draft to the new head.

`append_local` reads the head, builds, hashes, signs, checks and inserts; nothing can come between. `place` moves the head
for any event, ours or a peer's (`rooms/receive.py`). Spec: server-server-api/#signing-events, rooms/v12/#authorization-rules
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from federation.auth_events import select_auth_keys
from federation.auth_rules import check, may_apply_redaction
from federation.build import Draft, Reference, build_event, build_proto_event, reference_to
from federation.event import PREV_EVENTS_MAX, Event, InvalidEvent, trusted_event
from federation.identifiers import EventID, UserID
from federation.redaction import redact
from federation.room_versions import RoomVersion
from homeserver.database import Transaction
from homeserver.errors import MatrixError, forbidden
from homeserver.resources import Resources
from homeserver.rooms import state_tree
from homeserver.rooms.client_event import stripped_event
from homeserver.rooms.heads import (
    Head,
    StateKey,
    find_head,
    get_head,
    insert_room,
    replace_head,
    set_create_position,
    state_events,
    state_position,
)
from homeserver.rooms.membership import delete_membership, store_membership
from homeserver.rooms.storage import (
    ORDERING_SHIFT,
    Status,
    event_ids_at,
    find_position,
    get_event,
    insert_event,
    list_stored,
    load_events,
    replace_content,
)

# What an invited user is told of the room. Spec: client-server-api/#stripped-state
STRIPPED_KEYS: tuple[StateKey, ...] = tuple(
    (event_type, "")
    for event_type in (
        "m.room.create",
        "m.room.name",
        "m.room.avatar",
        "m.room.topic",
        "m.room.join_rules",
        "m.room.canonical_alias",
        "m.room.encryption",
    )
)


def append_create(tx: Transaction, hs: Resources, draft: Draft, version: RoomVersion) -> Event:
    """The room's m.room.create event, appended. The draft names no room where the version makes the id of the event."""
    event = _build(hs, draft, version, prev_events=(), auth_events=(), depth=1, now_ms=tx.now_ms)
    rejection = check(event, {})
    if rejection is not None:
        raise forbidden(rejection.reason)
    insert_room(tx, event.room_id, version)
    head = find_head(tx, event.room_id)
    assert head is not None
    position = tx.next_position(event.room_id)
    insert_event(
        tx,
        event,
        position,
        Status.TIMELINE,
        known={},
        ordering=position << ORDERING_SHIFT,
        state_before=state_tree.EMPTY_ROOT,
    )
    set_create_position(tx, head.room_nid, position)
    _move_head(tx, head, event, position)
    return event


def append_local(
    tx: Transaction, hs: Resources, draft: Draft, *, device_id: str | None = None, txn_id: str | None = None
) -> Event:
    """Gives `draft` its place at the end of its room. MatrixError: 404 no such room, 403 not allowed, 413 too large.

    With `device_id` and `txn_id`, what was sent under them before is answered instead of sent again: look with
    `rooms.storage.find_txn` first.
    """
    place = _find_place(tx, draft)
    head = place.head
    event = _build_at(tx, hs, draft, place)
    target = _check_redaction(tx, head, event, place.auth_state)
    position = tx.next_position(event.room_id)
    known = dict(zip(event.prev_events, place.prev_positions, strict=True))
    for key, auth_event in place.auth_events.items():
        auth_position = state_position(tx, head.state_root, *key)
        assert auth_position is not None
        known[auth_event.event_id] = auth_position
    insert_event(
        tx,
        event,
        position,
        Status.TIMELINE,
        known=known,
        ordering=position << ORDERING_SHIFT,
        state_before=head.state_root,
        device_id=device_id if txn_id is not None else None,
        txn_id=txn_id,
    )
    _move_head(tx, head, event, position)
    if target is not None:
        redact_stored(tx, target, position)
    return event


@dataclass(frozen=True, slots=True)
class _Place:
    """Where an event would follow: on which events, and by which part of the state. `auth_events` in their order."""

    head: Head
    prev_positions: tuple[int, ...]
    prev_events: list[Reference]
    auth_state: Mapping[StateKey, Event]
    auth_events: Mapping[StateKey, Event]


def _find_place(tx: Transaction, draft: Draft) -> _Place:
    assert draft.room_id is not None
    head = get_head(tx, draft.room_id)
    if not head.extremities:
        raise forbidden("You are not in that room.")
    keys = select_auth_keys(draft.type, draft.sender, draft.state_key, draft.content, head.version)
    auth_state = state_events(tx, head.state_root, {*keys, ("m.room.create", "")})
    prev_positions = head.extremities[-PREV_EVENTS_MAX:]
    return _Place(
        head,
        prev_positions,
        _references(tx, head.version, prev_positions),
        auth_state,
        {key: auth_state[key] for key in keys if key in auth_state},
    )


def _build_at(tx: Transaction, hs: Resources, draft: Draft, place: _Place) -> Event:
    """The event, signed. MatrixError 403 where it is not allowed."""
    event = _build(
        hs,
        draft,
        place.head.version,
        prev_events=place.prev_events,
        auth_events=list(place.auth_events.values()),
        depth=place.head.depth + 1,
        now_ms=tx.now_ms,
    )
    rejection = check(event, place.auth_state)
    if rejection is not None:
        raise forbidden(rejection.reason)
    return event


def build_unplaced(tx: Transaction, hs: Resources, draft: Draft) -> Event:
    """The event that `append_local` would append, without appending it: another server has to sign it first."""
    return _build_at(tx, hs, draft, _find_place(tx, draft))


def build_template(tx: Transaction, draft: Draft) -> tuple[RoomVersion, dict[str, Any]]:
    """An event as it would follow, unsigned, for a server that is not in the room. MatrixError 403 if it is not allowed."""
    place = _find_place(tx, draft)
    version = place.head.version
    pdu = build_proto_event(
        draft,
        version,
        prev_events=place.prev_events,
        auth_events=list(place.auth_events.values()),
        depth=place.head.depth + 1,
    )
    rejection = check(trusted_event(pdu, version, EventID("$template")), place.auth_state)
    if rejection is not None:
        raise forbidden(rejection.reason)
    return version, pdu


def _build(
    hs: Resources,
    draft: Draft,
    version: RoomVersion,
    *,
    prev_events: Sequence[Reference],
    auth_events: Sequence[Event],
    depth: int,
    now_ms: int,
) -> Event:
    stamped = Draft(
        draft.room_id,
        draft.sender,
        draft.type,
        draft.content,
        draft.state_key,
        draft.redacts,
        draft.origin_server_ts or now_ms,
    )
    try:
        return build_event(
            stamped,
            version,
            prev_events=prev_events,
            auth_events=auth_events,
            depth=depth,
            server_name=hs.server_name,
            key=hs.signing_key,
            event_id_opaque="" if version.event_id_is_reference_hash else secrets.token_urlsafe(18),
        )
    except InvalidEvent as error:
        too_large = "larger than" in str(error)
        raise MatrixError(413 if too_large else 400, "M_TOO_LARGE" if too_large else "M_BAD_JSON", str(error)) from None


def _references(tx: Transaction, version: RoomVersion, positions: Sequence[int]) -> list[Reference]:
    if version.references_with_hashes:
        events = load_events(tx, positions)
        return [reference_to(events[position]) for position in positions]
    event_ids = event_ids_at(tx, positions)
    return [(event_ids[position], None) for position in positions]


def _check_redaction(
    tx: Transaction, head: Head, event: Event, auth_state: Mapping[StateKey, Event]
) -> Event | None:
    """The event that our redaction will redact. MatrixError 403 where the sender may not."""
    if event.redacts is None:
        return None
    target = get_event(tx, event.redacts)
    if target is None or target.room_id != event.room_id:
        return None
    if not may_apply_redaction(event, target, auth_state):
        raise forbidden("You may not redact that event.")
    return target


def redact_stored(tx: Transaction, target: Event, redaction_position: int) -> None:
    """Forgets what the redaction takes from a stored event."""
    position = find_position(tx, target.event_id)
    assert position is not None
    redacted = trusted_event(redact(target.pdu, target.version), target.version, target.event_id)
    replace_content(tx, position, redacted, redaction_position)


def _move_head(tx: Transaction, head: Head, event: Event, position: int) -> None:
    """The head after an event that follows on all extremities."""
    root = head.state_root
    if event.state_key is not None:
        root = state_tree.apply(tx, root, {(tx.intern(event.type), tx.intern(event.state_key)): position})
    replace_head(
        tx, head.room_nid, state_root=root, extremities=(position,), depth=event.depth, last_position=position
    )
    if event.type == "m.room.member":
        update_memberships(tx, head.room_nid, head.state_root, root, position)


def update_memberships(tx: Transaction, room_nid: int, old_root: bytes, new_root: bytes, position: int) -> None:
    """Makes the current memberships those of the new state, which holds from `position` on."""
    member_nid = tx.intern("m.room.member")
    changes = {
        key: new for key, (_, new) in state_tree.changed(tx, old_root, new_root).items() if key[0] == member_nid
    }
    stored = list_stored(tx, {new for new in changes.values() if new is not None})
    for key, event_position in changes.items():
        user_id = UserID(tx.name(key[1]))
        if event_position is None:
            delete_membership(tx, room_nid, user_id, position)
            continue
        membership = stored[event_position].content.get("membership")
        stripped = None
        if membership in ("invite", "knock"):
            stripped = stripped_state(tx, new_root, user_id)
        if isinstance(membership, str):
            store_membership(tx, room_nid, user_id, membership, event_position, position, stripped)


def stripped_state(tx: Transaction, root: bytes, user_id: UserID) -> list[dict[str, Any]]:
    """What a state tells an invited or knocking user, their own member event last."""
    positions = [state_position(tx, root, *key) for key in (*STRIPPED_KEYS, ("m.room.member", user_id))]
    found = [position for position in positions if position is not None]
    stored = list_stored(tx, found)
    return [stripped_event(stored[position]) for position in found]
