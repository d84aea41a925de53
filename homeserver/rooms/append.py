"""Appending this server's own events: one synchronous function in one transaction, from the draft to the new head.

`append_local` reads the head, builds, hashes, signs, checks and inserts; nothing can come between. `rooms/receive.py`
does the like for events of peers. Spec: server-server-api/#signing-events, rooms/v12/#authorization-rules
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from homeserver.database import Transaction
from homeserver.database.server_identity import ServerIdentity
from homeserver.errors import MatrixError, forbidden
from homeserver.federation.auth_events import select_auth_keys
from homeserver.federation.auth_rules import check
from homeserver.federation.build import Draft, Reference, build_event, build_proto_event, reference_to
from homeserver.federation.event import PREV_EVENTS_MAX, Event, InvalidEvent, trusted_event
from homeserver.federation.identifiers import EventID, fits, server_name_of
from homeserver.federation.room_versions import RoomVersion
from homeserver.limits import STATE_AHEAD_MS_MAX
from homeserver.rooms import state_tree
from homeserver.rooms.advance import STRIPPED_KEYS as STRIPPED_KEYS
from homeserver.rooms.advance import advance_beside, advance_onto
from homeserver.rooms.heads import (
    Head,
    StateKey,
    find_head,
    get_head,
    insert_room,
    set_create_position,
)
from homeserver.rooms.redactions import apply_redaction, check_may_redact
from homeserver.rooms.resolve import StateAt, positions_in, resolve_states, state_after, store_state
from homeserver.rooms.storage import (
    ORDERING_SHIFT,
    Status,
    find_position,
    insert_event,
    list_stored,
    load_auth_events,
    load_events,
)

AUTH_CACHED_MAX = 5_000


def append_create(tx: Transaction, draft: Draft, version: RoomVersion) -> Event:
    """The room's m.room.create event, appended. The draft names no room where the version makes the id of the event."""
    now_ms = draft.origin_server_ts or tx.now_ms
    event = _build(tx.server, draft, version, prev_events=(), auth_events=(), depth=1, now_ms=now_ms)
    while version.room_id_is_create_event_id and find_position(tx, event.event_id) is not None:
        # Its creator has made another room just like it in this very millisecond.
        now_ms += 1
        stamped = replace(draft, origin_server_ts=now_ms)
        event = _build(tx.server, stamped, version, prev_events=(), auth_events=(), depth=1, now_ms=now_ms)
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
    advance_onto(tx, head, event, position)
    return event


def append_local(
    tx: Transaction,
    draft: Draft,
    *,
    device_id: str | None = None,
    txn_id: str | None = None,
    as_admin: bool = False,
) -> Event:
    """Gives `draft` its place at the end of its room. MatrixError: 404 no such room, 403 not allowed, 413 too large.

    With `device_id` and `txn_id` the event is stored as what was sent under them: look with
    `rooms.storage.find_txn` first. as_admin: see `check_may_redact`.
    """
    place = _find_place(tx, draft)
    head = place.head
    event = _build_at(tx, draft, place)
    check_may_redact(tx, event, place.auth.state, as_admin=as_admin)
    position = tx.next_position(event.room_id)
    known = dict(zip(event.prev_events, place.prev_positions, strict=True))
    for key, auth_event in place.auth.events.items():
        known[auth_event.event_id] = place.auth.positions[key]
    root = store_state(tx, place.before)
    insert_event(
        tx,
        event,
        position,
        Status.TIMELINE,
        known=known,
        ordering=position << ORDERING_SHIFT,
        state_before=root,
        device_id=device_id if txn_id is not None else None,
        txn_id=txn_id,
    )
    if len(place.prev_positions) == len(head.extremities):
        advance_onto(tx, head, event, position)
    else:
        advance_beside(tx, head, event, position, followed=place.prev_positions, is_past=False)
    apply_redaction(tx, event, position, root)
    return event


@dataclass(frozen=True, slots=True)
class _Auth:
    """What the auth rules look at, the auth events among it in their order, and where they stand."""

    state: Mapping[StateKey, Event]
    events: Mapping[StateKey, Event]
    positions: Mapping[StateKey, int]


@dataclass(frozen=True, slots=True)
class _Place:
    """Where an event would follow: on which events, in which state, and by which part of it."""

    head: Head
    before: StateAt
    prev_positions: tuple[int, ...]
    prev_events: list[Reference]
    auth: _Auth


def _find_place(tx: Transaction, draft: Draft) -> _Place:
    assert draft.room_id is not None
    _check_names(tx, draft)
    head = get_head(tx, draft.room_id)
    if not head.extremities:
        raise forbidden("You are not in that room.")
    prev_positions, before = head.extremities, StateAt(head.state_root)
    if len(prev_positions) > PREV_EVENTS_MAX:
        # No event names more. The state before it is that after those that it names; the others stay loose.
        prev_positions = prev_positions[-PREV_EVENTS_MAX:]
        rows = list_stored(tx, prev_positions)
        before = resolve_states(tx, head.version, [state_after(tx, row) for row in rows.values()])
    references = _references(tx, head, prev_positions)
    return _Place(head, before, prev_positions, references, _find_auth(tx, head, before, draft))


def _find_auth(tx: Transaction, head: Head, before: StateAt, draft: Draft) -> _Auth:
    """The auth events. Except for member events they depend on nothing but state and sender, and are cached by them."""
    cache = tx.cache("auth", AUTH_CACHED_MAX)
    known = None if draft.type == "m.room.member" else (before, draft.sender)
    auth: _Auth | None = None if known is None else cache.get(known)
    if auth is None:
        keys = select_auth_keys(draft.type, draft.sender, draft.state_key, draft.content, head.version)
        positions = positions_in(tx, before, {*keys, ("m.room.create", "")})
        events = load_auth_events(tx, positions.values())
        state = {key: events[position] for key, position in positions.items()}
        auth = _Auth(state, {key: state[key] for key in keys if key in state}, positions)
        if known is not None and tx.is_write:  # the state may be of this very write, and be rolled back
            tx.after_commit(cache.put, known, auth)
    return auth


def _check_names(tx: Transaction, draft: Draft) -> None:
    """MatrixError 400 for a type or state key that cannot be stored, 413 for one that is too long."""
    for name in (draft.type, draft.state_key):
        if name is not None and tx.find(name) is None and not fits(name):
            raise MatrixError(413, "M_TOO_LARGE", "The type and the state key of an event have 255 bytes at most.")


def _build_at(tx: Transaction, draft: Draft, place: _Place) -> Event:
    """The event, signed. MatrixError 403 where it is not allowed."""
    event = _build(
        tx.server,
        draft,
        place.head.version,
        prev_events=place.prev_events,
        auth_events=list(place.auth.events.values()),
        depth=place.head.depth + 1,
        now_ms=tx.now_ms if draft.state_key is None else _state_ts(tx, (draft.type, draft.state_key), place.before),
    )
    rejection = check(event, place.auth.state)
    if rejection is not None:
        raise forbidden(rejection.reason)
    return event


def _state_ts(tx: Transaction, key: StateKey, before: StateAt) -> int:
    """When a state event is said to be sent: now, and later than the event of this server that it replaces.

    Of two of the same time state resolution takes the one with the greater event id, which may be the older.
    """
    for replaced in list_stored(tx, positions_in(tx, before, (key,)).values()).values():
        ahead_ms = replaced.origin_server_ts - tx.now_ms
        if 0 <= ahead_ms < STATE_AHEAD_MS_MAX and server_name_of(replaced.sender) == tx.server.name:
            return replaced.origin_server_ts + 1
    return tx.now_ms


def build_unplaced(tx: Transaction, draft: Draft) -> Event:
    """The event that `append_local` would append, without appending it: another server has to sign it first."""
    return _build_at(tx, draft, _find_place(tx, draft))


def build_template(tx: Transaction, draft: Draft) -> tuple[RoomVersion, dict[str, Any]]:
    """An event as it would follow, unsigned, for a server outside of the room. MatrixError 403: it is not allowed."""
    place = _find_place(tx, draft)
    version = place.head.version
    pdu = build_proto_event(
        draft,
        version,
        prev_events=place.prev_events,
        auth_events=list(place.auth.events.values()),
        depth=place.head.depth + 1,
    )
    rejection = check(trusted_event(pdu, version, EventID("$template")), place.auth.state)
    if rejection is not None:
        raise forbidden(rejection.reason)
    return version, pdu


def _build(
    server: ServerIdentity,
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
            server_name=server.name,
            key=server.signing_key,
            event_id_opaque="" if version.event_id_is_reference_hash else secrets.token_urlsafe(18),
        )
    except InvalidEvent as error:
        too_large = "larger than" in str(error)
        raise MatrixError(413 if too_large else 400, "M_TOO_LARGE" if too_large else "M_BAD_JSON", str(error)) from None


def _references(tx: Transaction, head: Head, positions: Sequence[int]) -> list[Reference]:
    if head.version.references_with_hashes:
        events = load_events(tx, positions)
        return [reference_to(events[position]) for position in positions]
    return [(event_id, None) for event_id in head.extremity_ids[-len(positions) :]]
